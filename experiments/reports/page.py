"""The page of a run, or of several side by side: one file, which fetches nothing and runs no script."""

from __future__ import annotations

import functools
import importlib
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from experiments import EXPERIMENTS
from experiments.reports import figures, folder, pairs, tables
from experiments.reports.folder import Curves, Picture, Run
from experiments.reports.samples import Map, Sample, Tile
from experiments.reports.tables import HtmlTable
from experiments.runner import report
from experiments.runner.config import flat
from experiments.runner.directories import RunError

HERE = Path(__file__).parent
PANELS = 3  # of learning curves, beside each other
LINES = 7  # colours that can be told apart
UNSHOWN = ("grad_norm", "skipped")  # measures that are no result


class Bar(NamedTuple):
    """Neighbours of one row of a map that have the same value."""

    x: int
    y: int
    width: int
    share: float  # from 0 to 1


class Drawn(NamedTuple):
    """A map as rectangles."""

    bars: list[Bar]
    rows: int
    columns: int
    cell: int  # pixels
    left: int  # pixels for the names of the rows
    words: str


class View(NamedTuple):
    """A run as the template shows it."""

    run: Run
    id: str
    facts: list[tuple[str, str]]
    faults: list[str]
    table: HtmlTable | None
    pairs: HtmlTable | None
    curves: list[Picture]
    pictures: list[Picture]
    samples: list[Any]  # (kind, sample or table, drawn)
    endings: list[str]  # which models stopped early, and why
    set_apart: list[tuple[str, str]]  # keys of the configuration that differ from the defaults
    config: list[tuple[str, str]]
    environment: list[tuple[str, str]]
    commands: list[tuple[str, str]]  # what for, and the command


def write(directories: Sequence[Path], output: Path | None = None) -> tuple[Path, list[str]]:
    """Write the page; returns where it is, and what could not be shown.

    Args:
        directories: of the runs.
        output: the file; None means report.html in the run's folder, or beside the folders of several.

    Raises:
        ConfigError: a folder is no run. RunError, checkpoints.CheckpointError: a file of it is damaged. OSError.
    """
    if output is None:
        output = (directories[0] if len(directories) == 1 else directories[0].parent) / "report.html"
    runs = [folder.read(directory, f"run{number}") for number, directory in enumerate(directories, start=1)]
    html = page(runs)
    output.write_text(html, encoding="utf-8")
    return output, [fault for run in runs for fault in faults(run)]


def page(runs: Sequence[Run]) -> str:
    """The whole page as HTML."""
    groups = compared(runs) if len(runs) > 1 else []
    return template().render(
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        title=title_of(runs),
        views=[view(run, f"run{number}") for number, run in enumerate(runs, start=1)],
        differences=tables.of_differences(runs) if len(runs) > 1 else None,
        compared=groups,
        map_of=drawn,
        tile_of=tile,
    )


