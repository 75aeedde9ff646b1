"""ONNX models of one recurrent operator, and what runs them: onnxruntime, ONNX's reference evaluator, jaxrnn.

onnxruntime's CPU kernels of RNN, LSTM and GRU are float32 and have ``layout=0`` alone. The reference evaluator takes
float64 and ``layout=1``, but knows neither sequence_lens, clip, input_forget nor most activations.
"""

import functools

import jax
import numpy as np
import onnxruntime as runtime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from jaxrnn.interop import onnx as interop
from tests.interop.comparing import LENGTHS, B, H, I, T

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}  # how many
BOTH_WAYS = {"direction": "bidirectional", "lengths": LENGTHS}


def session(model):
    runtime.set_default_logger_severity(4)
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def by_runtime(model, inputs):
    s = session(model)
    return dict(zip([o.name for o in s.get_outputs()], s.run(None, inputs), strict=True))


def by_reference(model, inputs):
    return dict(zip([o.name for o in model.graph.output], ReferenceEvaluator(model).run(None, inputs), strict=True))


def ours(model, inputs):
    return jax.jit(functools.partial(interop.run, model))(inputs)


def model_of(nodes, inputs, outputs, stored=None, opset=22):
    """A model from nodes, arrays as its inputs, output ranks, stored arrays."""
    kind = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int32": TensorProto.INT32}
    kind |= {"int64": TensorProto.INT64, "bool": TensorProto.BOOL}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, kind[a.dtype.name], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, kind[dtype], [None] * rank) for n, (dtype, rank) in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (stored or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(4, helper.find_min_ir_version_for(opsets)))


def operator_model(
    kind,
    *,
    opset=22,
    dtype="float32",
    bias=True,
    lengths=None,
    initial=True,
    P=False,
    direction="forward",
    **attributes,
):
    """A model of one node with random weights, and random inputs for it; padding holds NaN."""
    rng = np.random.default_rng(len(kind) + opset)
    G, D = GATES[kind], 2 if direction == "bidirectional" else 1

    def draw(*shape):
        return (0.5 * rng.normal(size=shape)).astype(dtype)

    X = draw(T, B, I)
    stored = {"W": draw(D, G * H, I), "R": draw(D, G * H, H)}
    stored |= {"B": draw(D, 2 * G * H)} if bias else {}
    stored |= {"P": draw(D, 3 * H)} if P else {}
    inputs = {"X": X}
    if lengths is not None:
        X[np.arange(T)[:, None] >= lengths] = np.nan
        inputs["sequence_lens"] = np.asarray(lengths, np.int32)
    states = ["initial_h", "initial_c"] if kind == "LSTM" else ["initial_h"]
    inputs |= {name: draw(D, B, H) for name in states} if initial else {}
    if attributes.get("layout"):
        inputs = {name: a.swapaxes(0, 1) if a.ndim == 3 else a for name, a in inputs.items()}
    slots = ["X", "W", "R", "B", "sequence_lens", *states, *(["P"] if P else [])]
    slots = [name if name in inputs or name in stored else "" for name in slots]
    outputs = {"Y": (dtype, 4), "Y_h": (dtype, 3)} | ({"Y_c": (dtype, 3)} if kind == "LSTM" else {})
    node = helper.make_node(kind, slots, list(outputs), "cell", hidden_size=H, direction=direction, **attributes)
    return model_of([node], inputs, outputs, stored, opset), inputs


def chained(*after, second=None, outputs=("out",), lens=("", "")):
    """A graph of a GRU, the nodes given, and a second GRU reading ``second``."""
    model, inputs = operator_model("GRU", initial=False, lengths=LENGTHS)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    stored |= {"W2": stored["R"], "one": np.array([1], np.int64), "M": np.ones((H, 2), np.float32)}
    nodes = [helper.make_node("GRU", ["X", "W", "R", "B", lens[0]], ["Y", "Y_h"], "first", hidden_size=H), *after]
    if second:
        nodes.append(helper.make_node("GRU", [second, "W2", "R", "", lens[1]], ["out"], "second", hidden_size=H))
    return model_of(nodes, inputs, {name: ("float32", 3) for name in outputs}, stored)


SQUEEZE = helper.make_node("Squeeze", ["Y", "one"], ["flat"], "squeeze")
