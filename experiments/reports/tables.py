"""The tables of a report: means with the intervals that the seeds leave, errors by group, what differs between runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.measured import interval, shown, spread
from experiments.reports.folder import Run
from experiments.reports.samples import Groups

Json = Any


class Strip(NamedTuple):
    """The seeds as points on a line, with mean and interval; all places in per cent of the width."""

    points: list[float]
    mean: float
    low: float | None
    high: float | None
    said: str


class Cell(NamedTuple):
    text: str
    below: str = ""  # in small letters
    strip: Strip | None = None
    shade: int = 0  # per cent
    is_head: bool = False
    is_number: bool = True
    is_bold: bool = False


class HtmlTable(NamedTuple):
    caption: str
    header: list[Cell]
    rows: list[list[Cell]]
    note: str = ""


def of_models(runs: Sequence[Run], caption: str) -> HtmlTable | None:
    """A row for each model of the runs, a column for each measure; None where a run has no such summary."""
    if not all(is_of_models(run.summary) for run in runs):
        return None
    columns: dict[str, dict[str, str]] = {}
    for run in runs:
        for column in run.summary["columns"]:
            columns.setdefault(column["name"], column)
    models = [(run, model) for run in runs for model in run.summary["models"]]
    beside = len(runs) > 1
    header = [Cell("run", is_number=False)] * beside + [Cell("model", is_number=False)]
    body = [
        [
            *([Cell(run.name, is_head=True, is_number=False)] * beside),
            Cell(str(model["model"]), is_head=True, is_number=False),
        ]
        for run, model in models
    ]
    for place, (name, column) in enumerate(columns.items()):
        values = [of_seeds(model.get(name)) for _, model in models]
        header.append(Cell(column["title"]))
        strips = _strips(values, column["form"]) if place == 0 else [None] * len(values)
        if any(strips):
            header.append(Cell("each seed, mean and interval", is_number=False))
        for row, of, strip in zip(body, values, strips, strict=True):
            row.append(_measured(of, column["form"]))
            if any(strips):
                row.append(Cell("", strip=strip, is_number=False))
    header += [Cell("parameters"), Cell("seeds"), Cell("steps"), Cell("seconds")]
    for row, (_, model) in zip(body, models, strict=True):
        numbers = (model["parameters"], len(model["seeds"]), model["steps"])
        row += [*(Cell(f"{number:,}") for number in numbers), Cell(f"{model['seconds']:.0f}")]
    note = (
        "Mean ± standard deviation of the seeds; below it, in brackets, the 95 % confidence interval of the mean "
        "(Student's t). Points: the seeds, on one scale for the whole column."
    )
    return HtmlTable(caption, header, body, note if any(len(model["seeds"]) > 1 for _, model in models) else "")


def of_rows(rows: Sequence[Sequence[str]], caption: str) -> HtmlTable:
    """A table that the run has written itself; columns of nothing but numbers stand to the right."""
    header, *body = rows
    numbers = [all(_is_number(row[place]) for row in body if place < len(row)) for place, _ in enumerate(header)]

    def cell(place: int, text: str, first: bool) -> Cell:
        return Cell(text, is_head=first and place == 0, is_number=place < len(numbers) and numbers[place])

    return HtmlTable(
        caption,
        [cell(place, text, False) for place, text in enumerate(header)],
        [[cell(place, text, True) for place, text in enumerate(row)] for row in body],
    )


def of_groups(groups: Groups) -> HtmlTable:
    """A row for each model: the mean of the seeds, shaded where it is bad, and from the lowest to the highest."""
    means = {model: [_mean(column) for column in zip(*of, strict=True)] for model, of in groups.by_model.items()}
    finite = [value for of in means.values() for value in of if value is not None]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)

    def shade(value: float | None) -> int:
        if value is None or high <= low:
            return 0
        share = (value - low) / (high - low)
        return round(45 * (share if groups.bad == "high" else 1 - share))

    rows = []
    for model, of_model in groups.by_model.items():
        cells = [Cell(model, is_head=True, is_number=False)]
        for mean, column in zip(means[model], zip(*of_model, strict=True), strict=True):
            known = [value for value in column if value is not None]
            spread = f"{shown(min(known), groups.form)} – {shown(max(known), groups.form)}" if len(known) > 1 else ""
            cells.append(Cell("–" if mean is None else shown(mean, groups.form), spread, shade=shade(mean)))
        rows.append(cells)
    seeds = max((len(of) for of in groups.by_model.values()), default=0)
    unit = "In per cent. " if groups.form == "%" else ""
    spread = "Mean of the seeds, below it the lowest and the highest seed. " if seeds > 1 else ""
    note = f"{unit}{spread}The more colour, the {'higher' if groups.bad == 'high' else 'lower'}. {groups.note}"
    header = [Cell(groups.axis, is_number=False), *(Cell(name) for name in groups.groups)]
    return HtmlTable(groups.title, header, rows, note.strip())


def of_differences(runs: Sequence[Run]) -> HtmlTable | None:
    """The keys of the configuration that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    missing = object()
    rows = []
    for key in keys:
        values = [run.config.get(key, missing) for run in runs]
        if any(value != values[0] for value in values[1:]):
            texts = ["–" if value is missing else written(value) for value in values]
            rows.append([Cell(key, is_head=True, is_number=False), *(Cell(text, is_number=False) for text in texts)])
    header = [Cell("key", is_number=False), *(Cell(run.name, is_number=False) for run in runs)]
    return HtmlTable("What differs in the configuration", header, rows) if rows else None


