"""Where a model looks: weights of attention as a part of the report, and the same as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.reports.samples import Map

FILE = "attention.png"  # the figure


def part(title: str, weights: np.ndarray, said: Sequence[str], read: Sequence[str], *, unit: str, what: str) -> Map:
    """Weights (said, read) of a sequence of ``unit``s that is answered by a sequence of ``what``."""
    return Map(
        title=f"Where the decoder looks: {title}",
        values=tuple(map(tuple, weights.tolist())),
        rows=tuple(said),
        columns=tuple(read),
        xlabel=f"{unit} read",
        ylabel=f"{what} said",
        note="The more colour, the more weight.",
        figure=FILE,
    )


def figure(maps: Mapping[str, Map]) -> Figure:
    """A panel for each of them, under its name."""
    columns, rows = (max(len(getattr(shown, names)) for shown in maps.values()) for names in ("columns", "rows"))
    made = Figure(figsize=(len(maps) * (0.4 * columns + 1) + 1, 0.4 * rows + 1.2), layout="constrained")
    for axes, (name, shown) in zip(made.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        image = axes.imshow(np.array(shown.values), cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(shown.columns)), shown.columns)
        axes.set_yticks(range(len(shown.rows)), shown.rows)
        axes.set(title=name, xlabel=shown.xlabel, ylabel=shown.ylabel)
    made.colorbar(image, ax=made.axes, label="weight")
    return made
