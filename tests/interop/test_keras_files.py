"""Keras' files as Keras 3 writes them, weights alone, graphs; a name means what it meant in the file's version."""

import functools
import json
import os
import warnings
import zipfile

import jax
import numpy as np
import pytest

import jaxrnn as jr
from tests.commands import run_command
from tests.interop.comparing import B, H, I, T, assert_close, assert_same, drawn_params, quick_jit

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
from keras import layers as kl  # noqa: E402

from jaxrnn.interop.keras import from_keras, load, to_keras  # noqa: E402
from tests.interop.old_keras import drawn, lstm_by_hand, write_weights  # noqa: E402

V = 7  # tokens
TOKENS = np.random.default_rng(0).integers(1, V, (T, B))
XS = np.random.default_rng(1).normal(size=(T, B, I)).astype("float32")

UNDRAWN = {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}  # orthogonal ones take long to compile
SEQUENCES = {"return_sequences": True, **UNDRAWN}


def filled(model):
    model.set_weights(drawn(*(w.shape for w in model.get_weights())))
    return model


def functional():
    """A chain with everything in it that a chain may have; masks go beside it."""
    tokens = keras.Input((None,), dtype="int32")
    x = kl.Embedding(V, I, mask_zero=True)(tokens)
    x = kl.Bidirectional(kl.LSTM(H, recurrent_activation="hard_sigmoid", **SEQUENCES))(x)
    x = keras.Sequential([kl.Dropout(0.5), kl.GRU(H, go_backwards=True, **SEQUENCES)])(x)
    x = kl.RNN(kl.StackedRNNCells([kl.SimpleRNNCell(H, **UNDRAWN), kl.LSTMCell(H, **UNDRAWN)]), return_sequences=True)(
        x
    )
    return filled(keras.Model(tokens, kl.TimeDistributed(kl.Dense(2))(x)))


# ---- files of Keras 3 ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore")  # Keras' own, of HDF5 and of a mask that ends
def test_models_of_keras_3(suffix, tmp_path, capsys):
    theirs, path = functional(), tmp_path / f"theirs{suffix}"
    theirs.save(path)
    with pytest.warns(UserWarning, match=r"load: embedding\w* masks token 0: pass mask=\(xs != 0\) to apply,"):
        model, params = load(path)
    want_model, want = from_keras(theirs)
    assert model.spec == want_model.spec
    assert_same(params, want)
    target = tmp_path / "ours.safetensors"
    status, _, errors = run_command(capsys, "convert", path, target)
    assert status == 0 and any("masks token 0" in line for line in errors)
    assert_same(jr.load(target)[1], params)
    assert jr.load(target)[0].spec == model.spec


def test_a_chain_computes_the_same():
    """The GRU runs backwards and hands its outputs on last step first, as does what stands above it."""
    tokens = keras.Input((None,), dtype="int32")
    x = keras.Sequential([kl.Dropout(0.5), kl.GRU(H, go_backwards=True, **SEQUENCES)])(kl.Embedding(V, I)(tokens))
    theirs = filled(keras.Model(tokens, kl.TimeDistributed(kl.Dense(2))(x)))
    model, params = from_keras(theirs)
    want = quick_jit(lambda tokens: theirs(tokens.T).swapaxes(0, 1))(TOKENS)
    assert_close(apply(model)(params, TOKENS)[1][::-1], want)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore")  # Keras' own, of HDF5 and of the digits that it drops
def test_float64_keeps_its_digits_or_is_refused(suffix, tmp_path):
    path = tmp_path / f"theirs{suffix}"
    with jax.enable_x64(True):
        layers = [keras.Input((T, I), dtype="float64"), kl.GRU(H, dtype="float64", **SEQUENCES)]
        theirs = keras.Sequential(layers)
        theirs.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in theirs.get_weights()])
        theirs.save(path)
        assert_same(load(path)[1], from_keras(theirs)[1])
        assert load(path)[1][0].W_hh.dtype == "float64"
    with pytest.raises(TypeError, match=r"the weights of .* are float64, but were made float32 while JAX's 64 bits"):
        load(path)


@functools.cache
def apply_of(spec):
    return jax.jit(jr.build(spec).apply, compiler_options={"xla_backend_optimization_level": 0})


def apply(model):
    return apply_of(model.spec)


