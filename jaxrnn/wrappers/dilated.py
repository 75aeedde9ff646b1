"""Dilated recurrence: a skip of several steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree
from jaxrnn._spec import specified
from jaxrnn.wrappers._shared import batch_shape_of, check_wrapped


class DilatedCarry(NamedTuple):
    states: PyTree  # the last carries of the cell inside, the oldest first: (*B, dilation, …) each

    @property
    def moves_on(self) -> str:
        """Each is in another place at each step: for ``check_blended``."""
        return "the carry of jr.dilated holds the states of several steps"


@specified
def dilated(cell: Cell, *, dilation: int) -> Cell:
    """A recurrence that skips: each step reads the state of ``dilation`` steps before in place of the last.

        h_t = F(h_{t-k}, x_t)        k: the dilation

    It is k runs interleaved, each over every k-th step. In a stack with dilations 1, 2, 4 … the shortest way between
    two steps grows with the logarithm of their distance.

    Args:
        cell: a Cell.
        dilation: k, 1 or above; 1 is the cell itself.

    Returns:
        A Cell with the params of the one given and a DilatedCarry, which begins as k initial carries. k counts valid
        steps; resets empty all k states. Its gates are those of the step from the state that is read.

    Raises:
        ValueError, TypeError: a dilation that is no positive int, something that is no Cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.dilated(jr.gru(3, 5), dilation=2)
        >>> params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (6, 3))
        >>> ys = jr.scan(cell).apply(params, xs)[1]
        >>> even = jr.scan(jr.gru(3, 5)).apply(params, xs[::2])[1]
        >>> bool(jnp.allclose(ys[::2], even, atol=1e-6))
        True

    Wrappers that change the state (``leaky``, ``zoneout`` …) go inside: ``jr.dilated(jr.leaky(cell, …), …)``.

    Reference:
        Chang et al., "Dilated recurrent neural networks", NeurIPS 2017.
    """
    check_wrapped("dilated", cell)

    def initial_carry(params, batch_shape=()):
        carry, axis = cell.initial_carry(params, batch_shape), len(batch_shape)
        return DilatedCarry(jax.tree.map(lambda a: jnp.stack([a] * dilation, axis), carry))

    def oldest(carry, axis):
        return jax.tree.map(lambda a: jax.lax.index_in_dim(a, 0, axis, keepdims=False), carry.states)

    def step(params, carry, x, *noise):
        axis = len(batch_shape_of(cell, x))

        def moved_on(states, new):
            later = jax.lax.slice_in_dim(states, 1, None, axis=axis)
            return jnp.concatenate([later, jnp.expand_dims(new, axis)], axis)

        new, y = cell.step(params, oldest(carry, axis), x, *noise)
        return DilatedCarry(jax.tree.map(moved_on, carry.states, new)), y

    def gates(params, carry, x):
        return cell.gates(params, oldest(carry, len(batch_shape_of(cell, x))), x)  # type: ignore[misc]  # if there are

    return cell._replace(initial_carry=initial_carry, step=step, gates=gates if cell.gates else None)
