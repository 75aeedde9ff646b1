"""What the terminal shows: progress while models train, and the table at the end.

Where the output is no terminal (a file, a pipe, a job's log) there is no bar and no control character, but a line a
minute. Colours are left out where the environment has NO_COLOR; rich sees to that.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.runner.report import Column, Result, diverged, paired, rows, skipped
from jaxrnn.training import BlockResult

WIDE = 110  # columns of a terminal that has room for a bar
EVERY = 60.0  # seconds between two lines where there is no terminal


class BestSoFar(NamedTuple):
    """The best mean of the seeds, among the blocks that were seen."""

    value: float
    step: int
    since: int  # the first step that was seen, where a resumed run has not seen all; else 0


class Display:
    """A progress bar for each model; where stdout is no terminal, a line a minute and one at the end."""

    def __init__(self, steps: int, column: Column, console: Console | None = None, *, block: int = 0) -> None:
        self.console = console or Console(quiet=jax.process_index() > 0)
        self.steps = steps
        self.own: dict[str, int] = {}  # the steps of each model
        self.block = block or steps  # the steps of one
        self.column = column  # shown beside the loss
        self.tasks: dict[str, TaskID] = {}
        self.lower: dict[str, bool | None] = {}  # whether small values of the column are good
        self.best: dict[str, BestSoFar] = {}
        self.shown: dict[str, list[tuple[int, float]]] = {}  # the first two points of each model, and when
        self.said = -EVERY  # when there was a line
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        wide = self.console.width >= WIDE
        self.bars = Progress(
            TextColumn("{task.description:<18}" if wide else "{task.description}"),
            *([BarColumn(bar_width=20)] if wide else []),
            TextColumn("{task.completed}/{task.total}  {task.fields[measured]}"),
            *([TimeElapsedColumn()] if wide else []),
            console=self.console,
            disable=not self.is_live,
        )

    def __enter__(self) -> Display:
        self.said = time.monotonic()
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def start(self, model: str, lower: bool | None = None, steps: int | None = None) -> None:
        """A model begins.

        Args:
            model: its name.
            lower: whether small values of the column are good; None where it says nothing of good and bad.
            steps: how many it takes; None means as many as all.
        """
        self.lower[model], self.own[model] = lower, steps or self.steps
        self.tasks[model] = self.bars.add_task(model, total=self.own[model], measured="compiling")

    def update(self, model: str, block: BlockResult) -> None:
        mean = block.values[self.column.name].mean(keepdims=True)
        self.keep_best(model, block.step, float(mean[0]))
        measured = f"loss {block.values['loss'].mean():.4g}  {self.column.title} {self.column.shown(mean)}"
        measured += self.best_in_words(model, block.step) + self.pace(model, block.step)
        self.bars.update(self.tasks[model], completed=block.step, measured=measured)
        if not self.is_live and time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            _say(self.console, f"{model}: step {block.step:,} of {self.own[model]:,}  {measured}")

    def keep_best(self, model: str, step: int, value: float) -> None:
        lower, best = self.lower[model], self.best.get(model)
        if lower is None or not np.isfinite(value):
            return
        if best is None or (value < best.value if lower else value > best.value):
            # The first block seen of a run that goes on is the last before it: better ones may lie before that.
            resumed = step if best is None and step > self.block else 0
            self.best[model] = BestSoFar(value, step, best.since if best else resumed)

    def best_in_words(self, model: str, step: int) -> str:
        """Nothing where the last block is the best."""
        best = self.best.get(model)
        if best is None or best.step == step:
            return ""
        since = f" since {best.since:,}" if best.since else ""
        return f" (best{since} {self.column.shown(np.array([best.value]))} at {best.step:,})"

    def pace(self, model: str, step: int) -> str:
        """Steps a second, and the time that is left; from the second block on, as compilation comes before it."""
        now, shown = time.perf_counter(), self.shown.setdefault(model, [])
        if len(shown) < 2:
            shown.append((step, now))
        first, then = shown[-1]
        steps = self.own.get(model, self.steps)
        if step in (first, steps):
            return ""
        rate = (step - first) / (now - then)
        left = round((steps - step) / rate)
        hours, minutes = divmod(left // 60, 60)
        clock = f"{hours}:{minutes:02d}:{left % 60:02d}" if hours else f"{minutes}:{left % 60:02d}"
        return f"  {rate:.3g} steps/s  {clock} left"

    def finish(self, result: Result) -> None:
        if result.already_finished:
            _say(
                self.console,
                f"{result.model}: had ended after step {result.history[-1].step}; read from its checkpoint, not run",
            )
        if not self.is_live:
            _say(
                self.console,
                f"{result.model}: {result.history[-1].step} steps in {result.seconds:.1f} s, "
                f"loss {result.last('loss').mean():.4g}, {self.column.title} "
                f"{self.column.shown(result.last(self.column.name))}"
                f"{self.best_in_words(result.model, result.history[-1].step)}",
            )
        if result.ended:
            _say(self.console, f"{result.model}: {result.ended}")


@contextlib.contextmanager
def quiet(is_quiet: bool) -> Iterator[None]:
    """Whether what is written to stdout meanwhile is thrown away; errors go to stderr and stay."""
    if not is_quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def show(results: Sequence[Result], columns: Sequence[Column], notes: Sequence[str], directory: Path) -> None:
    """The table and its notes, on the terminal."""
    below = [*notes, *paired(results, columns), *diverged(results), *skipped(results), f"written to {directory}"]
    show_table(rows(results, columns), below)


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
