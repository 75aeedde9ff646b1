"""Every function of every converter with a call that is all right, and for each of its parameters what is not.

The libraries are imported here: whoever imports this has seen that they are installed. Paths are the names of files
that :func:`write_files` puts into a folder.
"""

from __future__ import annotations

import inspect
import math
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
from jaxrnn.interop.registry import Library, converters
from tests.interop.comparing import B, H, I, T, drawn_params


class Row(NamedTuple):
    """A bad argument where the message does not call it by the parameter's name.

    Fields:
        bad: the argument.
        says: what the message says in its place.
        others: other arguments of the call, beside which it is bad for one reason alone.
    """

    bad: Any
    says: str
    others: Mapping[str, Any] = {}


def entries(a: Any) -> list[Any]:
    """What no array of floats is: whole and complex numbers, words, objects, nothing, an array that was deleted …"""
    a = np.asarray(a)
    gone = jnp.array(a)
    gone.delete()
    wrong = [a.astype(int), a.astype(complex), np.full(a.shape, "x"), a.astype(object), "x", None, {"a": a}, gone]
    return [*wrong, jax.ShapeDtypeStruct(a.shape, a.dtype)]


def broken(state: Mapping[str, Any], key: str, *way: str) -> list[Row]:
    """Arrays by name: one is missing, of another shape or of no floats. ``way``: they stand in dicts in dicts."""
    if way:
        return [row._replace(bad={**state, way[0]: row.bad}) for row in broken(state[way[0]], key, *way[1:])]
    a, without = np.asarray(state[key]), {name: a for name, a in state.items() if name != key}
    wide = a.astype(np.float64)  # while JAX's 64 bits are off
    wrong = [Row({**state, key: b}, key) for b in (a[..., :-1], a[None], a[..., 0], *entries(a))]
    return [Row(without, key), Row({**state, "extra": a}, "extra"), *wrong, Row({**state, key: wide}, "float64")]


def of_params(params: Any) -> list[Any]:
    """Parameters of another structure, of other shapes, and of no floats."""
    W = params.W_hh
    return [None, "x", 3, {"W": W}, tuple(params), *(params._replace(W_hh=a) for a in (W[:-1], W[None], *entries(W)))]


def fields_of(module: Any, name: str) -> list[Row]:
    """An Equinox module with one field of another shape, or of no floats."""
    a = getattr(module, name)
    wrong = [b for b in (a[:-1], a[None], *entries(a)) if b is not None]
    return [Row(eqx.tree_at(lambda m: getattr(m, name), module, b, is_leaf=lambda x: x is None), name) for b in wrong]


def user_cell() -> jr.Cell:
    def initial_carry(params, batch_shape=()):
        return jnp.zeros((*batch_shape, H))

    return jr.Cell(lambda key: jnp.ones(H), initial_carry, lambda params, carry, x: (carry, carry))


class OwnLSTM(torch.nn.LSTM):
    """What it computes is not known."""


class OwnModel(keras.Model):
    """Its ``get_config`` raises NotImplementedError, as Keras has it for options that are no plain values."""

    def __init__(self, layer):
        super().__init__(name="mine")
        self.layer = layer

    def call(self, x):
        return self.layer(x)


def stored(**fields: Any) -> Any:
    """The ONNX model, the first of its tensors changed."""
    model = onnx.ModelProto()
    model.CopyFrom(ONNX)
    for name, value in fields.items():
        setattr(model.graph.initializer[0], name, value)
    return model


GRU, PLAIN, ELMAN = jr.gru(I, H, reset="after"), jr.gru(I, H), jr.elman(I, H)
CONV = jr.conv_lstm(I, H, spatial_shape=(5,))
NOISY = jr.zoneout(ELMAN, rate=0.5)
LAYER = jr.scan(GRU)
PARAMS = drawn_params(GRU)
CARRY, STEP, XS = jnp.ones((B, H)), jnp.ones((B, I)), jnp.ones((T, B, I))
OTHERS = [None, 3, "gru", jnp.tanh, [GRU]]
MODELS = [*OTHERS, Row(user_cell(), "user's own", {"params": jnp.ones(H)}), Row(jr.lstm(I, H), "params")]
UNKNOWN = Row(CONV, "conv_lstm", {"params": drawn_params(CONV)})

