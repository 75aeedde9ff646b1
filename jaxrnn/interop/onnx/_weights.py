"""One direction of a recurrent node as a library cell with its weights."""

from __future__ import annotations

from typing import Any

import numpy as np

import jaxrnn as jr
from jaxrnn.cells.fused import block, gate_order
from jaxrnn.interop.conversion import Run, param_dtype, refuse, reordered, spec_of
from jaxrnn.interop.onnx._operators import GATES, PEEPHOLES, Activation, Operator, Weights, is_symmetric
from jaxrnn.interop.onnx._values import RUN


def run_of(op: Operator, activations: tuple[Activation, ...], own: Weights, h: Any, c: Any) -> Run:
    """The cell with its weights; h and c are (H,), learned initial states, or None."""
    if op.clip is not None:
        refuse(op.where, f"clip={op.clip:g}", f"no cell bounds what enters its activations; {RUN}")
    if h is None and c is not None:
        h = np.zeros_like(c)
    if c is None and h is not None:
        c = np.zeros_like(h)
    return {"RNN": _elman, "LSTM": _lstm, "GRU": _gru}[op.kind](op, activations, own, h, c)


def _elman(op, activations, own, h, c):
    b = None if own.Wb is None else own.Wb + own.Rb
    options = _options(own, h, activation=activations[0].in_dtype(own.W.dtype))
    return Run(spec_of("elman", *_sizes(own), **options), jr.cells.ElmanParams(own.W.T, own.R.T, b, h0=h))


def _gru(op, activations, own, h, c):
    gate, activation = (a.in_dtype(own.W.dtype) for a in activations)
    _symmetric(op, activations[0], "the share z of the old state becomes that of the new one")
    H = own.R.shape[-1]

    def ours(a):  # rows, a block for each gate
        return reordered(a, GATES["GRU"], gate_order("gru"), negate=("z",), axis=0)

    reset = "after" if op.linear_before_reset else "before"
    b = b_hh = None
    if own.Wb is not None:
        n, Rb = block(GATES["GRU"], "n", H), np.array(own.Rb)
        if op.linear_before_reset:  # the candidate's stays apart, inside the reset product
            b_hh, Rb[n] = own.Rb[n], 0
        b = ours(own.Wb + Rb)
    options = _options(own, h, activation=activation, gate_activation=gate, reset=_unless(reset, "before"))
    return Run(spec_of("gru", *_sizes(own), **options), jr.cells.GRUParams(ours(own.W).T, ours(own.R).T, b, b_hh, h))


def _lstm(op, activations, own, h, c):
    f, g, h_act = activations
    gate, activation = f.in_dtype(own.W.dtype), g.in_dtype(own.W.dtype)
    if g != h_act:
        why = f"a cell has one activation for its candidate and its output; {RUN}"
        refuse(op.where, f"{g} for the candidate and {h_act} for the output", why)
    b = None if own.Wb is None else own.Wb + own.Rb
    options = _options(own, h, activation=activation, gate_activation=gate)
    initial = None if h is None else jr.LSTMCarry(h, c)
    if op.input_forget:
        if own.P is not None:
            refuse(op.where, "input_forget with peepholes", f"jr.cifg_lstm has no peepholes; {RUN}")
        _symmetric(op, f, "the share i of the candidate becomes the f of the memory")

        def coupled(a):  # f = 1 - i, so that its rows are those of i negated; their own f is not read
            theirs = tuple({"i": "f", "f": "not read"}.get(gate, gate) for gate in GATES["LSTM"])
            return None if a is None else reordered(a, theirs, gate_order("cifg_lstm"), negate=("f",), axis=0)

        params = jr.cells.CIFGParams(coupled(own.W).T, coupled(own.R).T, coupled(b), initial=initial)
        return Run(spec_of("cifg_lstm", *_sizes(own), **options), params)

    def ours(a):
        return None if a is None else reordered(a, GATES["LSTM"], gate_order("lstm"), axis=0)

    W_xh, W_hh, b = ours(own.W).T, ours(own.R).T, ours(b)
    if own.P is not None:
        U: dict[str, Any] = dict(zip(PEEPHOLES, np.split(own.P, 3), strict=True))
        peepholes = jr.cells.PeepholeLSTMParams(W_xh, W_hh, b, U["i"], U["f"], U["o"], initial=initial)
        return Run(spec_of("peephole_lstm", *_sizes(own), **options), peepholes)
    return Run(spec_of("lstm", *_sizes(own), **options), jr.cells.LSTMParams(W_xh, W_hh, b, initial=initial))


def _sizes(own: Weights) -> tuple[int, int]:
    return own.W.shape[-1], own.R.shape[-1]


def _unless(value: Any, default: Any) -> Any:
    """The value; None where it is the factory's default, which specs leave out."""
    return None if value == default else value


def _options(own: Weights, h: Any, **named: Any) -> dict[str, Any]:
    defaults = {"activation": "tanh", "gate_activation": "sigmoid"}
    options = {name: _unless(value, defaults.get(name)) for name, value in named.items()}
    options |= {"bias": False if own.Wb is None else None, "learned_carry": None if h is None else True}
    return options | {"param_dtype": param_dtype(own.W)}


def _symmetric(op: Operator, gate: Activation, what: str) -> None:
    if not is_symmetric(gate.ours):
        refuse(op.where, f"the gate activation {gate}", f"{what} by 1 - σ(a) = σ(-a), which is not so for it; {RUN}")
