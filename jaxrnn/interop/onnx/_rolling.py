"""An Elman network that an exporter wrote step by step, as one RNN node again.

PyTorch's default exporter knows no RNN operator: of N steps it makes N copies of

    a_t = act(Add(Add(MatMul(a_{t-1}, R), b_hh), linear[t])),    linear = Add(MatMul(X, W), b_ih)

and a Concat of a_0 … a_{N-1}. A backward run reads ``linear`` turned round, and its Concat has the last step first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.interop.onnx._running import evaluate, ints

ACTIVATIONS = ("Tanh", "Relu")
FOLDED = ("Constant", "Identity", "Squeeze", "Transpose", "Unsqueeze")


class Step(NamedTuple):
    """a_t by its parts, names of tensors.

    Fields:
        before: a_{t-1}; of the first step also an initial state; "" where it is zero and has been folded away.
        R: the recurrent weights; "" where ``before`` is.
        b: the bias, "" without; a folded product of a zero state and R, plus bias.
        linear: the input's product, ``reverse`` where it is turned round, and t, the step that is read of it.
    """

    kind: str
    before: str
    R: str
    b: str
    linear: str
    reverse: bool
    t: int


def rolled(proto: Any, library: Any) -> Any:
    """The model with every such network as an RNN node, named as its Concat; the same model where there is none."""
    if not any(node.op_type in ACTIVATIONS for node in proto.graph.node):
        return proto
    found = _Unrolled(proto, library)
    runs = list(found.runs())
    if not runs:
        return proto
    made = type(proto)()
    made.CopyFrom(proto)
    first = {run[0]: nodes for run, nodes in runs}
    gone = {name for run, _ in runs for name in run} | {nodes[-1].output[0] for _, nodes in runs}
    nodes: list[Any] = []
    for node in proto.graph.node:
        nodes += first.get(node.output[0], []) if node.output else []
        if not gone & set(node.output):
            nodes.append(node)
    nodes = _used(nodes, {entry.name for entry in proto.graph.output})
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(found.stored)
    known = {"", *(entry.name for entry in (*made.graph.input, *made.graph.initializer))}
    for node in nodes:
        if not known.issuperset(node.input):
            return proto  # a step is read by something else
        known.update(node.output)
    return made


def _used(nodes: list[Any], wanted: set[str]) -> list[Any]:
    """The nodes without those that nothing needs."""
    kept = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted = wanted | set(node.input)
    return kept[::-1]


class _Unrolled:
    """A graph searched for the steps of an unrolled network."""

    def __init__(self, proto: Any, library: Any) -> None:
        self.proto, self.library = proto, library
        self.helper, self.numpy_helper = library.load("onnx.helper"), library.load("onnx.numpy_helper")
        self.makers = {name: node for node in proto.graph.node for name in node.output}
        self.arrays: dict[str, np.ndarray] = {t.name: self.numpy_helper.to_array(t) for t in proto.graph.initializer}
        for node in proto.graph.node:
            if node.op_type in FOLDED and all(name in self.arrays for name in node.input):
                with contextlib.suppress(ValueError):  # an operator that does not fit: load will say so
                    self.arrays[node.output[0]] = evaluate("", node, [self.arrays[name] for name in node.input])
        self.stored: list[Any] = []
        self.steps = {
            node.output[0]: step for node in proto.graph.node if (step := self._step(node.output[0])) is not None
        }

    def runs(self) -> Iterator[tuple[list[str], list[Any]]]:
        """The outputs of the steps of each network, and the nodes that take their place."""
        lengths = None
        for node in self.proto.graph.node:
            names = list(node.input)
            if (
                node.op_type != "Concat"
                or self._attribute(node, "axis") != 0
                or not names
                or names[0] not in self.steps
            ):
                continue
            names = names[::-1] if self.steps[names[0]].reverse else names
            steps = [self.steps[name] for name in names if name in self.steps]
            if len(steps) != len(names) or not self._is_run(names, steps):
                continue
            linear = self._linear(steps[-1].linear)
            if linear is None:
                continue
            lengths = self._lengths() if lengths is None else lengths
            if lengths.get(linear[0]) == len(steps):
                made = self._nodes(names[-1], node.output[0], steps, *linear)
                if made is not None:
                    yield names, made

    # ---- what one step is

    def _made_by(self, name: str, *kinds: str) -> Any:
        node = self.makers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def _attribute(self, node: Any, name: str, default: Any = None) -> Any:
        return next((self.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)

    def _step(self, name: str) -> Step | None:
        act = self._made_by(name, *ACTIVATIONS)
        total = act and self._made_by(act.input[0], "Add")
        if total is None:
            return None
        for own, rest in (total.input, total.input[::-1]):
            read = self._read(own)
            if read is not None:
                before, R, b = self._product(rest)
                return Step(act.op_type, before, R, b, *read)
        return None

    def _read(self, name: str) -> tuple[str, bool, int] | None:
        """One step of a sequence along axis 0."""
        squeeze = self._made_by(name, "Squeeze")
        cut = self._slice(squeeze.input[0]) if squeeze is not None else None
        if cut is None or cut[1] + 1 != cut[2] or cut[3] != 1:
            return None
        flip = self._slice(cut[0])
        if flip is not None and flip[1] == -1 and flip[2] < -(2**31) and flip[3] == -1:
            return flip[0], True, cut[1]
        return cut[0], False, cut[1]

    def _slice(self, name: str) -> tuple[str, int, int, int] | None:
        """(x, start, end, step) of a Slice along axis 0 alone."""
        node = self._made_by(name, "Slice")
        if node is None or len(node.input) < 4 or not all(a in self.arrays for a in node.input[1:]):
            return None
        given = [ints(self.arrays[a]) for a in node.input[1:]]
        if any(len(numbers) != 1 for numbers in given) or given[2] != [0]:
            return None
        return node.input[0], given[0][0], given[1][0], given[3][0] if len(given) > 3 else 1

    def _product(self, name: str) -> tuple[str, str, str]:
        """(h, R, b) of Add(MatMul(h, R), b) or of MatMul(h, R); ("", "", name) of anything else."""
        product, b = self._made_by(name, "MatMul"), ""
        if product is None and (node := self._made_by(name, "Add")) is not None:
            for one, other in (node.input, node.input[::-1]):
                if product is None and other in self.arrays:
                    product, b = self._made_by(one, "MatMul"), other
        return (product.input[0], product.input[1], b) if product is not None else ("", "", name)

    # ---- what makes steps a run

    def _is_run(self, names: list[str], steps: list[Step]) -> bool:
        """The steps 0 … N-1 of one network, each reading the one before; the first may have a folded product."""
        like = steps[-1]
        same = all(
            step.t == t and step.before == names[t - 1] and step[:1] + step[2:6] == like[:1] + like[2:6]
            for t, step in enumerate(steps)
            if t > 0
        )
        first = steps[0]
        if len(steps) < 2 or not same or first.t != 0 or (first.kind, *first[4:6]) != (like.kind, *like[4:6]):
            return False
        if first.R:
            return (first.R, first.b) == (like.R, like.b)
        folded = self.arrays.get(first.b)  # of a zero state only the bias is left
        b = self.arrays[like.b] if like.b else np.zeros(1, np.float32)
        return folded is not None and bool((folded == b).all())

    def _linear(self, name: str) -> tuple[str, str, str] | None:
        """(X, W, b) of a product with stored weights."""
        X, W, b = self._product(name)
        return (X, W, b) if W in self.arrays and self.arrays[W].ndim == 2 else None

    def _lengths(self) -> Mapping[str, int]:
        """The numbers of entries of axis 0 that are known, by name; none where the graph contradicts itself."""
        inference = self.library.load("onnx.shape_inference")
        try:
            inferred = inference.infer_shapes(self.proto)
        except inference.InferenceError:
            return {}
        sizes = {}
        for entry in (*inferred.graph.value_info, *inferred.graph.input):
            dims = entry.type.tensor_type.shape.dim
            if len(dims) == 3 and dims[0].HasField("dim_value"):
                sizes[entry.name] = dims[0].dim_value
        return sizes

    def _nodes(self, last: str, output: str, steps: list[Step], X: str, W: str, b: str) -> list[Any] | None:
        """RNN and Squeeze, in the place of the steps and of their Concat."""
        like, R = steps[-1], self.arrays.get(steps[-1].R)
        if R is None or R.ndim != 2 or R.shape[0] != R.shape[1]:
            return None
        H = len(R)
        biases = [self.arrays[name] if name else np.zeros(H, R.dtype) for name in (b, like.b)]
        if any(a.shape != (H,) for a in biases):
            return None
        stored = {"W": self.arrays[W].T[None], "R": R.T[None], "axis": np.asarray([1], np.int64)}
        stored |= {"B": np.concatenate(biases)[None]} if b or like.b else {}
        named = {key: f"{output}.{key}" for key in stored}
        self.stored += [self.numpy_helper.from_array(np.ascontiguousarray(a), named[key]) for key, a in stored.items()]
        inputs = [X, named["W"], named["R"], named.get("B", ""), "", steps[0].before]
        while not inputs[-1]:
            inputs.pop()
        make = self.helper.make_node
        direction = "reverse" if like.reverse else "forward"
        ends = [f"{output}.directions", last]
        options = {"activations": [like.kind], "direction": direction, "hidden_size": H}
        return [
            make("RNN", inputs, ends, name=output, **options),
            make("Squeeze", [ends[0], named["axis"]], [output]),
        ]