def written(value: Any) -> str:
    """A value of a configuration."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(written(entry) for entry in value)}]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def is_of_models(summary: Mapping[str, Json]) -> bool:
    models, columns = summary.get("models"), summary.get("columns")
    return bool(
        isinstance(models, list)
        and isinstance(columns, list)
        and all(isinstance(column, dict) and {"name", "title", "form"} <= column.keys() for column in columns)
        and all(re.fullmatch(r"%|of|\.\d{1,2}[efg]", str(column["form"])) for column in columns)
        and all(
            isinstance(m, dict) and {"model", "parameters", "steps", "seeds", "seconds"} <= m.keys() for m in models
        )
    )


def of_seeds(statistics: Json) -> np.ndarray:
    """Of the seeds; NaN for what was no finite number, and for a measure that this model has not."""
    each = statistics.get("each", []) if isinstance(statistics, dict) else []
    return np.array([math.nan if value is None else float(value) for value in each])


def _measured(values: np.ndarray, form: str) -> Cell:
    if not len(values):
        return Cell("–")
    if form != "of" and not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).sum())
        return Cell("not finite", f"{lost} of {len(values)} seeds")
    ends = None if form == "of" else interval(values)
    if ends is not None and form == "%":
        ends = max(ends[0], 0.0), min(ends[1], 1.0)
    below = f"[{shown(ends[0], form)}, {shown(ends[1], form)}]" if ends else ""
    return Cell(spread(values, form), below)


def _strips(values: Sequence[np.ndarray], form: str) -> list[Strip | None]:
    """On one scale; a logarithmic one where the smallest and the largest lie far apart. None without many seeds."""
    if form == "of" or not any(len(of) > 1 for of in values):
        return [None] * len(values)
    finite = np.concatenate([of[np.isfinite(of)] for of in values])
    if not len(finite):
        return [None] * len(values)
    logarithmic = finite.min() > 0 and finite.max() > 30 * finite.min()
    ends = [None if logarithmic else interval(of) for of in values]
    known = np.concatenate([finite, *(np.array(end) for end in ends if end is not None)])
    known = np.clip(known, 0, 1) if form == "%" else known
    low, high = float(known.min()), float(known.max())

    def place(value: float) -> float:
        value = min(max(value, low), high)
        share = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
        return round(4 + 92 * share, 2)

    strips: list[Strip | None] = []
    for of, end in zip(values, ends, strict=True):
        if not len(of) or not np.isfinite(of).all() or low == high:
            strips.append(None)
            continue
        said = f"{len(of)} seeds from {shown(of.min(), form)} to {shown(of.max(), form)}"
        said += " on a logarithmic scale" if logarithmic else ""
        low_end, high_end = (None, None) if end is None else map(place, end)
        strips.append(Strip([place(value) for value in of.tolist()], place(float(of.mean())), low_end, high_end, said))
    return strips


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _is_number(text: str) -> bool:
    plain = text.replace("±", "").replace("%", "").replace("–", "0")
    return any(letter.isdigit() for letter in plain) and not any(letter.isalpha() and letter != "e" for letter in plain)