@functools.cache
def template() -> jinja2.Template:
    """Everything that it is given is escaped but for what is Markup: our own style sheet, drawings made clean."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")


def title_of(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return f"{runs[0].experiment}: {runs[0].name}"
    return f"{len(runs)} runs side by side: {', '.join(run.name for run in runs)}"


def view(run: Run, identity: str) -> View:
    """What the template says of one run."""
    curves = [picture for picture in run.pictures if picture.name.startswith("curves")]
    if not curves and run.curves:
        curves = [curves_of(run.curves, f"{identity}-curves", f"{run.name}: what was measured while it learned")]
    samples: list[Any] = []
    for sample in run.samples:
        samples.append((sample.kind, tables.of_groups(sample) if sample.kind == "groups" else sample))
    environment = run.summary.get("environment")
    return View(
        run,
        identity,
        facts_of(run),
        faults(run),
        table_of([run], "All models of the run") if run.finished else None,
        pairs.of_run(run) if run.finished else None,
        curves,
        [picture for picture in run.pictures if not picture.name.startswith("curves")],
        samples,
        endings_of(run),
        differing(run),
        [(key, tables.written(value)) for key, value in run.config.items()],
        [(str(key), str(value)) for key, value in environment.items()] if isinstance(environment, Mapping) else [],
        commands_of(run),
    )


def faults(run: Run) -> list[str]:
    """What is missing from the page, and what can be done."""
    if run.finished:
        return run.faults
    steps = run.config.get("train.steps")
    command = "sweep" if run.is_sweep else "run"
    came = f", step {run.step:,} of {steps:,} was the last recorded" if run.step and isinstance(steps, int) else ""
    again = f"python -m experiments {command} --resume {quoted(run.directory)}"
    return [f"{run.directory}: this run has not finished{came}; go on with: {again}", *run.faults]


def table_of(runs: Sequence[Run], caption: str) -> HtmlTable:
    """With intervals, where the summaries hold every seed; else as the run has written it.

    Raises:
        RunError: a summary is not such as a run writes.
    """
    try:
        found = tables.of_models(runs, caption)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = " or ".join(str(run.directory / "summary.json") for run in runs)
        raise RunError(f"{where}: not what a run writes: {type(error).__name__}: {error}") from None
    return found or tables.of_rows(runs[0].rows, caption)


def facts_of(run: Run) -> list[tuple[str, str]]:
    """The line below the title."""
    models = run.summary.get("models")
    seeds = run.config.get("train.seeds", run.config.get("seeds", run.config.get("task.seeds")))
    environment = run.summary.get("environment")
    seconds = folder.seconds_of(run.summary)
    facts = [("Run", run.name), ("State", "finished" if run.finished else f"unfinished, step {run.step:,}")]
    if isinstance(models, list):
        facts.append(("Models", str(len(models))))
    if isinstance(seeds, list):
        facts.append(("Seeds", str(len(seeds))))
    if seconds is not None:
        facts.append(("Time", duration(seconds)))
    if isinstance(environment, Mapping) and "date" in environment:
        facts.append(("Date", str(environment["date"])))
    return facts


def endings_of(run: Run) -> list[str]:
    models = run.summary.get("models")
    return [
        f"{model.get('model')}: {model['ended']}."
        for model in (models if isinstance(models, list) else [])
        if isinstance(model, Mapping) and model.get("ended")
    ]


def duration(seconds: float) -> str:
    """In the units that people use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def commands_of(run: Run) -> list[tuple[str, str]]:
    """How to run it again, to ask its models, to go on."""
    module, folder_ = EXPERIMENTS.get(run.experiment), quoted(run.directory)
    command = "sweep" if run.is_sweep else "run"
    commands = []
    if not run.finished:
        commands.append(("Go on", f"python -m experiments {command} --resume {folder_}"))
    grid = [f"{key}={','.join(map(tables.written, values))}" for key, values in (run.grid or {}).items()]
    options = "".join(f" --grid {shlex.quote(one)}" for one in grid)
    again = f"python -m experiments {command} {quoted(run.directory / 'config.toml')}{options}"
    commands.append(("The same again, in a new folder", again))
    if module is not None and not run.is_sweep and (run.directory / "checkpoints").exists():
        commands.append(("Ask its first model about held-out examples", f"python -m experiments predict {folder_}"))
    commands.append(("This page again", f"python -m experiments report {folder_}"))
    return commands


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def differing(run: Run) -> list[tuple[str, str]]:
    """The keys that are not the experiment's defaults; none where this version knows no such experiment."""
    described = EXPERIMENTS.get(run.experiment)
    if described is None:
        return []
    try:
        schema = importlib.import_module(described.module).Config
        defaults = flat(schema.model_validate({"experiment": run.experiment}).model_dump(mode="json"))
    except (ImportError, ValueError, AttributeError):
        return []
    return [
        (key, tables.written(value)) for key, value in run.config.items() if key in defaults and defaults[key] != value
    ]


