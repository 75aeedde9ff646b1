"""The 3-bit flip-flop: what a network remembers are the stable fixed points of its state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

import jaxrnn as jr
from experiments import report, training
from experiments.config import Many, Rate, Seed, Table, Train, dump
from experiments.flip_flop import data
from experiments.flip_flop.points import NEAR, Found, Search, find
from experiments.models import RECURRENCES, Name
from jaxrnn import plotting

COLUMNS = (
    report.Column("held-out MSE", "held_out_error", ".5f"),
    report.Column("bits right", "right", "%"),
    report.Column("stable points", "stable", ".1f"),
    report.Column("one for each memory", "complete", "of"),
    report.Column("unstable points", "unstable", ".1f"),
)


class Model(Table):
    cells: Many[Name] = ("elman", "gru", "lstm")  # the figures of fixed points are of the first
    hidden_size: int = Field(default=24, gt=0)
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Task(Table):
    channels: int = Field(default=3, gt=0, le=8)
    length: int = Field(default=64, gt=0)  # T
    pulse_rate: float = Field(default=0.1, gt=0, le=1)  # at each step of each channel
    held_out: int = Field(default=256, gt=0)  # sequences
    held_out_seed: Seed = 2**31  # no seed of training: a batch is never held out


class Config(Table):
    experiment: Literal["flip_flop"]
    model: Model = Model()
    train: Train = Train()
    task: Task = Task()
    search: Search = Search()


def run(config: Config, out: Path) -> Path:
    """Train every model of the config, then look for its fixed points; returns the run directory."""
    directory = report.new_directory(out, config.experiment, dump(config))
    founds: dict[Name, list[Found]] = {}

    def fit_and_keep(name: Name, on_block: Callable[[report.Point], None]) -> report.Result:
        result, founds[name] = fit(name, config, on_block)
        return result

    fits = {name: functools.partial(fit_and_keep, name) for name in config.model.cells}
    results = report.train_each(directory, config.train.steps, config.train.seeds, COLUMNS[0], fits)
    slowest = {result.model: result.last("slowest").tolist() for result in results}
    directions: dict[str, list[list[int]]] = {
        name: [of_seed.by_directions() for of_seed in found] for name, found in founds.items()
    }
    said = notes(config, slowest, directions)
    figures = {"curves.png": curves(results), **pictures(config, founds[config.model.cells[0]])}
    report.conclude(directory, results, COLUMNS, said, figures, slowest=slowest, by_directions=directions)
    return directory


def fit(
    name: Name, config: Config, on_block: Callable[[report.Point], None] = lambda point: None
) -> tuple[report.Result, list[Found]]:
    """Train one model from every seed, then find the fixed points of each."""
    task, clock = config.task, report.Clock()
    cell = RECURRENCES[name](task.channels, config.model.hidden_size, task.length)
    readout = jr.readout(config.model.hidden_size, task.channels)
    model = jr.stack(cell, readout)
    held_out = data.draw(jax.random.key(task.held_out_seed), task.length, task.held_out, task.channels, task.pulse_rate)

    def batch(key, step, shared):
        key = jax.random.fold_in(key, step)
        return data.draw(key, task.length, config.train.batch_size, task.channels, task.pulse_rate)

    def loss(params, batch, shared):
        return jnp.mean((model.apply(params, batch.pulses)[1] - batch.memories) ** 2), {}

    def evaluate(params, shared):
        answers = model.apply(params, shared.pulses)[1]
        return {
            "held_out_error": jnp.mean((answers - shared.memories) ** 2),
            "right": jnp.mean(jnp.sign(answers) == shared.memories),
        }

    result, params = training.fit(
        name,
        training.Task(model.init, batch, loss, evaluate, held_out),
        config.train,
        learning_rate=config.model.learning_rates.get(name),
        on_block=on_block,
    )
    found = [
        find(cell, readout, jax.tree.map(lambda a, n=n: jax.device_get(a[n]), params), held_out.pulses, config.search)
        for n in range(len(config.train.seeds))
    ]
    measures = [of_seed.measures() for of_seed in found]
    together = {measure: np.array([of_seed[measure] for of_seed in measures]) for measure in measures[0]}
    return result.add(together)._replace(seconds=clock.seconds()), found


def notes(config: Config, slowest: dict[str, list[float]], directions: dict[str, list[list[int]]]) -> tuple[str, ...]:
    task, memories = config.task, 2**config.task.channels

    def listed(numbers):
        return " | ".join(f"{number:.1f}" for number in numbers)

    return (
        f"{report.spread(config.train.seeds).capitalize()}. Held-out MSE, and bits of the right sign: over all "
        f"{task.length} steps of {task.held_out:,} sequences. Stable and unstable points: fixed points without input "
        f"that Newton's method reaches from {config.search.starts:,} states near these runs. One for each memory: the "
        f"seeds with {memories} stable points whose readouts are the {memories} different corners, each channel within "
        f"{NEAR:g}. Seconds: all seeds together, compilation and search included.",
        f"Points with 0 to {task.channels} unstable directions, mean of the seeds: "
        + "; ".join(f"{model} {listed(np.mean(counts, axis=0))}" for model, counts in directions.items())
        + ".",
        "Time constant of the slowest mode at a stable point, in steps, seed by seed: "
        + "; ".join(f"{model} {listed(each)}" for model, each in slowest.items())
        + ".",
    )


def curves(results: Sequence[report.Result]) -> Figure:
    return report.curves(
        results, {"Held-out mean squared error": lambda values: values["held_out_error"]}, title="Flip-flop"
    )


def pictures(config: Config, found: Sequence[Found]) -> dict[str, Figure]:
    """Of the first seed of the first model: where its fixed points lie, and the modes around two of them."""
    name, first = config.model.cells[0], found[0]
    stable = np.asarray(first.analysis.stable)
    of = f"{name}, seed {config.train.seeds[0]}"
    spectra = {
        kind: first.analysis.eigenvalues[np.flatnonzero(chosen)[0]]
        for kind, chosen in (("a stable point", stable), ("an unstable point", ~stable))
        if chosen.any()
    }
    figures = {"fixed_points.png": plotting.fixed_points(first.points, first.analysis, first.states, title=of)}
    if spectra:
        figures["eigenvalues.png"] = plotting.eigenvalues(spectra, title=f"Eigenvalues of ∂F/∂h: {of}")
    return figures
