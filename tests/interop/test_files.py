"""Every file format of every library × every converter × float32 and float64: what jaxrnn reads gives their outputs.

``ROWS`` is the table. The library writes the file, the library (or orbax, NumPy …) reads it where jaxrnn does not.
"""

import functools
import importlib
import os
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.interop.registry import converters, formats
from jaxrnn.saving.recognise import recognised
from tests.interop.comparing import quick_jit
from tests.interop.originals import original

os.environ.setdefault("KERAS_BACKEND", "jax")

BOTH = ("float32", "float64")
LIMITS = {"float32": 1e-6, "float64": 1e-12}  # of outputs of order 1; rounding is 6e-8 and 1e-16


class Row(NamedTuple):
    """A format of a converter's.

    Fields:
        converter: as ``jaxrnn.interop`` has it, "torch.load".
        format: the file, in words; a suffix of ``registry.formats()`` stands in it.
        original: the network, of ``originals.py``.
        through: ``through(weights, folder)``, what the file gives back: weights, or a path for a converter that reads.
        dtypes: those in which the original computes.
        needs: modules beside the converter's own library.
    """

    converter: str
    format: str
    original: str
    through: Callable[[Any, Any], Any]
    dtypes: tuple[str, ...] = BOTH
    needs: tuple[str, ...] = ()

    @property
    def function(self):
        return self.converter.partition(" ")[0]


# ---- files of trees: written and read by others --------------------------------------------------


def in_memory(tree, folder):
    return tree


def msgpack(tree, folder):
    from flax import serialization

    (folder / "a").write_bytes(serialization.to_bytes(tree))
    return serialization.msgpack_restore((folder / "a").read_bytes())


def msgpack_of_state(state, folder):
    from flax import nnx, serialization

    pure = serialization.to_state_dict(jax.tree.map(lambda a: a, nnx.to_pure_dict(state)))
    return msgpack(_text_keys(pure), folder)


def _text_keys(tree):
    """msgpack has no numbers for keys."""
    return {str(name): _text_keys(a) for name, a in tree.items()} if isinstance(tree, dict) else tree


def train_state(variables, folder):
    """A whole training's state, by Flax's ``save_checkpoint`` as it was before orbax."""
    import flax
    import optax
    from flax.training import checkpoints
    from flax.training.train_state import TrainState

    state = TrainState.create(apply_fn=None, params=variables["params"], tx=optax.sgd(0.1))
    before = flax.config.flax_use_orbax_checkpointing
    flax.config.update("flax_use_orbax_checkpointing", False)
    try:
        checkpoints.save_checkpoint(str(folder), state, step=3)
        return checkpoints.restore_checkpoint(str(folder), None)
    finally:
        flax.config.update("flax_use_orbax_checkpointing", before)


def orbax(tree, folder):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "a", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "a")


def orbax_pytree(tree, folder):
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer().save(folder / "a", tree)
    return ocp.PyTreeCheckpointer().restore(folder / "a")


def orbax_steps(tree, folder):
    """The last of a training's, as NumPy arrays."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder / "a") as manager:
        manager.save(9, args=ocp.args.StandardSave(jax.tree.map(jnp.zeros_like, tree)))
        manager.save(10, args=ocp.args.StandardSave(tree))
    fix = recognised(folder / "a").fix
    assert "StandardCheckpointer().restore(os.path.abspath(path) + '/10/default')" in fix
    return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(folder / "a" / "10" / "default"))


def npz(params, folder):
    np.savez(folder / "a.npz", **{f"{module}/{name}": a for module, own in params.items() for name, a in own.items()})
    return np.load(folder / "a.npz")


def pickled(params, folder):
    """As many keep Haiku's parameters; the test reads what it wrote itself, jaxrnn never a pickle."""
    (folder / "a.pkl").write_bytes(pickle.dumps(jax.device_get(params)))
    return pickle.loads((folder / "a.pkl").read_bytes())


def flat_safetensors(variables, folder):
    """Flax's trees as they go to the hubs: one level of names."""
    from flax.traverse_util import flatten_dict, unflatten_dict
    from safetensors.flax import load_file, save_file

    save_file(flatten_dict(variables, sep="."), folder / "a.safetensors")
    return unflatten_dict(load_file(folder / "a.safetensors"), sep=".")


def leaves(net, folder):
    import equinox as eqx

    eqx.tree_serialise_leaves(folder / "a.eqx", net)
    assert recognised(folder / "a.eqx").title == "a file of Equinox's tree_serialise_leaves"
    return eqx.tree_deserialise_leaves(folder / "a.eqx", jax.tree.map(jnp.zeros_like, net))


def of_arrays(through):
    """An Equinox module's arrays, as orbax keeps any record."""
    return lambda net, folder: through(_named(net), folder)


def _named(net):
    return {
        "cells": [{name: a for name, a in vars(cell).items() if isinstance(a, jax.Array)} for cell in net.cells],
        "head": {"weight": net.head.weight, "bias": net.head.bias},
    }


# ---- files that jaxrnn reads itself --------------------------------------------------------------


def state_dict(module, folder):
    import torch

    torch.save(module.state_dict(), folder / "a.pt")
    return folder / "a.pt"


def read_state_dict(module, folder):
    import torch

    return torch.load(state_dict(module, folder), weights_only=True)


def whole_module(module, folder):
    import torch

    torch.save(module, folder / "a.pt")
    return folder / "a.pt"


