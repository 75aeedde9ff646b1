"""Mackey-Glass: an echo state network continues a chaotic signal; its error after 1 and 84 steps of its own.

About 1 minute on 2 CPU cores.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Console
from scipy.stats import binom

import jaxrnn as jr
from experiments.environment import environment
from experiments.mackey_glass import data
from experiments.reports import figures
from experiments.runner import report
from experiments.runner.config import Many, Rate, Seed, Table
from jaxrnn import plotting

PUBLISHED = {"Jaeger & Haas": 10**-4.2, "theirs, refined": 10**-5.1}  # log10 NRMSE84 of 1,000 units


class Model(Table):
    hidden_sizes: Many[int] = (100, 300, 1000)
    spectral_radius: Rate = 1.0
    heard: int = Field(default=10, gt=0)  # units that each unit hears
    leak: float = Field(default=0.7, gt=0, le=1)
    input_scaling: Rate = 1.0
    bias_scaling: float = Field(default=0.2, ge=0)
    ridges: Many[Rate] = (1e-12, 1e-11, 1e-10, 1e-9, 1e-8)  # one is chosen for each size, on data of its own


class Task(Table):
    delay: float = Field(default=17.0, gt=0)  # τ
    steps: int = Field(default=3000, gt=0)  # that are fitted
    washout: int = Field(default=200, ge=0)  # before them
    starts: int = Field(default=30, gt=0)  # test sequences for each seed, none of which is fitted
    warm_up: int = Field(default=300, gt=0)  # steps that a test sequence is read before the network goes on alone
    horizon: int = Field(default=84, gt=0)  # steps that it goes on
    seeds: Many[Seed] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    validation_seed: Seed = 2**31  # of the network and the sequences by which a ridge is chosen


class Config(Table):
    experiment: Literal["mackey_glass"]
    model: Model = Model()
    task: Task = Task()


class Measured(NamedTuple):
    """All seeds of one size."""

    hidden_size: int
    ridge: float
    one_step: np.ndarray  # (seeds,): NRMSE of the next step, while reading
    ahead: np.ndarray  # (seeds, horizon): NRMSE after so many steps alone
    seconds: float


def run(config: Config, directory: Path) -> None:
    """Measure every size."""
    console, everything = Console(), []
    for hidden_size in config.model.hidden_sizes:
        everything.append(measure(config, hidden_size))
        console.print(" | ".join(row(everything[-1])), highlight=False, soft_wrap=True)
    report.write_table(directory, rows(config, everything), notes(config))
    measured = [{**m._asdict(), "one_step": m.one_step.tolist(), "ahead": m.ahead.tolist()} for m in everything]
    summary = {"measured": measured, "environment": environment(report.PACKAGES)}
    (directory / "summary.json").write_text(report.to_json(summary, indent=2) + "\n", encoding="utf-8")
    figures.save(figure(config, everything), directory / "errors.png")
    console.print(f"written to {directory}", highlight=False, soft_wrap=True)


def measure(config: Config, hidden_size: int) -> Measured:
    clock = report.Clock()
    # In float32 the readout's own rounding, step after step, is larger than what is to be measured.
    with jax.enable_x64(True):
        ridges, seed = config.model.ridges, config.task.validation_seed
        errors = [errors_of(config, hidden_size, seed, ridge)[1][-1] for ridge in ridges]
        ridge = ridges[int(np.nanargmin(errors))]
        of_seeds = [errors_of(config, hidden_size, seed, ridge) for seed in config.task.seeds]
    one_step, ahead = (np.array(values) for values in zip(*of_seeds, strict=True))
    return Measured(hidden_size, ridge, one_step, ahead, clock.seconds())


def reservoir(config: Config, hidden_size: int) -> jr.Cell:
    model = config.model
    return jr.echo_state(
        1,
        hidden_size,
        spectral_radius=model.spectral_radius,
        density=min(1.0, model.heard / hidden_size),
        leak=model.leak,
        input_scaling=model.input_scaling,
        bias_scaling=model.bias_scaling,
        param_dtype="float64",
    )


def errors_of(config: Config, hidden_size: int, seed: int, ridge: float) -> tuple[float, np.ndarray]:
    """Of one network: the NRMSE of the next step, and after 1 to ``horizon`` steps alone, on sequences of its own.

    A network and its sequences, those to fit and those to test, are drawn by the seed.
    """
    task, cell = config.task, reservoir(config, hidden_size)
    fitted, tested = sequences(config, seed)
    params = _init(cell, jax.random.key(seed))
    found = jr.fit_readout(cell, params, fitted[:-1], fitted[1:], ridge=ridge, washout=task.washout)
    model = jr.chain(cell, found.readout)
    read, alone = _continued(model, (params, found.params), tested[: task.warm_up], task.horizon)
    scale = tested.std()
    settled = min(task.washout, task.warm_up - 1)
    one_step = np.sqrt(np.mean((read - tested[1 : task.warm_up + 1])[settled:] ** 2)) / scale
    return float(one_step), np.sqrt(np.mean((alone - tested[task.warm_up :]) ** 2, axis=(1, 2))) / scale


def sequences(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One to fit, (washout + steps + 1, 1, 1), and those to test, (warm_up + horizon, starts, 1)."""
    task, rng = config.task, np.random.default_rng(seed)
    fitted = data.draw(rng, task.washout + task.steps + 1, 1, task.delay)
    return fitted, data.draw(rng, task.warm_up + task.horizon, task.starts, task.delay)


