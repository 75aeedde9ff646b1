"""Every function of every converter with a call that is all right, and for each parameter what is not.

The libraries are imported here: whoever imports this has seen that they are installed. Paths are names of files that
:func:`write_files` puts into a folder.
"""

from __future__ import annotations

import inspect
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import onnx
import torch
from flax import linen, nnx

import jaxrnn as jr
from jaxrnn import interop
from jaxrnn.interop import registry
from tests.interop.comparing import B, H, I, T, drawn_params


class Row(NamedTuple):
    """A bad argument where the message does not call it by the parameter's name.

    Fields:
        bad: the argument.
        says: what the message says in its place.
        others: other arguments of the call, where the bad one is bad beside these alone.
    """

    bad: Any
    says: str
    others: Mapping[str, Any] = {}


def broken(state: Mapping[str, Any], key: str, says: str = "") -> list[Row]:
    """Arrays by name: one missing, one too many; one of another shape, of whole numbers, of words, of objects, none."""
    whole, says = np.asarray(state[key]), says or key
    without = {name: a for name, a in state.items() if name != key}
    wrong = [
        whole[..., :-1],
        whole[None],
        np.ones(whole.shape, int),
        np.full(whole.shape, "x"),
        "x",
        None,
        {"a": whole},
    ]
    wrong += [whole.astype(object), whole.astype(complex), jax.ShapeDtypeStruct(whole.shape, whole.dtype)]
    return [Row(without, says), *(Row({**state, key: a}, says) for a in wrong)]


def nested(tree: Any, key: str, way: Sequence[str]) -> list[Row]:
    """The same somewhere in dicts in dicts."""
    if not way:
        return broken(tree, key)
    return [Row({**tree, way[0]: row.bad}, row.says) for row in nested(tree[way[0]], key, way[1:])]


def of_params(params: Any) -> list[Row | Any]:
    """Parameters of another structure, of other shapes and of no floats."""
    W = params.W_hh
    wrong = [W[:-1], W[None], W.astype(int), np.full(W.shape, "x"), "x", None, W.astype(complex)]
    wrong += [np.asarray(W).astype(object), jax.ShapeDtypeStruct(W.shape, W.dtype)]
    return [None, "x", 3, {"W": W}, tuple(params), *(params._replace(W_hh=a) for a in wrong)]


def user_cell() -> jr.Cell:
    return jr.Cell(
        lambda key: jnp.ones(H), lambda params, batch_shape=(): jnp.zeros((*batch_shape, H)), lambda p, c, x: (c, c)
    )


GRU, ELMAN = jr.gru(I, H, reset="after"), jr.elman(I, H)
LAYER = jr.scan(GRU)
PARAMS = drawn_params(GRU)
PLAIN = jr.gru(I, H)
CONV = jr.conv_lstm(I, H, spatial_shape=(5,))
OTHERS = [None, 3, "gru", jnp.tanh, [GRU]]
MODELS = [*OTHERS, Row(user_cell(), "user's own", {"params": jnp.ones(H)})]
UNKNOWN = [Row(CONV, "conv_lstm", {"params": drawn_params(CONV)})]
NO_FILE = ["missing.bin", ".", "empty", "noise", "words.json", "arrays.npz", "archive.zip", "\0"]
NO_PATH = [None, 3, b"x", ["x"]]

THEIRS = torch.nn.RNN(I, H, num_layers=2)
STATE = {name: a.numpy() for name, a in THEIRS.state_dict().items()}
KERAS = keras.layers.GRU(H)
KERAS.build((None, None, I))
LINEN = linen.GRUCell(H)
VARIABLES = {
    "params": {n: {"kernel": np.ones((I if n[0] == "i" else H, H))} for n in ("ir", "iz", "in", "hr", "hz", "hn")}
}
for _name in ("ir", "iz", "in", "hn"):
    VARIABLES["params"][_name]["bias"] = np.ones(H)
VARIABLES = jax.tree.map(lambda a: a.astype(np.float32), VARIABLES)
NNX = nnx.GRUCell(I, H, rngs=nnx.Rngs(0))
HAIKU = {"gru": {"w_i": np.ones((I, 3 * H), "f"), "w_h": np.ones((H, 3 * H), "f"), "b": np.ones(3 * H, "f")}}
EQUINOX = eqx.filter_eval_shape(eqx.nn.GRUCell, I, H, key=jax.random.key(0))
EQUINOX = jax.tree.map(lambda a: jnp.ones(a.shape), EQUINOX)
ONNX = interop.onnx.export(LAYER, PARAMS, carry=False)
X = {"X": np.ones((T, B, I), "f"), "sequence_lens": np.ones(B, np.int32)}


