"""Long memory: bits held over hundreds of steps; each model trained by the scan and in parallel over time.

About 10 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Console

from experiments.environment import environment
from experiments.long_memory import learning, networks
from experiments.long_memory.learning import Run, Task, Train, Trained
from experiments.long_memory.networks import Model, Name, Parallel
from experiments.reports import figures as drawings
from experiments.runner import report
from experiments.runner.config import Many, Table

ALIKE = 0.01  # losses that are apart by less, as a share
SMALLEST = float(np.finfo(np.float32).epsneg)  # that two losses can be apart and differ; drawn for those that do not


class Config(Table):
    experiment: Literal["long_memory"]
    runs: Many[Run] = ("scan", "parallel", "nudged")
    model: Model = Model()
    parallel: Parallel = Parallel()
    task: Task = Task()
    train: Train = Train()
    ask_every: int = Field(
        default=4, ge=0
    )  # blocks between two questions to jr.convergence, of the first seed; 0: none


class Compared(NamedTuple):
    """One model, trained by each run."""

    name: Name
    units: str  # layers × features
    parameters: int
    by_run: Mapping[Run, Trained]
    asked: networks.Asked | None  # of the first seed trained in parallel

    def apart(self, way: Run) -> np.ndarray:
        """(seeds, steps): how far the loss of a run is from the scan's, as a share of it."""
        scan, other = (self.by_run[run].losses for run in ("scan", way))
        return np.abs(other - scan) / scan

    def ratio(self, way: Run) -> np.ndarray:
        """(seeds, blocks): the seconds of a run over those of the scan."""
        return self.by_run[way].seconds / self.by_run["scan"].seconds


def run(config: Config, directory: Path) -> None:
    """Train every model, and write down what came of it."""
    console = Console()
    clock, everything = report.Clock(), []
    for name in config.model.cells:
        everything.append(compared := compare(config, name))
        for way, trained in compared.by_run.items():
            console.print(
                f"{name}, {way}: test MSE {trained.error.mean():.4f}, {milliseconds(config, trained):.1f} ms a step",
                highlight=False,
            )
    notes = notes_of(config, clock.seconds())
    report.write_table(directory, rows(config, everything), notes)
    summary = {"compared": [summarized(c) for c in everything], "environment": environment(report.PACKAGES)}
    (directory / "summary.json").write_text(report.to_json(summary, indent=2) + "\n", encoding="utf-8")
    for file, figure in figures(config, everything).items():
        drawings.save(figure, directory / file)
    console.print("\n".join([*notes, f"written to {directory}"]), highlight=False, soft_wrap=True)


def compare(config: Config, name: Name) -> Compared:
    ways: dict[Run, networks.Way] = {run: "parallel" if run == "parallel" else "scan" for run in config.runs}
    made = {
        way: networks.network(config.model, config.parallel, name, way, config.task.channels)
        for way in dict.fromkeys(ways.values())
    }
    nets = {run: made[way] for run, way in ways.items()}
    by_run = learning.learn(config.task, config.train, nets, rate_of(config, name))
    asked, net = None, nets[config.runs[0]]
    if config.ask_every and "parallel" in by_run:
        xs = learning.held_out(config.task)[0].pulses[:, : config.train.batch_size]
        params = [jax.tree.map(lambda a, n=n: a[0, n], by_run["parallel"].params) for n in asked_at(config)]
        asked = networks.ask(config.model, config.parallel, name, config.task.channels, params, xs)
    shapes = jax.tree.leaves(jax.eval_shape(net.model.init, jax.random.key(0)))
    return Compared(name, f"{net.layers} × {net.features}", sum(leaf.size for leaf in shapes), by_run, asked)


def asked_at(config: Config) -> list[int]:
    """After how many blocks."""
    return sorted({*range(0, config.train.blocks, config.ask_every), config.train.blocks})


def rate_of(config: Config, name: Name) -> float:
    return config.model.learning_rates.get(name, config.train.learning_rate)


def milliseconds(config: Config, trained: Trained) -> float:
    """A step's: the median of all blocks of all seeds."""
    return 1e3 * float(np.median(trained.seconds)) / config.train.block_steps


def rows(config: Config, everything: Sequence[Compared]) -> list[tuple[str, ...]]:
    """The table, its header first: a line for each model and run."""
    measured = ("layers × units", "parameters", "test MSE", "bits right", "ms a step")
    beside = ("of the scan's", "sweeps", "fell back", f"loss apart, {config.train.block_steps} steps", "alike for")
    body = (row(config, compared, way) for compared in everything for way in config.runs)
    return [("model", "run", *measured, *beside), *body]


