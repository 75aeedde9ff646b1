"""Files of Keras 1 and 2 as their ``save`` and ``save_weights`` wrote them, by h5py; their equations by hand."""

import json

import h5py
import numpy as np

from tests.interop.comparing import H, I


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def lstm_by_hand(kernel, recurrent, bias, xs, σ):
    """Hochreiter & Schmidhuber's equations in Keras' order of gates, in float64."""
    h = c = np.zeros((xs.shape[1], H))
    ys = []
    for x in xs.astype("float64"):
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=1)
        c = σ(f) * c + σ(i) * np.tanh(g)
        h = σ(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys)


def gru_by_hand(kernel, recurrent, bias, xs, σ):
    """Cho et al.'s equations, reset before the product, in Keras' order of gates, z the share of the old state."""
    h, ys = np.zeros((xs.shape[1], H)), []
    for x in xs.astype("float64"):
        az, ar, an = np.split(x @ kernel + bias, 3, axis=1)
        Uz, Ur, Un = np.split(recurrent, 3, axis=1)
        z, r = σ(az + h @ Uz), σ(ar + h @ Ur)
        h = z * h + (1 - z) * np.tanh(an + (r * h) @ Un)
        ys.append(h)
    return np.stack(ys)


def write_weights(file, arrays, version):
    """What ``save_weights`` of Keras 1 and 2 wrote: a group a layer, the names of its arrays in an attribute."""
    if not isinstance(file, h5py.Group):
        with h5py.File(file, "w") as opened:
            return write_weights(opened, arrays, version)
    file.attrs["layer_names"] = [name.encode() for name in arrays]
    file.attrs["backend"] = b"tensorflow"
    if version is not None:
        file.attrs["keras_version"] = version.encode()
    for layer, own in arrays.items():
        group = file.create_group(layer)
        names = [f"{layer}_1/array_{k}:0" for k in range(len(own))]
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, a in zip(names, own, strict=True):
            group.create_dataset(name, data=a)
    return None


def write_model(path, config, arrays, version):
    with h5py.File(path, "w") as file:
        if version is not None:
            file.attrs["keras_version"] = version.encode()
        file.attrs["model_config"] = json.dumps(config).encode()
        write_weights(file.create_group("model_weights"), arrays, version)


def layer(kind, name, **options):
    return {"class_name": kind, "config": {"name": name, "trainable": True, **options}}


def sequential(*layers, bare=False):
    return {"class_name": "Sequential", "config": list(layers) if bare else {"name": "m", "layers": list(layers)}}


def in_order(*layers):
    """A functional model as Keras 2 wrote it: each layer reads from the one before."""
    names = [one["config"]["name"] for one in layers]
    nodes = [[], *([[[name, 0, 0, {}]]] for name in names[:-1])]
    own = [{**one, "name": name, "inbound_nodes": n} for one, name, n in zip(layers, names, nodes, strict=True)]
    ends = {"input_layers": [[names[0], 0, 0]], "output_layers": [[names[-1], 0, 0]]}
    return {"class_name": "Model", "config": {"name": "m", "layers": own, **ends}}


RNN = {"units": H, "activation": "tanh", "recurrent_activation": "hard_sigmoid", "use_bias": True, "dropout": 0.0}
RNN |= {"recurrent_dropout": 0.0, "return_sequences": True, "return_state": False, "go_backwards": False}
OLD_RNN = {"output_dim": H, "activation": "tanh", "inner_activation": "hard_sigmoid", "return_sequences": True}
OLD_RNN |= {"dropout_W": 0.0, "dropout_U": 0.0, "go_backwards": False, "init": "glorot_uniform", "input_dim": I}
old_σ = {"hard_sigmoid": lambda a: np.clip(0.2 * a + 0.5, 0, 1), "sigmoid": lambda a: 1 / (1 + np.exp(-a))}
