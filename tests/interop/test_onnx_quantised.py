"""Quantised weights load as the floats that they stand for, against onnxruntime's quantised and float runs."""

import jax
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("hypothesis")

from onnx import helper  # noqa: E402

from jaxrnn.interop import onnx as interop  # noqa: E402
from tests.interop.comparing import H, I, T, assert_close, quick_jit  # noqa: E402
from tests.interop.onnx_graphs import X, node, recurrent, weights  # noqa: E402
from tests.interop.onnx_models import by_runtime, model_of  # noqa: E402


def quantised(a, kind, axes):
    """(integers, scale, zero point) of which (integers - zero) * scale is nearly a; one scale for each entry left."""
    low, high = (f(a, axes, keepdims=True).clip(*bound) for f, bound in ((np.min, (None, 0)), (np.max, (0, None))))
    if kind == np.int8:
        # 7 bits: where a processor has no instruction for it, onnxruntime adds two products of 8 bits in 16 and clips.
        scale, zero = np.maximum(-low, high) / 63, np.zeros(low.shape)
    else:
        scale, zero = (high - low) / 255, np.round(-low / ((high - low) / 255))
    info = np.iinfo(kind)
    q = np.clip(np.round(a / scale) + zero, info.min, info.max).astype(kind)
    return q, scale.squeeze(axes).astype("float32"), zero.squeeze(axes).astype(kind)


# onnxruntime takes zero points other than 0 for a whole direction alone.
@pytest.mark.parametrize(("kind", "by_column"), [(np.int8, False), (np.int8, True), (np.uint8, False)])
def test_quantised_lstms(kind, by_column):
    stored = weights("LSTM", "a", I, 2)
    of_float = recurrent("LSTM", "a", "x", direction="bidirectional")
    given, arrays, floats = ["x", "W", "R", "a.B", "", "", "", ""], {"a.B": stored["a.B"]}, {"a.B": stored["a.B"]}
    step = 0.0
    for name in "WR":
        q, scale, zero = quantised(stored[f"a.{name}"].swapaxes(1, 2), kind, (1,) if by_column else (1, 2))
        arrays |= {name: q, f"{name}.scale": scale, f"{name}.zero": zero}
        given += [f"{name}.scale", f"{name}.zero"]
        s, z = (a.astype("float32").reshape(2, 1, -1) for a in (scale, zero))
        floats[f"a.{name}"] = ((q - z) * s).swapaxes(1, 2).astype("float32")
        # x and h in 256 steps of their range: half of one in each product, of each of the T steps.
        range_of = np.ptp(np.append(X, 0)) if name == "W" else 2
        step += T * range_of / 255 / 2 * np.abs(floats[f"a.{name}"]).sum(-1).max()
    options = {"hidden_size": H, "direction": "bidirectional"}
    node = helper.make_node("DynamicQuantizeLSTM", given, ["a.Y"], "a", domain="com.microsoft", **options)
    model = model_of([node], {"x": X}, {"a.Y": ("float32", 4)}, arrays, opset=17)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    layer, params = interop.load(model)
    ys = np.stack(np.split(np.asarray(quick_jit(layer.apply)(params, X)[1]), 2, axis=-1), axis=1)
    dequantised = model_of([of_float], {"x": X}, {"a.Y": ("float32", 4)}, floats, opset=17)
    np.testing.assert_allclose(ys, by_runtime(dequantised, {"x": X})["a.Y"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(ys, by_runtime(model, {"x": X})["a.Y"], rtol=0, atol=step)
    (listed,) = interop.inspect(model)
    assert (listed.kind, listed.input_size, listed.hidden_size, listed.inputs) == ("LSTM", I, H, {"X": "x"})
    with pytest.raises(ValueError, match=r"'com.microsoft' is not one that runs here"):
        interop.run(model, {"x": X})


def test_quantised_weights_of_any_node():
    """Stored integers through DequantizeLinear, by row; what it computes of them is a float graph's weights."""
    stored = weights("GRU", "a", I)
    nodes = []
    for name in ("a.W", "a.R"):
        q, scale, zero = quantised(stored.pop(name)[0], np.int8, (1,))
        stored |= {f"{name}.q": q[None], f"{name}.s": scale, f"{name}.z": zero}
        nodes.append(node("DequantizeLinear", f"{name}.q {name}.s {name}.z", name, axis=1))
    model = model_of([*nodes, recurrent("GRU", "a", "x")], {"x": X}, {"a.Y": ("float32", 4)}, stored)
    layer, params = interop.load(model)
    want = by_runtime(model, {"x": X})["a.Y"]
    np.testing.assert_allclose(quick_jit(layer.apply)(params, X)[1][:, None], want, rtol=0, atol=1e-6)
    assert_close(jax.jit(lambda xs: interop.run(model, {"x": xs}))(X)["a.Y"], want)


def test_quantised_in_ways_that_are_refused():
    stored = weights("GRU", "a", I) | {"s": np.float32(0.1), "z": np.uint8(128)}
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "rounded"),
        recurrent("GRU", "a", "rounded"),
    ]
    model = model_of(nodes, {"x": X}, {"a.Y": ("float32", 4)}, stored)
    with pytest.raises(ValueError, match="QuantizeLinear node 'QuantizeLinear q': this operator"):
        interop.load(model)
    layer, _ = interop.load(model, node="a")  # reads what the caller passes
    assert layer.spec.kind == "scan"
    lstm = helper.make_node("DynamicQuantizeLSTM", ["x", "W"], ["Y"], "a", domain="com.microsoft")
    model = model_of([lstm], {"x": X}, {"Y": ("float32", 4)}, {"W": np.ones((1, I, 4 * H), np.int8)}, opset=17)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ValueError, match="node 'a': its quantised weights, scales and zero points must be stored"):
        interop.load(model)
