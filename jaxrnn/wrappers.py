"""Wrappers: a Cell in, a Cell out, with the same parameters or a few more."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree, flatten, name_of
from jaxrnn._spec import specified
from jaxrnn.running._probing import norm
from jaxrnn.running._watching import step_with_carry_changed


@specified
def leaky(cell: Cell, *, rate: float, keep: float | None = None) -> Cell:
    """A state that moves towards the cell's new one: leaky integration, and residual recurrence with ``keep=1``.

        h_t = keep * h_{t-1} + rate * F(h_{t-1}, x_t)        F: the step of the cell; keep = 1 - rate by default

    Gradients then have a way back through ``keep`` that no weight or activation touches: with keep = 1 - rate it decays
    with a time constant of 1/rate steps (a neuron's Δt/τ), with keep = 1 not at all.

    Args:
        cell: a Cell; every float leaf of its carry becomes leaky, the output is computed from the leaky carry.
        rate: above 0, usually at most 1.
        keep: from 0 to 1; None means 1 - rate.

    Returns:
        A Cell with the params and carry of the one given.

    Raises:
        ValueError, TypeError: rates out of range, something that is no Cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.leaky(jr.elman(3, 5), rate=0.1)
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, jnp.ones(5), jnp.zeros(3))
        >>> bool((h == y).all() & (h >= 0.8).all())  # 0.9 of the old state, and up to ± 0.1
        True

    References:
        Jaeger, Lukoševičius, Popovici & Siewert, "Optimization and applications of echo state networks with
        leaky-integrator neurons", Neural Networks 20, 2007.
        He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016 (keep = 1, over depth).
    """
    _check_cell("leaky", cell)
    for name, value in (("rate", rate), ("keep", 0.0 if keep is None else keep)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"leaky: {name} must be a Python number, got {type(value).__name__}; to sweep or learn it, write "
                f"a cell of your own that has it among its params."
            )
    if not rate > 0:
        raise ValueError(f"leaky: rate must be above 0, got {rate!r}; 1 is the cell itself.")
    keep = 1 - rate if keep is None else keep
    if not 0 <= keep <= 1:
        raise ValueError(f"leaky: keep must lie between 0 and 1, got {keep!r}; give rate <= 1, or keep=1 for residual.")

    def blend(old, new):
        return (keep * old + rate * new).astype(old.dtype) if jnp.issubdtype(old.dtype, jnp.floating) else new

    def step(params, carry, x, *noise):
        change = lambda new: jax.tree.map(blend, carry, new)  # noqa: E731
        return step_with_carry_changed(
            f"leaky({name_of(cell)})", functools.partial(cell.step, params), change, carry, x, *noise
        )

    return cell._replace(step=step, gates=None)


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
    _check_cell("normalized", cell)
    if not epsilon > 0:
        raise ValueError(f"normalized: epsilon must be positive, got {epsilon!r}; 1e-5 is usual.")

    def init(key):
        params = cell.init(key)
        h = _state(cell, jax.eval_shape(cell.initial_carry, params))
        return NormalizedParams(params, jnp.ones(h.shape[-1:], h.dtype), jnp.zeros(h.shape[-1:], h.dtype))

    def normalize(params, carry):
        h = _state(cell, carry)
        mean, var = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
        read = ((h - mean) / jnp.sqrt(var + epsilon) * params.scale + params.shift).astype(h.dtype)
        return carry._replace(h=read) if hasattr(carry, "_replace") else read

    return cell._replace(
        init=init,
        initial_carry=lambda params, batch_shape=(): cell.initial_carry(params.cell, batch_shape),
        step=lambda params, carry, x, *noise: cell.step(params.cell, normalize(params, carry), x, *noise),
        gates=cell.gates and (lambda params, carry, x: cell.gates(params.cell, normalize(params, carry), x)),  # type: ignore[misc]
        noise=cell.noise and (lambda params, key, times, x: cell.noise(params.cell, key, times, x)),  # type: ignore[misc]
    )


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
        cell: a Cell.
        max_norm: the largest norm of a sequence's whole carry gradient; give this or ``max_value``. A gradient that
            one step takes from there beyond the floats is not brought back.
        max_value: the largest absolute value of each of its numbers.

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
    _check_cell("cotangent_clip", cell)
    if (max_norm is None) == (max_value is None):
        raise ValueError("cotangent_clip: give either max_norm or max_value.")
    limit = max_value if max_norm is None else max_norm
    assert limit is not None
    if not limit > 0:
        raise ValueError(f"cotangent_clip: the limit must be positive, got {limit!r}.")

    def clipped(batch_axes, cotangents):
        if max_norm is None:
            return [jnp.clip(d, -limit, limit) for d in cotangents]
        flat = jnp.concatenate([d.reshape(*d.shape[:batch_axes], -1) for d in cotangents], axis=-1)
        size = norm(flat, axis=-1)
        factor = jnp.where(size > limit, limit / jnp.where(size > limit, size, 1.0), 1.0)
        return [d * factor.reshape(factor.shape + (1,) * (d.ndim - batch_axes)).astype(d.dtype) for d in cotangents]

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def clip_backward(batch_axes, floats):
        return floats

    clip_backward.defvjp(
        lambda batch_axes, floats: (floats, None), lambda batch_axes, _, cotangents: (clipped(batch_axes, cotangents),)
    )

    def step(params, carry, x, *noise):
        batch_axes = jnp.ndim(jax.tree.leaves(x)[0]) - jax.tree.leaves(cell.x_ndim)[0]
        leaves, treedef = flatten(carry)
        floats = iter(clip_backward(batch_axes, [a for a in leaves if _is_float(a)]))
        return cell.step(params, treedef.unflatten([next(floats) if _is_float(a) else a for a in leaves]), x, *noise)

    return cell._replace(step=step)


def _check_cell(who: str, cell: Any) -> None:
    if not isinstance(cell, Cell):
        raise TypeError(f"{who}: expected a Cell, got {type(cell).__name__}; wrap the cell, then lift it with jr.scan.")


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def _state(cell: Cell, carry: PyTree) -> Any:
    """The array h of a carry that is h, or a record with h."""
    h: Any = getattr(carry, "h", carry)
    if not hasattr(h, "shape") or not _is_float(h) or len(h.shape) == 0:
        raise TypeError(
            f"normalized: the carry of {name_of(cell)} must be one array of floats (*B, H) or a record with such an h, "
            f"got {type(carry).__name__}; of a chain wrap each cell."
        )
    return h
