"""Weight normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree
from jaxrnn._dtypes import accumulator, aligned
from jaxrnn._spec import specified
from jaxrnn.instruments import norm
from jaxrnn.wrappers._shared import check_wrapped
from jaxrnn.wrappers._weights import check_names, weights_named, with_weights_made


class WeightNormParams(NamedTuple):
    cell: PyTree  # those of the cell inside, v in place of each weight that is normalised
    g: tuple[jax.Array, ...]  # the norms: (O,) for each v (…, O), in the order of the tree


@specified
def weight_norm(cell: Cell, *, names: str | Sequence[str] | None = None) -> Cell:
    """Weight normalisation: the direction of a unit's weights and their norm are parameters apart.

        W = g * v / ‖v‖        for each unit, that is each place of the last axis

    At first g = ‖v‖, so that W is what the cell's own ``init`` gives. W is computed outside the loop over time.
    Of blocks (``heads=``) the units at one place of all blocks share g.

    Args:
        cell: a Cell.
        names: of the parameters that are normalised: a name, or several (``"W_hh"``; ``"0.W_hh"`` in the first member
            of a chain); None means all real arrays of two axes or more: weights, not biases.

    Returns:
        A Cell with WeightNormParams and the carry of the one given; a linear recurrence stays one. A step by hand
        computes W at each call. A unit whose v is 0 has weights of 0, and stays there. ``weight_drop`` and
        ``weight_noise`` go inside, where they change W; around it they change v.

    Raises:
        ValueError, TypeError: something that is no Cell; in ``init`` and while tracing, a name that no such parameter
            bears, a cell without any.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.weight_norm(jr.elman(3, 5), names="W_hh")
        >>> params = cell.init(jax.random.key(0))
        >>> params.cell.W_hh.shape, params.g[0].shape
        ((5, 5), (5,))

    Differs from the paper, in which the first g and b come from a batch of data.

    Reference:
        Salimans & Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural
        networks", NeurIPS 2016.
    """
    check_wrapped("weight_norm", cell)
    if names is not None:
        check_names("weight_norm", names)

    def directions(params):
        return weights_named("weight_norm", cell, params, names, matrices=True, real=True)

    def sizes(v):
        return norm(v.astype(accumulator(v.dtype)), axis=tuple(range(v.ndim - 1)))

    def init(key):
        params = cell.init(key)
        return WeightNormParams(params, tuple(sizes(v).astype(v.dtype) for v in directions(params).arrays))

    def weight(v, g):
        size = sizes(v)
        factor = g.astype(size.dtype) / jnp.where(size > 0, size, 1)
        return (aligned(factor, v) * v.astype(size.dtype)).astype(v.dtype)

    def made(params):
        weights = directions(params.cell)
        return weights.put([weight(v, g) for v, g in zip(weights.arrays, params.g, strict=True)])

    return with_weights_made(cell, init, made)
