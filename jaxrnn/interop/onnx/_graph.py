"""A graph read node by node: what ``load`` knows of each tensor."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.errors import InconclusiveDimensionOperation

from jaxrnn.interop.onnx import _chain as chains
from jaxrnn.interop.onnx._inspecting import nodes_of
from jaxrnn.interop.onnx._operators import GATES, operator_of
from jaxrnn.interop.onnx._reading import STANDARD, attributes_of, initializers_of, name_of
from jaxrnn.interop.onnx._running import OPERATORS, evaluate
from jaxrnn.interop.onnx._values import (
    LAYING,
    RUN,
    Atom,
    Mask,
    Misfit,
    Repeated,
    Sizes,
    Unknown,
    View,
    listed,
    repeated,
    shape_of,
)

WHOLE = f"a layer hands on whole sequences of outputs; {RUN}"
NO_FIT = (ArithmeticError, LookupError, TypeError, ValueError)  # of attributes that do not fit the axes
LARGEST = 2**20  # entries of integers that are computed from sizes


class Graph:
    """The tensors of a graph, and which chains of levels the nodes make of others.

    Args:
        taken: the recurrent nodes to load, by name; None for all of them, in a graph that is nothing else.
    """

    def __init__(self, who: str, proto: Any, taken: Sequence[str] | None = None) -> None:
        self.who, self.proto, self.taken = who, proto, taken
        self.names = {node.outputs: node.name for node in nodes_of(proto)}
        self.declared = {entry.name: entry for entry in (*proto.graph.value_info, *proto.graph.output)}
        self.sizes = Sizes()
        self.tensors: dict[str, Any] = {"": None, **initializers_of(who, proto)}
        for entry in proto.graph.input:
            if entry.name not in self.tensors:
                self.tensors[entry.name] = self._input(entry)
        for node in proto.graph.node:
            made = self._made(node)
            self.tensors |= {name: a for name, a in zip(node.output, made, strict=False) if name}
        self.outputs = [(entry.name, self.tensors[entry.name]) for entry in proto.graph.output]

    def readers(self, chain: Any) -> Any:
        """The one chain by which everything that reads these outputs prolongs them; None where there is none."""

        def of(name: str) -> Any:
            tensor = self.tensors[name]
            return tensor.chain if isinstance(tensor, View) and tensor.kind == "outputs" else None

        found = []
        for node in self.proto.graph.node:
            if node.op_type != "Shape" and any(of(name) is chain for name in node.input):
                found.append(of(node.output[0]))
        found += [None for name, _ in self.outputs if of(name) is chain]
        after = {id(other): other for other in found if other is not chain}
        (one,) = after.values() if len(after) == 1 else (None,)
        return one if one is not None and one.nodes == chain.nodes and one.comes_after(chain) else None

    def _input(self, entry: Any) -> Any:
        dims = entry.type.tensor_type.shape.dim
        axes = [
            Atom(f"axis {k}", d.dim_value if d.dim_value > 0 else self.sizes.named(d.dim_param))
            for k, d in enumerate(dims)
        ]
        return View("input", tuple((atom,) for atom in axes), source=entry.name)

    def _made(self, node: Any) -> Sequence[Any]:
        """What a node makes of its inputs, one value for each output."""
        where, kind = name_of(self.who, node), node.op_type
        given = [self.tensors[name] for name in node.input]
        if kind in GATES and node.domain in STANDARD:
            return self._recurrent(where, node, given)
        unknown = next((a for a in given if isinstance(a, Unknown)), None)
        if unknown is None and node.domain in STANDARD and kind == "Split":
            return self._split(where, node, given)
        if unknown is None:
            unknown = self._one(where, node, given)
        return [unknown] * len(node.output)

    def _recurrent(self, where: str, node: Any, given: list[Any]) -> Sequence[Any]:
        label = self.names[tuple(node.output)]
        if self.taken is not None and label not in self.taken:
            return [Unknown(where, "its outputs", "it is not among the nodes to be loaded")] * len(node.output)
        op = operator_of(where, node.op_type, attributes_of(node))
        if self.taken is not None:
            features = getattr(given[1], "shape", (0,))[-1]
            given[0] = chains.as_input(op, given[0], node.input[0], features, self.sizes)
            # What the rest of the graph computes for it, the caller passes.
            given[4:7] = [_as_passed(a, name) for a, name in zip(given[4:7], node.input[4:7], strict=True)]
        return chains.recurrent(op, label, self.sizes, *given)

    def _split(self, where: str, node: Any, given: Sequence[Any]) -> Sequence[Any]:
        """As slices, one for each output."""
        x, count = given[0], len(node.output)
        cut: list[Any] = []
        if isinstance(x, View | Repeated):
            with contextlib.suppress(*NO_FIT):
                cut = _slices(x, count, attributes_of(node), *given[1:])
        if len(cut) != count:
            return [_not_known(where, "Split", given)] * count
        return [self._laid(where, "Slice", x, own, ()) for own in cut]

    def _one(self, where: str, node: Any, given: Sequence[Any]) -> Any:
        """The output of a node that has one."""
        kind, attributes = node.op_type, attributes_of(node)
        if node.domain not in STANDARD or kind not in {*OPERATORS, *LAYING, *CHAINED}:
            return Unknown(where, "this operator", "a layer is recurrent nodes and a readout; cut the graph there")
        if kind == "Shape" and isinstance(given[0], View | Repeated):
            return self._shape(where, given[0], attributes)
        if all(a is None or isinstance(a, np.ndarray) for a in given):
            return self._computed(where, node, given)
        if kind in CHAINED and (made := CHAINED[kind](where, self.sizes, attributes, *given)) is not None:
            return made
        if kind in LAYING and all(a is None or isinstance(a, np.ndarray) for a in given[1:]):
            rest = [*given[1:], self._declared(node.output[0])] if kind == "Reshape" else given[1:]
            return self._laid(where, kind, given[0], attributes, rest)
        return _not_known(where, kind, given)

    def _declared(self, name: str) -> Sequence[Any]:
        """The sizes of a tensor as the file declares them, () where it does not or where one has no name."""
        entry = self.declared.get(name)
        dims = [] if entry is None else entry.type.tensor_type.shape.dim
        sizes = [d.dim_value if d.dim_value > 0 else self.sizes.known.get(d.dim_param) for d in dims]
        return () if None in sizes else sizes

    def _shape(self, where: str, x: Any, attributes: dict[str, Any]) -> Any:
        if isinstance(x, View) and not (x.axes or x.whole):
            return Unknown(where, f"Shape of a part of {x}")
        shape = [self.sizes.settle(size) for size in shape_of(x)]
        return _as_sizes(shape[attributes.get("start", 0) : attributes.get("end")])

    def _computed(self, where: str, node: Any, given: Sequence[Any]) -> Any:
        """Of stored arrays and sizes; what is repeated stays small."""
        kind, attributes = node.op_type, attributes_of(node)
        try:
            if kind == "ConstantOfShape":
                value = np.ravel(attributes.get("value", np.zeros(1, np.float32)))[0]
                whole = repeated(np.asarray(value), listed(given[0]))
                return _as_array(whole)
            if kind in ("Expand", "Tile"):
                return _as_array(LAYING[kind](self.sizes, given[0], attributes, *given[1:]))
            if kind == "Range" and any(a.dtype == object for a in given):
                start, limit, step = (a.item() for a in given)
                return Mask("steps", limit) if (start, step) == (0, 1) else Unknown(where, "Range of other steps")
            if kind == "Range" and len(range(*(int(a) for a in given))) > LARGEST:
                return Unknown(where, "Range of very many numbers")
            if kind == "Cast" and given[0].dtype == object:
                return given[0]
            made = evaluate(where, node, given)
            return made if isinstance(made, np.ndarray) else np.asarray(made, object)  # NumPy unpacks a lone size
        except (Misfit, InconclusiveDimensionOperation):
            return Unknown(where, f"{kind} of sizes that the inputs decide")

    def _laid(self, where: str, kind: str, x: Any, attributes: dict[str, Any], rest: Sequence[Any]) -> Any:
        if isinstance(x, Mask):
            return x if kind in ("Unsqueeze", "Cast", "Identity") else Unknown(where, f"{kind} of steps")
        try:
            return LAYING[kind](self.sizes, x, attributes, *rest)
        except (Misfit, InconclusiveDimensionOperation, *NO_FIT):
            return _not_known(where, kind, [x])


def _slices(x: View | Repeated, count: int, attributes: dict[str, Any], split: Any = None) -> list[Any]:
    """The attributes of the Slices that a Split is."""
    axis = attributes.get("axis", 0) % len(shape_of(x))
    size = shape_of(x)[axis]
    parts = attributes.get("split") if split is None else listed(split)
    if parts is None:  # as even as it goes, the last one shorter
        each = -(-size // count)
        parts = [min(each, size - k * each) for k in range(count)]
    ends = [int(end) for end in np.cumsum(parts)]
    return [{"axes": [axis], "starts": [a], "ends": [b]} for a, b in itertools.pairwise([0, *ends])]


def _as_passed(a: Any, name: str) -> Any:
    """An initial state or lengths of a node that is taken out of a graph."""
    return View("input", (), source=name) if isinstance(a, Unknown | Mask) or getattr(a, "kind", "") == "outputs" else a


def _as_sizes(sizes: Sequence[Any]) -> np.ndarray:
    if all(isinstance(size, int) for size in sizes):
        return np.asarray(sizes, np.int64)
    made = np.empty(len(sizes), object)
    made[:] = sizes
    return made


def _as_array(a: Repeated) -> Any:
    """Integers, which may be sizes, as an array; states stay as they are."""
    counted = all(isinstance(size, int) for size in a.shape)
    if counted and a.array.dtype.kind in "iub" and math.prod(a.shape) <= LARGEST:
        return np.broadcast_to(a.array, a.shape)
    return a


def _not_known(where: str, kind: str, given: Sequence[Any]) -> Any:
    """Parts of inputs and of final states, which the caller passes and gets; a reason for all else."""
    views = [a for a in given if isinstance(a, View)]
    outputs = [a for a in views if a.kind == "outputs"]
    if len({id(a.chain) for a in outputs}) > 1:
        return Unknown(where, "a graph that branches", f"each node must read the outputs of the one before; {RUN}")
    if outputs:
        return Unknown(where, f"{kind} of {outputs[0]}", WHOLE)
    if views and kind in (*LAYING, "Concat", "Split"):
        found = [a.chain for a in views if a.chain is not None]
        nodes = tuple({name: None for chain in found for name in chain.nodes})
        chain = found[0]._replace(nodes=nodes) if found else None
        return View("state" if chain else "input", (), chain, whole=False)
    if views:
        return Unknown(where, "arithmetic on the inputs or the final states", f"a layer computes neither; {RUN}")
    return Unknown(where, f"{kind} of what the graph computes")


# ---- operators that prolong a chain: f(where, sizes, attributes, *given); None for another form ----


def _gather(where: str, sizes: Sizes, attributes: dict[str, Any], x: Any, indices: Any) -> Any:
    fits = isinstance(x, np.ndarray) and isinstance(indices, View) and attributes.get("axis", 0) == 0
    return chains.embedded(where, x, indices) if fits else None


def _matmul(where: str, sizes: Sizes, attributes: dict[str, Any], a: Any, b: Any) -> Any:
    return chains.multiplied(where, sizes, a, b) if isinstance(a, View) else None


def _gemm(where: str, sizes: Sizes, attributes: dict[str, Any], a: Any, b: Any, c: Any = None) -> Any:
    if not isinstance(a, View) or len(a.axes) != 2 or attributes.get("transA", 0) or not isinstance(b, np.ndarray):
        return None
    W = b.T if attributes.get("transB", 0) else b
    made = chains.multiplied(where, sizes, a, W * W.dtype.type(attributes.get("alpha", 1)))
    if made is None or c is None:
        return made
    beta = attributes.get("beta", 1)
    return chains.with_bias(where, made, c * c.dtype.type(beta)) if isinstance(c, np.ndarray) else None


def _of_two(kind: str) -> Callable[..., Any]:
    def join(where: str, sizes: Sizes, attributes: dict[str, Any], a: Any, b: Any) -> Any:
        if isinstance(a, View) and isinstance(b, View):
            return chains.joined(kind, (a, b))
        y, other = (a, b) if isinstance(a, View) else (b, a)
        return chains.with_bias(where, y, other) if kind == "Add" and isinstance(y, View) else None

    return join


def _concat(where: str, sizes: Sizes, attributes: dict[str, Any], *given: Any) -> Any:
    axis = attributes["axis"]
    if all(isinstance(a, View) for a in given):
        return chains.joined("Concat", given, axis)
    if all(isinstance(a, Repeated | np.ndarray) and chains.is_zero(a) for a in given):
        shapes = [list(a.shape) for a in given]
        whole = shapes[0][:axis] + [sum(shape[axis] for shape in shapes)] + shapes[0][axis:][1:]
        return Repeated(np.zeros((1,) * len(whole), np.float32), tuple(whole))
    return None


def _where(where: str, sizes: Sizes, attributes: dict[str, Any], condition: Any, a: Any, b: Any) -> Any:
    return chains.masked(condition, a, b) if isinstance(a, View) else None


def _less(where: str, sizes: Sizes, attributes: dict[str, Any], a: Any, b: Any) -> Any:
    steps = isinstance(a, Mask) and a.kind == "steps"
    lengths = isinstance(b, View) and b.kind == "input" and b.whole
    return Mask("valid", a.size, b.source) if steps and lengths else None


def _reduce(kind: str) -> Callable[..., Any]:
    def reduce(where: str, sizes: Sizes, attributes: dict[str, Any], x: Any, axes: Any = None) -> Any:
        along = attributes.get("axes", ()) if axes is None else listed(axes)
        return chains.reduced(kind, x, along, attributes.get("keepdims", 1)) if isinstance(x, View) else None

    return reduce


CHAINED: dict[str, Callable[..., Any]] = {
    "Add": _of_two("Add"),
    "Concat": _concat,
    "Gather": _gather,
    "Gemm": _gemm,
    "Less": _less,
    "MatMul": _matmul,
    "Mul": _of_two("Mul"),
    "Where": _where,
    **{kind: _reduce(kind) for kind in chains.MERGES},
}
