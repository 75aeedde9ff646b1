"""What Keras calls the cells, merges and activations, and its order of gates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from jaxrnn.cells.fused import GateOrder, gate_order
from jaxrnn.interop.conversion import refuse, reordered
from jaxrnn.interop.registry import Library

LIBRARY = Library("Keras", "keras", extra="interop")

NAMES = {"elman": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}
GATES: dict[str, GateOrder] = {"lstm": ("i", "f", "g", "o"), "gru": ("z", "r", "n")}  # in Keras' fused arrays
MERGES = {"concat": "concat", "sum": "sum", "mean": "ave", "product": "mul"}
# clip(0.2 x + 0.5, 0, 1) in Keras 1 and 2, relu6(x + 3) / 6 in Keras 3.
OLD_HARD_SIGMOID = "hard_sigmoid of Keras 1 and 2"
ACTIVATIONS: dict[Any, str] = {
    **{name: name for name in ("tanh", "relu", "sigmoid", "hard_sigmoid", "softplus", "softsign", "elu", "silu")},
    "identity": "linear",
    ("hard_sigmoid", 0.2, 0.5): OLD_HARD_SIGMOID,
    ("leaky_relu", 0.2): "leaky_relu",
}


@functools.cache
def old_hard_sigmoid(keras: ModuleType) -> Callable[[Any], Any]:
    """As a function of Keras 3, one alone, by which it is known again."""

    def hard_sigmoid_of_keras_2(x: Any) -> Any:
        return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)

    return hard_sigmoid_of_keras_2


def activation_named(keras: ModuleType, name: Any, version: int = 3) -> Callable[[Any], Any] | None:
    """What a name meant in a version of Keras; None for one that is not Keras' own."""
    if name == OLD_HARD_SIGMOID or (name == "hard_sigmoid" and version < 3):
        return old_hard_sigmoid(keras)
    try:
        return keras.activations.get({"swish": "silu"}.get(name, name)) if isinstance(name, str) else None
    except ValueError:
        return None


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
        "leaky_relu": "its slope is 0.2 in Keras, which is ('leaky_relu', 0.2), and 0.01 in jaxrnn",
    }
    both = ", ".join(known for known in ACTIVATIONS if isinstance(known, str))
    refuse(who, what, why.get(name, f"both know {both} (Keras: linear)"))
