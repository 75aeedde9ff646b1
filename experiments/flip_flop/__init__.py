"""The 3-bit flip-flop: bits to hold until the next pulse; each memory is a stable fixed point of the state.

About 2 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

import jaxrnn as jr
from experiments.flip_flop import data
from experiments.flip_flop.points import NEAR, Found, Search, find
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Trained
from experiments.runner.models import RECURRENCES, Name, compute_dtype
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


class Config(Trained):
    experiment: Literal["flip_flop"]
    model: Model = Model()
    task: Task = Task()
    search: Search = Search()


def parts(config: Config, name: Name) -> tuple[jr.Cell, jr.Cell]:
    """The recurrent cell and the readout."""
    task, H = config.task, config.model.hidden_size
    cell = RECURRENCES[name](task.channels, H, task.length, compute_dtype(config.train))
    return cell, jr.readout(H, task.channels)


def held_out(task: Task) -> data.Runs:
    key = jax.random.key(task.held_out_seed)
    return data.draw(key, task.length, task.held_out, task.channels, task.pulse_rate)


def task(config: Config, name: Name) -> training.Task:
    task, model = config.task, jr.stack(*parts(config, name))

    def batch(key, number, shared):
        key = jax.random.fold_in(key, number)
        return data.draw(key, task.length, config.train.batch_size, task.channels, task.pulse_rate)

    def loss(params, batch, key, shared):
        return jnp.mean((model.apply(params, batch.pulses)[1] - batch.memories) ** 2), {}

    def evaluate(params, shared):
        answers = model.apply(params, shared.pulses)[1]
        return {
            "held_out_error": jnp.mean((answers - shared.memories) ** 2),
            "right": jnp.mean(jnp.sign(answers) == shared.memories),
        }

    return training.Task(model.init, batch, loss, evaluate, score="held_out_error", shared=held_out(task))


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """Look for the fixed points of every network."""
    results, founds = [], {}
    for name in config.model.cells:
        result, params, _ = fits[name]
        clock = report.Clock()
        founds[name] = search(config, name, params)
        measures = [found.measures() for found in founds[name]]
        together = {measure: np.array([of_seed[measure] for of_seed in measures]) for measure in measures[0]}
        results.append(result.add(together)._replace(seconds=result.seconds + clock.seconds()))
    slowest = {result.model: result.last("slowest").tolist() for result in results}
    directions: dict[str, list[list[int]]] = {
        name: [of_seed.by_directions() for of_seed in found] for name, found in founds.items()
    }
    figures = {"curves.png": curves(results), **pictures(config, founds[config.model.cells[0]])}
    more = {"slowest": slowest, "by_directions": directions}
    return study.Conclusion(results, notes(config, slowest, directions), figures, more)


def predictor(config: Config, name: Name) -> study.Predictor:
    """Pulses (T, N, channels) -> the bits held at every step, (N, T, channels)."""

    def examples():
        pulses, memories = held_out(config.task)
        return pulses, memories.swapaxes(0, 1)

    def say(bits, truth):
        last = " ".join(f"{bit:+.2f}" for bit in bits[-1])
        right = "" if truth is None else f"; {100 * np.mean(np.sign(bits) == truth):.1f} % of all bits right"
        return f"… {last}{right}"

    model = jr.stack(*parts(config, name))
    return study.Predictor(
        examples,
        lambda params, pulses: model.apply(params, pulses)[1].swapaxes(0, 1),
        say,
        jr.chain(*parts(config, name)),
    )


def search(config: Config, name: Name, params: Any) -> list[Found]:
    """The fixed points of each seed, in float32: in fewer bits no state stands still to ``search.tolerance``."""
    exact = config.train.model_copy(update={"precision": "float32"})
    cell, readout = parts(config.model_copy(update={"train": exact}), name)
    pulses = held_out(config.task).pulses

    def one(n):
        return jax.tree.map(lambda a: jax.device_get(a[n]), params)

    return [find(cell, readout, one(n), pulses, config.search) for n in range(len(config.train.seeds))]


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
    """Of the first seed of the first model, if it has fixed points: where they lie, the modes around two of them."""
    name, first = config.model.cells[0], found[0]
    if not len(first.outputs):
        return {}
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


STUDY = study.Study(
    lambda config: config.model.cells, task, study.own_rate, lambda config: COLUMNS, conclude, predictor
)
