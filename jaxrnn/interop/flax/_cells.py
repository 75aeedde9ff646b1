"""Flax's cells apart from linen and nnx: their equations in terms of jaxrnn's, both ways.

The weights stand as linen names them, a kernel (and bias) for each gate: ``{"ii": {"kernel": …}, "hi": {"kernel": …,
"bias": …} …}`` for an LSTM; nnx's fused kernels are cut into these and put together again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrnn as jr
from jaxrnn._base import Cell, Layer, PyTree, name_of
from jaxrnn.cells.activations import activation_of
from jaxrnn.cells.fused import GateOrder, gate_order
from jaxrnn.combine import MERGES
from jaxrnn.interop.conversion import (
    Level,
    Run,
    as_weights,
    check_options,
    check_shape,
    levels_of,
    named,
    no_learned_carry,
    param_dtype,
    refuse,
    reordered,
    requires,
    spec_of,
)
from jaxrnn.saving.parameters import as_jax

Weights = dict[str, dict[str, Any]]

# What is summed before it is used has one bias, on the side that Flax puts it; the one of "hn" stands in a product.
BIASED = {
    "simple": ("i",),
    "lstm": ("hi", "hf", "hg", "ho"),
    "gru": ("ir", "iz", "in", "hn"),
    "mgu": ("if", "in", "hn"),
    "mgu without reset": ("if", "in"),
}
GATED = {"lstm": "lstm", "gru": "gru", "mgu": "mgu", "mgu without reset": "mgu"}  # here, by the kind there
OPTIONS = (
    *("activation", "gate_activation", "bias", "reset", "keep"),
    *("output_size", "projection_size", "learned_carry"),  # looked at, and refused
)
SYMMETRIC = ("sigmoid", "hard_sigmoid")  # 1 - σ(a) = σ(-a)


class FlaxCell(NamedTuple):
    """A Flax cell, linen's or nnx's, apart from its class."""

    kind: str  # a key of BIASED
    weights: Weights
    activation: Any
    gate: Any = None  # of all but "simple"
    residual: bool = False  # of "simple"
    dtype: Any = None
    carry: np.ndarray | None = None  # (H,), what a carry starts from where that is not zero


def names_of(kind: str) -> tuple[str, ...]:
    """The names of a cell's dense parts in linen: for an LSTM ii, if, ig, io, hi, hf, hg, ho."""
    return tuple(side + gate for side in "ih" for gate in gates_of(kind)) if kind in GATED else ("i", "h")


def gates_of(kind: str) -> GateOrder:
    """The letters of a cell's gates, which are Flax's and ours; in our order."""
    return gate_order(GATED[kind])


def check_weights(who: str, kind: str, weights: Mapping[str, Any], hidden_size: int) -> Weights:
    """Kernels (I, H) and (H, H) and biases (H,), as NumPy arrays, no more and no fewer than the cell has."""
    want = {(name, "kernel") for name in names_of(kind)} | {(name, "bias") for name in BIASED[kind]}
    got = {(name, part) for name, parts in weights.items() if isinstance(parts, Mapping) for part in parts}
    if got != want or len(weights) != len(names_of(kind)):
        given = sorted(".".join(pair) for pair in got) or sorted(map(str, weights)) or ["none"]
        raise ValueError(
            f"{who}: expected the parameters {', '.join(sorted('.'.join(pair) for pair in want))}, got "
            f"{', '.join(given)}; pass the parameters of this very module."
        )
    arrays = {
        name: {part: as_weights(who, f"{name}.{part}", a) for part, a in parts.items()}
        for name, parts in weights.items()
    }
    fix, first = "pass the parameters of this very module", names_of(kind)[0]
    if arrays[first]["kernel"].ndim != 2:  # it says the input's size
        check_shape(who, f"{first}.kernel", arrays[first]["kernel"], (None, hidden_size), fix)
    for name, parts in arrays.items():
        rows = hidden_size if name.startswith("h") else arrays[first]["kernel"].shape[0]
        for part, a in parts.items():
            shape = (rows, hidden_size) if part == "kernel" else (hidden_size,)
            check_shape(who, f"{name}.{part}", a, shape, fix)
    return arrays


def fixed_carry(who: str, carry_init: Any, hidden_size: int, dtype: Any) -> np.ndarray | None:
    """(H,), what a ``carry_init`` gives for every key and sequence; None for zeros."""
    if carry_init in (None, jax.nn.initializers.zeros):
        return None
    drawn = [np.asarray(carry_init(jax.random.key(seed), (2, hidden_size), dtype)) for seed in (0, 1)]
    for a in drawn:
        check_shape(who, "what carry_init gives", a, (2, hidden_size), "give an initialiser of Flax's, say")
    rows = np.concatenate(drawn)
    if (rows != rows[0]).any():
        refuse(who, "a carry_init that draws", "pass the initial carry that you want to every call")
    return rows[0] if rows[0].any() else None