@pytest.mark.parametrize("form", ["keras 3", "old"])
def test_weights_alone(form, tmp_path):
    """Into a model of ours of the same form."""
    theirs = filled(keras.Sequential([keras.Input((T, I)), kl.Bidirectional(kl.GRU(H, **SEQUENCES)), kl.Dense(2)]))
    path = tmp_path / "theirs.weights.h5"
    if form == "keras 3":
        theirs.save_weights(path)
    else:
        write_weights(path, {layer.name: layer.get_weights() for layer in theirs.layers} | {"dropout": []}, "2.3.1")
    model, want = from_keras(theirs)
    same, params = load(path, model)
    assert same is model
    assert_same(params, want)
    with pytest.raises(ValueError, match=r"holds weights without the layers' options; .*keras\.load\(path, model\)"):
        load(path)
    if form == "old":
        with pytest.raises(ValueError, match=r"the weights of 2 layers \(bidirectional\w*, dense\w*\), the model 1"):
            load(path, jr.scan(jr.gru(I, H)))
        with pytest.raises(ValueError, match=r"the arrays of dense\w* do not fit"):
            load(
                path,
                jr.stack(model, jr.readout(2, 2)).spec
                and jr.stack(*(jr.build(s) for s in model.spec.children[:1]), jr.readout(2 * H, 3)),
            )


def test_hard_sigmoid_is_that_of_the_version_that_wrote_the_file(tmp_path):
    """The same archive under two versions; 0.2 x + 0.5 and x / 6 + 0.5 differ between -3 and 3."""
    theirs = filled(
        keras.Sequential([keras.Input((T, I)), kl.LSTM(H, recurrent_activation="hard_sigmoid", **SEQUENCES)])
    )
    outputs = {}
    for version in ("3.15.1", "2.15.0"):
        path = tmp_path / f"{version}.keras"
        theirs.save(path)
        rewritten(path, "metadata.json", lambda text, v=version: json.dumps(json.loads(text) | {"keras_version": v}))
        model, params = load(path)
        outputs[version] = np.asarray(apply(model)(params, XS)[1])
        said = dict(model.spec.children[0].options)["gate_activation"]
        assert said == ("hard_sigmoid" if version[0] == "3" else ("hard_sigmoid", 0.2, 0.5))
        again, back = from_keras(to_keras(model, params))
        assert again.spec == model.spec
        assert_same(back, params)
        jr.save(tmp_path / "ours", model, params)
        assert jr.load(tmp_path / "ours")[0].spec == model.spec
    σ = {"3.15.1": lambda a: np.clip(a / 6 + 0.5, 0, 1), "2.15.0": lambda a: np.clip(0.2 * a + 0.5, 0, 1)}
    for version, ys in outputs.items():
        np.testing.assert_allclose(ys, lstm_by_hand(*theirs.get_weights(), XS, σ[version]), rtol=0, atol=2e-6)
    assert np.abs(outputs["3.15.1"] - outputs["2.15.0"]).max() > 0.01


READ = {
    "tanh",
    "relu",
    "sigmoid",
    "hard_sigmoid",
    "softplus",
    "softsign",
    "elu",
    "silu",
    "swish",
    "linear",
    "leaky_relu",
}
OTHERS = {"get", "serialize", "deserialize", *READ}
REFUSED = {name for name in vars(keras.activations) if not name.startswith("_")} - OTHERS


@pytest.mark.parametrize("name", sorted(READ | REFUSED))
def test_an_activation_means_the_same_or_is_refused(name):
    theirs = kl.SimpleRNNCell(1, activation=name, **UNDRAWN)
    theirs.build((None, 1))
    theirs.set_weights([np.ones((1, 1)), np.zeros((1, 1)), np.zeros(1)])
    if name in REFUSED:
        with pytest.raises(ValueError, match="has no counterpart"):
            from_keras(theirs)
        return
    cell, params = from_keras(theirs)
    x = np.linspace(-6, 6, 49, dtype="float32")[:, None]
    want = keras.activations.get(name)(x)
    np.testing.assert_allclose(cell.step(params, np.zeros_like(x), x)[1], want, rtol=0, atol=1e-6)


def rewritten(path, name, change):
    """A zip archive with one of its texts changed."""
    with zipfile.ZipFile(path) as file:
        texts = {info.filename: file.read(info) for info in file.infolist()}
    texts[name] = change(texts[name].decode())
    with zipfile.ZipFile(path, "w") as file:
        for inside, text in texts.items():
            file.writestr(inside, text)


