"""What Keras calls the cells, merges and activations, and its order of gates."""

from __future__ import annotations

from typing import Any, NoReturn

from jaxrnn.interop.conversion import negated, refuse, reordered
from jaxrnn.interop.registry import Library

LIBRARY = Library("Keras", "keras", extra="interop")

NAMES = {"elman": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}
MERGES = {"concat": "concat", "sum": "sum", "mean": "ave", "product": "mul"}
ACTIVATIONS = {
    **{name: name for name in ("tanh", "relu", "sigmoid", "hard_sigmoid", "softplus", "softsign", "elu", "silu")},
    "identity": "linear",
}


def swapped(a: Any, theirs: str, ours: str) -> Any:
    """GRU blocks in the other library's order, z negated: its own inverse but for the order."""
    return negated(reordered(a, theirs, ours), ours.index("z"), 3)


def refuse_activation(who: str, what: str, name: Any) -> NoReturn:
    """The error for an activation that one of the two lacks, or means otherwise."""
    why = {
        "gelu": "by that name Keras means the exact form, jaxrnn the tanh form",
        "leaky_relu": "its slope is 0.2 in Keras and 0.01 in jaxrnn",
    }
    refuse(who, what, why.get(name, f"both know {', '.join(ACTIVATIONS)} (Keras: linear)"))
