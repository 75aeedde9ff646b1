"""Experiments: jaxrnn at work, one folder each, run by ``python -m experiments run CONFIG``.

__main__.py   the command line           training.py  the jitted training loop
config.py     TOML files and --set       report.py    the run directory: table, metrics, figure
digits/       the experiment itself: data, model, README with the command and the result
benchmarks/   jaxrnn beside other libraries, with a command line of its own: python -m experiments.benchmarks
"""

from typing import NamedTuple


class Experiment(NamedTuple):
    """An entry of the list that ``python -m experiments list`` prints.

    ``module`` holds ``Config``, a ``config.Table``, and ``run(config, out) -> Path`` of the run directory.
    """

    summary: str
    config: str  # the file to run it with, from the root of the repository
    takes: str
    module: str


EXPERIMENTS = {
    "digits": Experiment(
        summary="handwritten digits read pixel by pixel, T = 64; every cell against the others",
        config="configs/digits.toml",
        takes="about 4 minutes on 2 CPU cores",
        module="experiments.digits",
    ),
}
