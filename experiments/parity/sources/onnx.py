"""ONNX's operators in onnxruntime, whose kernels are float32 and have no gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.parity.compare import B, Draw, H, I, Make, Outcome, Source, T, in_words
from jaxrnn._base import flatten


def onnx_source(operator: str, direction: str, options: dict[str, Any], peepholes: bool, draw: Draw) -> Source:
    """The operator in onnxruntime, whose kernels are float32."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from jaxrnn.interop import onnx as interop

    G, D = {"RNN": 1, "LSTM": 4, "GRU": 3}[operator], 1 + (direction == "bidirectional")
    weights = [draw(D, G * H, I), draw(D, G * H, H), draw(D, 2 * G * H)]
    weights += [draw(D, 3 * H)] * peepholes
    states = ["initial_h", "initial_c"] if operator == "LSTM" else ["initial_h"]
    ends = ["Y_h", "Y_c"][: len(states)]

    def model(weights):
        stored = dict(zip("WRBP", weights, strict=False))
        names = ["X", "W", "R", "B", "sequence_lens", *states]
        names += ["P"] if peepholes else []
        node = helper.make_node(operator, names, ["Y", *ends], hidden_size=H, direction=direction, **options)
        kind = TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info("X", kind, ["T", "B", I])]
        inputs += [helper.make_tensor_value_info("sequence_lens", TensorProto.INT32, ["B"])]
        inputs += [helper.make_tensor_value_info(name, kind, [D, "B", H]) for name in states]
        outputs = [helper.make_tensor_value_info("Y", kind, ["T", D, "B", H])]
        outputs += [helper.make_tensor_value_info(name, kind, [D, "B", H]) for name in ends]
        initializers = [numpy_helper.from_array(a, name) for name, a in stored.items()]
        graph = helper.make_graph([node], "graph", inputs, outputs, initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)

    def run(weights, xs, carry, lengths, loss):
        leaves, treedef = flatten(carry)
        parts = len(states)
        own = {name: np.stack(leaves[n::parts]) for n, name in enumerate(states)}
        onnxruntime.set_default_logger_severity(4)
        session = onnxruntime.InferenceSession(
            onnx.ModelProto.SerializeToString(model(weights)), providers=["CPUExecutionProvider"]
        )
        Y, *end = session.run(None, {"X": xs, "sequence_lens": lengths.astype(np.int32), **own})
        ys = np.moveaxis(Y, 1, 2).reshape(T, B, D * H)
        return Outcome(ys, treedef.unflatten([a[d] for d in range(D) for a in end]))

    said = [f"{name}={value}" for name, value in options.items()] + ["peepholes"] * peepholes
    words = in_words(1, 1, *([direction] * (direction != "forward")), *said)
    return Source("ONNX", operator, words, weights, lambda w: interop.load(model(w)), run)


def sources() -> Iterator[Make]:
    kinds: list[tuple[str, dict[str, Any], bool]] = [
        ("RNN", {}, False),
        ("LSTM", {}, False),
        ("LSTM", {}, True),
        ("LSTM", {"input_forget": 1}, False),
        ("GRU", {}, False),
        ("GRU", {"linear_before_reset": 1}, False),
    ]
    for direction in ("forward", "reverse", "bidirectional"):
        for operator, options, peepholes in kinds:
            yield functools.partial(onnx_source, operator, direction, options, peepholes)