MODULE = torch.nn.RNN(I, H, num_layers=2)
STATE = {name: a.numpy() for name, a in MODULE.state_dict().items()}
KERAS = keras.layers.GRU(H, kernel_initializer="zeros", recurrent_initializer="zeros")
KERAS.build((None, None, I))
GATES = {name: I if name[0] == "i" else H for name in ("ir", "iz", "in", "hr", "hz", "hn")}
LINEN = {
    name: {"kernel": np.ones((size, H), "f"), **({"bias": np.ones(H, "f")} if name not in ("hr", "hz") else {})}
    for name, size in GATES.items()
}
LINEN_CELL = interop.flax.linen_cell(GRU)
ZEROS = linen.initializers.zeros  # the others are compiled
NNX = nnx.GRUCell(I, H, kernel_init=ZEROS, recurrent_kernel_init=ZEROS, rngs=nnx.Rngs(0))
NNX_INTEGERS = nnx.clone(NNX)
NNX_WEIGHTS = nnx.to_pure_dict(nnx.state(NNX, nnx.Param))
NNX_INTEGERS.dense_h.kernel = nnx.Param(jnp.ones((H, 3 * H), int))
HAIKU = {"gru": {"w_i": np.ones((I, 3 * H), "f"), "w_h": np.ones((H, 3 * H), "f"), "b": np.ones(3 * H, "f")}}
HAIKU["lstm/linear"] = {"w": np.ones((I + H, 4 * H), "f"), "b": np.ones(4 * H, "f")}
HAIKU["vanilla_rnn/linear"] = {"w": np.ones((I, H), "f"), "b": np.ones(H, "f")}
HAIKU["vanilla_rnn/linear_1"] = {"w": np.ones((H, H), "f"), "b": np.ones(H, "f")}
HAIKU["conv1_dlstm/input_to_hidden"] = {"w": np.ones((3, I, 4 * H), "f"), "b": np.ones(4 * H, "f")}
HAIKU["conv1_dlstm/hidden_to_hidden"] = {"w": np.ones((3, H, 4 * H), "f"), "b": np.ones(4 * H, "f")}
EQUINOX = eqx.filter_eval_shape(eqx.nn.GRUCell, I, H, key=jax.random.key(0))
EQUINOX = jax.tree.map(lambda a: jnp.ones(a.shape), EQUINOX)
ONNX = interop.onnx.export(LAYER, PARAMS, carry=False)
INPUTS = {"X": np.ones((T, B, I), "f"), "sequence_lens": np.ones(B, np.int32)}

