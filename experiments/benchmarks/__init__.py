"""Benchmarks: jaxrnn beside the other libraries, in one process: ``python -m experiments.benchmarks``.

__main__.py      the command line         problems.py   cells, shapes and their data
contestants.py   who takes part           programs.py   from a model to a compiled program on one device or several
ours.py          jaxrnn, the floor        suites.py     the groups of rows, and how a group is measured
peers.py         the JAX libraries        timing.py     interleaved rounds
pytorch.py       torch                    targets.py    ratios against the targets
                                          report.py     table, JSON lines, Markdown, figure

Plan "auto" beside plan "plain" alone, over more shapes and cells: ``python -m experiments.benchmarks.auto``.

auto.py          the command line         pairs.py      what is compared, and how one pair is measured
pairs_report.py  table, JSON lines, Markdown

Runs in parallel over time beside scans: ``python -m experiments.benchmarks.parallel``.

parallel.py      the command line         over_time.py  what is compared, and the rows of a case
over_time_report.py  targets, tables, where curves cross, figure
"""
