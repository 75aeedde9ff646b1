"""Gradients clipped inside the backward recurrence."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, flatten, is_inexact
from jaxrnn._spec import specified
from jaxrnn.instruments import norm
from jaxrnn.wrappers._shared import check_wrapped, held_within


@specified
def cotangent_clip(cell: Cell, *, max_norm: float | None = None, max_value: float | None = None) -> Cell:
    """Clip the gradient inside the backward recurrence, at every step, before it goes on to the step before.

        forward     the cell as it is
        backward    d = ∂L/∂carry_{t-1} of each sequence becomes  d * min(1, max_norm / ‖d‖)
                    or each of its numbers is held within ± max_value

    Clipping the finished gradient (``optax.clip_by_global_norm``) scales a gradient that has exploded, and its
    direction is that of the explosion; clipping on the way keeps what the near steps say. It is no longer the gradient
    of any loss.

    Args:
        cell: a Cell. Leaves of its carry that are integers, booleans or keys have no gradient.
        max_norm: the largest norm of a sequence's whole carry gradient, √Σ |d|² over real and complex numbers; give
            this or ``max_value``. A gradient that one step takes from there beyond the floats is not brought back.
        max_value: the largest absolute value of each of its numbers, of a complex one its modulus.

    Returns:
        A Cell with the params and carry of the one given. It has no forward mode, and ``jr.scan`` runs it as the plain
        scan: a rule of its own stands in its step.

    Raises:
        ValueError, TypeError: none or both of the limits, a limit that is not positive, something that is no Cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(1, 1, activation="identity", recurrent_init="identity")
        >>> params = cell.init(jax.random.key(0))._replace(W_hh=jnp.array([[3.0]]))
        >>> last = lambda cell: lambda h: jr.scan(cell).apply(params, jnp.zeros((5, 1)), h)[1][-1, 0]
        >>> clipped = jr.cotangent_clip(cell, max_norm=2)
        >>> jax.grad(last(cell))(jnp.zeros(1)).item(), jax.grad(last(clipped))(jnp.zeros(1)).item()
        (243.0, 2.0)

    References:
        Graves, "Generating sequences with recurrent neural networks", 2013 (max_value).
        Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", ICML 2013 (the norm).
    """
    check_wrapped("cotangent_clip", cell)
    if (max_norm is None) == (max_value is None):
        raise ValueError("cotangent_clip: give either max_norm or max_value.")
    name, limit = ("max_value", max_value) if max_norm is None else ("max_norm", max_norm)
    assert limit is not None
    if not limit > 0:
        raise ValueError(f"cotangent_clip: {name} must be positive, got {limit!r}.")

    def clipped(batch_axes, cotangents):
        if max_norm is None:
            return [held_within(d, limit) for d in cotangents]
        sizes = [jnp.abs(d) if jnp.iscomplexobj(d) else d for d in cotangents]
        flat = jnp.concatenate([jax.lax.collapse(d, batch_axes) for d in sizes], axis=-1)
        size = norm(flat, axis=-1)
        factor = jnp.where(size > limit, limit / jnp.where(size > limit, size, 1.0), 1.0)
        return [d * factor.reshape(factor.shape + (1,) * (d.ndim - batch_axes)).astype(d.dtype) for d in cotangents]

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def clip_backward(batch_axes, numbers):
        return numbers

    clip_backward.defvjp(
        lambda batch_axes, numbers: (numbers, None),
        lambda batch_axes, _, cotangents: (clipped(batch_axes, cotangents),),
    )

    def step(params, carry, x, *noise):
        batch_axes = jnp.ndim(jax.tree.leaves(x)[0]) - jax.tree.leaves(cell.x_ndim)[0]
        leaves, treedef = flatten(carry)
        numbers = iter(clip_backward(batch_axes, [a for a in leaves if is_inexact(a)]))
        return cell.step(params, treedef.unflatten([next(numbers) if is_inexact(a) else a for a in leaves]), x, *noise)

    return cell._replace(step=step)
