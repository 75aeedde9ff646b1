"""What a run leaves behind, in a directory of its own.

runs/digits-001/
  config.toml     the whole configuration, which `run` accepts again
  metrics.jsonl   a line for each model, seed and block of steps
  checkpoints/    of each model, the newest two; what `run --resume` and `predict` read
  tensorboard/    the metrics again, where train.tensorboard asks for them
  summary.json    the final numbers, the machine and the versions
  table.md        the same as a table
  *.png, *.svg    figures
  samples.json    what the models do with some examples, where the experiment shows it
  report.html     all of it as a page (experiments/reports)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments import markdown, measured
from experiments.environment import environment, sentence
from experiments.reports import figures as drawings
from experiments.reports import samples as shown
from jaxrnn import plotting
from jaxrnn.training import BlockResult
from jaxrnn.training.records import to_json

PACKAGES = ("jax", "jaxlib", "optax", "numpy", "scikit-learn")


class Result(NamedTuple):
    """One trained model. The values of its history are means over a block's batches, or held out, measured after it."""

    model: str
    seeds: tuple[int, ...]
    parameters: int
    history: list[BlockResult]  # each value (seeds,)
    seconds: float  # all of it, compilation included
    already_finished: bool = False  # read from the checkpoint of an earlier run
    ended: str = ""  # why before its last step, in words
    data: str = ""  # what it is measured on, where that is not the same for all: models on other data are not compared

    def last(self, name: str) -> np.ndarray:
        """(seeds,): a measure after the last block."""
        return self.history[-1].values[name]

    def add(self, measures: Mapping[str, np.ndarray]) -> Result:
        """With measures (seeds,) that were made once training was over."""
        *before, last = self.history
        return self._replace(history=[*before, last._replace(values={**last.values, **measures})])

    def diverged(self) -> dict[int, tuple[str, int]]:
        """The seeds that left the finite numbers, each with the quantity that did so first, and its step (from 1)."""
        first: dict[int, tuple[str, int]] = {}
        for block in self.history:
            for index, seed in enumerate(self.seeds):
                steps = [(int(at[index]), name) for name, at in block.nonfinite.items() if at[index]]
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
        return measured.spread(values, self.form)


Curve = tuple[Sequence[int], np.ndarray]  # steps, and a measure (seeds, points)


class Clock:
    def __init__(self) -> None:
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start


def write(
    directory: Path,
    results: Sequence[Result],
    columns: Sequence[Column],
    notes: Sequence[str],
    figures: Mapping[str, Figure],
    *,
    samples: Sequence[shown.Sample] = (),
    **more: Any,
) -> None:
    """The files that need the whole run: summary.json (with what else is given), table.md, figures, samples."""
    summary = {
        "columns": [column._asdict() for column in columns],
        "models": [_summary(result, columns) for result in results],
        **more,
        "environment": environment(PACKAGES),
    }
    (directory / "summary.json").write_text(to_json(summary, indent=2) + "\n", encoding="utf-8")
    below = [*notes, *paired(results, columns), *diverged(results), *skipped(results)]
    write_table(directory, rows(results, columns), below)
    if samples:
        shown.write(directory, samples)
    for name, figure in figures.items():
        drawings.save(figure, directory / name)


def rows(results: Sequence[Result], columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """The table, its header first."""
    header = ("model", "parameters", *(column.title for column in columns), "steps", "seconds")
    body = [
        (
            result.model,
            f"{result.parameters:,}",
            *(column.shown(result.last(column.name)) for column in columns),
            f"{result.history[-1].step:,}",
            f"{result.seconds:.0f}",
        )
        for result in results
    ]
    return [header, *body]


def spread(seeds: Sequence[int]) -> str:
    """What the figures in a table are, in words."""
    return f"mean ± standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def paired(results: Sequence[Result], columns: Sequence[Column]) -> list[str]:
    """A line: how far models lie apart on the same seeds in the main measure of the table; none of a single model."""
    column = next(c for c in columns if c.name == measured.main_measure([c.name for c in columns]))
    if column.form == "of":
        return []
    by_model = {r.model: dict(zip(r.seeds, r.last(column.name).tolist(), strict=True)) for r in results}
    found = measured.differences(by_model, {r.model: r.data for r in results})
    if not found:
        return []

    def of(value: float) -> str:
        return measured.signed(value, column.form)

    said = "; ".join(f"{d.first} less {d.second} {of(d.mean)} [{of(d.low)}, {of(d.high)}]" for d in found)
    points = ", in percentage points" if column.form == "%" else ""
    return [
        f"Paired differences in {column.title}{points}, of the same seeds, with 95 % intervals of the mean "
        f"(Student's t): {said}."
    ]


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
        for seed, count in zip(result.seeds, result.history[-1].values.get("skipped", []), strict=False)
        if count
    ]


def write_table(
    directory: Path, rows: Sequence[Sequence[str]], notes: Sequence[str], *, packages: Sequence[str] = PACKAGES
) -> None:
    """table.md: the table, what belongs below it, and where the figures come from."""
    paragraphs = [markdown.table(rows), *notes, sentence(environment(packages), packages)]
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
    return [block.step for block in result.history], np.array([of(block.values) for block in result.history]).T


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
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        low, high = axes.get_ylim()
        if yscale == "log" and high < 10 * low:  # where ticks would read 1.12 × 10¹
            for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                axis_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"{title} ({seeds} seed{'s' * (seeds > 1)}: mean, and from the lowest to the highest)", fontsize=11)
    return figure


def _summary(result: Result, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "model": result.model,
        "parameters": result.parameters,
        "steps": result.history[-1].step,
        "seeds": list(result.seeds),
        **{name: _statistics(result.last(name)) for name in ("loss", *(column.name for column in columns))},
        "diverged": result.diverged(),
        "seconds": result.seconds,
        **({"ended": result.ended} if result.ended else {}),
        **({"data": result.data} if result.data else {}),
    }


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """``sd`` is that of a sample (N - 1), so a single seed has none."""
    with np.errstate(invalid="ignore"):  # the losses of a diverged model: NaN is what the reader must see
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return {"mean": float(values.mean()), "sd": sd, "each": values.tolist()}
