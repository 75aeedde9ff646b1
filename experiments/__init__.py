"""Experiments: jaxrnn at work, a folder each, run by ``python -m experiments run CONFIG``.

adding/ … gradient_flow/   an experiment each: data, model, what is measured
runner/                    what they share: the command line, configs, training, sweeps, reports
reports/                   a run as a page: python -m experiments report RUN
data/                      sequences from a file, three splits, batches by length
benchmarks/                jaxrnn beside other libraries: python -m experiments.benchmarks
gpu/                       is a GPU right, and how fast: python -m experiments.gpu
parity/                    the same numbers as other libraries: python -m experiments.parity
markdown.py                tables, and what commands write into pages
learners.py                rules of learning online side by side: what they keep and cost, which rate suits them
measured.py                a measure of several seeds as text: mean, interval, differences
fixed_points.py            where the state of a trained network rests, searched from its runs
agreement.py               how wrong rules of learning online are: python -m experiments.agreement
literature.py              our figures beside those of papers: python -m experiments.literature
environment.py             the machine and the versions that figures come from
exits.py                   the exit status of a command for what is wrong with its files

To add an experiment, add two things; ``python -m experiments list`` then shows it, and every command works for it:

1. A folder here. The docstring of its ``__init__.py`` says on the first line what is learned or measured, and on the
   third how long it takes. The module holds ``Config``, a ``runner.config.Trained`` whose field ``experiment`` is
   ``Literal["the folder's name"]``, and ``STUDY``, a ``runner.study.Study``: models, task, columns, conclusion. Where
   nothing is trained, or not by batches as a Study does it, ``Config`` is a ``runner.config.Table``, and
   ``run(config, directory)`` takes the place of ``STUDY``. ``adding`` is the shortest to start from.
2. ``configs/NAME.toml``: ``experiment = "NAME"``, and whatever is to differ from the defaults.

An experiment of a user's own, outside this folder, has both in a folder of its own; ``python -m experiments new NAME``
writes one (``runner/mytask`` is what it copies).
"""

import ast
from pathlib import Path
from typing import NamedTuple


class Experiment(NamedTuple):
    """What ``python -m experiments list`` prints, and where the experiment is."""

    summary: str
    takes: str
    config: str  # the file to run it with, from the root of the repository
    module: str


def _described(folder: Path) -> Experiment:
    """Read, not imported: the list needs none of the packages that the experiments need."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    summary, _, takes = text.partition("\n\n")
    name = folder.name
    return Experiment(summary.rstrip("."), takes.rstrip("."), f"configs/{name}.toml", f"{__name__}.{name}")


_APART = ("benchmarks", "data", "gpu", "parity", "reports", "runner")
EXPERIMENTS = {
    file.parent.name: _described(file.parent)
    for file in sorted(Path(__file__).parent.glob("*/__init__.py"))
    if file.parent.name not in _APART
}
