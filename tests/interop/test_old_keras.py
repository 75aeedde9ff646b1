"""HDF5 files of Keras 1 and 2, rebuilt with h5py, against their equations and torch; broken and hostile ones."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.interop.comparing import B, H, I, T, assert_close

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
from keras import layers as kl  # noqa: E402

from jaxrnn.interop.keras import load  # noqa: E402
from tests.interop.old_keras import (  # noqa: E402
    OLD_RNN,
    RNN,
    drawn,
    gru_by_hand,
    in_order,
    layer,
    lstm_by_hand,
    old_σ,
    sequential,
    write_model,
    write_weights,
)

V = 7  # tokens
TOKENS = np.random.default_rng(0).integers(1, V, (T, B))
XS = np.random.default_rng(1).normal(size=(T, B, I)).astype("float32")


@functools.cache
def apply_of(spec):
    return jax.jit(jr.build(spec).apply, compiler_options={"xla_backend_optimization_level": 0})


def apply(model):
    return apply_of(model.spec)


@pytest.mark.parametrize("σ", old_σ)
@pytest.mark.parametrize("version", ["2.2.4", "2.2.4-tf", "1.2.2", None])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_of_keras_1_and_2(kind, version, σ, tmp_path):
    """Keras 1 (also where no version stands) has three arrays a gate, an LSTM's in the order i, c, f, o."""
    G = 4 if kind == "LSTM" else 3
    kernel, recurrent, bias = drawn((I, G * H), (H, G * H), (G * H,))
    if version and version[0] == "2":
        config = sequential(layer(kind, "a", **RNN | {"recurrent_activation": σ}), bare=version == "2.2.4")
        arrays = [kernel, recurrent, bias]
    else:
        config = sequential(layer(kind, "a", **OLD_RNN | {"inner_activation": σ}), bare=True)
        gates = [[np.split(a, G, axis=-1)[k] for a in (kernel, recurrent, bias)] for k in range(G)]
        arrays = [a for k in ((0, 2, 1, 3) if kind == "LSTM" else (0, 1, 2)) for a in gates[k]]
    write_model(tmp_path / "old.h5", config, {"a": arrays}, version)
    model, params = load(tmp_path / "old.h5")
    by_hand = lstm_by_hand if kind == "LSTM" else gru_by_hand
    want = by_hand(kernel, recurrent, bias, XS, old_σ[σ])
    np.testing.assert_allclose(apply(model)(params, XS)[1], want, rtol=0, atol=2e-6)


def cudnn_arrays(module):
    """A torch module's weights in the buffers that cuDNN reads, as CuDNNLSTM and CuDNNGRU kept them.

    torch hands cuDNN one matrix (H, I) a gate, row after row, and both biases; Keras kept the bytes of each as an array
    (I, H), side by side, input biases before recurrent ones. torch's GRU stands in the order r, z, n.
    """
    w = {name.removesuffix("_l0"): a.detach().numpy() for name, a in module.named_parameters()}
    gates = w["weight_hh"].shape[0] // H
    order = (0, 1, 2, 3) if gates == 4 else (1, 0, 2)

    def side_by_side(name, shape):
        parts = np.split(w[name], gates)
        return np.concatenate([parts[k].ravel().reshape(shape) for k in order], axis=-1)

    biases = [side_by_side(name, (H,)) for name in ("bias_ih", "bias_hh")]
    return [side_by_side("weight_ih", (I, H)), side_by_side("weight_hh", (H, H)), np.concatenate(biases)]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("where", ["model", "bidirectional", "weights"])
