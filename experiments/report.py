"""What a run leaves behind, a directory of its own, and what the terminal shows.

runs/digits-001/
  config.toml     the whole configuration, which `run` accepts again
  metrics.jsonl   a line for each model, seed and block of steps
  checkpoints/    of each model, the newest two; what `run --resume` and `predict` read
  tensorboard/    the metrics again, where train.tensorboard asks for them
  summary.json    the final numbers, the machine and the versions
  table.md        the same as a table
  *.png           figures
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments import markdown
from experiments.environment import environment, sentence
from jaxrnn import plotting
from jaxrnn.training import Point
from jaxrnn.training.records import Records, to_json

PACKAGES = ("jax", "jaxlib", "optax", "numpy", "scikit-learn")


class RunError(Exception):
    """Why a run directory cannot be used."""


class Result(NamedTuple):
    """One trained model; the values of its points are means over a block's batches, and what was held out, after it."""

    model: str
    seeds: tuple[int, ...]
    parameters: int
    points: list[Point]  # each value (seeds,)
    seconds: float  # all of it, compilation included

    def last(self, name: str) -> np.ndarray:
        """(seeds,): a measure after the last block."""
        return self.points[-1].values[name]

    def add(self, measures: Mapping[str, np.ndarray]) -> Result:
        """With measures (seeds,) that were made once training was over."""
        *before, last = self.points
        return self._replace(points=[*before, last._replace(values={**last.values, **measures})])

    def diverged(self) -> dict[int, tuple[str, int]]:
        """The seeds that left the finite numbers, each with the quantity that did so first, and its step (from 1)."""
        first: dict[int, tuple[str, int]] = {}
        for point in self.points:
            for index, seed in enumerate(self.seeds):
                steps = [(int(at[index]), name) for name, at in point.lost.items() if at[index]]
                if steps and seed not in first:
                    step, name = min(steps)
                    first[seed] = (name, step)
        return first


class Column(NamedTuple):
    """A measure in the table: mean ± standard deviation over the seeds, after the last block."""

    title: str
    name: str  # of the measure
    form: str = ".4f"  # a number's format, "%" for a share in per cent with one decimal, "of" for seeds that do

    def shown(self, values: np.ndarray) -> str:
        if self.form == "of":
            return f"{values.sum():.0f} of {len(values)}"
        scale, form, unit = (100, ".1f", " %") if self.form == "%" else (1, self.form, "")
        of = _statistics(scale * values)
        return f"{of['mean']:{form}}" + ("" if of["sd"] is None else f" ± {of['sd']:{form}}") + unit


Curve = tuple[Sequence[int], np.ndarray]  # steps, and a measure (seeds, points)


class Clock:
    def __init__(self) -> None:
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start


def new_directory(out: Path, name: str, config: str | None = None) -> Path:
    """Make ``out/name-001``, or the next number that is free, and put the config there; no older run is touched.

    Of several processes the first makes it, and tells the others.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        made = _new_directory(out, name, config) if jax.process_index() == 0 else None
        number = multihost_utils.broadcast_one_to_all(np.int32(made.name.rsplit("-", 1)[1] if made else 0))
        return out / f"{name}-{int(number):03d}"
    return _new_directory(out, name, config)


def _new_directory(out: Path, name: str, config: str | None) -> Path:
    for number in itertools.count(1):
        directory = out / f"{name}-{number:03d}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        if config is not None:
            (directory / "config.toml").write_text(config, encoding="utf-8")
        return directory
    raise AssertionError("unreachable")


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other processes out of a run directory; a process that is killed lets go of it."""
    if jax.process_index() > 0:  # the first of several keeps it for all of them
        yield
        return
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{directory}: another process is at work in it; wait for its end, or stop it") from None
        yield


def records(directory: Path, tensorboard: bool) -> Records:
    """The metrics of a run; of several processes the first writes them."""
    events = directory / "tensorboard" if tensorboard else None
    return Records(directory / "metrics.jsonl", tensorboard=events, write=jax.process_index() == 0)


def checkpoint(directory: Path, model: str) -> Path:
    """Where the checkpoints of a model lie."""
    plain = re.sub(r"[^\w.=-]+", "_", model)[:80]
    # Two names may look alike without their commas and blanks.
    return directory / "checkpoints" / (plain if plain == model else f"{plain}-{zlib.crc32(model.encode()):08x}")


def write(
    directory: Path,
    results: Sequence[Result],
    columns: Sequence[Column],
    notes: Sequence[str],
    figures: Mapping[str, Figure],
    **more: Any,
) -> None:
    """The files that need the whole run: summary.json (with what else is given), table.md, the figures."""
    summary = {
        "models": [_summary(result, columns) for result in results],
        **more,
        "environment": environment(PACKAGES),
    }
    (directory / "summary.json").write_text(to_json(summary, indent=2) + "\n", encoding="utf-8")
    write_table(directory, rows(results, columns), [*notes, *diverged(results), *skipped(results)])
    for name, figure in figures.items():
        figure.savefig(directory / name, dpi=150)


