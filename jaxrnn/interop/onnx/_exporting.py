"""``export``: a layer as an ONNX model."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn._arguments import check_argument
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn.cells.fused import block, gate_order
from jaxrnn.interop.conversion import Level, Run, check_options, levels_of, refuse, reordered
from jaxrnn.interop.onnx._chain import MERGES
from jaxrnn.interop.onnx._operators import GATES, KINDS, PEEPHOLES, PLAIN, Activation, is_symmetric
from jaxrnn.interop.onnx._reading import LIBRARY, OLDEST
from jaxrnn.saving.files import check_place

WHO = "onnx.export"
OPTIONS = (
    *("activation", "gate_activation", "bias", "learned_carry", "reset"),
    *("output_size", "peephole", "projection_size"),
)
KIND = {"elman": "RNN", "gru": "GRU", "lstm": "LSTM", "peephole_lstm": "LSTM", "cifg_lstm": "LSTM"}


def export(
    layer: Cell | Layer,
    params: PyTree,
    path: str | os.PathLike[str] | None = None,
    *,
    opset: int = 22,
    lengths: bool = True,
    carry: bool = True,
) -> Any:
    """A layer and its parameters as an ONNX model, which computes what ``layer.apply`` does.

    Inputs are X (T, B, I), sequence_lens (B) int32, initial_h and for LSTMs initial_c (D, B, H), outputs Y (T, B, F),
    Y_h and Y_c (D, B, H), with D = 2 directions of a bidirectional layer, forward first. In a stack the states carry
    the member's level: initial_h_0, Y_h_0, initial_h_1 … T and B are symbolic. Y is 0 on padded steps.

    Args:
        layer: a Cell, ``jr.scan`` or ``jr.bidirectional`` of elman, lstm, peephole_lstm (diagonal), cifg_lstm or gru,
            or a ``jr.stack`` of such with readouts. Dropout is left out: the graph evaluates.
        params: its parameters, float32 or float64.
        path: a file to write; None writes none.
        opset: the version of ONNX's operators, from 7.
        lengths: whether sequence_lens is an input; without, all steps are valid.
        carry: whether the initial states are inputs; without, they are zeros, or what was learned.

    Returns:
        The ``onnx.ModelProto``, which ONNX's checker has passed.

    Raises:
        ValueError: what ONNX's operators do not compute, with the reason; a learned carry with ``carry=True``; an
            operator set that ONNX does not have. TypeError: what is no layer. ImportError: onnx is not installed.

    Example:
        >>> import jax, jaxrnn as jr
        >>> from jaxrnn.interop import onnx
        >>> layer = jr.bidirectional(jr.lstm(3, 4), jr.lstm(3, 4))
        >>> model = onnx.export(layer, layer.init(jax.random.key(0)))
        >>> [node.op_type for node in model.graph.node]
        ['LSTM', 'Transpose', 'Reshape']

    Differs on sequences of length 0: onnxruntime gives zeros as their final states, the layer the initial ones. It runs
    the operators in float32 alone.
    """
    onnx = LIBRARY.load()
    defs, helper = LIBRARY.load("onnx.defs"), LIBRARY.load("onnx.helper")
    newest = defs.onnx_opset_version()
    for name, value, kind in (
        ("path", path, "str | os.PathLike | None"),
        ("lengths", lengths, "bool"),
        ("carry", carry, "bool"),
    ):
        check_argument(WHO, name, value, kind, {})
    if isinstance(opset, bool) or not isinstance(opset, int) or not OLDEST <= opset <= newest:
        raise ValueError(f"{WHO}: opset must be a whole number from {OLDEST} to {newest}, got {opset!r}.")
    levels = _with_own_readouts(levels_of(WHO, layer, params))
    graph = _Graph(_dtype_of(levels), opset, lengths, carry)
    count = sum(level.runs[0].cell.kind in KIND for level in levels)
    if count == 0:
        refuse(WHO, "a model without a recurrent cell", "write an elman, a gru or an LSTM")
    first = levels[0].runs[0]
    graph.input("X", ("T", "B", first.option("input_size")))
    if lengths:
        graph.input("sequence_lens", ("B",), np.int32)
    y, size, place = "X", first.option("input_size"), itertools.count()
    for k, level in enumerate(levels):
        run = level.runs[0]
        if run.cell.kind == "readout":
            y, size = graph.readout(y, run.params, str(k)), run.option("output_size")
        else:
            y = graph.recurrent(y, level, f"_{next(place)}" if count > 1 else "", str(k))
            size = run.option("hidden_size") * (2 if level.merge == "concat" else 1)
    graph.nodes[-1].output[0] = "Y"
    graph.output("Y", ("T", "B", size), first=True)
    model = graph.model(helper)
    LIBRARY.load("onnx.checker").check_model(model, full_check=True)
    if path is not None:
        check_place(WHO, path)
        onnx.save_model(model, os.fspath(path))
    return model


def _with_own_readouts(levels: Sequence[Level]) -> list[Level]:
    """An Elman network's own readout as a level of its own; cells and options without an operator refused."""
    every = []
    for level in levels:
        every.append(level)
        for run in level.runs:
            if run.cell.kind not in (*KIND, "readout"):
                refuse(WHO, run.cell.kind, f"ONNX has operators for {', '.join(KIND)} and a readout")
            if run.cell.kind == "readout" and len(level.runs) == 2:
                refuse(WHO, "a readout in a bidirectional layer", "put it after the layer")
            check_options(WHO, run, *OPTIONS)
            if run.option("output_size") is None or run.cell.kind == "readout":
                continue
            if len(level.runs) == 2:
                refuse(WHO, "output_size in a bidirectional layer", "put jr.readout after the layer")
            W_hy, b_y = run.params.W_hy, run.params.b_y
            every.append(Level((Run(run.cell._replace(kind="readout"), _Affine(W_hy, b_y)),)))
    return every


