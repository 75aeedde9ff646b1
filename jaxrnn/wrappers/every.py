"""A cell with a slow clock."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree, name_of, select
from jaxrnn._spec import specified
from jaxrnn.instruments import step_with_carry_changed
from jaxrnn.wrappers._gates import gates_with_carry_changed
from jaxrnn.wrappers._shared import check_wrapped


class EveryCarry(NamedTuple):
    cell: PyTree  # the carry of the cell inside
    clock: jax.Array  # (*B) int32: the steps since the last update, 0 where one is due


@specified
def every(cell: Cell, *, period: int) -> Cell:
    """A clock of its own: the cell updates at each ``period``-th step, and holds its state in between.

        h_t = F(h_{t-1}, x_t)    t = 0, period, 2 period …
        h_t = h_{t-1}            at the other steps

    Several such cells of different periods, side by side in ``jr.branch``, are modules of a clockwork RNN.

    Args:
        cell: a Cell. The output is computed from the state as it is kept; what a cell puts out of ``x`` alone goes on
            with every step.
        period: 1 or above; 1 is the cell itself.

    Returns:
        A Cell with the params of the one given and an EveryCarry, in which each sequence counts its own valid steps: a
        reset starts the clock anew, a step that is not valid stops it, a reversed run counts from the end. Of its
        gates, those that are the new state are held. The cell's step is computed at each step; what it makes in between
        is not used.

    Raises:
        ValueError, TypeError: a period that is no positive int, something that is no Cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.every(jr.elman(1, 1, activation="identity", recurrent_init="identity"), period=3)
        >>> params = cell.init(jax.random.key(0))._replace(W_xh=jnp.ones((1, 1)))
        >>> jr.scan(cell).apply(params, jnp.ones((7, 1)))[1][:, 0].tolist()
        [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0]

    Reference:
        Koutník, Greff, Gomez & Schmidhuber, "A clockwork RNN", ICML 2014.
    """
    check_wrapped("every", cell)

    def initial_carry(params, batch_shape=()):
        return EveryCarry(cell.initial_carry(params, batch_shape), jnp.zeros(batch_shape, jnp.int32))

    def held(clock, old, new):
        return select(clock == 0, new, old)

    def step(params, carry, x, *noise):
        who, own_step = f"every({name_of(cell)})", functools.partial(cell.step, params)
        change = functools.partial(held, carry.clock, carry.cell)
        inner, y = step_with_carry_changed(who, own_step, change, carry.cell, x, *noise)
        return EveryCarry(inner, (carry.clock + 1) % period), y

    def gates(params, carry, x):
        changed = gates_with_carry_changed("every", cell, functools.partial(held, carry.clock))
        return changed(params, carry.cell, x)  # type: ignore[misc]  # None where this function is not used

    return cell._replace(initial_carry=initial_carry, step=step, gates=gates if cell.gates else None)
