"""``inspect``: the recurrent nodes of a graph, which ``load`` takes out by their names."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxrnn._checks import nearest
from jaxrnn.interop.onnx._operators import DIRECTIONS, GATES
from jaxrnn.interop.onnx._quantised import dequantised
from jaxrnn.interop.onnx._reading import LIBRARY, STANDARD, attributes_of, read
from jaxrnn.interop.onnx._rolling import rolled

ROLES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


class RecurrentNode(NamedTuple):
    """An RNN, LSTM or GRU of a graph.

    Fields:
        name: by which ``load(model, node=…)`` takes it: its own, or its first output's where that says which it is.
        kind: "RNN", "LSTM" or "GRU".
        input_size, hidden_size: I and H; None where the weights are not stored in the model.
        direction: "forward", "reverse" or "bidirectional".
        inputs: what the node reads beside its weights, by role: X, sequence_lens, initial_h, initial_c.
        outputs: the tensors Y, Y_h, Y_c, "" for one that the graph does not use.
    """

    name: str
    kind: str
    input_size: int | None
    hidden_size: int | None
    direction: str
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        sizes = " -> ".join("?" if size is None else str(size) for size in (self.input_size, self.hidden_size))
        reads = ", ".join(f"{role} = {name}" for role, name in self.inputs.items())
        return f"{self.name}: {self.kind} {sizes}, {self.direction}; {reads}"


def inspect(model: Any) -> list[RecurrentNode]:
    """The recurrent nodes of an ONNX model, in the order in which they are computed.

    The graph around them may be any. Elman networks that PyTorch's default exporter wrote step by step count as one
    RNN, ``DynamicQuantizeLSTM`` as an LSTM.

    Args:
        model: a path, the model's bytes, or an ``onnx.ModelProto``.

    Returns:
        A RecurrentNode for each.

    Raises:
        ValueError: a model that cannot be read or breaks ONNX's rules. ImportError: onnx is not installed.

    Example:
        >>> import jax, jaxrnn as jr
        >>> from jaxrnn.interop import onnx
        >>> layer = jr.stack(jr.lstm(3, 4), jr.gru(4, 5))
        >>> model = onnx.export(layer, layer.init(jax.random.key(0)), lengths=False, carry=False)
        >>> for node in onnx.inspect(model):
        ...     print(node)
        LSTM_outputs.0: LSTM 3 -> 4, forward; X = X
        GRU_outputs.1: GRU 4 -> 5, forward; X = outputs.0.squeezed
    """
    return nodes_of(prepared("onnx.inspect", model))


def prepared(who: str, model: Any) -> Any:
    """A model as it is read: its unrolled networks rolled up, its quantised weights as floats."""
    return rolled(dequantised(who, read(who, model)), LIBRARY)


def nodes_of(proto: Any) -> list[RecurrentNode]:
    """The recurrent nodes of a model that is prepared."""
    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type in GATES and node.domain in STANDARD]
    return [_described(node, name, shapes) for node, name in zip(nodes, _names(nodes), strict=True)]


def _described(node: Any, name: str, shapes: Mapping[str, Sequence[int]]) -> RecurrentNode:
    attributes = attributes_of(node)
    given = {role: tensor for role, tensor in zip(ROLES, node.input, strict=False) if tensor}
    W, R = (shapes.get(given.get(weight, ""), []) for weight in ("W", "R"))
    return RecurrentNode(
        name,
        node.op_type,
        W[-1] if len(W) == 3 else None,
        R[-1] if len(R) == 3 else attributes.get("hidden_size"),
        attributes.get("direction", next(iter(DIRECTIONS))),
        {role: tensor for role, tensor in given.items() if role not in ("W", "R", "B", "P")},
        tuple(node.output),
    )


def _names(nodes: Sequence[Any]) -> list[str]:
    """A name for each node, no two the same."""
    times = collections.Counter(node.name for node in nodes)
    return [node.name if node.name and times[node.name] == 1 else next(filter(None, node.output), "") for node in nodes]


def chosen(who: str, proto: Any, names: str | Sequence[str]) -> list[RecurrentNode]:
    """The nodes of these names.

    Raises:
        TypeError: what is no name. ValueError: a name that no recurrent node has; none.
    """
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{who}: node must be the name of a recurrent node or a list of names, got {names!r}.")
    known = {node.name: node for node in nodes_of(proto)}
    for name in names:
        if name not in known:
            there = ", ".join(map(repr, known)) or "none"
            raise ValueError(f"{who}: no recurrent node is named {name!r}; there are {there}{nearest(name, known)}")
    if not names:
        raise ValueError(f"{who}: node is empty; name one of {', '.join(map(repr, known))}.")
    return [known[name] for name in known if name in names]