class _Affine(NamedTuple):
    W_hy: Any  # (H, O)
    b_y: Any | None


def _dtype_of(levels: Sequence[Level]) -> Any:
    """The dtype of all parameters."""
    dtypes = {np.asarray(leaf).dtype for level in levels for run in level.runs for leaf in jax.tree.leaves(run.params)}
    if len(dtypes) != 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        came = ", ".join(sorted(dtype.name for dtype in dtypes))
        refuse(WHO, f"parameters of {came}", "a graph has one dtype, float32 or float64; cast them")
    (dtype,) = dtypes
    for level in levels:
        for run in level.runs:
            if run.option("dtype") not in (None, dtype.name):
                refuse(WHO, f"dtype={run.option('dtype')!r}", f"a graph computes in its parameters' {dtype.name}")
    return dtype


class _Graph:
    """The graph as it grows: nodes, stored arrays, inputs, outputs."""

    def __init__(self, dtype: Any, opset: int, lengths: bool, carry: bool) -> None:
        self.dtype, self.opset, self.lengths, self.carry = dtype, opset, lengths, carry
        self.helper = LIBRARY.load("onnx.helper")
        self.numpy_helper = LIBRARY.load("onnx.numpy_helper")
        self.nodes: list[Any] = []
        self.stored: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.valid: str | None = None
        self.repeats: str | None = None

    # ---- parts

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> str:
        self.nodes.append(self.helper.make_node(kind, inputs, outputs, name=f"{kind}_{outputs[0]}", **attributes))
        return outputs[0]

    def store(self, name: str, a: Any) -> str:
        self.stored.append(self.numpy_helper.from_array(np.asarray(a, order="C"), name))
        return name

    def input(self, name: str, shape: Sequence[Any], dtype: Any = None) -> str:
        self.inputs.append(self._info(name, shape, dtype))
        return name

    def output(self, name: str, shape: Sequence[Any], first: bool = False) -> str:
        self.outputs.insert(0 if first else len(self.outputs), self._info(name, shape))
        return name

    def _info(self, name: str, shape: Sequence[Any], dtype: Any = None) -> Any:
        kind = self.helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        return self.helper.make_tensor_value_info(name, kind, shape)

    def on_axes(self, kind: str, x: str, axes: Sequence[int], out: str, *, input_since: int = 13, **more: Any) -> str:
        """An operator whose axes are an attribute before some version and an input since."""
        if self.opset < input_since:
            return self.node(kind, [x], [out], axes=list(axes), **more)
        return self.node(kind, [x, self.store(f"{out}.axes", np.asarray(axes, np.int64))], [out], **more)

    def model(self, helper: Any) -> Any:
        graph = helper.make_graph(self.nodes, "jaxrnn", self.inputs, self.outputs, self.stored)
        opsets = [helper.make_opsetid("", self.opset)]
        # From 4 on, what is stored need not be an input of the graph as well.
        version = max(4, helper.find_min_ir_version_for(opsets))
        return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="jaxrnn")

    # ---- a level

    def recurrent(self, x: str, level: Level, label: str, name: str) -> str:
        kinds = [KIND[run.cell.kind] for run in level.runs]
        parts = [_PARTS[run.cell.kind](run) for run in level.runs]
        attributes = [_attributes(run, self.dtype) for run in level.runs]
        sizes = [run.option("hidden_size") for run in level.runs]
        one = ({k: v for k, v in a.items() if not k.startswith("activation")} for a in attributes)
        if len(parts) == 2 and (len(set(kinds)) > 1 or sizes[0] != sizes[1] or next(one) != next(one)):
            came = " and ".join(f"{run.cell.kind} of {size}" for run, size in zip(level.runs, sizes, strict=True))
            why = "one operator runs both directions with the same kind of cell, options and hidden_size"
            refuse(WHO, f"a bidirectional layer of {came}", why)
        together = {"hidden_size": sizes[0], **attributes[0]}
        for option in ("activations", "activation_alpha", "activation_beta"):
            together[option] = [value for a in attributes for value in a[option]]
        together = {option: value for option, value in together.items() if value != []}
        directions = "bidirectional" if len(parts) == 2 else "reverse" if level.runs[0].reverse else "forward"
        D, H = len(parts), sizes[0]

        given = {"X": x, "sequence_lens": "sequence_lens" if self.lengths else ""}
        for weight in ("W", "R", "B", "P"):
            arrays = [part[weight] for part in parts]
            if any(a is not None for a in arrays):
                shape = next(a.shape for a in arrays if a is not None)
                arrays = [np.zeros(shape, self.dtype) if a is None else a for a in arrays]
                given[weight] = self.store(f"{weight}.{name}", np.stack(arrays).astype(self.dtype))
        states = ("h", "c") if kinds[0] == "LSTM" else ("h",)
        for state in states:
            given[f"initial_{state}"] = self._initial(state, [part[state] for part in parts], (D, H), label)
        order = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")[: 8 if kinds[0] == "LSTM" else 6]
        inputs = [given.get(slot, "") for slot in order]
        while not inputs[-1]:
            inputs.pop()
        ends = [self.output(f"Y_{state}{label}", (D, "B", H)) for state in states]
        self.node(kinds[0], inputs, [f"outputs.{name}", *ends], direction=directions, **together)
        return self._merged(f"outputs.{name}", level.merge, H)

    def _initial(self, state: str, learned: Sequence[Any], shape: tuple[int, int], label: str) -> str:
        D, H = shape
        if all(a is None for a in learned):
            return self.input(f"initial_{state}{label}", (D, "B", H)) if self.carry else ""
        if self.carry:
            why = "with carry=True the caller passes it, and what was learned would be lost; export with carry=False"
            refuse(WHO, "a learned initial carry", why)
        rows = np.stack([np.zeros(H, self.dtype) if a is None else np.asarray(a) for a in learned])[:, None]
        name = f"initial_{state}{label}"
        return self.node("Tile", [self.store(f"{name}.learned", rows), self._for_each_sequence()], [name])

    def _for_each_sequence(self) -> str:
        """(1, B, 1), by which stored states are repeated."""
        if self.repeats is None:
            one = self.store("one", np.asarray([1], np.int64))
            self.node("Shape", ["X"], ["shape"])
            self.node("Gather", ["shape", one], ["batch"], axis=0)
            self.repeats = self.node("Concat", [one, "batch", one], ["repeats"], axis=0)
        return self.repeats

    def _merged(self, y: str, merge: str | None, H: int) -> str:
        """(T, D, B, H) -> (T, B, F)."""
        if merge is None:
            return self.on_axes("Squeeze", y, [1], f"{y}.squeezed")
        if merge == "concat":
            self.node("Transpose", [y], [f"{y}.weights_on_the_left"], perm=[0, 2, 1, 3])
            shape = self.store(f"{y}.shape", np.asarray([0, 0, 2 * H], np.int64))
            return self.node("Reshape", [f"{y}.weights_on_the_left", shape], [f"{y}.concatenated"])
        kind = next(kind for kind, ours in MERGES.items() if ours == merge)
        since = 13 if kind == "ReduceSum" else 18
        return self.on_axes(kind, y, [1], f"{y}.merged", input_since=since, keepdims=0)

    def readout(self, x: str, params: Any, name: str) -> str:
        y = self.node("MatMul", [x, self.store(f"W_hy.{name}", params.W_hy)], [f"product.{name}"])
        if params.b_y is None:
            return y
        y = self.node("Add", [y, self.store(f"b_y.{name}", params.b_y)], [f"readout.{name}"])
        if not self.lengths:
            return y
        zero = self.store(f"zero.{name}", np.zeros((), self.dtype))
        return self.node("Where", [self._valid(), y, zero], [f"masked.{name}"])  # a layer is 0 on padded steps

    def _valid(self) -> str:
        """(T, B, 1), whether a step lies within its sequence's length."""
        if self.opset < 11:
            why = f"it is 0 on padded steps, for which operator set {self.opset} lacks Range; use 11, or lengths=False"
            refuse(WHO, "a readout with lengths", why)
        if self.valid is None:
            self.node("Shape", ["X"], ["sizes"])
            zero, one = self.store("start", np.asarray(0, np.int64)), self.store("step", np.asarray(1, np.int64))
            self.node("Gather", ["sizes", zero], ["steps"], axis=0)
            self.node("Range", [zero, "steps", one], ["times"])
            self.node(
                "Cast", ["sequence_lens"], ["lengths"], to=self.helper.np_dtype_to_tensor_dtype(np.dtype(np.int64))
            )
            self.on_axes("Unsqueeze", "times", [1], "times.column")
            self.node("Less", ["times.column", "lengths"], ["within"])
            self.valid = self.on_axes("Unsqueeze", "within", [2], "valid")
        return self.valid