def row(config: Config, compared: Compared, way: Run) -> tuple[str, ...]:
    trained = compared.by_run[way]
    measured = (
        report.Column("", "", ".4f").shown(trained.error),
        report.Column("", "", "%").shown(trained.right),
        f"{milliseconds(config, trained):.1f}",
    )
    beside = ["–"] * 5
    if way != "scan" and "scan" in compared.by_run:
        apart = compared.apart(way)
        beside[0] = first_and_last(compared.ratio(way), ".2f")
        beside[3:] = [f"{apart[:, : config.train.block_steps].max():.0e}", f"{alike_for(apart):,} steps"]
    by: str = way
    if way == "parallel" and (asked := compared.asked):
        beside[1] = f"{asked.sweeps[0]} → {asked.sweeps[-1]}"
        beside[2] = " → ".join(map(str, asked.fell_back))
        by = f"parallel: {', '.join(dict.fromkeys(asked.methods))}"
    return compared.name, by, compared.units, f"{compared.parameters:,}", *measured, *beside


def alike_for(apart: np.ndarray) -> int:
    """For how many steps the losses (seeds, steps) of every seed are alike."""
    unlike = (apart > ALIKE).any(axis=0)
    return int(unlike.argmax()) if unlike.any() else apart.shape[1]


def first_and_last(values: np.ndarray, form: str) -> str:
    """Of (seeds, points): the means of the seeds."""
    means = values.mean(0)
    return f"{means[0]:{form}} → {means[-1]:{form}}"


def notes_of(config: Config, seconds: float) -> list[str]:
    task, train = config.task, config.train
    return [
        f"Test MSE, and bits of the right sign: over all {task.length:,} steps of {task.test} sequences, "
        f"{report.spread(train.seeds)}, by the parameters of the block with the lowest error on {task.validation} "
        f"other sequences; answering 0 has an MSE of 1. ms a step: of training on {train.batch_size} × {task.length:,} "
        "steps, the median of all blocks, without compilation. Of the scan's: that time in parallel as a share, in the "
        f"first block → in the last, of {train.blocks} of {train.block_steps} steps; the two took turns by blocks. "
        "Sweeps: those after which all chunks of a validation sequence agree, before training → after it, first seed; "
        "fell back: the chunks that were left to the scan in place of so many. Loss apart: the largest difference from "
        f"the scan's loss at the same step, as a share of it, all seeds; alike for: the steps until one is {ALIKE:.0%} "
        "apart. Nudged: the scan again, from parameters that are a unit in the last place higher, for what rounding "
        "alone does, and what the clock.",
        f"All rows together took {seconds:.0f} seconds, compilation included.",
    ]


def summarized(compared: Compared) -> dict[str, Any]:
    measures = [name for name in Trained._fields if name != "params"]
    return {
        "model": compared.name,
        "units": compared.units,
        "parameters": compared.parameters,
        "runs": {way: {name: getattr(of, name).tolist() for name in measures} for way, of in compared.by_run.items()},
        "asked": compared.asked._asdict() if compared.asked else None,
    }


def figures(config: Config, everything: Sequence[Compared]) -> dict[str, Figure]:
    """Learning by each run and how far it is from the scan; what running in parallel took."""
    train, seeds = config.train, len(config.train.seeds)
    ends = [train.block_steps * (number + 1) for number in range(train.blocks)]
    titles = {"curves.png": "Long memory", "apart.png": "Beside the scan's training", "sweeps.png": "While it learns"}
    panels: dict[str, dict[str, dict[str, report.Curve]]] = {file: {} for file in titles}
    for way in config.runs:
        if way != "nudged":
            panels["curves.png"][f"Validation MSE, {way}"] = {
                c.name: (ends, c.by_run[way].validation) for c in everything
            }
        if way != "scan" and "scan" in config.runs:
            panels["apart.png"][f"Largest difference of losses, {way} from scan"] = {
                c.name: (ends, np.maximum(largest_by_block(c.apart(way), train.blocks), SMALLEST)) for c in everything
            }
            panels["sweeps.png"][f"Time of a step, {way} / scan"] = {c.name: (ends, c.ratio(way)) for c in everything}
    if any(c.asked for c in everything):
        steps = [train.block_steps * number for number in asked_at(config)]
        panels["sweeps.png"]["Sweeps until all chunks agree, first seed"] = {
            c.name: (steps, np.array([c.asked.sweeps])) for c in everything if c.asked
        }
    return {file: report.draw(of, seeds, title=titles[file]) for file, of in panels.items() if of}


def largest_by_block(values: np.ndarray, blocks: int) -> np.ndarray:
    """(seeds, steps) -> (seeds, blocks)."""
    return values.reshape(len(values), blocks, -1).max(-1)
