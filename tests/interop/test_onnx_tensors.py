"""Arrays of an ONNX file that are not what the file says: refused by name, before their memory is asked for."""

import functools
import os
import tracemalloc

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from jaxrnn.interop import onnx as interop  # noqa: E402
from tests.commands import run_command  # noqa: E402
from tests.interop import torch_exports  # noqa: E402
from tests.interop.comparing import H, I, assert_close  # noqa: E402
from tests.interop.onnx_models import by_runtime, operator_model  # noqa: E402

READERS = {"load": interop.load, "inspect": interop.inspect, "run": lambda model: interop.run(model, {})}
ROWS = 3 * H  # of a GRU


@pytest.fixture
def folder(tmp_path):
    """A model whose arrays stand in a file beside it, and what it computes."""
    model, _ = operator_model("GRU", initial=False)
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(10_000))
    onnx.save_model(model, home / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return home, *operator_model("GRU", initial=False)  # saving has taken the arrays out of the other


def test_external_data(folder):
    home, model, inputs = folder
    want = by_runtime(model, inputs)["Y"][:, 0]
    layer, params = interop.load(home / "m.onnx")
    assert_close(layer.apply(params, inputs["X"])[1], want)
    assert_close(interop.run(home / "m.onnx", inputs)["Y"][:, 0], want)
    (node,) = interop.inspect(str(home / "m.onnx"))
    assert (node.input_size, node.hidden_size) == (I, H)


def entries(**given):
    def change(home):
        model = onnx.load_model(home / "m.onnx", load_external_data=False)
        tensor = model.graph.initializer[0]
        kept = {entry.key: entry.value for entry in tensor.external_data} | given
        del tensor.external_data[:]
        for key, value in kept.items():
            tensor.external_data.add(key=key, value=value)
        onnx.save_model(model, home / "m.onnx")

    return change


def fifo(home):
    os.remove(home / "w.bin")
    os.mkfifo(home / "w.bin")


def link(home):
    os.remove(home / "w.bin")
    os.symlink(home.parent / "outside.bin", home / "w.bin")


EXTERNAL = {
    r"'W' stands in the file '\.\./outside.bin', which leaves the model's folder": entries(location="../outside.bin"),
    "'W' stands in the file '/dev/zero', which leaves": entries(location="/dev/zero"),
    "'W' stands in the file '', which leaves": entries(location=""),
    "'W' stands in the file 'v.bin', which is not there": entries(location="v.bin"),
    r"'W' stands in '\.', which is no regular file": entries(location="."),
    "'W' stands in 'w.bin', which is no regular file": fifo,
    "'W' stands in the file 'w.bin', which leaves the model's folder": link,
    "'W' has the offset '-1' in its file; expected a number of bytes": entries(offset="-1"),
    "'W' has the length 'all' in its file": entries(length="all"),
    rf"'W' holds 7 bytes of the file 'w.bin', but FLOAT of the shape \(1, {ROWS}, {I}\) takes {4 * ROWS * I}": entries(
        length="7"
    ),
    "'W' ends at byte 1000144 of the file 'w.bin', which has": entries(offset="1000000"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("message", EXTERNAL)
def test_external_data_that_is_refused(message, folder, capsys):
    home, *_ = folder
    EXTERNAL[message](home)
    for who, read in READERS.items():
        with pytest.raises(ValueError, match=f"^onnx.{who}: the tensor {message}"):
            read(home / "m.onnx")
    status, said, errors = run_command(capsys, "inspect", home / "m.onnx")
    assert (status, said, len(errors)) == (1, "", 1)


def test_external_data_of_a_model_without_a_file(folder):
    home, *_ = folder
    model = onnx.load_model(home / "m.onnx", load_external_data=False)
    for given in (model, model.SerializeToString()):
        with pytest.raises(ValueError, match="'W' stands in a file of its own; pass the path of the model"):
            interop.load(given)


def changed(**fields):
    def change(model):
        tensor = model.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                del tensor.dims[:]
                tensor.dims.extend(value)
            elif name == "float_data":
                tensor.ClearField("raw_data")
                tensor.float_data.extend(value)
            else:
                setattr(tensor, name, value)

    return change


def constant(model):
    value = TensorProto(name="inside", data_type=TensorProto.INT64, dims=[10**12], raw_data=bytes(8))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], "constant", value=value))


def branch(model):
    one = TensorProto(name="inside", data_type=TensorProto.FLOAT, dims=[3], raw_data=bytes(8))
    graph = helper.make_graph([helper.make_node("Identity", ["inside"], ["y"])], "g", [], [], [one])
    graph.output.add(name="y")
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph))


STORED = {
    "'W' has the element type 999, which ONNX does not define": changed(data_type=999),
    "'W' has the element type 0, which": changed(data_type=0),
    rf"'W' holds {4 * ROWS * I} bytes, but DOUBLE of the shape": changed(data_type=TensorProto.DOUBLE),
    r"'W' holds \d+ bytes, but FLOAT of the shape \(1, 1000000, 1000000\) takes 4000000000000": changed(
        dims=[1, 10**6, 10**6]
    ),
    r"'W' has the shape \(1, -3\), with a negative size": changed(dims=[1, -3]),
    "'W' holds 1 bytes, but FLOAT": changed(raw_data=b"\0"),
    "'W' holds 2 numbers of its element type, but FLOAT of the shape": changed(float_data=[1.0, 2.0]),
    "'inside' holds 8 bytes, but INT64 of the shape": constant,
    r"'inside' holds 8 bytes, but FLOAT of the shape \(3,\) takes 12": branch,
}


@pytest.mark.parametrize("message", STORED)
def test_tensors_that_are_refused(message):
    model, _ = operator_model("GRU", initial=False)
    STORED[message](model)
    for who, read in READERS.items():
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"^onnx.{who}: the tensor {message}"):
            read(model)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "message"),
    [(np.int8, "W is int8"), (np.float16, "W is float16"), (np.int64, "W is int64")],
)
def test_weights_of_another_dtype(kind, message):
    model, _ = operator_model("GRU", initial=False)
    arrays = [onnx.numpy_helper.to_array(tensor).astype(kind) for tensor in model.graph.initializer]
    for tensor, array in zip(model.graph.initializer, arrays, strict=True):
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    with pytest.raises(ValueError, match=f"node 'cell': {message}; the weights must all be float32 or all float64"):
        interop.load(model)


def test_sizes_that_a_graph_computes_take_no_memory():
    """A billion steps or rows of zeros are known without being there."""
    model, inputs = operator_model("GRU", initial=False)
    many = helper.make_tensor("many", TensorProto.INT64, [3], [1, 10**9, H])
    steps = [helper.make_tensor(name, TensorProto.INT64, [], [n]) for name, n in (("a", 0), ("b", 10**12), ("c", 1))]
    model.graph.initializer.extend([many, *steps])
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["many"], ["initial_h"]))
    model.graph.node.insert(0, helper.make_node("Range", ["a", "b", "c"], ["numbers"]))
    model.graph.node[-1].input[5] = "initial_h"
    tracemalloc.start()
    layer, params = interop.load(model)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    plain, _ = operator_model("GRU", initial=False)
    assert_close(layer.apply(params, inputs["X"])[1], by_runtime(plain, inputs)["Y"][:, 0])


@pytest.mark.parametrize("make", [os.mkdir, functools.partial(os.symlink, "/dev/zero")], ids=["folder", "device"])
def test_paths_that_are_no_files(make, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    make(path)
    for who, read in READERS.items():
        with pytest.raises(ValueError, match=f"onnx.{who}: .*m.onnx is no regular file"):
            read(path)
    status, _, errors = run_command(capsys, "inspect", path)
    assert status == 1 and len(errors) == 1
    assert errors[0].startswith(f"inspect: '{path}' is ") and errors[0].endswith("; give the name of a file.")


@pytest.mark.parametrize("name", ["RNN_static_19_1", "LSTM_dynamic_22_2", "tagger"])
def test_any_byte_may_be_another(name):
    """A file with a byte changed is read, or refused by a ValueError; twenty thousand such files were, once."""
    data, rng = torch_exports.stored(name), np.random.default_rng(0)
    refused = 0
    for place, byte in zip(rng.integers(0, len(data), 60), rng.integers(0, 256, 60), strict=True):
        broken = data[:place] + bytes([byte]) + data[place + 1 :]
        for read in (interop.load, interop.inspect):
            try:
                read(broken)
            except ValueError:
                refused += 1
    assert 0 < refused < 120
