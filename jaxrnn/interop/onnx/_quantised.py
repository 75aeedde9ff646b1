"""Quantised LSTMs as float ones.

onnxruntime's ``DynamicQuantizeLSTM`` stores W (D, I, 4H) and R (D, H, 4H) in 8 bits, with a scale and a zero point for
each direction or for each of its columns, and quantises X and h at every step. As a float LSTM it keeps the weights
that the 8 bits stand for, and computes with X and h as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrnn.interop.onnx._reading import LIBRARY, fail, name_of

KIND, DOMAIN = "DynamicQuantizeLSTM", "com.microsoft"


def dequantised(who: str, proto: Any) -> Any:
    """The model with each quantised LSTM as an LSTM; the same model where there is none."""
    if not any(_is_quantised(node) for node in proto.graph.node):
        return proto
    numpy_helper = LIBRARY.load("onnx.numpy_helper")
    made = type(proto)()
    made.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in made.graph.node:
        if not _is_quantised(node):
            continue
        where, given = name_of(who, node), [*node.input, *[""] * 12]
        for slot, (scale, zero) in {1: given[8:10], 2: given[10:12]}.items():
            missing = [name for name in (given[slot], scale) if name not in stored]
            if missing or (zero and zero not in stored):
                fail(where, "its quantised weights, scales and zero points must be stored in the model")
            q, s = (numpy_helper.to_array(stored[name]) for name in (given[slot], scale))
            z = numpy_helper.to_array(stored[zero]) if zero else np.zeros((), q.dtype)
            name = f"{given[slot]} of {node.output[0] or node.name}, dequantised"
            made.graph.initializer.append(numpy_helper.from_array(_floats(where, q, s, z), name))
            given[slot] = name
        kept = given[:8]
        while not kept[-1]:
            kept.pop()
        del node.input[:]
        node.input.extend(kept)
        node.op_type, node.domain = "LSTM", ""
    return made


def _is_quantised(node: Any) -> bool:
    return node.op_type == KIND and node.domain == DOMAIN


def _floats(where: str, q: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """(D, 4H, F), what the integers (D, F, 4H) stand for."""
    if q.ndim != 3 or q.dtype not in (np.int8, np.uint8) or zero.dtype != q.dtype:
        fail(where, f"quantised weights must be (D, F, 4H) in 8 bits, got {q.dtype.name} of the shape {q.shape}")
    by_direction, by_column = (q.shape[0],), (q.shape[0], q.shape[2])
    if scale.shape not in (by_direction, by_column) or zero.shape not in (scale.shape, ()):
        fail(where, f"scales must have the shape {by_direction} or {by_column}, got {scale.shape} and {zero.shape}")
    s, z = (a.reshape(a.shape[0], 1, -1) if a.ndim else a for a in (scale, zero.astype(np.int32)))
    return np.ascontiguousarray(((q.astype(np.int32) - z).astype(np.float32) * s).swapaxes(1, 2))
