"""``load``: a graph of recurrent operators as the library's own cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import jaxrnn as jr
from jaxrnn._base import Layer, PyTree
from jaxrnn.cells.fused import block, gate_order
from jaxrnn.interop.conversion import Level, Run, model_of, param_dtype, refuse, reordered, spec_of
from jaxrnn.interop.onnx._operators import GATES, PEEPHOLES, Activation, Operator, Weights, operator_of, weights_of
from jaxrnn.interop.onnx._reading import attributes_of, fail, initializers_of, name_of, read
from jaxrnn.interop.onnx._running import OPERATORS, evaluate
from jaxrnn.saving.parameters import as_jax

# Activations of ours by name, constants as attributes store them. A float32 constant that is no power of two is ours
# in float32 alone.
ACTIVATIONS = {
    "tanh": Activation("Tanh"),
    "relu": Activation("Relu"),
    "sigmoid": Activation("Sigmoid"),
    "softplus": Activation("Softplus"),
    "softsign": Activation("Softsign"),
    "elu": Activation("Elu", 1.0),
    "identity": Activation("Affine", 1.0, 0.0),
    "leaky_relu": Activation("LeakyRelu", float(np.float32(0.01))),
    "hard_sigmoid": Activation("HardSigmoid", float(np.float32(1 / 6)), 0.5),
}
FLOAT32_ALONE = ("leaky_relu", "hard_sigmoid")
SYMMETRIC = ("sigmoid", "hard_sigmoid")  # 1 - σ(a) = σ(-a), by which a gate's share is turned round
MERGES = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceProd": "product"}
RUN = "run() computes it"


class Outputs(NamedTuple):
    """The outputs over time of one level of the graph, as a tensor of it.

    Fields:
        axes: what its axes are: T, B, D (directions), H (units of one), F (features).
        level: how many levels lie below its end: it must be the last when it is read.
    """

    axes: tuple[str, ...]
    level: int


class Other(NamedTuple):
    """A tensor that is neither stored nor outputs over time.

    Fields:
        kind: "input" (what the caller passes), "part" (what is cut from it or joined to it), "zeros", "shape" (known
            from shapes alone), "state" (final states), "steps" (0 … T-1), "valid" (whether a step lies within its
            sequence's length).
        source: for inputs, the graph's input that it comes from.
    """

    kind: str
    source: str = ""


def load(model: Any) -> tuple[Layer, PyTree]:
    """An ONNX model of recurrent operators as library cells with its weights.

    The graph must be one recurrent node or a chain of them, each reading the outputs of the one before, with the
    Transposes, Reshapes and Squeezes that exporters put between; MatMul and Add with stored weights become a readout.
    An RNN becomes ``jr.elman``, an LSTM ``jr.lstm``, ``jr.peephole_lstm`` with P, ``jr.cifg_lstm`` with input_forget,
    a GRU ``jr.gru``, ``reset="after"`` with linear_before_reset. Weights are transposed, gates put in the library's
    order, the z of a GRU and the i of input_forget negated, Wb + Rb added where only the sum matters. Stored initial
    states, the same for each sequence, become a learned initial carry.

    Args:
        model: a path, the model's bytes, or an ``onnx.ModelProto``.

    Returns:
        ``(layer, params)``: ``jr.scan`` of a cell, ``jr.bidirectional``, or a ``jr.stack`` of such. Time is axis 0,
        also where the graph has the batch first. What the graph takes as sequence_lens and initial states are
        ``lengths`` and ``carry`` of ``layer.apply``, its final states the carry returned; two directions are
        concatenated if the graph leaves them apart.

    Raises:
        ValueError: what no library cell computes, or a graph of another form, with the node's name, the reason, and
            what to do. TypeError: float64 weights while JAX's 64 bits are off. ImportError: onnx is not installed.

    Example:
        >>> import jax, jaxrnn as jr
        >>> from jaxrnn.interop import onnx
        >>> layer = jr.scan(jr.lstm(3, 4))
        >>> params = layer.init(jax.random.key(0))
        >>> same, loaded = onnx.load(onnx.export(layer, params))
        >>> bool((loaded.W_hh == params.W_hh).all())
        True

    Differs from onnxruntime in the final state of a sequence of length 0, which here is the initial one.
    """
    who = "onnx.load"
    proto = read(who, model)
    stored = initializers_of(who, proto)
    tensors: dict[str, Any] = {"": None, **stored}
    for entry in proto.graph.input:
        tensors.setdefault(entry.name, Other("input", entry.name))
    chain = _Chain()
    for node in proto.graph.node:
        where = name_of(who, node)
        given = [tensors[name] for name in node.input]
        made: Sequence[Any]
        if node.op_type in GATES and node.domain in ("", "ai.onnx"):
            made = chain.recurrent(operator_of(where, node.op_type, attributes_of(node)), *given)
        elif all(a is None or isinstance(a, np.ndarray) for a in given):
            made = (evaluate(where, node, given),)
        elif node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            refuse(where, "this operator", "a layer is recurrent nodes and a readout; cut the graph there")
        elif any(isinstance(a, Outputs) for a in given):
            made = (chain.reshaped(where, node, given),)
        else:
            made = (_other(where, node, given),)
        tensors |= {name: a for name, a in zip(node.output, made, strict=False) if name}
    return chain.finished(who, [(output.name, tensors[output.name]) for output in proto.graph.output])


def _other(where: str, node: Any, given: Sequence[Any]) -> Any:
    """What an operator makes of inputs, states, shapes."""
    kinds = {a.kind for a in given if isinstance(a, Other)}
    if node.op_type == "Shape":
        return Other("shape")
    if node.op_type == "ConstantOfShape":
        value = attributes_of(node).get("value", np.zeros(1))
        return Other("zeros") if not np.any(value) else Other("shape")
    if node.op_type in ("Expand", "Tile") and isinstance(given[0], np.ndarray) and given[0].ndim == 3:
        return given[0] if np.any(given[0]) else Other("zeros")  # stored states, repeated for each sequence
    if node.op_type == "Range" and kinds <= {"shape"} and given[0] == 0 and given[2] == 1:
        return Other("steps")
    if node.op_type == "Less" and [getattr(a, "kind", "") for a in given] == ["steps", "input"]:
        return Other("valid", given[1].source)
    if kinds in ({"steps"}, {"valid"}) and node.op_type in ("Unsqueeze", "Cast"):
        return given[0]
    if node.op_type in ("Add", "MatMul", "Mul", "Sub", "Less", "Where", *MERGES) and kinds != {"shape"}:
        refuse(where, "arithmetic on the inputs or the final states", "a layer computes neither; " + RUN)
    if "state" in kinds:
        return Other("state")
    if kinds & {"input", "part"}:
        perm = attributes_of(node).get("perm", ())
        same = node.op_type in ("Identity", "Cast") or (node.op_type == "Transpose" and list(perm) == [1, 0, 2])
        return given[0] if same else Other("part")
    return Other("zeros" if "zeros" in kinds else "shape")


class _Chain:
    """The levels found so far, and what the graph's lengths are."""

    def __init__(self) -> None:
        self.levels: list[Level] = []
        self.size = 0  # the features that the last level hands on
        self.lengths: list[str] = []  # for each recurrent level the input that holds the lengths, "" without
        self.bare: str | None = None  # a readout whose padded outputs nothing has set to 0

    # ---- recurrent nodes

    def recurrent(
        self,
        op: Operator,
        X: Any,
        W: Any,
        R: Any,
        B: Any = None,
        lens: Any = None,
        h0: Any = None,
        c0: Any = None,
        P: Any = None,
    ) -> tuple[Any, ...]:
        for name, array in (("W", W), ("R", R), ("B", B), ("P", P)):
            if isinstance(array, Other | Outputs):
                refuse(op.where, f"{name} that is not stored in the model", RUN)
        weights = weights_of(op, W, R, B, P)
        self._reads(op, X, W.shape[-1])
        self.lengths.append(_source(op.where, lens))
        H = R.shape[-1]
        runs = []
        for d, own in enumerate(weights):
            h, c = (_initial(op, name, state, d, H, W.dtype) for name, state in (("initial_h", h0), ("initial_c", c0)))
            runs.append(_run(op, op.activations[d], own, h, c)._replace(reverse=op.reversed[d]))
        self.levels.append(Level(tuple(runs)))
        self.size, self.bare = H * len(runs), None
        axes = ("B", "T", "D", "H") if op.layout else ("T", "D", "B", "H")
        return Outputs(axes, len(self.levels)), Other("state"), Other("state")

    def _reads(self, op: Operator, X: Any, features: int) -> None:
        if not self.levels:
            if not isinstance(X, Other) or X.kind != "input":
                refuse(op.where, "a sequence that is not an input of the graph", RUN)
            return
        want = ("B", "T", "F") if op.layout else ("T", "B", "F")
        if not isinstance(X, Outputs) or X.level != len(self.levels):
            refuse(op.where, "a graph that branches", f"each node must read the outputs of the one before; {RUN}")
        if X.axes != want:
            refuse(op.where, f"an X with the axes {', '.join(X.axes)}", f"expected {', '.join(want)}; {RUN}")
        if features != self.size:
            fail(op.where, f"W is for {features} features, but the layer before it outputs {self.size}")

    # ---- what stands between them

    def reshaped(self, where: str, node: Any, given: Sequence[Any]) -> Outputs | Other:
        """The outputs after an operator that only moves their axes, merges directions, or is part of a readout."""
        kind, attributes = node.op_type, attributes_of(node)
        y = next(a for a in given if isinstance(a, Outputs))
        others = [a for a in given if a is not y]
        if y.level != len(self.levels):
            refuse(where, "a graph that branches", f"{node.op_type} reads outputs that a later node has read; {RUN}")
        directions = len(self.levels[-1].runs)
        if kind == "Shape":
            return Other("shape")
        if kind == "Identity":
            return y
        if kind == "Transpose":
            return y._replace(axes=tuple(y.axes[k] for k in attributes.get("perm", range(len(y.axes))[::-1])))
        if kind in ("Squeeze", *MERGES):
            axes = np.ravel(others[0]) if others else attributes.get("axes", ())
            gone = [y.axes[int(k)] for k in axes]
            stays = attributes.get("keepdims", kind in MERGES)
            if gone == ["D"] and (directions == 2) == (kind in MERGES) and not stays:
                self._merge(where, MERGES.get(kind))
                return y._replace(axes=tuple("F" if a == "H" else a for a in y.axes if a != "D"))
        if kind == "Reshape" and y.axes[-2:] == ("D", "H") and isinstance(others[0], np.ndarray):
            target = [int(size) for size in np.ravel(others[0])]
            # 0 keeps a size, -1 is what is left: only so is it sure that T and B stay as they are.
            kept = target in ([0, 0, -1], [0, 0, self.size], [0, -1, self.size], [-1, 0, self.size])
            if kept and not attributes.get("allowzero", 0):
                self._merge(where, "concat" if directions == 2 else None)
                return y._replace(axes=(*y.axes[:2], "F"))
        if kind in ("MatMul", "Add", "Where") and y.axes[-1] == "F":
            made = self._readout(where, kind, y, given)
            if made is not None:
                return made
        came = ", ".join(y.axes)
        refuse(where, f"{kind} of outputs with the axes {came}", f"a layer hands on whole sequences of outputs; {RUN}")

    def _merge(self, where: str, merge: str | None) -> None:
        if merge and self.levels[-1].merge not in (None, merge):
            refuse(where, "two merges of the same outputs", "a layer has one; " + RUN)
        if merge:
            self.levels[-1] = self.levels[-1]._replace(merge=merge)
            runs = self.levels[-1].runs
            self.size = self.size if merge == "concat" else self.size // len(runs)

    def _readout(self, where: str, kind: str, y: Outputs, given: Sequence[Any]) -> Outputs | None:
        """MatMul by stored weights, Add of a stored bias, Where that sets padded steps to 0; None for another form."""
        if kind == "MatMul" and given[0] is y and isinstance(given[1], np.ndarray) and given[1].ndim == 2:
            W: Any = given[1]
            zeros: Any = np.zeros(W.shape[1], W.dtype)
            if W.shape[0] != self.size:
                fail(where, f"its weights are for {W.shape[0]} features, but the layer before it outputs {self.size}")
            spec = spec_of("readout", *W.shape, param_dtype=param_dtype(W))
            self.levels.append(Level((Run(spec, jr.cells.ReadoutParams(W, zeros)),)))
            self.size, self.bare = W.shape[1], where
            return y._replace(level=len(self.levels))
        (run,) = self.levels[-1].runs if len(self.levels[-1].runs) == 1 else (None,)
        if run is None or run.cell.kind != "readout":
            return None
        if kind == "Add":
            (b,) = (a for a in given if a is not y)
            if isinstance(b, np.ndarray) and b.shape == (self.size,) and not np.any(run.params.b_y):
                params = run.params._replace(b_y=b)
                self.levels[-1], self.bare = Level((run._replace(params=params),)), where
                return y
        if kind == "Where" and given[0] == Other("valid", self.lengths[-1]) and given[1] is y and _is_zero(given[2]):
            self.bare = None
            return y
        return None

    # ---- the end

    def finished(self, who: str, outputs: Sequence[tuple[str, Any]]) -> tuple[Layer, PyTree]:
        if not self.levels:
            fail(who, "the graph has no RNN, LSTM or GRU node")
        for name, tensor in outputs:
            if isinstance(tensor, Outputs) and tensor.level != len(self.levels):
                refuse(who, f"the output {name!r} of a node below the last", f"a layer outputs its last; {RUN}")
            if not isinstance(tensor, Outputs) and getattr(tensor, "kind", "") != "state":
                refuse(who, f"the output {name!r}, neither outputs over time nor a final state", RUN)
        if len(set(self.lengths)) > 1:
            refuse(who, "a graph in which some nodes have sequence_lens and others not", f"lengths go to all; {RUN}")
        if self.bare and self.lengths[-1]:
            why = f"on padded steps the graph gives its bias, a layer 0; {RUN}"
            refuse(self.bare, "a readout after nodes with sequence_lens", why)
        levels = [
            level._replace(runs=tuple(run._replace(params=as_jax(run.params)) for run in level.runs))
            for level in self.levels
        ]
        return model_of(levels)


def _is_zero(a: Any) -> bool:
    return isinstance(a, np.ndarray) and not np.any(a)


def _source(where: str, lens: Any) -> str:
    """The graph's input that holds the lengths, "" where there are none."""
    if lens is None:
        return ""
    if isinstance(lens, Other) and lens.kind == "input":
        return lens.source
    refuse(where, "sequence_lens that are not an input of the graph", f"lengths are an argument of apply; {RUN}")


def _initial(op: Operator, name: str, state: Any, d: int, H: int, dtype: Any) -> np.ndarray | None:
    """(H,), a stored initial state of one direction; None for zeros and for what the caller passes."""
    if state is None or (isinstance(state, Other) and state.kind in ("input", "part", "zeros")):
        return None
    if isinstance(state, np.ndarray):
        if state.ndim != 3 or state.shape[-1] != H or state.shape[1 if op.layout else 0] != len(op.reversed):
            fail(op.where, f"{name} has the shape {state.shape}; expected {len(op.reversed)} directions of {H} units")
        rows = state[:, d] if op.layout else state[d]
        if not np.any(rows):
            return None
        if rows.shape[0] and (rows == rows[:1]).all():
            return rows[0].astype(dtype)
        refuse(op.where, f"a stored {name} that differs from sequence to sequence", "pass it as an input of the graph")
    refuse(op.where, f"an {name} that the graph computes", f"a carry starts stored or is passed; {RUN}")


# ---- one direction of a node as a cell ----------------------------------------------------------


def _run(op: Operator, activations: tuple[Activation, ...], own: Weights, h: Any, c: Any) -> Run:
    if op.clip is not None:
        refuse(op.where, f"clip={op.clip:g}", f"no cell bounds what enters its activations; {RUN}")
    if h is None and c is not None:
        h = np.zeros_like(c)
    if c is None and h is not None:
        c = np.zeros_like(h)
    return {"RNN": _elman, "LSTM": _lstm, "GRU": _gru}[op.kind](op, activations, own, h, c)


def _elman(op, activations, own, h, c):
    b = None if own.Wb is None else own.Wb + own.Rb
    options = _options(own, h, activation=_named(op, activations[0], own.W.dtype))
    return Run(spec_of("elman", *_sizes(own), **options), jr.cells.ElmanParams(own.W.T, own.R.T, b, h0=h))


def _gru(op, activations, own, h, c):
    gate, activation = (_named(op, a, own.W.dtype) for a in activations)
    _symmetric(op, gate, "the share z of the old state becomes that of the new one")
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
    gate, activation = _named(op, f, own.W.dtype), _named(op, g, own.W.dtype)
    if g != h_act:
        why = f"a cell has one activation for its candidate and its output; {RUN}"
        refuse(op.where, f"{g.name} for the candidate and {h_act.name} for the output", why)
    b = None if own.Wb is None else own.Wb + own.Rb
    options = _options(own, h, activation=activation, gate_activation=gate)
    initial = None if h is None else jr.LSTMCarry(h, c)
    if op.input_forget:
        if own.P is not None:
            refuse(op.where, "input_forget with peepholes", f"jr.cifg_lstm has no peepholes; {RUN}")
        _symmetric(op, gate, "the share i of the candidate becomes the f of the memory")

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


def _named(op: Operator, activation: Activation, dtype: Any) -> str:
    """Our name of an activation."""
    for name, theirs in ACTIVATIONS.items():
        if theirs == activation:
            if name in FLOAT32_ALONE and dtype != np.float32:
                why = f"attributes are float32, and in {dtype.name} the constant is another number; {RUN}"
                refuse(op.where, f"{activation.name} with alpha={activation.alpha!r}", why)
            return name
    given = ", ".join(f"{n}={v:g}" for n, v in zip(("alpha", "beta"), activation[1:], strict=True) if v is not None)
    refuse(op.where, f"the activation {activation.name}{given and ' with '}{given}", f"no cell has it by name; {RUN}")


def _symmetric(op: Operator, gate: str, what: str) -> None:
    if gate not in SYMMETRIC:
        refuse(op.where, f"the gate activation {gate}", f"{what} by 1 - σ(a) = σ(-a), which is not so for it; {RUN}")