def with_field(module: Any, name: str, value: Any) -> Any:
    return eqx.tree_at(lambda m: getattr(m, name), module, value)


def with_layer(**attributes: Any) -> Any:
    layer = keras.layers.GRU(H)
    layer.build((None, None, I))
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


class OwnModel(keras.Model):
    pass


class OwnLSTM(torch.nn.LSTM):
    pass


def with_initial(**fields: Any) -> Any:
    """The ONNX model with a changed one of its stored tensors, or bytes in its place."""
    model = onnx.ModelProto()
    model.CopyFrom(ONNX)
    for name, value in fields.items():
        setattr(model.graph.initializer[0], name, value)
    return model


# Arguments of calls that are all right, by the function's place: those without a default.
CALLS: dict[str, dict[str, Any]] = {
    "torch.from_torch": {"source": STATE},
    "torch.load": {"path": "rnn.pt", "nonlinearity": "tanh"},
    "torch.parts": {"source": STATE},
    "torch.to_torch": {"model": LAYER, "params": PARAMS},
    "keras.from_keras": {"source": KERAS},
    "keras.load": {"path": "model.keras"},
    "keras.to_keras": {"model": LAYER, "params": PARAMS},
    "flax.from_linen": {"module": LINEN, "params": VARIABLES},
    "flax.to_linen": {"model": LAYER, "params": PARAMS},
    "flax.linen_cell": {"cell": GRU},
    "flax.linen_variables": {"params": PARAMS},
    "flax.from_nnx": {"module": NNX},
    "flax.to_nnx": {"model": jr.scan(ELMAN), "params": drawn_params(ELMAN)},
    "flax.nnx_cell": {"cell": GRU, "params": PARAMS},
    "flax.nnx_layer": {"layer": LAYER, "params": PARAMS},
    "haiku.from_haiku": {"core": hk.GRU, "params": HAIKU},
    "haiku.to_haiku": {"cell": PLAIN, "params": drawn_params(PLAIN)},
    "equinox.from_equinox": {"module": EQUINOX},
    "equinox.to_equinox": {"cell": GRU, "params": PARAMS},
    "onnx.load": {"model": ONNX},
    "onnx.inspect": {"model": ONNX},
    "onnx.run": {"model": ONNX, "inputs": X},
    "onnx.export": {"layer": LAYER, "params": PARAMS},
    "flax.LinenCell": {"cell": GRU},
    "flax.LinenCell.__call__": {"carry": jnp.ones((B, H)), "inputs": jnp.ones((B, I))},
    "flax.LinenCell.initialize_carry": {"rng": jax.random.key(0), "input_shape": (B, I)},
    "flax.NnxCell": {"cell": GRU, "params": PARAMS},
    "flax.NnxCell.__call__": {"carry": jnp.ones((B, H)), "inputs": jnp.ones((B, I))},
    "flax.NnxCell.initialize_carry": {"input_shape": (B, I)},
    "flax.NnxLayer": {"layer": LAYER, "params": PARAMS},
    "flax.NnxLayer.__call__": {"xs": jnp.ones((T, B, I))},
    "registry.Library.load": {},
}

