"""The LSTM of silero-vad, which says of each 32 ms whether someone speaks: its ONNX file, run by onnxruntime and by us.

The convolutions before the LSTM stay with onnxruntime; their activations, which the graph computes of a sound, are what
both LSTMs read. What follows the LSTM, p = σ(w · relu(h) + b), is an affine map with an activation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from experiments.data.records import DataError
from experiments.pretrained.files import imported
from jaxrnn.interop import onnx as interop

PyTree = Any
KEY = "files.silero"
NAME = "data/silero_vad_16k_sequence.onnx"


class Silero(NamedTuple):
    model: Any  # onnx.ModelProto
    node: interop.RecurrentNode
    layer: jr.Layer
    params: PyTree
    readout: Any  # jr.cells.ReadoutParams, W_hy (H, 1) and b_y (1,)

    @property
    def sizes(self) -> tuple[int, int]:
        """I and H."""
        return self.params.W_xh.shape[0], self.readout.W_hy.shape[0]


class Theirs(NamedTuple):
    """What onnxruntime computes of a sound, in one call."""

    xs: np.ndarray  # (T, 1, I): what the LSTM reads
    ys: np.ndarray  # (T, 1, H): its outputs
    h: np.ndarray  # (1, H), after the last frame
    c: np.ndarray
    speech: np.ndarray  # (T,): the probability of speech


def read(path: Path) -> Silero:
    """The file as it is, and its LSTM as a layer.

    Raises:
        DataError: it is no such graph, or onnx is not installed.
    """
    onnx = imported(KEY, "onnx")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # what reads it has an error of its own for what is no such file
        raise DataError(f"{KEY}: {path}: not an ONNX file ({type(error).__name__}); expected one like {NAME}") from None
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = interop.inspect(model)
    if [node.kind for node in nodes] != ["LSTM"] or not {"output.weight", "output.bias"} <= set(arrays):
        came = ", ".join(f"{node.kind} {node.name}" for node in nodes) or "no recurrent node"
        raise DataError(
            f"{KEY}: {path}: expected one LSTM, and output.weight and output.bias, as in {NAME}, got {came} and "
            f"the arrays {', '.join(sorted(arrays))}"
        )
    (node,) = nodes
    layer, params = interop.load(model, node=node.name)
    w, b = arrays["output.weight"], arrays["output.bias"]  # (1, H, 1), (1,)
    readout = jr.cells.ReadoutParams(jnp.asarray(w[0]), jnp.asarray(b))
    return Silero(model, node, layer, params, readout)


def session(model: Any) -> Any:
    """On one thread, as the package itself asks for."""
    runtime = imported(KEY, "onnxruntime")
    options = runtime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def theirs(silero: Silero, frames: np.ndarray) -> Theirs:
    """The whole graph on frames (T, 576), with the tensors around the LSTM among its outputs."""
    onnx = imported(KEY, "onnx")
    model, node = onnx.ModelProto(), silero.node
    model.CopyFrom(silero.model)
    own = [output.name for output in model.graph.output]
    inside = [name for name in (node.inputs["X"], node.outputs[0]) if name not in own]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inside)
    zeros = np.zeros((1, 1, silero.sizes[1]), np.float32)
    (sound,) = (value.name for value in model.graph.input if value.name not in node.inputs.values())
    given = {sound: frames, node.inputs["initial_h"]: zeros, node.inputs["initial_c"]: zeros}
    (speech,) = (name for name in own if name not in node.outputs)
    names = [node.inputs["X"], *node.outputs, speech]
    xs, ys, h, c, p = session(model).run(names, given)
    return Theirs(xs, ys[:, 0], h[0], c[0], p.reshape(-1))


def alone(silero: Silero) -> Any:
    """An onnxruntime session of the LSTM node and its weights, of any T and B."""
    onnx = imported(KEY, "onnx")
    (node,) = (one for one in silero.model.graph.node if one.op_type == "LSTM")
    stored = {tensor.name: tensor for tensor in silero.model.graph.initializer}
    of, number = onnx.helper, onnx.TensorProto.FLOAT
    I, H = silero.sizes
    inputs, outputs = silero.node.inputs, silero.node.outputs
    graph = of.make_graph(
        [node],
        "lstm",
        [
            of.make_tensor_value_info(inputs["X"], number, ["T", "B", I]),
            *(of.make_tensor_value_info(inputs[f"initial_{s}"], number, [1, "B", H]) for s in "hc"),
        ],
        [of.make_tensor_value_info(name, number, None) for name in outputs],
        [stored[name] for name in node.input if name in stored],
    )
    model = of.make_model(graph, opset_imports=silero.model.opset_import, ir_version=silero.model.ir_version)
    return session(model)


def ours(silero: Silero) -> Callable[..., tuple[jr.LSTMCarry, jax.Array, jax.Array]]:
    """Jitted: (params, xs (T, B, I), carry) -> the final carry, ys (T, B, H), and p (T, B)."""

    @jax.jit
    def run(params, xs, carry):
        carry, ys = silero.layer.apply(params, xs, carry)
        W_hy, b_y = silero.readout
        return carry, ys, jax.nn.sigmoid(jax.nn.relu(ys) @ W_hy + b_y)[..., 0]

    return run


def zeros(silero: Silero, B: int) -> jr.LSTMCarry:
    H = silero.sizes[1]
    return jr.LSTMCarry(h=jnp.zeros((B, H)), c=jnp.zeros((B, H)))


def differences(silero: Silero, of: Theirs) -> dict[str, float]:
    """The largest absolute difference of each thing that both compute."""
    carry, ys, speech = ours(silero)(silero.params, of.xs, zeros(silero, 1))
    largest = np.abs(of.c).max()  # c is not bounded as the others are
    pairs = {
        "outputs": (ys, of.ys),
        "h": (carry.h, of.h),
        "c over the largest": (carry.c / largest, of.c / largest),
        "speech": (speech[:, 0], of.speech),
    }
    return {name: float(np.abs(np.asarray(a) - b).max()) for name, (a, b) in pairs.items()}