def torchscript(module, folder):
    import torch

    torch.jit.save(torch.jit.script(module), str(folder / "a.pt"))
    return folder / "a.pt"


def torch_safetensors(module, folder):
    from safetensors.torch import save_file

    save_file(module.state_dict(), folder / "a.safetensors")
    return folder / "a.safetensors"


def model_file(suffix):
    def through(net, folder):
        net.save(folder / f"a{suffix}")
        return folder / f"a{suffix}"

    return through


def weights_file(net, folder):
    net.save_weights(folder / "a.weights.h5")
    return folder / "a.weights.h5"


def hdf5_of_keras_2(weights, folder):
    from tests.interop import old_keras

    config = old_keras.sequential(old_keras.layer("LSTM", "a", **old_keras.RNN | {"dtype": weights[0].dtype.name}))
    old_keras.write_model(folder / "a.h5", config, {"a": weights}, "2.2.4")
    return folder / "a.h5"


def onnx_file(model, folder):
    (folder / "a.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return folder / "a.onnx"


def onnx_by_torch(module, folder):
    """By the exporter of TorchScript."""
    import torch

    from tests.interop.torch_exports import written

    given = torch.zeros(4, 2, 3, dtype=next(module.parameters()).dtype)
    (folder / "a.onnx").write_bytes(written(module, (given,), "old", 17, None))
    return folder / "a.onnx"


ROWS = [
    Row("flax.from_linen", "in memory", "linen", in_memory),
    Row("flax.from_linen", "msgpack, by to_bytes", "linen", msgpack),
    Row("flax.from_linen", "msgpack of a TrainState, by save_checkpoint", "linen", train_state),
    Row("flax.from_linen", "orbax, StandardCheckpointer", "linen", orbax),
    Row("flax.from_linen", "orbax, PyTreeCheckpointer", "linen", orbax_pytree),
    Row("flax.from_linen", "orbax, CheckpointManager", "linen", orbax_steps),
    Row("flax.from_linen", "safetensors.flax", "linen", flat_safetensors),
    Row("flax.from_nnx", "in memory", "nnx", in_memory),
    Row("flax.from_nnx", "orbax, StandardCheckpointer of a State", "nnx", orbax),
    Row("flax.from_nnx", "orbax, PyTreeCheckpointer of a State", "nnx", orbax_pytree),
    Row("flax.from_nnx", "msgpack, of to_pure_dict", "nnx", msgpack_of_state),
    Row("haiku.from_haiku", "in memory", "haiku", in_memory),
    Row("haiku.from_haiku", "npz, of one level", "haiku", npz),
    Row("haiku.from_haiku", "a pickle that the user reads", "haiku", pickled),
    Row("haiku.from_haiku", "msgpack, by to_bytes", "haiku", msgpack),
    Row("haiku.from_haiku", "orbax, StandardCheckpointer", "haiku", orbax),
    Row("equinox.from_equinox", "in memory", "equinox", in_memory),
    Row("equinox.from_equinox", "tree_serialise_leaves", "equinox", leaves),
    Row("equinox.from_equinox", "orbax, StandardCheckpointer of a module", "equinox", orbax),
    Row("equinox.from_equinox", "msgpack, of the arrays by name", "equinox", of_arrays(msgpack)),
    Row("torch.from_torch", "in memory", "torch", in_memory),
    Row("torch.from_torch", ".pt, a state dict that torch reads", "torch", read_state_dict),
    Row("torch.load", ".pt, a state dict", "torch", state_dict),
    Row("torch.load", ".pt, a whole module", "torch", whole_module),
    Row("torch.load", ".pt, TorchScript", "torch", torchscript),
    Row("torch.load", ".safetensors", "torch", torch_safetensors),
    Row("keras.from_keras", "in memory", "keras", in_memory),
    Row("keras.load", ".keras", "keras", model_file(".keras"), needs=("h5py",)),
    Row("keras.load", ".h5 of Keras 3", "keras", model_file(".h5"), needs=("h5py",)),
    Row("keras.load into a model", ".weights.h5 of Keras 3", "keras", weights_file, needs=("h5py",)),
    Row("keras.load", ".h5 of Keras 2, rebuilt", "old_keras", hdf5_of_keras_2, needs=("h5py",)),
    Row("onnx.load", ".onnx, an operator", "operator", onnx_file, needs=("onnxruntime",)),
    Row("onnx.load", ".onnx, torch's exporter of TorchScript", "torch", onnx_by_torch, needs=("torch",)),
    # The other exporter takes seconds: its file in the tree, which onnxruntime runs in float32 alone.
    Row("onnx.load", ".onnx, torch's default exporter", "exported_by_dynamo", onnx_file, BOTH[:1], ("onnxruntime",)),
]


@functools.cache
def apply_of(spec):
    return quick_jit(jr.build(spec).apply)


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
    assert not lacking, "add to ROWS of tests/interop/test_files.py:\n" + "\n".join(lacking)


def test_every_format_that_is_read_has_a_row():
    owner = {suffix: name for name, module in converters().items() for suffix in getattr(module, "FORMATS", ())}
    have = {(row.function.partition(".")[0], row.format.split()[0].strip(",")) for row in ROWS}
    read = {formats()[suffix].read for name, suffix in have if owner.get(suffix) == name}
    lacking = [
        f'Row("{owner[suffix]}.load", "{suffix}", "a network of originals.py", through),'
        for suffix, format in formats().items()
        if format.read not in read
    ]
    assert not lacking, "add to ROWS of tests/interop/test_files.py:\n" + "\n".join(lacking)