def from_flax(who: str, cell: FlaxCell) -> tuple[Cell, PyTree]:
    """The jaxrnn cell that computes what the Flax cell does, and its parameters."""
    kind, w = cell.kind, cell.weights

    def fused(side: str, part: str = "kernel") -> Any:
        return np.concatenate([w[side + gate][part] for gate in gates_of(kind)], axis=-1)

    b_hh = w.get("hn", {}).get("bias")
    activation, gate = named(cell.activation), named(cell.gate)
    options = {"activation": None if activation == "tanh" else activation}
    if kind in GATED:
        options["gate_activation"] = None if gate == "sigmoid" else gate
    params: PyTree
    if kind == "simple":
        W_hh = w["h"]["kernel"]
        # act(… + W_hh h + h): the skip connection is a part of the recurrent matrix.
        W_hh = W_hh + np.eye(len(W_hh), dtype=W_hh.dtype) if cell.residual else W_hh
        made, params = "elman", jr.cells.ElmanParams(w["i"]["kernel"], W_hh, w["i"]["bias"])
    elif kind == "lstm":
        made, params = "lstm", jr.cells.LSTMParams(fused("i"), fused("h"), fused("h", "bias"))
    elif kind == "gru":
        if gate not in SYMMETRIC:
            refuse(who, f"a GRU with gate_fn={gate!r}", _SHARE)
        W_xh, W_hh, b = (_turned(kind, "z", a) for a in (fused("i"), fused("h"), fused("i", "bias")))
        made, params = "gru", jr.cells.GRUParams(W_xh, W_hh, b, b_hh)
        options["reset"] = "after"
    else:
        made, params = "mgu", jr.cells.MGUParams(fused("i"), fused("h"), fused("i", "bias"), b_hh)
        options |= {"reset": "after" if kind == "mgu" else "none", "keep": "state"}
    if cell.dtype is not None:
        options["dtype"] = np.dtype(cell.dtype)
    if cell.carry is not None:
        h: Any = cell.carry
        options["learned_carry"] = True
        params = params._replace(initial=jr.LSTMCarry(h, h)) if kind == "lstm" else params._replace(h0=h)
    I, H = w[names_of(kind)[0]]["kernel"].shape
    spec = spec_of(made, I, H, param_dtype=param_dtype(params.W_xh), **options)
    return jr.build(spec), as_jax(who, params)


def _turned(kind: str, gate: str, a: Any) -> Any:
    """A fused array with the block of a gate negated: the share of the old state in place of that of the new one."""
    return reordered(a, gates_of(kind), gates_of(kind), negate=(gate,))


_SHARE = "z is the share of the old state there and of the new one here, and 1 - gate_fn(a) = gate_fn(-a) does not hold"


def to_flax(who: str, run: Run) -> FlaxCell:
    """The Flax cell that computes what a jaxrnn cell does."""
    kind, p = run.cell.kind, run.params
    if kind not in ("elman", "lstm", "gru", "mgu"):
        refuse(who, kind, "Flax has simple cells, LSTMs, GRUs and MGUs")
    no_learned_carry(who, run, "Flax")
    check_options(who, run, *OPTIONS)
    dtype, activation = run.option("dtype"), run.option("activation", "tanh")
    gate = run.option("gate_activation", "sigmoid")
    W_xh, W_hh = np.asarray(p.W_xh), np.asarray(p.W_hh)
    b = np.zeros(W_xh.shape[-1:], W_xh.dtype) if p.b is None else np.asarray(p.b)
    functions = tuple(activation_of(who, "activation", f) for f in (activation, gate))
    if kind == "elman":
        requires(who, run, "Flax's simple cell", output_size=None)
        return FlaxCell("simple", {"i": {"kernel": W_xh, "bias": b}, "h": {"kernel": W_hh}}, functions[0], dtype=dtype)
    theirs = _gated(who, run)
    if kind == "gru" or (kind == "mgu" and run.option("keep", "candidate") == "candidate"):
        if named(gate) not in SYMMETRIC:
            refuse(who, f"{kind} with gate_activation={gate!r}", _SHARE)
        W_xh, W_hh, b = (_turned(theirs, "z" if kind == "gru" else "f", a) for a in (W_xh, W_hh, b))
    n = len(gates_of(theirs))
    parts = {"i": np.split(W_xh, n, axis=-1), "h": np.split(W_hh, n, axis=-1)}
    weights: Weights = {
        side + gate: {"kernel": W} for side in "ih" for gate, W in zip(gates_of(theirs), parts[side], strict=True)
    }
    for gate, own in zip(gates_of(theirs), np.split(b, n), strict=True):
        weights[("h" if kind == "lstm" else "i") + gate]["bias"] = own
    if "hn" in BIASED[theirs]:
        weights["hn"]["bias"] = np.zeros(W_hh.shape[:1], b.dtype) if p.b_hh is None else np.asarray(p.b_hh)
    return FlaxCell(theirs, weights, functions[0], functions[1], dtype=dtype)


def _gated(who: str, run: Run) -> str:
    """The kind of the gated cell that a run's cell is in Flax."""
    kind = run.cell.kind
    if kind == "lstm":
        requires(who, run, "Flax's LSTM", projection_size=None)
    elif kind == "gru":
        requires(who, run, "Flax's GRU", reset="after")
    elif run.option("reset", "before") == "before":
        refuse(who, "mgu with reset='before'", "Flax's MGU has 'after' or 'none'")
    elif run.option("reset") == "after":
        requires(who, run, "Flax's MGU", keep="state")
    else:
        return "mgu without reset"
    return kind


def one_level(who: str, model: Cell | Layer, params: PyTree) -> Level:
    """A model of one level: a cell, a run of it, or a bidirectional one."""
    level, *above = levels_of(who, model, params)
    if above or level.dropout:
        refuse(who, f"a {name_of(model)}", "Flax's RNN is one layer; convert the members of a stack one by one")
    return level


def merge_name(merge: Any, default: Any) -> Any:
    """The name of a Bidirectional's ``merge_fn`` here; any other function as it is."""
    return "concat" if merge is default else next((name for name, known in MERGES.items() if merge is known), merge)
