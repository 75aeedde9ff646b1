"""What a run leaves behind, a directory of its own, and what the terminal shows.

runs/digits-001/
  config.toml     the whole configuration, which `run` accepts again
  metrics.jsonl   a line for each model, seed and block of steps
  summary.json    the final numbers, the machine and the versions
  table.md        the same as a table
  curves.png      learning curves
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

# Okabe & Ito's colours, which people who are colour-blind can tell apart.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#56B4E9")


class Point(NamedTuple):
    """One block of steps, every array (seeds,)."""

    step: int  # the last of the block
    loss: np.ndarray  # the mean over the block's batches, before each update; so are the next two
    train_accuracy: np.ndarray
    grad_norm: np.ndarray  # before clipping
    held_out_accuracy: np.ndarray  # after the block


class Result(NamedTuple):
    """One trained model."""

    model: str
    seeds: tuple[int, ...]
    parameters: int
    points: list[Point]
    compile_seconds: float
    seconds: float  # all of it, compilation included

    def diverged(self) -> dict[int, int]:
        """The seeds whose loss stopped being a number, each with the block (its last step) where it did."""
        first: dict[int, int] = {}
        for point in self.points:
            for seed, loss in zip(self.seeds, point.loss, strict=True):
                if not math.isfinite(loss):
                    first.setdefault(seed, point.step)
        return first


class Clock:
    def __init__(self) -> None:
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start


def new_directory(out: Path, name: str) -> Path:
    """Make ``out/name-001``, or the next number that is free; an older run is never touched."""
    for number in itertools.count(1):
        directory = out / f"{name}-{number:03d}"
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def append_metrics(directory: Path, model: str, seeds: Sequence[int], point: Point, held_out: str) -> None:
    """Write a line of JSON for each seed, at once, so that a stopped run keeps what it measured."""
    with (directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for index, seed in enumerate(seeds):
            line = {
                "model": model,
                "seed": seed,
                "step": point.step,
                "loss": point.loss[index],
                "train_accuracy": point.train_accuracy[index],
                f"{held_out}_accuracy": point.held_out_accuracy[index],
                "grad_norm": point.grad_norm[index],
            }
            file.write(_json(line) + "\n")


def write(directory: Path, results: Sequence[Result], held_out: str, title: str) -> None:
    """The files that need the whole run: summary.json, table.md, curves.png."""
    summary = {"models": [_summary(result, held_out) for result in results], "environment": environment()}
    (directory / "summary.json").write_text(_json(summary, indent=2) + "\n", encoding="utf-8")
    (directory / "table.md").write_text(markdown(results, held_out), encoding="utf-8")
    curves(results, held_out, title).savefig(directory / "curves.png", dpi=150)


def environment() -> dict[str, Any]:
    """Where the numbers come from."""
    packages = ("jaxrnn", "jax", "jaxlib", "optax", "numpy", "scikit-learn")
    return {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


def rows(results: Sequence[Result], held_out: str) -> list[tuple[str, ...]]:
    """The table, its header first; accuracies as mean ± standard deviation over the seeds."""
    header = ("model", "parameters", f"{held_out} accuracy", "train accuracy", "seconds")
    body = [
        (
            result.model,
            f"{result.parameters:,}",
            _mean_sd(result.points[-1].held_out_accuracy),
            _mean_sd(result.points[-1].train_accuracy),
            f"{result.seconds:.0f}",
        )
        for result in results
    ]
    return [header, *body]


def notes(results: Sequence[Result]) -> list[str]:
    """How to read the table, and what went wrong."""
    seeds = len(results[0].seeds)
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    lines = [
        f"Accuracies: {spread}, after the last step; that on training data is of the last block's batches. "
        "Seconds: all seeds together, compilation included."
    ]
    for result in results:
        for seed, step in result.diverged().items():
            lines.append(
                f"{result.model}, seed {seed} DIVERGED: its loss is not finite from the block that ends at "
                f"step {step} on. It counts in the mean, every prediction that is not finite as wrong."
            )
    return lines


def markdown(results: Sequence[Result], held_out: str) -> str:
    header, *body = rows(results, held_out)
    lines = [header, ("---", *("---:" for _ in header[1:])), *body]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *notes(results)]) + "\n"


def curves(results: Sequence[Result], held_out: str, title: str) -> Figure:
    """Loss and held-out error over the steps: the mean of the seeds, from the lowest to the highest."""
    figure = Figure(figsize=(11, 4), layout="constrained")  # without pyplot: no display, no global state
    left, right = figure.subplots(1, 2)
    for result, colour in zip(results, itertools.cycle(COLOURS), strict=False):
        steps = [point.step for point in result.points]
        final = _mean_sd(result.points[-1].held_out_accuracy)
        loss = np.array([point.loss for point in result.points])
        error = 1 - np.array([point.held_out_accuracy for point in result.points])
        for axes, values in ((left, loss), (right, error)):
            axes.fill_between(steps, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, values.mean(1), color=colour, label=f"{result.model}  {final}")
    left.set(title="Training loss", xlabel="step", yscale="log")
    right.set(title=f"{held_out.capitalize()} error (1 - accuracy)", xlabel="step", yscale="log")
    right.yaxis.set_major_locator(FixedLocator([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.yaxis.set_minor_locator(NullLocator())
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = right.get_legend_handles_labels()
    title_of_legend = f"{held_out} accuracy at the end"
    figure.legend(handles, labels, loc="outside right center", frameon=False, title=title_of_legend)
    seeds = len(results[0].seeds)
    figure.suptitle(f"{title} ({seeds} seed{'s' * (seeds > 1)}: mean, and from the lowest to the highest)", fontsize=11)
    return figure


class Display:
    """A progress bar for each model, or a line for each when stdout is not a terminal."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.steps = steps
        self.tasks: dict[str, TaskID] = {}
        self.bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[measured]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def start(self, model: str) -> None:
        self.tasks[model] = self.bars.add_task(model, total=self.steps, measured="compiling")

    def update(self, model: str, point: Point) -> None:
        measured = f"loss {point.loss.mean():.3f}  accuracy {point.held_out_accuracy.mean():.1%}"
        self.bars.update(self.tasks[model], completed=point.step, measured=measured)

    def finish(self, result: Result) -> None:
        if not self.console.is_terminal:
            point = result.points[-1]
            self.say(
                f"{result.model}: {point.step} steps in {result.seconds:.1f} s, "
                f"loss {point.loss.mean():.4f}, accuracy {_mean_sd(point.held_out_accuracy)}"
            )

    def table(self, results: Sequence[Result], held_out: str, directory: Path) -> None:
        header, *body = rows(results, held_out)
        table = Table()
        table.add_column(header[0], no_wrap=True)
        for name in header[1:]:
            table.add_column(name, justify="right")
        for row in body:
            table.add_row(*row)
        self.console.print(table)
        for note in notes(results):
            self.say(note)
        self.say(f"written to {directory}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _summary(result: Result, held_out: str) -> dict[str, Any]:
    last = result.points[-1]
    return {
        "model": result.model,
        "parameters": result.parameters,
        "steps": last.step,
        "seeds": list(result.seeds),
        f"{held_out}_accuracy": _statistics(last.held_out_accuracy),
        "train_accuracy": _statistics(last.train_accuracy),
        "loss": _statistics(last.loss),
        "diverged": result.diverged(),
        "compile_seconds": result.compile_seconds,
        "seconds": result.seconds,
    }


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """``sd`` is that of a sample (N - 1), so a single seed has none."""
    with np.errstate(invalid="ignore"):  # the losses of a diverged model: NaN is what the reader must see
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return {"mean": float(values.mean()), "sd": sd, "each": values.tolist()}


def _mean_sd(accuracies: np.ndarray) -> str:
    values = _statistics(100 * accuracies)
    return f"{values['mean']:.1f}" + ("" if values["sd"] is None else f" ± {values['sd']:.1f}") + " %"


def _version(package: str) -> str:
    if package == "jaxrnn":  # a checkout need not be installed
        import jaxrnn

        return jaxrnn.__version__
    return version(package)


def _json(value: Any, indent: int | None = None) -> str:
    """JSON has no NaN and no infinity: they are written as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        if isinstance(value, float | np.floating):
            return float(value) if math.isfinite(value) else None
        return value

    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)
