"""What an experiment that trains consists of, and how it is run: all its models, then what they say together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxrnn as jr
from experiments.reports.samples import Sample
from experiments.runner import report, terminal, training
from experiments.runner.config import Train, flat


class Conclusion(NamedTuple):
    """What the trained models say together."""

    results: Sequence[report.Result]  # with what was measured once training was over
    notes: Sequence[str]
    figures: Mapping[str, Figure]  # by file name
    more: Mapping[str, Any]  # for summary.json
    samples: Sequence[Sample] = ()  # what the models do with some examples, for the report


class Predictor(NamedTuple):
    """How a trained model is asked."""

    examples: Callable[[], tuple[Any, Any]]  # -> what is read, (T, N, …), and the truth, (N, …): held-out examples
    answer: Callable[[Any, Any], Any]  # (params, inputs (T, N, …)) -> (N, …), jitted by the caller
    say: Callable[[np.ndarray, np.ndarray | None], str]  # (answer, truth) of one example, truth if known -> in words
    # Where each step has an answer of its own: a Cell of the same params, to be asked step by step, and what it reads.
    cell: jr.Cell | None = None
    encode: Callable[[jax.Array], jax.Array] = lambda x: x  # a step of the inputs -> what the cell reads
    tokens: int | None = None  # how many there are, where the inputs are integers
    # (params, key, steps, file) -> lines: what the model goes on with by itself, written to the file
    compose: Callable[[Any, jax.Array, int, Path], Iterable[str]] | None = None
    # Where inputs can be written as texts: some of them -> (T, N); ConfigError says which of them it cannot read.
    read: Callable[[Sequence[str]], np.ndarray] | None = None


class Study(NamedTuple):
    """An experiment that trains; ``config`` is its Config, ``model`` one of the names that ``models`` gives."""

    models: Callable[[Any], Sequence[str]]  # config -> what is trained, one after the other
    task: Callable[[Any, Any], training.Task]  # (config, model)
    settings: Callable[[Any, Any], Train]  # (config, model) -> [train] with what this model wants otherwise
    columns: Callable[[Any], Sequence[report.Column]]  # config -> what the table shows, the first also while it runs
    conclude: Callable[[Any, Mapping[str, training.Fit]], Conclusion]  # (config, fits by model)
    predictor: Callable[[Any, Any], Predictor]  # (config, model)


def run(study: Study, config: Any, directory: Path) -> None:
    """Train every model, then conclude; a run that was stopped in this directory is resumed."""
    columns = study.columns(config)
    fits = {}
    with terminal.Display(config.train.steps, columns[0], block=config.train.block) as display:
        for name in study.models(config):
            task = study.task(config, name)
            settings = study.settings(config, name)
            display.start(name, task.lower if task.score == columns[0].name else None, settings.steps)
            fits[name] = training.fit(
                name,
                task,
                settings,
                mesh=config.mesh,
                directory=directory,
                on_block=functools.partial(display.update, name),
                made_by=made_by(config),
            )
            display.finish(fits[name].result)
    if jax.process_index() == 0:
        results, notes, figures, more, samples = study.conclude(config, fits)
        report.write(directory, results, columns, notes, figures, samples=samples, **more)
        terminal.show(results, columns, notes, directory)


def made_by(config: Any) -> dict[str, Any]:
    """What makes the numbers: the whole config but for ``[mesh]``, by dotted key."""
    return flat(config.model_dump(mode="json", exclude={"mesh"}))


def own_rate(config: Any, model: str) -> Train:
    """``[train]`` with the learning rate that ``model.learning_rates`` has for the model."""
    rates: Mapping[str, float] = config.model.learning_rates
    return config.train.model_copy(update={"learning_rate": rates[model]}) if model in rates else config.train
