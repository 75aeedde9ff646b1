"""What each time step contributes to a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn._checks import check_scalar_loss, sequence_shape
from jaxrnn.instruments import PerStep
from jaxrnn.running.scan import as_layer


@checks_arguments
def bptt_contributions(
    model: Cell | Layer,
    params: PyTree,
    xs: PyTree,
    loss: Callable[[PyTree, PyTree], jax.Array],
    carry: PyTree = None,
    **options: Any,
) -> PyTree:
    """The contribution of every time step to the gradient by every parameter.

        ∂L/∂W = Σ_t ∂L/∂W_t        W_t: the W that step t uses, all equal in value

    Args:
        model: a Cell, or a Layer made of ``jr.scan``, ``stack``, ``bidirectional`` and ``residual``.
        params, xs, carry: as for ``apply``: xs (T, *B, I).
        loss: ``loss(carry, ys)`` -> a scalar, of the final carry and the outputs.
        options: ``lengths``, ``mask``, ``resets``, ``key``, ``start``, as ``jr.scan`` documents them.

    Returns:
        A tree like ``params``, each leaf (T, …) in input order; its sum over time is the gradient. A learned initial
        carry's contribution stands at the step that reads it, the first of the run or a reset.

    Memory: T times the parameters for the result, and as much again while it is computed.

    Raises:
        ValueError: T = 0, which has no steps to contribute.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> parts = jr.gradients.bptt_contributions(cell, params, jnp.ones((7, 3)), lambda carry, ys: ys[-1].sum())
        >>> parts.W_hh.shape
        (7, 5, 5)

    Reference:
        Werbos, "Backpropagation through time: what it does and how to do it", Proceedings of the IEEE 78, 1990.
    """
    layer = as_layer("bptt_contributions", model)
    T, _ = sequence_shape("bptt_contributions", xs, layer.x_ndim)
    if T == 0:
        raise ValueError("bptt_contributions: xs has T = 0 steps, so there is nothing to contribute; give at least 1.")
    params_over_time = jax.tree.map(lambda a: jnp.broadcast_to(a, (T, *jnp.shape(a))), params)

    def loss_of(params_over_time):
        value = loss(*layer.apply(jax.tree.map(PerStep, params_over_time), xs, carry, **options))
        check_scalar_loss("bptt_contributions", value)
        return value

    return jax.grad(loss_of, allow_int=True)(params_over_time)
