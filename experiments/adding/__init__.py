"""The adding problem: the sum of two marked numbers among T = 150, read from the final state.

About 3 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from experiments.adding import data
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Train, Trained
from experiments.runner.models import RECURRENCES, Name, Reader, compute_dtype, reader

ERROR = report.Column("held-out error", "held_out_error")


class Model(Table):
    cells: Many[Name] = ("elman", "irnn", "gru", "lstm", "chrono_lstm")
    hidden_size: int = Field(default=64, gt=0)
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Task(Table):
    lengths: Many[Annotated[int, Field(ge=4)]] = (150,)  # T; every model is trained for each
    held_out: int = Field(default=2000, gt=0)  # sequences
    held_out_seed: Seed = 2**31  # draws them, and nothing else
    solved_below: float = Field(default=0.01, gt=0)  # the held-out mean squared error
    # Training ends when all seeds are below this, with a margin, so that no seed is judged by a lucky moment.
    stop_below: float = Field(default=0.005, ge=0)


class Config(Trained):
    experiment: Literal["adding"]
    model: Model = Model()
    task: Task = Task()


def models(config: Config) -> dict[str, tuple[Name, int]]:
    """What is trained, by title: every cell for every length."""
    return {title(name, length): (name, length) for length in config.task.lengths for name in config.model.cells}


def settings(config: Config, model: str) -> Train:
    return study.own_rate(config, models(config)[model][0])


def network(config: Config, model: str) -> Reader:
    name, length = models(config)[model]
    recurrence = RECURRENCES[name](data.FEATURES, config.model.hidden_size, length, compute_dtype(config.train))
    return reader(recurrence, 1)


def held_out(config: Config, model: str) -> data.Sums:
    return data.draw(jax.random.key(config.task.held_out_seed), models(config)[model][1], config.task.held_out)


def task(config: Config, model: str) -> training.Task:
    """A model learns until all its seeds have solved it."""
    reads, length = network(config, model), models(config)[model][1]

    def batch(key, number, shared):
        return data.draw(jax.random.fold_in(key, number), length, config.train.batch_size)

    def error(params, sequences):
        return jnp.mean((reads.apply(params, sequences.xs)[:, 0] - sequences.sums) ** 2)

    return training.Task(
        reads.init,
        batch,
        loss=lambda params, batch, key, shared: (error(params, batch), {}),
        evaluate=lambda params, shared: {ERROR.name: error(params, shared)},
        score=ERROR.name,
        shared=held_out(config, model),
        batch_axis=data.Sums(1, 0),  # type: ignore[arg-type]  # axes where the arrays are
        stop_when=lambda block: bool((block.values[ERROR.name] < config.task.stop_below).all()),
        until=f"the held-out error of all seeds is below {config.task.stop_below:g}",
    )


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    results = [fit.result for fit in fits.values()]
    solved = {result.model: solved_at(result, config.task.solved_below) for result in results}
    return study.Conclusion(
        results,
        notes(config, solved),
        {"curves.png": curves(results, config)},
        {"baseline": data.BASELINE, "solved_at": solved},
    )


def predictor(config: Config, model: str) -> study.Predictor:
    """Values and markers (T, N, 2) -> the sums, (N,)."""

    def say(total, truth):
        return f"{total:.4f}" + ("" if truth is None else f", is {truth:.4f}")

    reads = network(config, model)

    def examples():
        sequences = held_out(config, model)
        return sequences.xs, sequences.sums

    return study.Predictor(examples, lambda params, xs: reads.apply(params, xs)[:, 0], say)


def title(name: Name, length: int) -> str:
    return f"{name}, T = {length}"


def solved_at(result: report.Result, below: float) -> dict[int, int | None]:
    """For each seed the step after which its held-out error was first below the mark; None where it never was."""
    errors = np.array([block.values[ERROR.name] for block in result.history])
    return {
        seed: next((block.step for block, error in zip(result.history, of_seed, strict=True) if error < below), None)
        for seed, of_seed in zip(result.seeds, errors.T, strict=True)
    }


def notes(config: Config, solved: dict[str, dict[int, int | None]]) -> tuple[str, ...]:
    seeds, below = config.train.seeds, config.task.solved_below
    lines = []
    for model, steps in solved.items():
        done = [str(step) for step in steps.values() if step is not None]
        after = f", after {', '.join(done)} steps" if done else ""
        lines.append(f"{model}: solved by {len(done)} of {len(seeds)} seeds{after}.")
    return (
        f"Held-out error: mean squared, of {config.task.held_out:,} sequences, {report.spread(seeds)}; always "
        f"answering 1 has {data.BASELINE:.4f}. Solved: below {below:g} after some block of {config.train.block} steps. "
        f"Training ends once all seeds are below {config.task.stop_below:g}, or after {config.train.steps:,} steps. "
        "Seconds: all seeds together, compilation included.",
        *lines,
    )


def curves(results: Sequence[report.Result], config: Config) -> Figure:
    """A panel for each length; the results stand in the order of lengths, then cells."""
    of_each = iter(results)
    panels: dict[str, dict[str, report.Curve]] = {}
    for length in config.task.lengths:
        panels[f"Held-out mean squared error, T = {length}"] = {
            name: report.curve(next(of_each), lambda values: values[ERROR.name]) for name in config.model.cells
        }
    lines = {"always answering 1": data.BASELINE, "solved": config.task.solved_below}
    figure = report.draw(panels, len(config.train.seeds), title="The adding problem", baselines=lines)
    for axes in figure.axes:
        axes.set_ylim(top=1)  # the first steps of rectified units may leave it by many orders of magnitude
    return figure


STUDY = study.Study(lambda config: list(models(config)), task, settings, lambda config: (ERROR,), conclude, predictor)
