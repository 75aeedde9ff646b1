"""Forecasts with their intervals, beside what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from jaxrnn import plotting


class Fan(NamedTuple):
    """Some forecasts of one series that do not overlap, N of H steps."""

    title: str
    years: np.ndarray  # (T,)
    values: np.ndarray  # (T,), NaN where missing
    ahead: np.ndarray  # (N, H) years
    mean: np.ndarray  # (N, H)
    sd: np.ndarray  # (N, H)


def forecasts(fans: Sequence[Fan]) -> Figure:
    """A panel for each series: the values, the means, the 80 and 95 % intervals; each origin where a fan begins."""
    figure = Figure(figsize=(9, 2.6 * len(fans) + 0.4), layout="constrained")
    colour = plotting.COLOURS[0]
    for axes, fan in zip(figure.subplots(len(fans), 1, squeeze=False)[:, 0], fans, strict=True):
        for n, (ahead, mean, sd) in enumerate(zip(fan.ahead, fan.mean, fan.sd, strict=True)):
            for share, alpha in ((0.95, 0.18), (0.8, 0.3)):
                half = scipy.stats.norm.ppf((1 + share) / 2) * sd
                label = f"{100 * share:.0f} % interval" if n == 0 else None
                axes.fill_between(ahead, mean - half, mean + half, color=colour, alpha=alpha, linewidth=0, label=label)
            axes.plot(ahead, mean, color=colour, linewidth=1.2, label="mean" if n == 0 else None)
            axes.axvline(ahead[0], color="grey", linewidth=0.5, alpha=0.5)
        axes.plot(fan.years, fan.values, color="black", linewidth=0.8, label="values")
        axes.set_title(fan.title, fontsize=11)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("year")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False)
    return figure