def compared(runs: Sequence[Run]) -> list[tuple[str, list[HtmlTable], list[Picture]]]:
    """Of each experiment that several runs have: its name, tables and the curves of all of them."""
    found = []
    for number, experiment in enumerate(dict.fromkeys(run.experiment for run in runs), start=1):
        of = [run for run in runs if run.experiment == experiment]
        if len(of) < 2:
            continue
        finished = [run for run in of if run.finished]
        both = [tables.of_models(finished, f"{experiment}: all models"), pairs.of_runs(finished)] if finished else []
        together: Curves = {}
        for run in of:
            for measure, by_model in run.curves.items():
                for model, curve in by_model.items():
                    together.setdefault(measure, {})[f"{run.name}: {model}"] = curve
        title = f"{experiment}: what was measured while they learned"
        drawn = [curves_of(together, f"compared{number}", title)] if together else []
        found.append((experiment, [table for table in both if table], drawn))
    return found


def curves_of(curves: Curves, name: str, title: str) -> Picture:
    """Learning curves, the mean of the seeds and a band from the lowest to the highest."""
    shown = [measure for measure in curves if measure not in UNSHOWN][:PANELS]
    models = list(dict.fromkeys(model for measure in shown for model in curves[measure]))
    title += f"; the first {LINES} of {len(models)}" if len(models) > LINES else ""
    panels = {}
    for measure in shown:
        empty = ([0], np.full((1, 1), math.nan))
        panels[measure.replace("_", " ")] = {model: curves[measure].get(model, empty) for model in models[:LINES]}
    seeds = max(len(values) for of in curves.values() for _, values in of.values())
    positive = all(
        np.nanmin(values, initial=math.inf) > 0 for measure in shown for _, values in curves[measure].values()
    )
    loss_only = positive and all("loss" in measure or "error" in measure or "entropy" in measure for measure in shown)
    figure = report.draw(panels, seeds, title=title, yscale="log" if loss_only else "linear")
    if positive and not loss_only:
        for axes, measure in zip(figure.axes, shown, strict=True):
            axes.set_yscale("log" if "loss" in measure or "error" in measure else "linear")
    return Picture(name, figures.inlined(figures.svg_of(figure, name), name), "")


def drawn(sample: Map) -> Drawn:
    """A map as rectangles, and in words which column is the largest in each row."""
    columns = len(sample.values[0])
    cell = max(2, min(22, 880 // columns))
    left = 14 + 8 * max((len(name) for name in sample.rows), default=0) if sample.rows else 8
    names = sample.rows or tuple(str(number) for number in range(1, len(sample.values) + 1))
    tops = sample.columns or tuple(str(number) for number in range(1, columns + 1))
    said = []
    for name, row in zip(names[:40], sample.values, strict=False):
        known = [-math.inf if value is None else value for value in row]
        place = max(range(columns), key=known.__getitem__)
        said.append(f"{name}: {tops[place]} ({known[place]:.2f}, column {place + 1})")
    words = f"{len(sample.values)} rows ({sample.ylabel or 'y'}) by {columns} columns ({sample.xlabel or 'x'}). "
    words += f"The largest value of each row: {'; '.join(said)}." if len(sample.values) <= 40 else ""
    return Drawn(_bars(sample.values, sample.low, sample.high), len(sample.values), columns, cell, left, words)


def tile(sample: Tile) -> Drawn:
    """A small image as rectangles."""
    columns = len(sample.values[0]) if sample.values else 1
    return Drawn(_bars(sample.values, 0, 1), len(sample.values), columns, max(2, 72 // columns), 0, sample.caption)


def _bars(values: Sequence[Sequence[float | None]], low: float, high: float) -> list[Bar]:
    bars: list[Bar] = []
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            share = 0.0 if value is None else min(max((value - low) / ((high - low) or 1), 0.0), 1.0)
            share = round(share, 2)
            if not share:
                continue
            if bars and bars[-1].y == y and bars[-1].share == share and bars[-1].x + bars[-1].width == x:
                bars[-1] = bars[-1]._replace(width=bars[-1].width + 1)
            else:
                bars.append(Bar(x, y, 1, share))
    return bars


__all__ = ["Sample", "page", "write"]