# Arguments of calls that are all right, by the function's place: those without a default, and a few others.
CALLS: dict[str, dict[str, Any]] = {
    "torch.from_torch": {"source": STATE},
    "torch.load": {"path": "rnn.pt", "nonlinearity": "tanh"},
    "torch.parts": {"source": STATE},
    "torch.to_torch": {"model": LAYER, "params": PARAMS},
    "keras.from_keras": {"source": KERAS},
    "keras.load": {"path": "model.keras"},
    "keras.to_keras": {"model": LAYER, "params": PARAMS},
    "flax.from_linen": {"module": linen.GRUCell(H), "params": {"params": LINEN}},
    "flax.to_linen": {"model": LAYER, "params": PARAMS},
    "flax.linen_cell": {"cell": GRU},
    "flax.linen_variables": {"params": PARAMS},
    "flax.LinenCell": {"cell": GRU},
    "flax.LinenCell.__call__": {"carry": CARRY, "inputs": STEP},
    "flax.LinenCell.initialize_carry": {"rng": jax.random.key(0), "input_shape": (B, I)},
    "flax.from_nnx": {"module": NNX},
    "flax.to_nnx": {"model": jr.scan(ELMAN), "params": drawn_params(ELMAN)},
    "flax.nnx_cell": {"cell": GRU, "params": PARAMS},
    "flax.nnx_layer": {"layer": LAYER, "params": PARAMS},
    "flax.NnxCell": {"cell": GRU, "params": PARAMS},
    "flax.NnxCell.__call__": {"carry": CARRY, "inputs": STEP},
    "flax.NnxCell.initialize_carry": {"input_shape": (B, I)},
    "flax.NnxCell.jaxrnn_params": {},
    "flax.NnxLayer": {"layer": LAYER, "params": PARAMS},
    "flax.NnxLayer.__call__": {"xs": XS},
    "flax.NnxLayer.jaxrnn_params": {},
    "haiku.from_haiku": {"core": hk.GRU, "params": HAIKU},
    "haiku.to_haiku": {"cell": PLAIN, "params": drawn_params(PLAIN)},
    "equinox.from_equinox": {"module": EQUINOX},
    "equinox.to_equinox": {"cell": GRU, "params": PARAMS},
    "onnx.load": {"model": ONNX},
    "onnx.inspect": {"model": ONNX},
    "onnx.run": {"model": ONNX, "inputs": INPUTS},
    "onnx.export": {"layer": LAYER, "params": PARAMS},
    "registry.converters": {},
    "registry.formats": {},
    "registry.refused": {},
    "registry.Library.load": {},
}
NNX_CELL, NNX_LAYER = interop.flax.nnx_cell(GRU, PARAMS), interop.flax.nnx_layer(LAYER, PARAMS)
# Whose methods are called.
OWNERS = {
    "flax.LinenCell.__call__": LINEN_CELL.bind(interop.flax.linen_variables(PARAMS)),
    "flax.LinenCell.initialize_carry": LINEN_CELL,
    **dict.fromkeys((place for place in CALLS if place.startswith("flax.NnxCell.")), NNX_CELL),
    **dict.fromkeys((place for place in CALLS if place.startswith("flax.NnxLayer.")), NNX_LAYER),
    "registry.Library.load": Library("Caffe", "no_such_caffe"),
}
# By whom a message is, where not by the function.
BY = {
    **{"flax.LinenCell": "linen_cell", "flax.NnxCell": "nnx_cell", "flax.NnxLayer": "nnx_layer"},
    **{"flax.LinenCell.__call__": "gru", "flax.NnxCell.__call__": "gru", "flax.NnxLayer.__call__": r"scan\(gru\)|gru"},
    **{
        "flax.LinenCell.initialize_carry": "gru|init",
        "flax.NnxCell.initialize_carry": "gru",
        "haiku.from_haiku": "conv_lstm",
        "registry.Library.load": "Library.load",
    },
}
# How messages call an argument, where not by its name.
CALLED = {
    **dict.fromkeys(("model", "layer", "cell"), ("expected a Cell",)),
    **{"source": ("no counterpart", "expected"), "module": ("no counterpart",), "prefix": ("called",)},
    **{
        "params": ("the parameters", "in the module"),
        "inputs": ("input", "sequence_lens", "x must be"),
        "rng": ("key",),
    },
    **{"xs": ("expected x", "expected floating-point inputs"), "input_shape": ("batch_shape",)},
}