# What is wrong for a parameter, by its function's place and its name, or by its name.
MODEL = [None, 3, ["x"], *NO_FILE, b"", b"x" * 99, b"\x08\x07", with_initial(data_type=99), with_initial(raw_data=b"x")]
MODEL = [Row(bad, says) for bad, says in zip(MODEL, ["expected a path"] * 3 + [""] * 99, strict=False)]
BAD: dict[str, Sequence[Any]] = {
    "torch.from_torch.source": [
        *(
            Row(bad, "expected nn.RNN")
            for bad in (None, 3, "rnn.pt", [], [3], [THEIRS, 3], torch.nn.Linear(I, H), np.ones(3))
        ),
        Row(OwnLSTM(I, H), "OwnLSTM"),
        Row({}, "no recurrent module"),
        Row({3: np.ones(3)}, "no recurrent module"),
        Row(STATE | {"extra": np.ones(3)}, "'extra'"),
        Row(STATE | {"weight_ih_l9": np.ones((H, I))}, "weight_"),
        *broken(STATE, "weight_ih_l0"),
        *broken(STATE, "bias_hh_l1"),
        *broken(STATE, "weight_hh_l0"),
    ],
    "torch.parts.source": [Row(bad, "expected a module") for bad in (None, 3, [THEIRS], np.ones(3), b"x")],
    "prefix": [None, 3, [3], [], "nope", ["nope"], "\0", np.ones(3)],
    "nonlinearity": [3, "tanhh", ["tanh"], math.nan],
    "dropout": [-0.1, 1.0, 1.5],
    "torch.load.path": [*NO_PATH, *NO_FILE, "own.safetensors", "encrypted.pt", "unknown.pt"],
    **{
        f"{place}.model": [*MODELS, *UNKNOWN, Row(ELMAN, "params")]
        for place in ("torch.to_torch", "keras.to_keras", "flax.to_linen", "flax.to_nnx")
    },
    "onnx.export.layer": [*MODELS, *UNKNOWN, Row(ELMAN, "params")],
    "haiku.to_haiku.cell": [*MODELS, Row(LAYER, "Layer"), Row(GRU, "reset"), Row(ELMAN, "params")],
    "equinox.to_equinox.cell": [*MODELS, Row(LAYER, "Layer"), *UNKNOWN, Row(ELMAN, "params")],
    "keras.from_keras.source": [
        *OTHERS,
        [],
        [3],
        Row(keras.layers.GRU(H), "built"),
        Row(keras.layers.GRU, "GRU"),
        Row(OwnModel(name="mine"), "'mine'"),
        Row(keras.layers.Conv1D(3, 3), "conv1d"),
        Row(np.ones(3), "ndarray"),
    ],
    "keras.load.path": [*NO_PATH, *NO_FILE, "encrypted.keras", "unknown.keras", "rnn.pt", "damaged.h5"],
    "keras.load.model": [3, "gru", jnp.tanh, Row(LAYER, "leave the model out")],
    "flax.from_linen.module": [
        *OTHERS,
        linen.Dense(3),
        linen.GRUCell,
        linen.RNN(linen.Dense(3)),
        linen.LSTMCell(H),
        linen.GRUCell(H + 1),
    ],
    "flax.from_linen.params": [
        None,
        3,
        "x",
        {},
        [],
        {"params": None},
        {"params": {}},
        *nested(VARIABLES, "kernel", ("params", "hr")),
        *nested(VARIABLES, "bias", ("params", "hn")),
    ],
    "flax.linen_variables.params": ["x", {"a": "x"}, {"a": np.full(3, "x")}],
    "flax.from_nnx.module": [
        *OTHERS,
        nnx.Linear(I, H, rngs=nnx.Rngs(0)),
        nnx.GRUCell,
        LINEN,
        nnx.RNN(NNX, reverse=True),
    ],
    "rngs": [3, "x", jax.random.key(0)],
    "flax.nnx_cell.params": [None, "x", 3],
    "flax.nnx_layer.params": [None, "x", 3],
    "haiku.from_haiku.core": [None, 3, "gru", hk.Linear, [], [3], {"a": hk.GRU}],
    "haiku.from_haiku.params": [
        None,
        3,
        "x",
        [],
        {},
        {"gru": None},
        {"gru": {}},
        *nested(HAIKU, "w_h", ("gru",)),
        *nested(HAIKU, "b", ("gru",)),
    ],
    "haiku.from_haiku.name": [
        3,
        ["gru"],
        "nope",
        Row([3], "name", {"core": [hk.GRU]}),
        Row([], "name", {"core": [hk.GRU]}),
        Row("gru", "name", {"core": [hk.GRU, hk.GRU]}),
    ],
    "spatial_shape": [],
    "haiku.to_haiku.name": [3, ["a", "b"], [3], []],
    "equinox.from_equinox.module": [
        *OTHERS,
        eqx.nn.GRUCell,
        eqx.nn.Linear(1, 1, key=jax.random.key(0)),
        *(Row(with_field(EQUINOX, "weight_hh", row.bad), row.says) for row in ()),
    ],
    "onnx.load.model": MODEL,
    "onnx.inspect.model": MODEL,
    "onnx.run.model": MODEL,
    "node": [3, [3], [], "nope", ["nope"]],
    "inputs": [None, 3, "x", [], {}, X | {"Y": 3}],
    "onnx.export.path": [3, ["x"], "missing/model.onnx", ".", ""],
    "opset": [6, 999],
    "module": [],
    "carry": [],
    "xs": [],
    "cell": [*OTHERS, LAYER],
    "layer": [*OTHERS],
    "params": of_params(PARAMS),
    "rng": [],
    "input_shape": [],
    "lengths": [],
    "mask": [],
    "resets": [],
    "key": [],
    "start": [],
}
