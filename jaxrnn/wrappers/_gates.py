"""The gates of a cell whose new state a wrapper changes: those of the cell, with the state that the wrapper makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree, is_inexact, name_of


def gates_with_carry_changed(
    who: str, cell: Cell, change: Callable[[PyTree, PyTree], PyTree]
) -> Callable[..., Any] | None:
    """The ``gates`` of a wrapper that changes the new carry once it is complete; None for a cell without gates.

    Args:
        who: the wrapper, for error messages.
        cell: what it wraps.
        change: ``(old carry, new carry) -> carry``, in evaluation.
    """
    if cell.gates is None:
        return None
    own_gates = cell.gates

    def gates(params, carry, x):
        own = own_gates(params, carry, x)
        return with_carry_in_gates(own, change(carry, carry_in_gates(who, cell, own, carry)))

    return gates


def carry_in_gates(who: str, cell: Cell, gates: Any, carry: PyTree) -> PyTree:
    """The new carry, read from the gates: their entries named as its fields, or h where the carry is one array.

    Integers that are not among the gates stay those of the old carry; no wrapper changes them.

    Raises:
        TypeError: for gates that lack a part of the state.
    """
    if _is_around(carry, gates):
        return carry._replace(cell=carry_in_gates(who, cell, gates, carry.cell))
    new = {}
    for name in getattr(carry, "_fields", ("h",)):
        old = getattr(carry, name) if hasattr(carry, "_fields") else carry
        changes = any(map(is_inexact, jax.tree.leaves(old)))
        found = getattr(gates, name, None if changes else old)
        if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, old):
            fields = ", ".join(getattr(gates, "_fields", ())) or type(gates).__name__
            raise TypeError(
                f"{who}: changes the new state of {name_of(cell)}, which its gates ({fields}) do not hold, so they "
                f"would be those of another step; let gates return a NamedTuple that has the new {name} too (each "
                f"field of a NamedTuple carry under its name and in its shape; h where the carry is one array; "
                f"another carry has to become a NamedTuple first)."
            )
        new[name] = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), found, old)
    return carry._replace(**new) if hasattr(carry, "_fields") else new["h"]


def with_carry_in_gates(gates: Any, carry: PyTree) -> Any:
    """The gates with the new state of a carry, as :func:`carry_in_gates` reads it."""
    if _is_around(carry, gates):
        return with_carry_in_gates(gates, carry.cell)
    if not hasattr(carry, "_fields"):
        return gates._replace(h=carry)
    return gates._replace(**{name: getattr(carry, name) for name in carry._fields if hasattr(gates, name)})


def _is_around(carry: PyTree, gates: Any) -> bool:
    """Whether it is the carry of a wrapper, such as ``every``, whose gates are those of the cell inside."""
    return "cell" in getattr(carry, "_fields", ()) and not hasattr(gates, "cell")
