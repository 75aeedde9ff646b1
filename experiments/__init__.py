"""Experiments: jaxrnn at work, one folder each, run by ``python -m experiments run CONFIG``.

__main__.py   the command line           study.py     what an experiment that trains consists of, and its run
config.py     TOML files and --set       training.py  the members of one model, trained in one program
report.py     the run directory          sweep.py     grids of settings and seeds, the best first
models.py     recurrences by name, and what reads their final state
digits/ …     an experiment itself: data, model, README with the command and the result
benchmarks/   jaxrnn beside other libraries, with a command line of its own: python -m experiments.benchmarks
"""

from typing import NamedTuple


class Experiment(NamedTuple):
    """An entry of the list that ``python -m experiments list`` prints.

    ``module`` holds ``Config``, and ``STUDY``, a ``study.Study``; or, where nothing is trained, a ``config.Table`` and
    ``run(config, directory)``.
    """

    summary: str
    config: str  # the file to run it with, from the root of the repository
    takes: str
    module: str


EXPERIMENTS = {
    "gradient_flow": Experiment(
        summary="how far back the gradient of the last step reaches: every cell at several gains, untrained",
        config="configs/gradient_flow.toml",
        takes="about 1 minute on 2 CPU cores",
        module="experiments.gradient_flow",
    ),
    "digits": Experiment(
        summary="handwritten digits read pixel by pixel, T = 64; every cell against the others",
        config="configs/digits.toml",
        takes="about 4 minutes on 2 CPU cores",
        module="experiments.digits",
    ),
    "adding": Experiment(
        summary="the sum of two marked numbers among T = 150; gradients over long lags",
        config="configs/adding.toml",
        takes="about 3 minutes on 2 CPU cores",
        module="experiments.adding",
    ),
    "copy_memory": Experiment(
        summary="ten symbols to keep over a wait of T = 30 steps; gates, and how they start",
        config="configs/copy_memory.toml",
        takes="about 4 minutes on 2 CPU cores",
        module="experiments.copy_memory",
    ),
    "flip_flop": Experiment(
        summary="three bits to hold until the next pulse; each memory is a stable fixed point",
        config="configs/flip_flop.toml",
        takes="about 2 minutes on 2 CPU cores",
        module="experiments.flip_flop",
    ),
    "clipping": Experiment(
        summary="exploding gradients: the same SGD without clipping, and with it, four ways",
        config="configs/clipping.toml",
        takes="about 2 minutes on 2 CPU cores",
        module="experiments.clipping",
    ),
}
