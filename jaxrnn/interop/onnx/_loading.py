"""``load``: a graph of recurrent operators as the library's own cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxrnn._base import Layer, PyTree
from jaxrnn.interop.conversion import model_of, refuse
from jaxrnn.interop.onnx._chain import Chain
from jaxrnn.interop.onnx._graph import Graph
from jaxrnn.interop.onnx._inspecting import chosen, prepared
from jaxrnn.interop.onnx._reading import fail
from jaxrnn.interop.onnx._values import RUN, TAKE, Unknown, View, named
from jaxrnn.saving.parameters import as_jax


def load(model: Any, *, node: str | Sequence[str] | None = None) -> tuple[Layer, PyTree]:
    """An ONNX model of recurrent operators as library cells with its weights.

    The graph must be one recurrent node or a chain of them, each reading the outputs of the one before, with what
    exporters put between: Transposes, Reshapes, Slices and Squeezes that lay the axes out anew, sizes computed from
    shapes, zero initial states. Before them may stand an embedding (Gather from a stored table), before and after them
    MatMul and Add, or Gemm, with stored weights, each a readout. Of any other graph, ``node`` takes recurrent nodes out
    (:func:`inspect` lists them), with such embeddings and readouts as form one chain with them.

    An RNN becomes ``jr.elman``, an LSTM ``jr.lstm``, ``jr.peephole_lstm`` with P, ``jr.cifg_lstm`` with input_forget,
    a GRU ``jr.gru``, ``reset="after"`` with linear_before_reset. Weights are transposed, gates put in the library's
    order, the z of a GRU and the i of input_forget negated, Wb + Rb added where only the sum matters. Stored initial
    states, the same for each sequence, become a learned initial carry.

    Args:
        model: a path, the model's bytes, or an ``onnx.ModelProto``.
        node: the name of a recurrent node to take out of the graph, or several names of a chain; None takes all of it.
            What the rest of the graph would pass as X, sequence_lens and initial states, the caller passes.

    Returns:
        ``(layer, params)``: ``jr.scan`` of a cell, ``jr.bidirectional``, or a ``jr.stack`` of such. Time is axis 0,
        also where the graph has the batch first. What the graph takes as sequence_lens and initial states are
        ``lengths`` and ``carry`` of ``layer.apply``, its final states the carry returned; two directions are
        concatenated if the graph leaves them apart.

    Raises:
        ValueError: what no library cell computes, or a graph of another form, with the node's name, the reason, and
            what to do; a name that no recurrent node has. TypeError: float64 weights while JAX's 64 bits are off.
            ImportError: onnx is not installed.

    Example:
        >>> import jax, jaxrnn as jr
        >>> from jaxrnn.interop import onnx
        >>> layer = jr.scan(jr.lstm(3, 4))
        >>> params = layer.init(jax.random.key(0))
        >>> same, loaded = onnx.load(onnx.export(layer, params))
        >>> bool((loaded.W_hh == params.W_hh).all())
        True

    Sizes of T and B that an exporter wrote down from its example bind the graph, and not the layer.

    Differs from onnxruntime in the final state of a sequence of length 0, which here is the initial one; in quantised
    LSTMs, whose weights are the numbers that their 8 bits stand for, while X and h stay as they are; in tokens outside
    an embedding's table, which give NaN.
    """
    who = "onnx.load"
    proto = prepared(who, model)
    if node is None:
        graph = Graph(who, proto)
        chain = _whole(who, graph)
    else:
        names = [one.name for one in chosen(who, proto, node)]
        chain = _taken(who, Graph(who, proto, names), names)
    if len(set(chain.lengths)) > 1:
        refuse(who, "a graph in which some nodes have sequence_lens and others not", f"lengths go to all; {RUN}")
    if chain.bare and chain.lengths[-1]:
        why = f"on padded steps the graph gives its bias, a layer 0; {RUN}"
        refuse(chain.bare, "a readout after nodes with sequence_lens", why)
    return model_of(
        [
            level._replace(runs=tuple(run._replace(params=as_jax(who, run.params)) for run in level.runs))
            for level in chain.levels
        ]
    )


def _whole(who: str, graph: Graph) -> Chain:
    """The chain that the graph is: each of its outputs is the last level's, or final states."""
    for _, tensor in graph.outputs:
        if isinstance(tensor, Unknown):
            there = ", ".join(map(repr, graph.names.values()))
            tensor._replace(why=tensor.why + (f"; load(…, node=…) takes out one of {there}" if there else "")).refuse()
    found = [tensor for _, tensor in graph.outputs if isinstance(tensor, View) and tensor.chain]
    nodes = {name for tensor in found for name in tensor.chain.nodes}
    if not nodes:
        fail(who, "the graph has no RNN, LSTM or GRU node")
    last = max((tensor.chain for tensor in found if tensor.kind == "outputs"), key=_depth, default=None)
    if last is None:  # final states alone: of the first chain that has them all
        last = min((chain for chain in _chains(graph) if nodes <= {*chain.nodes}), key=_depth, default=None)
    for name, tensor in graph.outputs:
        if not isinstance(tensor, View) or tensor.kind == "input":
            refuse(who, f"the output {name!r}, neither outputs over time nor a final state", RUN)
        if last is None or not {*tensor.chain.nodes} <= {*last.nodes}:
            refuse(who, f"the output {name!r}, of a node beside the others", f"a layer is one chain; {TAKE}")
        if tensor.kind == "outputs" and tensor.chain is not last:
            refuse(who, f"the output {name!r} of a node below the last", f"a layer outputs its last; {RUN}")
        mixed = any({"T", "B"} <= {atom.name for atom in axis} for axis in tensor.axes)
        if tensor.kind == "outputs" and mixed:
            what = f"the output {name!r} with the axes {named(tensor.axes)}"
            refuse(who, what, f"a layer leaves T and B apart; {RUN}")
        if tensor.part is not None:
            refuse(who, f"the output {name!r}, one direction of two", f"a layer outputs both; {RUN}")
    assert last is not None
    return last


def _taken(who: str, graph: Graph, names: Sequence[str]) -> Chain:
    """The chain of the nodes taken, with the readouts after them that everything that reads them goes through."""
    whole = [chain for chain in _chains(graph) if set(chain.nodes) == set(names)]
    if not whole:
        refuse(who, f"a layer of {', '.join(map(repr, names))}", "each must read the outputs of the one before")
    last = min(whole, key=_depth)
    while (after := graph.readers(last)) is not None:
        last = after
    return last


def _chains(graph: Graph) -> list[Chain]:
    """Those of every tensor of outputs."""
    return [a.chain for a in graph.tensors.values() if isinstance(a, View) and a.kind == "outputs"]


def _depth(chain: Chain | None) -> int:
    depth = 0
    while chain is not None:
        chain, depth = chain.parent, depth + 1
    return depth
