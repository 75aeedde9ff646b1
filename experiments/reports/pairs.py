"""Models beside each other on the same seeds: those of one run, and one model in several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import measured
from experiments.measured import Difference
from experiments.reports.folder import Run
from experiments.reports.tables import Cell, HtmlTable, is_of_models, of_seeds

BySeed = Mapping[int, float]

NOTE = (
    "Mean of the differences, seed by seed; in brackets the 95 % confidence interval of it (Student's t), in bold "
    "where it leaves out 0. The more of them are looked at, the more do so by chance."
)


def of_run(run: Run) -> HtmlTable | None:
    """A row for each pair of models, a column for each measure; None where no two models share seeds."""
    if not is_of_models(run.summary):
        return None
    columns = _columns([run])
    data = {model["model"]: model.get("data", "") for model in run.summary["models"]}
    by_measure = [measured.differences(_by_model(run, column["name"]), data) for column in columns]
    names = list(dict.fromkeys((one.first, one.second) for found in by_measure for one in found))
    rows = []
    for first, second in names:
        of = [next((d for d in found if (d.first, d.second) == (first, second)), None) for found in by_measure]
        rows.append([_head(f"{first} less {second}"), *_cells(of, columns)])
    header = [Cell("models", is_number=False), *(Cell(_title(column)) for column in columns)]
    return HtmlTable("Paired differences between models", header, rows, NOTE) if rows else None


def of_runs(runs: Sequence[Run]) -> HtmlTable | None:
    """A row for each model that the first of some runs of one experiment shares with another."""
    runs = [run for run in runs if is_of_models(run.summary)]
    columns = _columns(runs)
    rows = []
    for run in runs[1:]:
        for model in [model["model"] for model in run.summary["models"]]:
            of = []
            for column in columns:
                a, b = (_by_model(one, column["name"]).get(model, {}) for one in (run, runs[0]))
                of.append(measured.difference(run.name, runs[0].name, a, b))
            if any(of):
                rows.append([_head(str(model)), _head(f"{run.name} less {runs[0].name}"), *_cells(of, columns)])
    header = [*(Cell(name, is_number=False) for name in ("model", "runs")), *(Cell(_title(one)) for one in columns)]
    return HtmlTable("Paired differences between runs", header, rows, NOTE) if rows else None


def _columns(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Those whose differences mean something: of numbers, not of seeds that do."""
    found = {column["name"]: column for run in runs for column in run.summary["columns"] if column["form"] != "of"}
    return list(found.values())


def _title(column: Mapping[str, str]) -> str:
    return f"{column['title']}{', points' if column['form'] == '%' else ''}"


def _by_model(run: Run, measure: str) -> dict[str, BySeed]:
    """The values by seed of each model that has the measure."""
    models: list[dict[str, Any]] = run.summary["models"]
    return {
        model["model"]: dict(zip(model["seeds"], of_seeds(model.get(measure)).tolist(), strict=False))
        for model in models
    }


def _head(text: str) -> Cell:
    return Cell(text, is_head=True, is_number=False)


def _cells(differences: Sequence[Difference | None], columns: Sequence[Mapping[str, str]]) -> list[Cell]:
    cells = []
    for one, column in zip(differences, columns, strict=True):
        if one is None:
            cells.append(Cell("–"))
            continue
        mean, low, high = (measured.signed(value, column["form"]) for value in (one.mean, one.low, one.high))
        cells.append(Cell(mean, f"[{low}, {high}]", is_bold=not one.low <= 0 <= one.high))
    return cells
