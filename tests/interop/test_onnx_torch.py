"""onnx.load of what PyTorch's exporters write, against onnxruntime: both exporters, sizes baked in or left open."""

import functools
import itertools

import numpy as np
import pytest

import jaxrnn as jr

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from jaxrnn.interop import onnx as interop  # noqa: E402
from tests.interop import torch_exports as exports  # noqa: E402
from tests.interop.comparing import quick_jit  # noqa: E402
from tests.interop.onnx_models import session  # noqa: E402

OTHERS = ((2, 1), (1, 3))  # T and B, beside those of the file


def states_of(carry):
    """The final states as ONNX stacks them: (h,) or (h, c), a row for each direction of each layer."""
    if isinstance(carry, tuple) and hasattr(carry, "c"):
        return [[carry.h], [carry.c]]
    if not isinstance(carry, tuple):
        return [[carry]]
    return [list(itertools.chain(*rows)) for rows in zip(*map(states_of, carry), strict=True)]


def check(row, data, sizes=OTHERS):
    """Outputs and final states, at the sizes of the file and at others where it runs at them; how many it ran at."""
    *_, batch_first = row
    layer, params = interop.load(data)
    runtime = session(onnx.load_model_from_string(data))
    name = runtime.get_inputs()[0].name
    ran = 0
    for steps, sequences in ((exports.T, exports.B), *sizes):
        xs = exports.inputs_of(steps, sequences)
        try:
            y, *ends = runtime.run(None, {name: xs.swapaxes(0, 1) if batch_first else xs})
        except Exception:  # onnxruntime's own, for sizes that the file does not take
            assert (steps, sequences) != (exports.T, exports.B)
            continue
        carry, ys = quick_jit(layer.apply)(params, xs)
        # float32, and sums of at most 14 products.
        np.testing.assert_allclose(ys, y.swapaxes(0, 1) if batch_first else y, rtol=0, atol=1e-6)
        for got, want in zip(states_of(carry), ends, strict=True):
            np.testing.assert_allclose(np.stack(got), want, rtol=0, atol=1e-6)
        ran += 1
    return ran


@pytest.mark.parametrize("row", exports.ROWS, ids=exports.name_of)
def test_load(row):
    if row[1] == "old":
        pytest.importorskip("torch")
        assert check(row, exports.exported(row), OTHERS[:1]) == 2
    else:
        data = exports.stored(row)
        assert onnx.load_model_from_string(data).producer_name == "pytorch"
        check(row, data, OTHERS[:1] if row[1] == "dynamic" else ())


def test_load_a_network_with_an_embedding_and_a_readout():
    data = exports.stored("tagger")
    layer, params = interop.load(data)
    assert [child.children[0].kind for child in layer.spec.children] == ["embedding", "lstm", "readout"]
    tokens = np.random.default_rng(0).integers(0, exports.V, (exports.B, exports.T))
    runtime = session(onnx.load_model_from_string(data))
    (want,) = runtime.run(None, {runtime.get_inputs()[0].name: tokens})
    ys = quick_jit(layer.apply)(params, tokens.T.astype(np.int32))[1]
    np.testing.assert_allclose(ys.swapaxes(0, 1), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_load_with_initial_states_that_are_passed(kind):
    data = exports.stored(f"states_{kind}")
    layer, params = interop.load(data)
    runtime = session(onnx.load_model_from_string(data))
    names = [entry.name for entry in runtime.get_inputs()]
    xs = exports.inputs_of(exports.T, exports.B)
    states = np.random.default_rng(1).normal(size=(len(names) - 1, 4, exports.B, exports.H)).astype(np.float32)
    y, *ends = runtime.run(None, dict(zip(names, (xs, *states), strict=True)))
    runs = [jr.LSTMCarry(*states[:, k]) if kind == "LSTM" else states[0, k] for k in range(4)]
    carry, ys = quick_jit(layer.apply)(params, xs, (jr.BiCarry(*runs[:2]), jr.BiCarry(*runs[2:])))
    np.testing.assert_allclose(ys, y, rtol=0, atol=1e-6)
    for got, want in zip(states_of(carry), ends, strict=True):
        np.testing.assert_allclose(np.stack(got), want, rtol=0, atol=1e-6)


def test_rows_are_pairwise():
    def pairs(rows):
        return {((i, row[i]), (j, row[j])) for row in rows for i, j in itertools.combinations(range(6), 2)}

    assert pairs(exports.ROWS) == pairs(exports.every())


@pytest.mark.full
@pytest.mark.parametrize("opset", exports.OPSETS)
@pytest.mark.parametrize("exporter", exports.EXPORTERS)
@pytest.mark.parametrize("kind", exports.KINDS)
def test_load_every_form(kind, exporter, opset):
    pytest.importorskip("onnxscript")
    for row in exports.every([kind], [exporter], [opset]):
        ran = check(row, exports.exported(row))
        assert ran == 3 if exporter == "old" else ran >= 1


@pytest.mark.full
@pytest.mark.parametrize("name", [exports.name_of(row) for row in exports.ROWS if row[1] != "old"] + [*exports.NETS])
def test_files_are_what_the_exporter_writes(name):
    """The nodes and the shapes of the arrays; node for node, with the version that wrote the file."""
    pytest.importorskip("onnxscript")
    rows = {exports.name_of(row): functools.partial(exports.exported, row) for row in exports.ROWS}
    then, now = (onnx.load_model_from_string(data) for data in (exports.stored(name), (rows | exports.NETS)[name]()))
    if then.producer_version != now.producer_version:
        pytest.skip(f"written by PyTorch {then.producer_version}, here is {now.producer_version}")
    assert [node.op_type for node in then.graph.node] == [node.op_type for node in now.graph.node]
    assert [a.dims for a in then.graph.initializer] == [a.dims for a in now.graph.initializer]
