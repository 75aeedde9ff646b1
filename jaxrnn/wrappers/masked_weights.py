"""Weights that are not there: pruning, and sparse connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrnn._base import Cell, PyTree
from jaxrnn._spec import specified
from jaxrnn.devices.placement import placed_like
from jaxrnn.wrappers._shared import check_wrapped
from jaxrnn.wrappers._weights import check_names, weights_named, with_weights_made


class MaskedParams(NamedTuple):
    cell: PyTree  # those of the cell inside
    masks: tuple[jax.Array, ...]  # for each weight that is masked, in the order of the tree: above 0 where it is there


@specified
def masked_weights(
    cell: Cell,
    *,
    density: float = 1.0,
    mask: ArrayLike | None = None,
    names: str | Sequence[str] | None = None,
) -> Cell:
    """Weights with a mask: those that it takes out are 0, and stay 0 in training.

        W' = W where mask > 0, elsewhere 0

    No gradient reaches a weight that is out, nor a mask, so any optimiser leaves both alone. Masks are part of the
    parameters, floats that ``jax.grad`` takes: to prune a trained model, put others in their place.

    Args:
        cell: a Cell.
        density: the share of the weights that ``init`` lets in, at random, above 0 and at most 1.
        mask: or an array in the shape of the parameter, True or 1 where its weights are there.
        names: of the parameters that are masked: a name, or several (``"W_hh"``; ``"0.W_hh"`` in the first member of a
            chain); None means all arrays of two axes or more.

    Returns:
        A Cell with MaskedParams and the carry of the one given; a linear recurrence stays one. ``weight_noise`` goes
        around it: inside, it would add to weights that are out.

    Raises:
        ValueError, TypeError: a density out of range, or one beside a mask, something that is no Cell; in ``init`` and
            while tracing, a mask of another shape, a name that no such parameter bears, a cell without any.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.masked_weights(jr.elman(3, 5), names="W_hh")
        >>> params = cell.init(jax.random.key(0))  # ones: all weights are there
        >>> W_hh = params.cell.W_hh
        >>> pruned = params._replace(masks=((jnp.abs(W_hh) > 0.2).astype(W_hh.dtype),))
        >>> jr.scan(cell).apply(pruned, jnp.ones((7, 2, 3)))[1].shape
        (7, 2, 5)

    References:
        Han, Pool, Tran & Dally, "Learning both weights and connections for efficient neural networks", NeurIPS 2015.
        Narang, Elsen, Diamos & Sengupta, "Exploring sparsity in recurrent neural networks", ICLR 2017.
    """
    check_wrapped("masked_weights", cell)
    if names is not None:
        check_names("masked_weights", names)
    if not 0 < density <= 1:
        raise ValueError(f"masked_weights: density must be above 0 and at most 1, got {density!r}.")
    if mask is not None and density != 1:
        raise ValueError(f"masked_weights: got density={density!r} and a mask; give either of them.")
    given = None if mask is None else np.asarray(mask) > 0

    def weights_of(params):
        return weights_named("masked_weights", cell, params, names, matrices=True)

    def first_mask(name, W, key):
        if given is None:
            return jax.random.bernoulli(key, density, W.shape)
        if given.shape != W.shape:
            raise ValueError(
                f"masked_weights: mask should have the shape of {name}, {W.shape}, got {given.shape}; build it so, a "
                f"fused array block by block, or name the parameter that it is for with names=…."
            )
        return given

    def init(key):
        weights = weights_of(cell.init(key))
        keys = jax.random.split(jax.random.fold_in(key, 1), len(weights.arrays))
        masks = [first_mask(*of) for of in zip(weights.names, weights.arrays, keys, strict=True)]
        inside = weights.put([jnp.where(m, W, 0) for m, W in zip(masks, weights.arrays, strict=True)])
        real = (jnp.finfo(W.dtype).dtype for W in weights.arrays)
        return MaskedParams(inside, tuple(jnp.asarray(m, dtype) for m, dtype in zip(masks, real, strict=True)))

    def made(params):
        weights = weights_of(params.cell)
        pairs = zip(params.masks, weights.arrays, strict=True)
        return weights.put([jnp.where(placed_like(m > 0, W), W, 0) for m, W in pairs])

    return with_weights_made(cell, init, made)
