"""Layer normalisation inside the recurrence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree
from jaxrnn._dtypes import aligned
from jaxrnn._spec import specified
from jaxrnn.wrappers._shared import check_wrapped, state_of, with_state


class NormalizedParams(NamedTuple):
    cell: PyTree  # those of the cell inside
    scale: jax.Array  # (H,)
    shift: jax.Array  # (H,)


@specified
def normalized(cell: Cell, *, epsilon: float = 1e-5) -> Cell:
    """Layer normalisation inside the recurrence: each step reads its state normalised.

        h_t = F(LN(h_{t-1}), x_t)        LN(h) = (h - mean(h)) / sqrt(var(h) + epsilon) * scale + shift

    Rescaling the recurrent weights' input at every step keeps its Jacobian from growing or shrinking with the state.

    Args:
        cell: a Cell whose carry is one array of floats (*B, H), or a record with such an ``h``; the other entries,
            as an LSTM's c, are left as they are.
        epsilon: keeps the square root away from zero.

    Returns:
        A Cell with NormalizedParams and the carry of the one given, not normalised.

    Raises:
        ValueError, TypeError: an epsilon that is not positive, something that is no Cell, a carry without h.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.normalized(jr.elman(3, 2, activation="identity", recurrent_init="identity"))
        >>> params = cell.init(jax.random.key(0))
        >>> cell.step(params, jnp.array([1.0, 3.0]), jnp.zeros(3))[1].round(3).tolist()
        [-1.0, 1.0]

    Differs from the paper, which normalises the summed products of each gate in place of the state before the product.

    Reference:
        Ba, Kiros & Hinton, "Layer normalization", 2016.
    """
    check_wrapped("normalized", cell)
    if not epsilon > 0:
        raise ValueError(f"normalized: epsilon must be positive, got {epsilon!r}; 1e-5 is usual.")

    def init(key):
        params = cell.init(key)
        h = state_of("normalized", cell, jax.eval_shape(cell.initial_carry, params))
        return NormalizedParams(params, jnp.ones(h.shape[-1:], h.dtype), jnp.zeros(h.shape[-1:], h.dtype))

    def normalize(params, carry):
        h = state_of("normalized", cell, carry)
        mean, var = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
        scaled = (h - mean) / jnp.sqrt(var + epsilon) * aligned(params.scale, h)
        read = (scaled + aligned(params.shift, h)).astype(h.dtype)
        return with_state(carry, read)

    return cell._replace(
        init=init,
        initial_carry=lambda params, batch_shape=(): cell.initial_carry(params.cell, batch_shape),
        step=lambda params, carry, x, *noise: cell.step(params.cell, normalize(params, carry), x, *noise),
        gates=cell.gates and (lambda params, carry, x: cell.gates(params.cell, normalize(params, carry), x)),
        noise=cell.noise and (lambda params, key, times, x: cell.noise(params.cell, key, times, x)),
    )
