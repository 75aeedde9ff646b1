"""What the wrappers share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree, expect_cell, is_float, name_of


def check_wrapped(who: str, cell: Any) -> None:
    """What is wrapped is a Cell."""
    expect_cell(who, cell, if_layer="wrap the cell, then lift it with jr.scan")


def state_of(who: str, cell: Cell, carry: PyTree) -> Any:
    """The array h of a carry that is h, or a record with h."""
    h: Any = getattr(carry, "h", carry)
    is_record = hasattr(carry, "h") and not hasattr(carry, "_replace")  # of some other class
    if not is_record and hasattr(h, "shape") and jnp.iscomplexobj(h):
        raise TypeError(
            f"{who}: the state of {name_of(cell)} is {h.dtype}, and must be floats; hold its real and imaginary parts "
            f"side by side, (*B, 2 H) floats."
        )
    if is_record or not hasattr(h, "shape") or not is_float(h) or len(h.shape) == 0:
        raise TypeError(
            f"{who}: the carry of {name_of(cell)} must be one array of floats (*B, H) or a NamedTuple with such an h, "
            f"got {getattr(h, 'dtype', type(carry).__name__)}; name the state h in a NamedTuple, and of a chain wrap "
            f"each cell, of jr.every and jr.dilated the cell inside."
        )
    return h


def with_state(carry: PyTree, h: jax.Array) -> PyTree:
    """The carry with another h."""
    return carry._replace(h=h) if hasattr(carry, "_replace") else h


def held_within(a: jax.Array, limit: float) -> jax.Array:
    """Real numbers within ± limit, complex ones within that distance from 0, their direction kept."""
    if not jnp.iscomplexobj(a):
        return jnp.clip(a, -limit, limit)
    size = jnp.abs(a)
    return a * jnp.where(size > limit, limit / jnp.where(size > limit, size, 1), 1)


def check_own_units(who: str, cell: Cell, carry: PyTree) -> None:
    """Numbers whose unit is another number of the state are not changed one by one: xLSTM's, in units of exp(m)."""
    scaled = lambda part: hasattr(part, "in_units_of")
    for part in filter(scaled, jax.tree.leaves(carry, is_leaf=scaled)):
        raise TypeError(
            f"{who}: the memory of {name_of(cell)} ({type(part).__name__}) is in units of {part.in_units_of}, which "
            f"differ from step to step, so its numbers cannot be blended or clipped one by one; wrap another cell, or "
            f"change what this one reads or puts out (jr.dropout, jr.residual)."
        )


def carry_shapes(cell: Cell, params: PyTree, x: PyTree) -> PyTree:
    """The shapes and dtypes of the carry of a batch like that of ``x``, the input of one step."""
    return jax.eval_shape(lambda params: cell.initial_carry(params, batch_shape_of(cell, x)), params)


def batch_shape_of(cell: Cell, x: PyTree) -> tuple[int, ...]:
    """``*B`` of the input of one step."""
    shape = jnp.shape(jax.tree.leaves(x)[0])
    return shape[: len(shape) - jax.tree.leaves(cell.x_ndim)[0]]


def check_blended(who: str, cell: Cell, carry: PyTree) -> None:
    """A wrapper changes a state, or blends it with the one before: numbers of one unit, in one place at all steps."""
    check_own_units(who, cell, carry)
    moves = lambda part: hasattr(part, "moves_on")
    for part in filter(moves, jax.tree.leaves(carry, is_leaf=moves)):
        raise TypeError(
            f"{who}: {part.moves_on} ({type(part).__name__}), which move on from one place to the next, so that none "
            f"is the new state of the one before; wrap another cell, of jr.dilated the one inside: "
            f"jr.dilated(jr.{who}(cell, …), …)."
        )


def own_and_inner(noise: Any) -> tuple[Any, tuple[Any, ...]]:
    """What a wrapper drew, and what its cell's step gets after ``x``; None and nothing in evaluation."""
    if noise is None:
        return None, ()
    own, inner = noise
    return own, () if inner is None else (inner,)


def draw_inner(cell: Cell, params: PyTree, key: jax.Array, times: jax.Array, x: PyTree) -> PyTree:
    """The noise of the cell inside; None where it draws none."""
    return None if cell.noise is None else cell.noise(params, jax.random.fold_in(key, 1), times, x)


def check_not_negative(who: str, name: str, value: Any) -> None:
    """A Python number, 0 or above."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{who}: {name} must be a Python number, got {type(value).__name__}.")
    if not value >= 0:
        raise ValueError(f"{who}: {name} must be 0 or above, got {value!r}.")
