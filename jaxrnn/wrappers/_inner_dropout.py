"""Recurrent dropout of candidates and of memories: what ``recurrent_dropout`` drops other than what products read."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, draw_each_step, is_inexact, name_of
from jaxrnn.devices.placement import placed_like
from jaxrnn.instruments import step_with_carry_changed, step_with_leaves_changed
from jaxrnn.wrappers._gates import carry_in_gates, with_carry_in_gates
from jaxrnn.wrappers._shared import carry_shapes, draw_inner, own_and_inner, state_of, with_state

WHO = "recurrent_dropout"


def candidate_dropped(cell: Cell, rate: float) -> Cell:
    """Semeniuta, Severyn & Barth's: of the candidate g or n, at each step other units.

    The gates are computed with the candidate dropped, and hold the new state; the output is computed from that.
    """
    if cell.gates is None:
        raise TypeError(
            f'{WHO}: kind="semeniuta2016" drops the candidate of a gated cell, and {name_of(cell)} has no gates; give '
            f'one with Cell(…, gates=…), or take kind="gal2016".'
        )
    if cell.noise is not None:
        raise TypeError(
            f'{WHO}: kind="semeniuta2016" computes the new state by the gates, and those of {name_of(cell)} are '
            f"without its noise; wrap the cell inside, and put the other wrapper around this one."
        )
    own_gates: Any = cell.gates

    def candidate(gates, carry):
        """n, or else g, which beside n is a gate; xLSTM's n is a normaliser, part of its state, and its candidate z."""
        state = getattr(carry, "_fields", ("h",))
        for name in (getattr(gates, "candidate", "n"), "g"):
            if hasattr(gates, name) and name not in state:
                return getattr(gates, name)
        fields = ", ".join(name for name in getattr(gates, "_fields", ()) if name not in state) or type(gates).__name__
        raise TypeError(
            f'{WHO}: kind="semeniuta2016" drops the candidate, g or n, which the gates of {name_of(cell)} beside its '
            f"state ({fields}) do not hold; call it so in its gates, or take another kind."
        )

    def noise(params, key, times, x):
        carry = carry_shapes(cell, params, x)
        shape = jax.eval_shape(lambda *of: candidate(own_gates(*of), of[1]), params, carry, x).shape
        draw = functools.partial(jax.random.bernoulli, p=1 - rate, shape=shape)
        return draw_each_step(draw, jax.random.fold_in(key, 0), times), None

    def step(params, carry, x, noise=None):
        kept, _ = own_and_inner(noise)
        if kept is None:
            return cell.step(params, carry, x)
        who = f"{WHO}({name_of(cell)})"

        def gates_and_carry(carry, x):
            gates = own_gates(params, carry, x)
            return candidate(gates, carry), carry_in_gates(WHO, cell, gates, carry)

        def dropped(_, a):
            return jnp.where(placed_like(kept, a), a / (1 - rate), 0)

        _, new = step_with_leaves_changed(who, gates_and_carry, dropped, carry, x)

        def change(stepped):  # integers, as a clock, are not among the gates
            return jax.tree.map(lambda own, made: made if is_inexact(own) else own, stepped, new)

        return step_with_carry_changed(who, functools.partial(cell.step, params), change, carry, x)

    return cell._replace(step=step, noise=noise)


def memory_dropped(cell: Cell, rate: float) -> Cell:
    """Moon, Choi, Lee & Song's: of the memory, where it is computed, for each sequence the same units."""

    def memory_of(carry):
        """``c`` of a record that has it, or else ``h``."""
        has_c = hasattr(carry, "c") and hasattr(carry, "_replace")
        return state_of(WHO, cell, carry.c if has_c else carry)

    def change(carry, kept):
        """``(index of a leaf, leaf) -> leaf``, for the leaves of the new carry."""
        no = jax.tree.map(lambda a: False, carry)
        yes: Any = True
        is_memory = jax.tree.leaves(no._replace(c=yes) if hasattr(no, "c") else with_state(no, yes))

        def of_leaf(index, a):
            if not is_memory[index]:
                return a
            return a * (1 - rate) if kept is None else jnp.where(placed_like(kept, a), a, 0)

        return of_leaf

    def noise(params, key, times, x):
        shape = memory_of(carry_shapes(cell, params, x)).shape
        kept = jax.random.bernoulli(jax.random.fold_in(key, 0), 1 - rate, (1, *shape))
        return kept, draw_inner(cell, params, key, times, x)

    def step(params, carry, x, noise=None):
        kept, inner = own_and_inner(noise)
        memory_of(carry)
        who, own_step = f"{WHO}({name_of(cell)})", functools.partial(cell.step, params)
        return step_with_leaves_changed(who, own_step, change(carry, kept), carry, x, *inner)

    def gates(params, carry, x):
        def own_gates(carry, x):
            own = cell.gates(params, carry, x)  # type: ignore[misc]  # None where this function is not used
            return carry_in_gates(WHO, cell, own, carry), own

        new, own = step_with_leaves_changed(f"{WHO}({name_of(cell)})", own_gates, change(carry, None), carry, x)
        return with_carry_in_gates(own, new)

    return cell._replace(step=step, noise=noise, gates=gates if cell.gates else None)
