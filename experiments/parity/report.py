"""The table of the comparison."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.parity.compare import Row

LIMITS = {"float32": 2e-6, "float64": 1e-10}


def worst(row: Row) -> float:
    return max(row.outputs, row.carry, row.gradients or 0.0)


def table(rows: Iterable[Row]) -> str:
    """Markdown, a line for each model, its dtypes side by side."""
    models: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        models.setdefault((row.source.library, row.source.cell, row.source.options), {})[row.dtype] = row
    figures_of = ("outputs", "final state", "gradients")
    head = ["library", "cell", "options", *(f"{dtype}: {what}" for dtype in LIMITS for what in figures_of)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (library, cell, options), by_dtype in models.items():
        figures = [
            _figure(getattr(by_dtype.get(d), n, None)) for d in LIMITS for n in ("outputs", "carry", "gradients")
        ]
        lines.append(f"| {library} | {cell} | {options or '–'} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"
