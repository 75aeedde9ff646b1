"""The tables of the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from experiments import markdown
from experiments.parity.compare import Row

LIMITS = {"float32": 2e-6, "float64": 1e-10}
FIGURES = ("outputs", "carry", "gradients")
HEAD = [f"{dtype}: {what}" for dtype in LIMITS for what in ("outputs", "final state", "gradients")]


def worst(row: Row) -> float:
    return max(row.outputs, row.carry, row.gradients or 0.0)


def summary(rows: Iterable[Row]) -> str:
    """Markdown, a line for each library: the largest differences among its models."""
    by_library = _grouped(rows, lambda row: (row.source.library,))
    lines = [
        [library, str(len({(r.source.cell, r.source.options) for r in own})), *_figures(own)]
        for (library,), own in by_library.items()
    ]
    return markdown.table([["library", "models", *HEAD], *lines])


def table(rows: Iterable[Row]) -> str:
    """Markdown, a line for each model."""
    by_model = _grouped(rows, lambda row: (row.source.library, row.source.cell, row.source.options or "–"))
    lines = [[*model, *_figures(own)] for model, own in by_model.items()]
    return markdown.table([["library", "cell", "options", *HEAD], *lines], left=3)


def _grouped(rows: Iterable[Row], key: Callable[[Row], tuple[str, ...]]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _figures(rows: Sequence[Row]) -> list[str]:
    """The largest of each, dtype by dtype."""
    cells = []
    for dtype in LIMITS:
        for figure in FIGURES:
            values = [getattr(row, figure) for row in rows if row.dtype == dtype]
            known = [value for value in values if value is not None]
            cells.append(f"{max(known):.0e}" if known else "–")
    return cells