# ---- one cell as the operator's weights ----------------------------------------------------------


def _attributes(run: Run, dtype: Any) -> dict[str, Any]:
    """The operator's attributes of one direction; its activations as lists, for two directions to be joined."""
    names = [run.option("activation", "tanh")]
    if run.cell.kind != "elman":
        names = [run.option("gate_activation", "sigmoid"), *names]
    if KIND[run.cell.kind] == "LSTM":
        names.append(names[-1])
    theirs = [_activation(name, dtype) for name in names]
    if run.cell.kind in ("gru", "cifg_lstm") and not is_symmetric(names[0]):
        why = "ONNX turns the gate round, by 1 - σ(a) = σ(-a), which is not so for it"
        refuse(WHO, f"the gate activation {names[0]} of {run.cell.kind}", why)
    attributes: dict[str, Any] = {
        "activations": [a.name for a in theirs],
        "activation_alpha": [a.constants[0] for a in theirs if a.constants],
        "activation_beta": [a.constants[1] for a in theirs if len(a.constants) > 1],
    }
    if run.cell.kind == "gru":
        attributes["linear_before_reset"] = int(run.option("reset", "before") == "after")
    if run.cell.kind == "cifg_lstm":
        attributes["input_forget"] = 1
    return attributes


def _activation(option: Any, dtype: Any) -> Activation:
    """ONNX's activation for a cell's option."""
    ours, *constants = option if isinstance(option, tuple) else PLAIN.get(option, (option,))
    kind = next((name for name, kind in KINDS.items() if kind.ours == ours), None)
    if kind is None:
        came = "a function" if callable(option) else option
        names = [kind.ours for kind in KINDS.values() if not kind.defaults] + list(PLAIN)
        refuse(WHO, f"the activation {came}", f"ONNX has {', '.join(names)}, and those with numbers")
    stored = tuple(float(np.float32(v)) for v in constants)
    if dtype != np.float32 and list(stored) != constants:
        refuse(WHO, f"{option} in {dtype.name}", "ONNX stores its constants in float32, where they are other numbers")
    return Activation(kind, stored)


