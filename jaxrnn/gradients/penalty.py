"""A regulariser against vanishing and exploding gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, select
from jaxrnn._checks import check_scalar_loss
from jaxrnn._narrowing import as_lengths
from jaxrnn.devices.placement import vary_alike
from jaxrnn.gradients._state_space import run_of
from jaxrnn.instruments import norm, step_with_carry_changed
from jaxrnn.running.scan import scan, valid_steps


@checks_arguments
def jacobian_penalty(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    loss: Callable[[PyTree, PyTree], jax.Array],
    carry: PyTree = None,
    *,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """How far each step is from keeping the norm of the gradient that flows back through it.

        Ω = mean over t of (‖J_tᵀ δ_t‖ / ‖δ_t‖ - 1)²        δ_t = ∂L/∂h_t,  J_t = ∂h_t/∂h_{t-1}

    Add it, times a weight, to the loss that is minimised. Its gradient is the paper's: δ_t and the states h_{t-1} count
    as constants, so that only the parameters inside J_t are driven, at all steps alike and without another pass
    through time.

    Args:
        cell: a Cell whose carry holds real and complex numbers alone, all of which h is.
        params, xs, carry: as for ``jr.scan(cell).apply``: xs (T, *B, I).
        loss: ``loss(carry, ys)`` -> a scalar, the one that is trained on.
        lengths: (*B) integers, as for ``apply``.

    Returns:
        A scalar, differentiable by params. Steps that the gradient does not reach (δ_t = 0), padding among them, do
        not count.

    Cost: about one more gradient, and two runs of the cell with all steps at once.

    Raises:
        ValueError, TypeError: a loss that is not one float, a Layer, a carry that is empty or has integer parts.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(3, 2, activation="identity", recurrent_init="identity")
        >>> params = cell.init(jax.random.key(0))._replace(W_hh=0.5 * jnp.eye(2))
        >>> loss = lambda carry, ys: ys[-1].sum()
        >>> jr.gradients.jacobian_penalty(cell, params, jnp.ones((7, 3)), loss).round(3).item()
        0.25

    Differs from the paper by the mean over steps and sequences in place of the sum over steps.

    Reference:
        Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
    """
    who = "jacobian_penalty"
    space, start, T = run_of(who, cell, params, xs, carry)
    lengths = None if lengths is None else as_lengths(who, lengths, start.shape[:-1])
    on = valid_steps(jnp.arange(T, dtype=jnp.int32), lengths, None)
    if on is not None:
        xs = select(on, xs, jax.tree.map(jnp.zeros_like, xs))
    fixed = jax.lax.stop_gradient(params)

    def step(params, h, inputs):
        x, zero = inputs

        def add_zero(new):
            return jax.tree.map(jnp.add, new, space.tree(zero))

        new, y = step_with_carry_changed(who, functools.partial(cell.step, params), add_zero, h, x)
        return new, (space.flat(h), y)

    layer = scan(Cell(cell.init, cell.initial_carry, step, x_ndim=(cell.x_ndim, 1)))

    def loss_of(zeros):
        end, (before, ys) = layer.apply(fixed, (xs, zeros), space.tree(start), lengths=lengths)
        value = loss(end, ys)
        check_scalar_loss(who, value)
        return value, before

    zeros, _ = vary_alike(jnp.zeros((T, *start.shape), start.dtype), start)
    delta, before = jax.lax.stop_gradient(jax.grad(loss_of, has_aux=True)(zeros))
    size = norm(delta, axis=-1)
    reached = size > 0
    direction = delta / jnp.where(reached, size, 1.0)[..., None]
    received = jax.vmap(lambda h, x, v: jax.vjp(lambda h: space.step(h, x), h)[1](v)[0])(before, xs, direction)
    ratio = norm(received, axis=-1)
    return jnp.sum(jnp.where(reached, jnp.square(ratio - 1), 0.0)) / jnp.maximum(reached.sum(), 1).astype(ratio.dtype)
