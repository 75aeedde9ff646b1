"""Figures of the dynamics of the state."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn.gradients.fixed_points import FixedPoints, LinearAnalysis
from jaxrnn.plotting._axes import COLOURS, Figure


@checks_arguments
def fixed_points(
    points: FixedPoints,
    analysis: LinearAnalysis | None = None,
    states: Any = None,
    *,
    components: int = 3,
    title: str = "Fixed points",
) -> Figure:
    """Fixed points, and the states of runs around them, in the principal components of the states.

    Args:
        points: from ``jr.gradients.find_fixed_points``.
        analysis: from ``jr.gradients.linear_analysis`` of their carry; then stable and unstable points are told apart.
        states: the carry along runs, each leaf (T, *B, …); their first principal components span the figure (without
            states, those of the points).
        components: 3 or 2 axes.
        title: above the axes, with the share of the variance that they show.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.gru(1, 4)
        >>> params = cell.init(jax.random.key(0))
        >>> ys = jr.scan(cell).apply(params, jnp.ones((30, 5, 1)))[1]
        >>> points = jr.gradients.find_fixed_points(cell, params, ys[-1], jnp.ones(1), method="newton")
        >>> around = jr.gradients.linear_analysis(cell, params, points.carry, jnp.ones(1))
        >>> figure = jr.plotting.fixed_points(points, around, ys)
    """
    if components not in (2, 3):
        raise ValueError(f"fixed_points: components must be 2 or 3, got {components!r}.")
    found = _flat(points.carry, 1)
    _check_states(states, points.carry)
    runs = None if states is None else _flat(states, None)
    if len(found) == 0 and runs is None:
        raise ValueError("fixed_points: there is no point, and no states, to draw.")
    cloud = found if runs is None else runs.reshape(-1, runs.shape[-1])
    middle = cloud.mean(0)
    _, scale, directions = np.linalg.svd(cloud - middle, full_matrices=False)
    axes_kept = directions[:components]
    share = (scale[:components] ** 2).sum() / max((scale**2).sum(), 1e-30)

    def project(a):
        return np.pad((a - middle) @ axes_kept.T, [(0, 0)] * (a.ndim - 1) + [(0, components - len(axes_kept))])

    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes: Any = figure.add_subplot(projection="3d" if components == 3 else None)
    if runs is not None:
        for run in np.moveaxis(project(runs).reshape(len(runs), -1, components), 1, 0)[:50]:
            axes.plot(*run.T, color="grey", linewidth=0.5, alpha=0.4)
    stable = np.ones(len(found), bool) if analysis is None else np.asarray(analysis.stable)
    for kind, chosen, style in (
        ("fixed point" if analysis is None else "stable", stable, {"s": 45, "color": COLOURS[4]}),
        ("unstable", ~stable, {"s": 45, "facecolor": "none", "edgecolor": COLOURS[5], "linewidth": 1.2}),
    ):
        if chosen.any():
            label = f"{kind} ({chosen.sum()})"
            axes.scatter(*project(found[chosen]).T, label=label, zorder=3, **style)
    axes.set(xlabel="PC 1", ylabel="PC 2", title=f"{title} (the axes show {share:.0%} of the variance)")
    if components == 3:
        for axis in (axes.xaxis, axes.yaxis):
            axis.labelpad = 10  # clear of the numbers
        axes.set_zlabel("PC 3")
        axes.set_box_aspect(None, zoom=0.85)
    axes.legend(frameon=False)
    return figure


def _flat(carry: Any, lead: int | None) -> np.ndarray:
    """All leaves side by side, (…, N); the leading axes kept are those that all leaves share, or ``lead``."""
    leaves = [np.asarray(a, float) for a in jax.tree.leaves(carry)]
    kept = min(a.ndim for a in leaves) - 1 if lead is None else lead
    return np.concatenate([a.reshape(*a.shape[:kept], math.prod(a.shape[kept:])) for a in leaves], axis=-1)


def _check_states(states: Any, carry: Any) -> None:
    """Each leaf of the states of runs is (T, *B, …) where that of the points is (M, …)."""
    if states is None:
        return
    runs, points = ([np.shape(a)[1:] for a in jax.tree.leaves(tree)] for tree in (states, carry))
    if len(runs) != len(points) or any(r[len(r) - len(p) :] != p for r, p in zip(runs, points, strict=True)):
        raise ValueError(
            f"fixed_points: states must be the carry along runs, each leaf (T, *B, …) where that of the points is "
            f"(M, …) = {[np.shape(a) for a in jax.tree.leaves(carry)]}, got "
            f"{[np.shape(a) for a in jax.tree.leaves(states)]}."
        )