def test_cudnn_layers(kind, where, tmp_path):
    """Against torch, whose equations are cuDNN's."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    modules = [getattr(torch.nn, kind)(I, H) for _ in range(1 + (where == "bidirectional"))]
    arrays = [a for module in modules for a in cudnn_arrays(module)]
    path, x = tmp_path / "old.h5", torch.tensor(XS)
    with torch.no_grad():
        want = modules[0](x)[0].numpy()
        if where == "bidirectional":
            want = np.concatenate([want, modules[1](x.flip(0))[0].flip(0).numpy()], axis=-1)
    own = layer(f"CuDNN{kind}", "a", units=H, return_sequences=True, go_backwards=False, stateful=False)
    if where == "weights":
        write_weights(path, {"a": arrays}, "2.1.6")
        model, params = load(path, jr.scan(jr.lstm(I, H) if kind == "LSTM" else jr.gru(I, H, reset="after")))
    else:
        wrapped = layer("Bidirectional", "a", layer=own, merge_mode="concat")
        write_model(path, sequential(wrapped if where == "bidirectional" else own), {"a": arrays}, "2.1.6")
        model, params = load(path)
    np.testing.assert_allclose(apply(model)(params, XS)[1], want, rtol=0, atol=2e-6)


def test_an_old_chain(tmp_path):
    """Masking, TimeDistributed, Embedding, a model in a model, of Keras 2; the same layers in Keras 3 beside it."""
    kernel, recurrent, bias, W, b, table = drawn((I, 3 * H), (H, 3 * H), (2, 3 * H), (H, 2), (2,), (V, I))
    inner = sequential(layer("GRU", "gru", **RNN, reset_after=True), layer("Dropout", "drop", rate=0.5))
    inner["config"]["name"] = "inner"
    config = in_order(
        layer("InputLayer", "tokens", batch_input_shape=[None, None], dtype="int32"),
        layer("Embedding", "embed", input_dim=V, output_dim=I, mask_zero=True),
        inner,
        layer("Masking", "masking", mask_value=-1.0),
        layer("TimeDistributed", "time", layer=layer("Dense", "dense", units=2, activation="linear", use_bias=True)),
    )
    weights = {"tokens": [], "embed": [table], "inner": [kernel, recurrent, bias], "masking": [], "time": [W, b]}
    write_model(tmp_path / "old.h5", config, weights, "2.3.1")
    with pytest.warns(UserWarning) as told:
        model, params = load(tmp_path / "old.h5")
    assert [
        str(one.message).partition(":")[2].split(" to apply")[0].strip() for one in told if one.category is UserWarning
    ] == [
        "embed masks token 0: pass mask=(xs != 0)",
        "masking (Masking) is left out: pass mask=(xs != -1.0).any(-1)",
    ]
    cell = jr.gru(I, H, reset="after", gate_activation=("hard_sigmoid", 0.2, 0.5))
    assert model.spec == jr.stack(jr.embedding(V, I), cell, jr.dropout(0.5), jr.readout(H, 2)).spec
    theirs = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            kl.Embedding(V, I),
            kl.GRU(H, recurrent_activation=lambda a: jnp.clip(0.2 * a + 0.5, 0, 1), return_sequences=True),
            kl.Dense(2),
        ]
    )
    theirs.set_weights([table, kernel, recurrent, bias, W, b])
    assert_close(apply(model)(params, TOKENS)[1], np.asarray(theirs(TOKENS.T)).swapaxes(0, 1))


# ---- broken and hostile files --------------------------------------------------------------------


LSTM = layer("LSTM", "a", **RNN)
ARRAYS = drawn((I, 4 * H), (H, 4 * H), (4 * H,))
HUGE = RNN | {"units": 10**9}
BROKEN = {
    "the arrays of a do not fit what the file says": (sequential(LSTM), ARRAYS[:2]),
    "the arrays of a do not fit what the file says ": (
        sequential(layer("LSTM", "a", **RNN | {"units": 10**9})),
        ARRAYS,
    ),
    "a has 4 arrays, of which .*belong to no part": (sequential(LSTM), [*ARRAYS, ARRAYS[2]]),
    r"a \(ConvLSTM2D\) has no counterpart: SimpleRNN, LSTM": (sequential(layer("ConvLSTM2D", "a")), ARRAYS),
    r"a's activation='double' has no counterpart: it is none of Keras' own": (
        sequential(layer("LSTM", "a", **RNN | {"activation": "double"})),
        ARRAYS,
    ),
    "the model's description in .* is damaged: KeyError": ({"class_name": "Sequential"}, ARRAYS),
    "is damaged: KeyError": (sequential(layer("LSTM", "a")), ARRAYS),
    "a Sequential in a model with a part that is frozen has no": (
        sequential({**sequential(LSTM, layer("LSTM", "b", **RNN | {"trainable": False})), "name": "a"}),
        ARRAYS,
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_files(message, tmp_path):
    config, arrays = BROKEN[message]
    if "frozen" in message:
        config["config"]["layers"][0]["config"]["layers"][1]["config"]["trainable"] = False
        config["config"]["layers"][0]["config"]["name"] = "a"
    write_model(tmp_path / "bad.h5", config, {"a": arrays}, "2.3.1")
    with pytest.raises(ValueError, match=f"load: .*{message.strip()}"):
        load(tmp_path / "bad.h5")


def linked(path):
    with h5py.File(path, "a") as file:
        other = path.with_name("other.h5")
        write_weights(other, {"x": ARRAYS}, None)
        del file["model_weights/a/a_1/array_0:0"]
        file["model_weights/a/a_1/array_0:0"] = h5py.ExternalLink(str(other), "x/x_1/array_0:0")


def outside(path):
    with h5py.File(path, "a") as file:
        del file["model_weights/a/a_1/array_0:0"]
        raw = path.with_name("raw")
        raw.write_bytes(bytes(4 * I * 4 * H))
        file["model_weights/a/a_1"].create_dataset(
            "array_0:0", (I, 4 * H), "f4", external=[(str(raw), 0, 4 * I * 4 * H)]
        )


def inflated(path):
    with h5py.File(path, "a") as file:
        del file["model_weights/a/a_1/array_0:0"]
        file["model_weights/a/a_1"].create_dataset("array_0:0", (1 << 40, 4 * H), "f4", chunks=(1024, 4 * H))


def garbled(path):
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = b"[" * 100_000


def test_damaged_hdf5_is_told(tmp_path):
    """Cut off or with bytes overwritten: read (there are no checksums), or refused in the reader's name."""
    path = tmp_path / "bad.h5"
    write_model(path, sequential(LSTM), {"a": ARRAYS}, "2.3.1")
    raw, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for k in range(60):
        at = int(rng.integers(8, len(raw)))
        path.write_bytes(raw[:at] if k % 3 == 0 else raw[:at] + rng.bytes(8) + raw[at + 8 :])
        try:
            load(path)
        except ValueError as error:
            assert str(error).startswith("load: ")
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (linked, "is a link to somewhere else"),
        (outside, "is no array of floats in this file"),
        (inflated, "inflates beyond measure"),
        (garbled, "the model's description in .* is damaged"),
    ],
)
def test_hostile_hdf5(change, message, tmp_path):
    path = tmp_path / "bad.h5"
    write_model(path, sequential(LSTM), {"a": ARRAYS}, "2.3.1")
    assert load(path)[1][0].W_xh.shape == (I, 4 * H)
    change(path)
    with pytest.raises(ValueError, match=f"load: .*{message}"):
        load(path)