@functools.partial(jax.jit, static_argnums=0)
def _init(cell: jr.Cell, key: jax.Array) -> Any:
    return cell.init(key)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _continued(model: jr.Cell, params: Any, xs: jax.Array, horizon: int) -> tuple[jax.Array, jax.Array]:
    """What the model puts out while it reads xs, and then while it reads its own outputs."""
    carry, ys = jr.scan(model).apply(params, xs)

    def step(state, _):
        carry, y = state
        return model.step(params, carry, y), y

    return ys, jax.lax.scan(step, (carry, ys[-1]), length=horizon)[1]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The narrowest pair of order statistics that holds the median with at least 95 %, and how surely it does."""
    ordered, n = np.sort(values), len(values)
    covers = [1 - 2 * binom.cdf(j, n, 0.5) for j in range((n + 1) // 2)]  # from the j-th from below to that from above
    j = max([j for j, sure in enumerate(covers) if sure >= 0.95], default=0)
    return float(ordered[j]), float(ordered[n - 1 - j]), float(covers[j])


def rows(config: Config, everything: list[Measured]) -> list[tuple[str, ...]]:
    H = config.task.horizon
    header = ("units", "ridge", "NRMSE, next step", f"NRMSE, {H} steps alone: median", "interval", "lowest", "highest")
    return [(*header, "seconds"), *map(row, everything)]


def row(m: Measured) -> tuple[str, ...]:
    last = m.ahead[:, -1]
    low, high, _ = interval(last)
    shown = (np.median(m.one_step), np.median(last))
    return (
        f"{m.hidden_size:,}",
        f"{m.ridge:g}",
        *(f"{value:.1e}" for value in shown),
        f"{low:.1e} to {high:.1e}",
        f"{last.min():.1e}",
        f"{last.max():.1e}",
        f"{m.seconds:.0f}",
    )


def notes(config: Config) -> list[str]:
    task = config.task
    _, _, sure = interval(np.arange(len(task.seeds)))
    ridges = ", ".join(f"{ridge:g}" for ridge in config.model.ridges)
    return [
        f"Median of {len(task.seeds)} seeds, each with a reservoir and sequences of its own; interval: of the median, "
        f"by order statistics, {100 * sure:.0f} %. NRMSE: the root of the mean squared error over {task.starts} test "
        f"sequences, over the signal's standard deviation. Next step: while the network reads. Alone: it has read "
        f"{task.warm_up} steps and then reads what it puts out. Fitted: {task.steps:,} steps after {task.washout}. "
        f"Ridge: that of {ridges} with the least error, after {task.horizon} steps alone, of one more network on "
        f"sequences that no seed has. Seconds: all seeds, the choice and compilation included."
    ]


def figure(config: Config, everything: list[Measured]) -> Figure:
    """The error by the steps alone, and that of every seed after the last."""
    made = Figure(figsize=(11, 4.2), layout="constrained")
    by_step, by_size = made.subplots(1, 2, sharey=True)
    for place, (m, colour) in enumerate(zip(everything, plotting.COLOURS, strict=False)):
        steps = np.arange(1, m.ahead.shape[1] + 1)
        by_step.plot(steps, np.median(m.ahead, axis=0), color=colour, label=f"{m.hidden_size:,} units")
        by_step.fill_between(steps, m.ahead.min(0), m.ahead.max(0), color=colour, alpha=0.2, linewidth=0)
        last = m.ahead[:, -1]
        by_size.plot(place + np.linspace(-0.15, 0.15, len(last)), np.sort(last), "o", color=colour, markersize=4)
        by_size.plot([place - 0.25, place + 0.25], [np.median(last)] * 2, color=colour)
    for (name, value), style in zip(PUBLISHED.items(), ("--", ":"), strict=True):
        by_size.axhline(value, color="grey", linestyle=style, linewidth=1, label=name)
    by_size.set_xticks(range(len(everything)), [f"{m.hidden_size:,} units" for m in everything])
    by_step.set_xlabel("steps alone")
    by_step.set_ylabel("NRMSE")
    by_step.set_title("Median of the seeds, from the lowest to the highest", fontsize=11)
    by_size.set_title(f"Every seed after {config.task.horizon} steps, and the median", fontsize=11)
    for axes in (by_step, by_size):
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return made