def _elman_parts(run: Run) -> dict[str, Any]:
    p = run.params
    return _parts(p.W_xh, p.W_hh, p.b, None, None, p.h0)


def _gru_parts(run: Run) -> dict[str, Any]:
    p = run.params

    def theirs(a):
        return None if a is None else reordered(a, gate_order("gru"), GATES["GRU"], negate=("z",))

    b_n = None
    if p.b_hh is not None:
        b_n = np.zeros(p.b.shape, p.b.dtype)
        b_n[block(GATES["GRU"], "n", len(p.b_hh))] = p.b_hh
    return _parts(theirs(p.W_xh), theirs(p.W_hh), theirs(p.b), b_n, None, p.h0)


def _lstm_parts(run: Run) -> dict[str, Any]:
    p, kind = run.params, run.cell.kind
    if run.option("projection_size") is not None:
        refuse(WHO, "projection_size", "ONNX's LSTM does not project its output")
    if run.option("peephole", "diagonal") != "diagonal":
        refuse(WHO, "full peepholes", "ONNX's are diagonal")

    def theirs(a):
        if a is None:
            return None
        if kind == "cifg_lstm":  # i = 1 - f has the block of f negated; f's own is what input_forget leaves unread
            order = gate_order(kind)
            i = reordered(a, order, ("f",), negate=("f",))
            return reordered(np.concatenate([i, a], axis=-1), ("i", *order), GATES["LSTM"])
        return reordered(a, gate_order(kind), GATES["LSTM"])

    P = np.concatenate([getattr(p, f"U_{gate}") for gate in PEEPHOLES]) if kind == "peephole_lstm" else None
    h, c = p.initial or (None, None)
    return _parts(theirs(p.W_xh), theirs(p.W_hh), theirs(p.b), None, P, h, c)


def _parts(W_xh, W_hh, b, b_hh, P, h, c=None) -> dict[str, Any]:
    """Of one direction, as rows for each output; the biases of both products one after the other."""
    B = None if b is None else np.concatenate([b, np.zeros_like(b) if b_hh is None else b_hh])
    return {"W": np.asarray(W_xh).T, "R": np.asarray(W_hh).T, "B": B, "P": P, "h": h, "c": c}


_PARTS = {
    "elman": _elman_parts,
    "gru": _gru_parts,
    "lstm": _lstm_parts,
    "peephole_lstm": _lstm_parts,
    "cifg_lstm": _lstm_parts,
}
