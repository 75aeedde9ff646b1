"""What Keras calls the cells, merges and activations, and its order of gates."""

from __future__ import annotations

from typing import Any, NoReturn

from jaxrnn.cells.fused import GateOrder, gate_order
from jaxrnn.interop.conversion import refuse, reordered
from jaxrnn.interop.registry import Library

LIBRARY = Library("Keras", "keras", extra="interop")

NAMES = {"elman": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}
GATES: dict[str, GateOrder] = {"lstm": ("i", "f", "g", "o"), "gru": ("z", "r", "n")}  # in Keras' fused arrays
MERGES = {"concat": "concat", "sum": "sum", "mean": "ave", "product": "mul"}
ACTIVATIONS = {
    **{name: name for name in ("tanh", "relu", "sigmoid", "hard_sigmoid", "softplus", "softsign", "elu", "silu")},
    "identity": "linear",
}


def from_their_gates(kind: str, a: Any) -> Any:
    """A fused array of Keras' in our order of gates, a GRU's z turned into the share of the candidate."""
    return reordered(a, GATES[kind], gate_order(kind), negate=_TURNED) if kind in GATES else a


def to_their_gates(kind: str, a: Any) -> Any:
    """The inverse of :func:`from_their_gates`."""
    return reordered(a, gate_order(kind), GATES[kind], negate=_TURNED) if kind in GATES else a


_TURNED = ("z",)


def refuse_activation(who: str, what: str, name: Any) -> NoReturn:
    """The error for an activation that one of the two lacks, or means otherwise."""
    why = {
        "gelu": "by that name Keras means the exact form, jaxrnn the tanh form",
        "leaky_relu": "its slope is 0.2 in Keras and 0.01 in jaxrnn",
    }
    refuse(who, what, why.get(name, f"both know {', '.join(ACTIVATIONS)} (Keras: linear)"))