# What is wrong for a parameter, by its function's place and its name, or by its name.
NO_PATH = [None, 3, b"x", ["x"], "a\0b"]
NO_FILE = ["missing.bin", ".", "empty", "noise", "words.json", "arrays.npz", "archive.zip"]
PROTOS = [
    *(Row(bad, "expected a path") for bad in (None, 3, ["x"], np.ones(3))),
    *(Row(bad, bad) for bad in NO_FILE),
    *(Row(bad, f"{len(bad)} bytes") for bad in (b"x" * 99, b"\x08\x07", b"\xff" * 9)),
    *(Row(bad, "onnx.") for bad in (b"", onnx.ModelProto())),
    *(Row(bad, "tensor") for bad in (stored(data_type=99), stored(raw_data=b"x"))),
]
BAD: dict[str, Sequence[Any]] = {
    "torch.from_torch.source": [
        *(None, 3, "rnn.pt", [], [3], [MODULE, 3], torch.nn.Linear(I, H), np.ones(3), OwnLSTM(I, H)),
        Row(torch.nn.GRU, "expected a module, got the class GRU"),
        Row(torch.ao.nn.quantized.dynamic.LSTM(I, H), "is quantised"),
        *(Row(bad, "no recurrent module") for bad in ({}, {3: np.ones(3)}, {"weight_ih": 3})),
        Row(STATE | {"weight_ih_l9": np.ones((H, I), "f")}, "_l9"),
        Row(STATE | {"weight_ih_l1": np.ones((H, I), "f")}, "weight_ih_l1"),
        *(row for name in ("weight_ih_l1", "weight_hh_l0", "bias_hh_l1") for row in broken(STATE, name)),
        Row(torch.nn.GRU(I, H, device="meta"), "weight_"),
        Row(MODULE.state_dict() | {"bias_hh_l1": torch.ones(H, dtype=torch.float8_e5m2)}, "bias_hh_l1"),
        Row(MODULE.state_dict() | {"bias_hh_l1": torch.ones(H).to_sparse()}, "bias_hh_l1"),
        Row(MODULE.state_dict() | {"bias_hh_l1": torch.ones(H, dtype=torch.int8)}, "bias_hh_l1"),
    ],
    "torch.parts.source": [None, 3, [MODULE], np.ones(3), b"x", *(Row(bad, bad) for bad in NO_FILE)],
    "prefix": [None, 3, [3], [], "nope", ["nope"], "\0", np.ones(3)],
    "nonlinearity": ["tanhh", ["tanh"], math.nan],
    "dropout": [-0.1, 1.0, 1.5],
    "torch.load.path": [*NO_PATH, *NO_FILE, "own.safetensors", "encrypted.pt", "packed.pt", "future.pt", "cut.pt"],
    "keras.load.path": [*NO_PATH, *NO_FILE, "encrypted.keras", "packed.keras", "future.keras", "rnn.pt", "cut.h5"],
    "keras.load.model": [3, "gru", jnp.tanh, Row(LAYER, "leave the model out")],
    **{f"{place}.model": [*MODELS, UNKNOWN] for place in ("torch.to_torch", "keras.to_keras", "flax.to_linen")},
    "flax.to_nnx.model": [*MODELS, UNKNOWN, Row(jr.mgu(I, H), "mgu", {"params": drawn_params(jr.mgu(I, H))})],
    "onnx.export.layer": [*MODELS, UNKNOWN],
    "haiku.to_haiku.cell": [*MODELS, Row(LAYER, "Layer"), Row(GRU, "reset", {"params": PARAMS})],
    "equinox.to_equinox.cell": [*MODELS, Row(LAYER, "Layer"), UNKNOWN],
    "keras.from_keras.source": [
        *(*OTHERS, [3], np.ones(3)),
        *(Row(bad, "expected a module, got the class GRU") for bad in (keras.layers.GRU, [keras.layers.GRU])),
        Row([], "no layer"),
        Row(keras.layers.GRU(H), "no weights yet"),
        *(Row(source, "'mine'") for source in (OwnModel(KERAS), [KERAS, OwnModel(KERAS)])),
        Row(keras.layers.Conv1D(3, 3), "Conv1D"),
    ],
    "flax.from_linen.module": [
        *(*OTHERS, linen.Dense(3), linen.RNN(linen.Dense(3)), NNX),
        Row(linen.GRUCell, "expected a module, got the class GRUCell"),
        *(Row(module, "parameters") for module in (linen.LSTMCell(H), linen.MGUCell(H), LINEN_CELL)),
        Row(linen.GRUCell(H + 1), "shape"),
        Row(linen.GRUCell(H, carry_init=lambda key, shape, dtype: jnp.ones(3)), "carry_init"),
        Row(linen.Bidirectional(linen.RNN(linen.GRUCell(H)), linen.RNN(linen.GRUCell(H))), "forward_rnn"),
    ],
    "flax.from_linen.params": [
        *(None, 3, "x", {}, [], {"params": None}, {"params": {}}, {"params": 3}, {"params": {"hr": 3}}),
        *broken({"params": LINEN}, "kernel", "params", "hr"),
        *broken({"params": LINEN}, "bias", "params", "hn"),
        Row({"params": {"W_hh": 3}}, "W_xh", {"module": LINEN_CELL}),
        Row({"params": PARAMS._replace(b=jnp.ones(3))._asdict()}, "params.b", {"module": LINEN_CELL}),
        Row({"cell": 3}, "cell", {"module": linen.RNN(linen.GRUCell(H))}),
    ],
    "flax.linen_variables.params": ["x", {"a": "x"}, {"a": np.full(3, "x")}, {"a": np.full(3, None)}],
    "flax.from_nnx.module": [
        *(
            *OTHERS,
            nnx.Linear(I, H, kernel_init=ZEROS, rngs=nnx.Rngs(0)),
            Row(nnx.GRUCell, "expected a module, got the class GRUCell"),
            linen.GRUCell(H),
            nnx.RNN(NNX, reverse=True),
        ),
        Row(NNX_INTEGERS, "kernel"),
    ],
    "flax.from_nnx.weights": [
        *(3, "x", ["x"], {}, {"x": np.ones(2)}),
        Row(NNX_WEIGHTS | {"more": np.ones(2)}, "more"),
        Row(NNX_WEIGHTS | {"dense_h": {"kernel": np.ones((H, H), "f")}}, "dense_h.kernel"),
        Row(jax.tree.map(lambda a: a.astype(int), NNX_WEIGHTS), "kernel"),
    ],
    "rngs": [3, "x", jax.random.key(0), Row(nnx.Rngs(other=0), "'params'", {"params": None})],
    "flax.NnxCell.initialize_carry.rngs": [],  # nothing is drawn
    "flax.to_nnx.rngs": [3, "x", jax.random.key(0)],
    **{
        f"flax.{name}.cell": [*OTHERS, LAYER, Row(NOISY, "noise")]
        for name in ("linen_cell", "LinenCell", "nnx_cell", "NnxCell")
    },
    **dict.fromkeys(("flax.nnx_layer.layer", "flax.NnxLayer.layer"), OTHERS),
    "flax.to_nnx.params": of_params(drawn_params(ELMAN)),
    **{
        f"flax.{name}.params": [None, "x", 3, *tuple(of_params(PARAMS))[3:7], PARAMS._replace(W_hh="x")]
        for name in ("nnx_cell", "nnx_layer", "NnxCell", "NnxLayer")
    },
    "haiku.from_haiku.core": [None, 3, "gru", hk.Linear, [], [3], {"a": hk.GRU}, Row("Conv2DLSTM", "spatial_shape")],
    "haiku.from_haiku.params": [
        *(None, 3, "x", [], {}, {"gru": None}, {"gru": {}}),
        *(
            Row(
                row.bad, row.says if row.says in ("extra", "float64") else module, {"core": core, "spatial_shape": (5,)}
            )
            for core, module in (
                (hk.GRU, "gru"),
                (hk.LSTM, "lstm/linear"),
                (hk.VanillaRNN, "vanilla_rnn/linear"),
                (hk.VanillaRNN, "vanilla_rnn/linear_1"),
                (hk.Conv1DLSTM, "conv1_dlstm/hidden_to_hidden"),
            )
            for key in HAIKU[module]
            for row in broken(HAIKU, key, module)
            if module != "vanilla_rnn/linear_1" or row.bad[module].get("b") is not None  # it may do without
        ),
    ],
    "haiku.from_haiku.name": [
        *(3, ["gru", "gru"], "nope", [3], []),
        *(Row(bad, "name", {"core": [hk.GRU, hk.LSTM]}) for bad in (3, "gru", ["gru"], [3, 4], [], {"a": 3})),
    ],
    "spatial_shape": [
        *(Row(bad, "spatial_shape", {"core": hk.Conv1DLSTM}) for bad in (None, (), (0,), (2, 2), (1.5,), ("x",))),
        *(3, "x"),
    ],
    "haiku.to_haiku.name": [3, ["a", "b"], [3], []],
    "double_bias": [],
    "equinox.from_equinox.module": [
        *(*OTHERS, Row(eqx.nn.GRUCell, "expected a module, got the class GRUCell"), eqx.nn.Identity()),
        *(row for name in ("weight_ih", "weight_hh", "bias", "bias_n") for row in fields_of(EQUINOX, name)),
    ],
    "params": of_params(PARAMS),
    **{f"onnx.{name}.model": PROTOS for name in ("load", "inspect", "run")},
    "node": [3, [3], [], "nope", ["nope"]],
    "inputs": [
        *(None, 3, "x", [], {}, INPUTS | {"Y": 3}, {"X": INPUTS["X"]}),
        *(INPUTS | {"X": bad} for bad in (None, "x", 3.0, STEP, XS[..., :2], XS.astype(int), XS.astype("bfloat16"))),
        *(INPUTS | {"sequence_lens": bad} for bad in (None, "x", 3, np.ones(B, "f"), np.ones(B + 1, np.int32))),
    ],
    "onnx.export.path": [3, ["x"], b"x", "a\0b", "missing/model.onnx", ".", ""],
    "opset": [6, 999],
    "flax.LinenCell.__call__.inputs": [None, "x", STEP.astype(int), STEP[:, :2], jnp.ones(())],
    "flax.NnxCell.__call__.inputs": [None, "x", STEP.astype(int), STEP[:, :2], jnp.ones(())],
    "carry": [None, "x", CARRY[:, :2], CARRY.astype(int), {"h": CARRY}],
    "flax.NnxLayer.__call__.carry": ["x", CARRY[:, :2], CARRY.astype(int), {"h": CARRY}],
    "rng": ["x", 3, Row(None, "key")],
    "input_shape": [None, 3, "x", (), [1.5, 2.5]],
    "xs": [None, "x", XS.astype(int), XS[..., :2], jnp.ones(T)],
    "lengths": ["x", 3.5, np.ones(B), np.ones(B + 1, int)],
    "mask": ["x", jnp.ones((T, B)), jnp.ones((T + 1, B), bool)],
    "resets": ["x", jnp.ones((T, B)), jnp.ones((T + 2, B), bool)],
    "key": ["x", 3],
    "start": ["x", 1.5, None, jnp.arange(B)],
    "registry.Library.load.module": [3, ["torch"]],
}
FREE = dict.fromkeys(("parent", "name"), "what Flax gives every module of its own")

