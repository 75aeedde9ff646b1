"""Weights through files: each function writes them into a folder and gives what the file gives back, or its path."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.saving.recognise import recognised

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
    """A training's, as NumPy arrays."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder / "a") as manager:
        manager.save(10, args=ocp.args.StandardSave(tree))
    fix = recognised(folder / "a").fix
    assert "StandardCheckpointer().restore(os.path.abspath(path) + '/10/default')" in fix
    return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(folder / "a" / "10" / "default"))


def flattened(tree, separator):
    """One level of names."""
    return {
        separator.join(jax.tree_util.keystr((key,), simple=True) for key in path): np.asarray(a)
        for path, a in jax.tree_util.tree_leaves_with_path(tree)
    }


def npz(params, folder):
    np.savez(folder / "a.npz", **flattened(params, "/"))
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
