"""What figures share: matplotlib, colours, axes and the legend beside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

try:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.ticker import MaxNLocator as MaxNLocator
except ImportError as error:
    raise ImportError("jaxrnn.plotting needs matplotlib: pip install 'jaxrnn[plot]'") from error

# Okabe & Ito's colours, which people who are colour-blind can tell apart.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#56B4E9")


def with_names(who: str, what: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping) or not values:
        raise TypeError(
            f"{who}: expected {what} to be a dict with an entry for each name in the legend, got {values!r:.60}."
        )
    return values


def colours() -> Iterator[str]:
    return itertools.cycle(COLOURS)


def new_figure(title: str, size: tuple[float, float] = (7.5, 4.2)) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    return figure, axes


def finished(figure: Figure, axes: Any) -> Figure:
    plain(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
