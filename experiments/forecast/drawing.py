"""Forecasts with their intervals, beside what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.forecast.scores import Forecasts
from jaxrnn import plotting


class Fan(NamedTuple):
    """Some forecasts of one series that do not overlap, N of H steps."""

    title: str
    years: np.ndarray  # (T,)
    values: np.ndarray  # (T,), NaN where missing
    ahead: np.ndarray  # (N, H) years
    made: Forecasts


def forecasts(fans: Sequence[Fan]) -> Figure:
    """A panel for each series: the values, the medians, the 80 and 95 % intervals; each origin where a fan begins."""
    figure = Figure(figsize=(9, 2.6 * len(fans) + 0.4), layout="constrained")
    colour = plotting.COLOURS[0]
    for axes, fan in zip(figure.subplots(len(fans), 1, squeeze=False)[:, 0], fans, strict=True):
        ends = {share: fan.made.interval(share) for share in (0.95, 0.8)}
        for n, (ahead, median) in enumerate(zip(fan.ahead, fan.made.median, strict=True)):
            for (share, (low, high)), alpha in zip(ends.items(), (0.18, 0.3), strict=True):
                label = f"{100 * share:.0f} % interval" if n == 0 else None
                axes.fill_between(ahead, low[n], high[n], color=colour, alpha=alpha, linewidth=0, label=label)
            axes.plot(ahead, median, color=colour, linewidth=1.2, label="median" if n == 0 else None)
            axes.axvline(ahead[0], color="grey", linewidth=0.5, alpha=0.5)
        axes.plot(fan.years, fan.values, color="black", linewidth=0.8, label="values")
        axes.set_title(fan.title, fontsize=11)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("year")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False)
    return figure
