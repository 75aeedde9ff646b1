"""Benchmarks: jaxrnn beside the other libraries, in one process: ``python -m experiments.benchmarks``.

__main__.py      the command line         problems.py      cells, shapes and their data
contestants.py   who takes part           programs.py      from a model to a compiled program, on one device or several
ours.py          jaxrnn, the floor        suites.py        the groups of rows; closed_loop.py, online_steps.py: others
peers.py         the JAX libraries        every_suite.py   the suites by name, one after the other
pytorch.py       torch                    measuring.py     how a group is measured; timing.py: interleaved rounds
                                          targets.py       ratios against the targets
                                          report.py        table, JSON lines, Markdown, figure

To add a suite: a function from Settings to Groups in a module of its own (``closed_loop.py`` is one), its name in
``every_suite.SUITES``, its table in ``report.tables`` and, where it has targets, a function among ``targets.verdicts``.
The command, its options and the files of a run then know it.

Commands apart, which share options and manners with the first (``command.py``):

python -m experiments.benchmarks.auto       plan "auto" beside plan "plain", over more shapes and cells
    auto.py, pairs.py (what is compared, and how), pairs_report.py (tables, JSON lines, Markdown)
python -m experiments.benchmarks.parallel   runs in parallel over time beside scans
    parallel.py, over_time.py (what is compared, the rows of a case), over_time_report.py (targets, tables, figure)
python -m experiments.benchmarks.online     a step of learning online, and memory over a long stream
    online.py, online_steps.py (the cases, which are a suite too)
python -m experiments.benchmarks.floor      what the time of a forward run on one CPU device consists of
    floor.py
"""