def test_embeddings_go_round():
    model = jr.stack(jr.embedding(V, I), jr.gru(I, H))
    params = drawn_params(model)
    again, same = from_keras(to_keras(model, params))
    assert again.spec == model.spec
    assert_same(same, params)


# ---- what is refused ----------------------------------------------------------------------------


def branched():
    x = keras.Input((T, I))
    return keras.Model(x, kl.add([kl.GRU(I, **SEQUENCES)(x), x]))


def shared():
    x, gru = keras.Input((T, I)), kl.GRU(I, **SEQUENCES)
    return keras.Model(x, gru(gru(x)))


def two_outputs():
    x = keras.Input((T, I))
    y = kl.GRU(H, **SEQUENCES)(x)
    return keras.Model(x, [y, kl.Dense(2)(y)])


def started():
    x, h = keras.Input((T, I)), keras.Input((H,))
    return keras.Model([x, h], kl.GRU(H, **SEQUENCES)(x, initial_state=h))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (branched, r"where add\w* reads from gru\w* \(output 0\), input_layer\w* \(output 0\), has no counterpart"),
        (shared, r"where gru\w* is used 2 times, has no counterpart: only chains of layers"),
        (two_outputs, r"whose outputs are of dense\w*, gru\w*, has no counterpart"),
        (started, r"where gru\w* reads from input_layer\w* \(output 0\), input_layer\w* \(output 0\), has no"),
    ],
)
def test_graphs_that_are_no_chains(make, message):
    with pytest.raises(ValueError, match=f"from_keras: the graph of 'functional\\w*', {message}"):
        from_keras(make())


@pytest.mark.parametrize(
    "config",
    [
        {"module": "os", "class_name": "system", "config": {"command": "touch MARKER"}, "registered_name": None},
        {"module": "keras.layers", "class_name": "Lambda", "config": {"function": {"class_name": "__lambda__"}}},
        {"module": "builtins", "class_name": "function", "config": "system", "registered_name": "os>system"},
    ],
)
def test_code_in_a_keras_archive_is_not_run(config, tmp_path, capsys):
    path, marker = tmp_path / "bad.keras", tmp_path / "ran"
    filled(keras.Sequential([keras.Input((T, I)), kl.Dense(2)])).save(path)
    text = json.dumps(config).replace("MARKER", str(marker))

    def change(old):
        whole = json.loads(old)
        whole["config"]["layers"].append(json.loads(text))
        return json.dumps(whole)

    rewritten(path, "config.json", change)
    with pytest.raises(ValueError, match=r"names code that is not Keras' own .*, which is not run"):
        load(path)
    for command in (("inspect", path), ("convert", path, tmp_path / "b.safetensors")):
        status, _, errors = run_command(capsys, *command)
        assert status == 1 and len(errors) == 1
    assert not marker.exists()


def test_other_files(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"load: '.*a\.h5' is no file of Keras, neither a \.keras archive nor HDF5"):
        load(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.h5")
    jr.save(tmp_path / "b.safetensors", cell := jr.gru(I, H), cell.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"is no file of weights of Keras, which is HDF5; leave the model out"):
        load(tmp_path / "b.safetensors", cell)


def test_a_chain_without_masks_tells_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        from_keras(keras.Sequential([keras.Input((T, I)), kl.GRU(H, **UNDRAWN)]))


@pytest.mark.parametrize("size", [0, 8, 2**40])
def test_heaps_that_lead_nowhere_are_refused(size, tmp_path):
    """HDF5 2.0 walks for ever on a free object of no size, and makes room for a heap of any."""
    path = tmp_path / "model.h5"
    filled(keras.Sequential([keras.Input((T, I)), kl.LSTM(H, **SEQUENCES)])).save(path)
    raw = bytearray(path.read_bytes())
    heap = raw.find(b"GCOL\x01")
    at = heap + 8  # the size of the whole heap
    if size < 16:
        at = heap + 16  # its objects: index (2 bytes), 6 bytes, size
        while raw[at : at + 2] != b"\0\0":
            at += 16 + -(-int.from_bytes(raw[at + 8 : at + 16], "little") // 8) * 8
        at += 8
    raw[at : at + 8] = size.to_bytes(8, "little")
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="is damaged: a heap in it"):
        load(path)
