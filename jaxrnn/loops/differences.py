"""How far apart carries of a run in chunks are, in units of its tolerance."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxrnn.loops.steps import Arrays, Way

ROUNDING = 4  # times the dtype's epsilon: what is no difference
TOLERANCE = 32  # times the dtype's epsilon: the default


def tolerance_of(way: Way, dtype: Any) -> float:
    return TOLERANCE * float(jnp.finfo(dtype).eps) if way.tol is None else way.tol


def difference(a: Arrays, b: Arrays, scales: Sequence[Any], way: Way, floats: bool = False) -> Any:
    """(K, *rows), the largest of each row: 0 where it is rounding alone, inf where what differs is no float, or is not
    finite. ``floats``: of floats alone."""
    gaps = []
    for x, y, scale in zip(a, b, scales, strict=True):
        gap = _leaf_difference(x, y, scale, way)
        gaps.append(jnp.zeros_like(gap) if floats and not jnp.issubdtype(x.dtype, jnp.inexact) else gap)
    return functools.reduce(jnp.maximum, gaps)


def _leaf_difference(a: Any, b: Any, scale: Any, way: Way) -> Any:
    features = tuple(range(1 + way.row_axes, a.ndim))
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return jnp.where(a == b, 0, jnp.inf).astype(jnp.float32).max(features, initial=0)
    eps, tol = float(jnp.finfo(a.dtype).eps), tolerance_of(way, a.dtype)
    scale = jnp.expand_dims(scale, (0, *range(1 + scale.ndim, a.ndim)))
    gap = jnp.where((a == b) | (jnp.isnan(a) & jnp.isnan(b)), 0, jnp.abs(a - b))
    gap = jnp.where(gap <= ROUNDING * eps * scale, 0, gap / (tol * scale))
    return jnp.where(jnp.isnan(gap), jnp.inf, gap).astype(jnp.float32).max(features, initial=0)


def scale_of(a: Any, b: Any, row_axes: int) -> Any:
    """(*rows): the largest number of each row over all chunks."""
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return jnp.ones(a.shape[1 : 1 + row_axes])
    both = jnp.maximum(jnp.abs(a), jnp.abs(b))
    axes = (0, *range(1 + row_axes, a.ndim))
    return jnp.where(jnp.isfinite(both), both, 0).max(axes, initial=0)


def like(a: Any, b: Any) -> Any:
    """``a`` with as many axes as ``b``."""
    return jnp.expand_dims(a, tuple(range(a.ndim, b.ndim)))
