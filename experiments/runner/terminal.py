"""What the terminal shows: progress while models train, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.runner.report import Column, Result, diverged, rows, skipped
from jaxrnn.training import BlockResult


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

    def update(self, model: str, block: BlockResult) -> None:
        value = self.column.shown(block.values[self.column.name].mean(keepdims=True))
        measured = f"loss {block.values['loss'].mean():.4g}  {self.column.title} {value}{self.pace(model, block.step)}"
        self.bars.update(self.tasks[model], completed=block.step, measured=measured)

    def pace(self, model: str, step: int) -> str:
        """Steps a second, and the time that is left; from the second block on, as compilation comes before it."""
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
        if result.already_finished:
            _say(
                self.console,
                f"{result.model}: had ended after step {result.history[-1].step}; read from its checkpoint, not run",
            )
        if not self.console.is_terminal:
            _say(
                self.console,
                f"{result.model}: {result.history[-1].step} steps in {result.seconds:.1f} s, "
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
