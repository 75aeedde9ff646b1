"""Figures of learning online."""

from __future__ import annotations

import itertools

import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn.gradients.agreements import Agreement
from jaxrnn.plotting._axes import Figure, colours, plain


@checks_arguments
def agreement(found: Agreement, *, title: str = "Online rules beside back-propagation through time") -> Figure:
    """How wrong online rules are, by lag: direction on the left, size on the right, above 1 in the logarithm.

    Args:
        found: from ``jr.gradients.agreement``.
        title: above the panels.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell, xs = jr.elman(2, 3), jnp.ones((5, 2, 2))
        >>> params = cell.init(jax.random.key(0))
        >>> found = jr.gradients.agreement(cell, params, xs, jnp.zeros((5, 2, 3)), ["snap1"])
        >>> figure = jr.plotting.agreement(found)
    """
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = "-", "--", ":"  # curves that lie on each other show both
    for axes, values, label in (
        (left, found.by_lag.cosine, "cosine of g and g*"),
        (right, found.by_lag.norm, "|g| / |g*|"),
    ):
        for name, row, colour, style in zip(found.rules, values, colours(), itertools.cycle(styles), strict=False):
            axes.plot(np.arange(len(row)), row, color=colour, linestyle=style, label=name)
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(xlabel="lag (steps from a param's use to the loss)", ylabel=label)
        plain(axes)
    left.set_ylim(np.nanmin(found.by_lag.cosine, initial=0) - 0.05, 1.05)
    right.set_yscale("symlog", linthresh=1)
    right.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure
