"""Every file format of every library × every converter × float32 and float64: what jaxrnn reads gives their outputs.

``ROWS`` is the table; a converter's own test may hold its rows. The library writes the file, the library (or orbax,
NumPy …) reads it where jaxrnn does not.
"""

import functools
import importlib
import os

import jax
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.interop.registry import converters, formats
from tests.interop import through_files as by
from tests.interop.comparing import quick_jit, tables
from tests.interop.originals import BOTH, Row, original

os.environ.setdefault("KERAS_BACKEND", "jax")

LIMITS = {"float32": 1e-6, "float64": 1e-12}  # of outputs of order 1; rounding is 6e-8 and 1e-16


ROWS = [
    Row("flax.from_linen", "in memory", "linen", by.in_memory),
    Row("flax.from_linen", "msgpack, by to_bytes", "linen", by.msgpack),
    Row("flax.from_linen", "msgpack of a TrainState, by save_checkpoint", "linen", by.train_state),
    Row("flax.from_linen", "orbax, StandardCheckpointer", "linen", by.orbax),
    Row("flax.from_linen", "orbax, PyTreeCheckpointer", "linen", by.orbax_pytree),
    Row("flax.from_linen", "orbax, CheckpointManager", "linen", by.orbax_steps),
    Row("flax.from_linen", "safetensors.flax", "linen", by.flat_safetensors),
    Row("flax.from_nnx", "in memory", "nnx", by.in_memory),
    Row("flax.from_nnx", "orbax, StandardCheckpointer of a State", "nnx", by.orbax),
    Row("flax.from_nnx", "orbax, PyTreeCheckpointer of a State", "nnx", by.orbax_pytree),
    Row("flax.from_nnx", "msgpack, of to_pure_dict", "nnx", by.msgpack_of_state),
    Row("haiku.from_haiku", "in memory", "haiku", by.in_memory),
    Row("haiku.from_haiku", "npz, of one level", "haiku", by.npz),
    Row("haiku.from_haiku", "a pickle that the user reads", "haiku", by.pickled),
    Row("haiku.from_haiku", "msgpack, by to_bytes", "haiku", by.msgpack),
    Row("haiku.from_haiku", "orbax, StandardCheckpointer", "haiku", by.orbax),
    Row("equinox.from_equinox", "in memory", "equinox", by.in_memory),
    Row("equinox.from_equinox", "tree_serialise_leaves", "equinox", by.leaves),
    Row("equinox.from_equinox", "orbax, StandardCheckpointer of a module", "equinox", by.orbax),
    Row("equinox.from_equinox", "msgpack, of the arrays by name", "equinox", by.of_arrays(by.msgpack)),
    Row("torch.from_torch", "in memory", "torch", by.in_memory),
    Row("torch.from_torch", ".pt, a state dict that torch reads", "torch", by.read_state_dict),
    Row("torch.load", ".pt, a state dict", "torch", by.state_dict),
    Row("torch.load", ".pt, a whole module", "torch", by.whole_module),
    Row("torch.load", ".pt, TorchScript", "torch", by.torchscript),
    Row("torch.load", ".safetensors", "torch", by.torch_safetensors),
    Row("keras.from_keras", "in memory", "keras", by.in_memory),
    Row("keras.load", ".keras", "keras", by.model_file(".keras"), needs=("h5py",)),
    Row("keras.load", ".h5 of Keras 3", "keras", by.model_file(".h5"), needs=("h5py",)),
    Row("keras.load into a model", ".weights.h5 of Keras 3", "keras", by.weights_file, needs=("h5py",)),
    Row("keras.load", ".h5 of Keras 2, rebuilt", "old_keras", by.hdf5_of_keras_2, needs=("h5py",)),
    Row("onnx.load", ".onnx, an operator", "operator", by.onnx_file, needs=("onnxruntime",)),
    Row("onnx.load", ".onnx, torch's exporter of TorchScript", "torch", by.onnx_by_torch, needs=("torch",)),
    # The other exporter takes seconds: its file in the tree, which onnxruntime runs in float32 alone.
    Row("onnx.load", ".onnx, torch's default exporter", "exported_by_dynamo", by.onnx_file, BOTH[:1], ("onnxruntime",)),
    *(row for rows in tables("ROWS") for row in rows),
]


@functools.cache
def apply_of(spec):
    model = jr.build(spec)
    return quick_jit(jr.scan(model).apply if isinstance(model, jr.Cell) else model.apply)


@pytest.mark.parametrize(
    ("row", "dtype"),
    [pytest.param(row, dtype, id=f"{row.converter}-{row.format}-{dtype}") for row in ROWS for dtype in row.dtypes],
)
@pytest.mark.filterwarnings("ignore")  # the libraries' own: of HDF5, of TorchScript, of shardings
def test_what_a_file_holds_computes_the_same(row, dtype, x64, tmp_path):
    for module in (_library(row), *row.needs):
        pytest.importorskip(module)
    theirs = original(row.original, dtype)
    convert = theirs.convert.get(row.converter) or _function(row)
    layer, params = convert(row.through(theirs.weights, tmp_path))
    assert {a.dtype.name for a in jax.tree.leaves(params)} == {dtype}
    params = jax.tree.map(np.asarray, params)  # orbax's are bound to a device: another program, another compilation
    ys, want = np.asarray(apply_of(layer.spec)(params, theirs.xs)[1]), np.asarray(theirs.ys)
    assert ys.shape == want.shape and 0.2 < np.abs(want).max() < 5
    np.testing.assert_allclose(ys, want, rtol=0, atol=LIMITS[dtype])


def _library(row):
    return converters()[row.function.partition(".")[0]].LIBRARY.module


def _function(row):
    module, _, name = row.function.partition(".")
    return getattr(importlib.import_module(f"jaxrnn.interop.{module}"), name)


# ---- the table is whole --------------------------------------------------------------------------


def test_every_converter_has_a_row_in_each_dtype():
    have = {(row.function, dtype) for row in ROWS for dtype in row.dtypes}
    functions = [
        f"{name}.{function}"
        for name, module in converters().items()
        for function in module.__all__
        if function.startswith("from_") or function == "load"
    ]
    assert len(functions) >= 9
    lacking = [
        f'Row("{function}", "its file in words", "a network of originals.py", through, ("{dtype}",)),'
        for function in functions
        for dtype in BOTH
        if (function, dtype) not in have
    ]
    assert not lacking, "add to ROWS of the converter's test, or of tests/interop/test_files.py:\n" + "\n".join(lacking)


def test_every_format_that_is_read_has_a_row():
    owner = {suffix: name for name, module in converters().items() for suffix in getattr(module, "FORMATS", ())}
    have = {(row.function.partition(".")[0], row.format.split()[0].strip(",")) for row in ROWS}
    read = {formats()[suffix].read for name, suffix in have if owner.get(suffix) == name}
    lacking = [
        f'Row("{owner[suffix]}.load", "{suffix}", "a network of originals.py", through),'
        for suffix, format in formats().items()
        if format.read not in read
    ]
    assert not lacking, "add to ROWS of the converter's test, or of tests/interop/test_files.py:\n" + "\n".join(lacking)