# Programs, which take a second to compile; tested elsewhere.
RUNS = ("onnx.run", "flax.LinenCell.__call__", "flax.NnxCell.__call__", "flax.NnxLayer.__call__")


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function of :data:`CALLS` by its place."""
    for place in CALLS:
        home, _, name = place.rpartition(".")
        owner = OWNERS[place] if place in OWNERS else getattr(interop, home)
        yield place, getattr(owner, name)


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Those of ``__init__`` for a class, of which its metaclass may show others."""
    if inspect.isclass(function):
        return list(inspect.signature(function.__init__).parameters.values())[1:]
    return list(inspect.signature(function).parameters.values())


def public() -> set[str]:
    """The places of all that converters offer: functions, classes that are no records, and their methods."""
    places = set()
    for library, module in converters().items():
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, tuple):
                continue
            places.add(f"{library}.{name}")
            if inspect.isclass(value):
                every = {n: f for cls in value.__mro__ if "jaxrnn" in cls.__module__ for n, f in vars(cls).items()}
                methods = {n for n, f in every.items() if inspect.isfunction(f) and (n[0] != "_" or n == "__call__")}
                places |= {f"{library}.{name}.{method}" for method in methods - {"setup"}}
    return places


def write_files(folder: Path) -> None:
    """The files that rows name."""
    (folder / "empty").touch()
    (folder / "noise").write_bytes(np.random.default_rng(0).bytes(300))
    (folder / "words.json").write_text('{"a": 1}')
    np.savez(folder / "arrays.npz", a=np.ones(3))
    with zipfile.ZipFile(folder / "archive.zip", "w") as file:
        file.writestr("a.txt", "x")
    torch.save(MODULE.state_dict(), folder / "rnn.pt")
    keras.Sequential([keras.Input((None, I)), KERAS]).save(folder / "model.keras")
    jr.save(folder / "own.safetensors", GRU, PARAMS)
    (folder / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    for good, end in (("rnn.pt", ".pt"), ("model.keras", ".keras")):
        raw = (folder / good).read_bytes()
        (folder / f"cut{end}").write_bytes(raw[: len(raw) // 2])
        # Of each entry: a flag, a method of compression, a version of the format, in both of its headers.
        for name, at, value in (("encrypted", 6, 1), ("packed", 8, 99), ("future", 4, 99)):
            changed = bytearray(raw)
            for magic, more in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
                place = raw.find(magic)
                while place >= 0:
                    changed[place + at + more] |= value
                    place = raw.find(magic, place + 1)
            (folder / f"{name}{end}").write_bytes(changed)