def rows(results: Sequence[Result], columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """The table, its header first."""
    header = ("model", "parameters", *(column.title for column in columns), "steps", "seconds")
    body = [
        (
            result.model,
            f"{result.parameters:,}",
            *(column.shown(result.last(column.name)) for column in columns),
            f"{result.points[-1].step:,}",
            f"{result.seconds:.0f}",
        )
        for result in results
    ]
    return [header, *body]


def spread(seeds: Sequence[int]) -> str:
    """What the figures in a table are, in words."""
    return f"mean ± standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def diverged(results: Sequence[Result]) -> list[str]:
    """A line for each model and seed that left the finite numbers."""
    return [
        f"{result.model}, seed {seed} DIVERGED: its {quantity} {'are' if quantity == 'parameters' else 'is'} not "
        f"finite at step {step}. It counts in the mean."
        for result in results
        for seed, (quantity, step) in result.diverged().items()
    ]


def skipped(results: Sequence[Result]) -> list[str]:
    """A line for each model and seed some of whose steps changed nothing."""
    return [
        f"{result.model}, seed {seed}: {int(count)} steps were skipped, whose loss or gradient was not finite."
        for result in results
        for seed, count in zip(result.seeds, result.points[-1].values.get("skipped", []), strict=False)
        if count
    ]


def write_table(directory: Path, rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """table.md: the table, what belongs below it, and where the figures come from."""
    paragraphs = [markdown.table(rows), *notes, sentence(environment(PACKAGES), PACKAGES)]
    (directory / "table.md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def curves(
    results: Sequence[Result],
    panels: Mapping[str, Callable[[dict[str, np.ndarray]], np.ndarray]],
    *,
    title: str,
    yscale: str = "log",
    baselines: Mapping[str, float] | None = None,
) -> Figure:
    """Measures over the steps, a panel each: the mean of the seeds, from the lowest to the highest."""
    drawn = {name: {result.model: curve(result, of) for result in results} for name, of in panels.items()}
    return draw(drawn, len(results[0].seeds), title=title, yscale=yscale, baselines=baselines)


def curve(result: Result, of: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Curve:
    """A measure after each block."""
    return [point.step for point in result.points], np.array([of(point.values) for point in result.points]).T


def draw(
    panels: Mapping[str, Mapping[str, Curve]],
    seeds: int,
    *,
    title: str,
    yscale: str = "log",
    baselines: Mapping[str, float] | None = None,
) -> Figure:
    """Panels side by side, each with the same models in the same order: they share one legend."""
    figure = Figure(figsize=(5.5 * len(panels) + 1.5, 4), layout="constrained")  # no pyplot: no display, no state
    for axes, (name, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        plotting.draw_learning_curves(axes, curves, ylabel="", yscale=yscale, baselines=baselines)
        axes.set_title(name, fontsize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"{title} ({seeds} seed{'s' * (seeds > 1)}: mean, and from the lowest to the highest)", fontsize=11)
    return figure


class Display:
    """A progress bar for each model, or a line for each when stdout is not a terminal."""

    def __init__(self, steps: int, column: Column, console: Console | None = None) -> None:
        self.console = console or Console(quiet=jax.process_index() > 0)
        self.steps = steps
        self.column = column  # shown beside the loss
        self.tasks: dict[str, TaskID] = {}
        self.shown: dict[str, list[tuple[int, float]]] = {}  # the first two points of each model, and when
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
        value = self.column.shown(point.values[self.column.name].mean(keepdims=True))
        measured = f"loss {point.values['loss'].mean():.4g}  {self.column.title} {value}{self.pace(model, point.step)}"
        self.bars.update(self.tasks[model], completed=point.step, measured=measured)

    def pace(self, model: str, step: int) -> str:
        """Steps a second, and the time that is left; from the second point on, as compilation comes before it."""
        now, shown = time.perf_counter(), self.shown.setdefault(model, [])
        if len(shown) < 2:
            shown.append((step, now))
        first, then = shown[-1]
        if step == first or step == self.steps:
            return ""
        rate = (step - first) / (now - then)
        left = round((self.steps - step) / rate)
        return f"  {rate:.3g} steps/s  {left // 60}:{left % 60:02d} left"

    def finish(self, result: Result) -> None:
        if not self.console.is_terminal:
            _say(
                self.console,
                f"{result.model}: {result.points[-1].step} steps in {result.seconds:.1f} s, "
                f"loss {result.last('loss').mean():.4g}, {self.column.title} "
                f"{self.column.shown(result.last(self.column.name))}",
            )


def show(results: Sequence[Result], columns: Sequence[Column], notes: Sequence[str], directory: Path) -> None:
    """The table and its notes, on the terminal."""
    show_table(rows(results, columns), [*notes, *diverged(results), *skipped(results), f"written to {directory}"])


def show_table(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    console = Console()
    header, *body = rows
    table = Table()
    table.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in body:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        _say(console, note)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _summary(result: Result, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "model": result.model,
        "parameters": result.parameters,
        "steps": result.points[-1].step,
        "seeds": list(result.seeds),
        **{name: _statistics(result.last(name)) for name in ("loss", *(column.name for column in columns))},
        "diverged": result.diverged(),
        "seconds": result.seconds,
    }


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """``sd`` is that of a sample (N - 1), so a single seed has none."""
    with np.errstate(invalid="ignore"):  # the losses of a diverged model: NaN is what the reader must see
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return {"mean": float(values.mean()), "sd": sd, "each": values.tolist()}
