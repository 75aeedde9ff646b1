"""The order of the gates in arrays that are fused, as W_xh, W_hh and b are: the file of each gated cell states it once.

GATES = ("r", "z", "n"), say, in ``gru.py``: what follows takes it, and so do the conversions to other libraries.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._checks import nearest
from jaxrnn._spec import FACTORIES

GateOrder = tuple[str, ...]


@checks_arguments
def gate_order(kind: str) -> GateOrder:
    """The gates of a kind of cell, in the order of the blocks of its fused arrays; none for what has no such arrays.

    Raises:
        ValueError: for a kind that there is not.

    Example:
        >>> import jaxrnn as jr
        >>> jr.cells.gate_order("gru"), jr.cells.gate_order("elman")
        (('r', 'z', 'n'), ())
    """
    if kind not in FACTORIES:
        raise ValueError(f"gate_order: no kind of cell is called {kind!r}{nearest(kind, FACTORIES)}")
    return getattr(sys.modules[FACTORIES[kind].__module__], "GATES", ())


def block(order: GateOrder, gate: str, size: int) -> slice:
    """The columns of a gate in an array of blocks of ``size`` columns."""
    start = order.index(gate) * size
    return slice(start, start + size)


def by_gate(order: GateOrder, a: jax.Array) -> Any:
    """The blocks of a fused array as attributes: ``by_gate(("r", "z", "n"), a).r`` …"""
    return SimpleNamespace(**dict(zip(order, jnp.split(a, len(order), axis=-1), strict=True)))
