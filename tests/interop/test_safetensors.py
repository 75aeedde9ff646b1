"""One file for a model and its parameters: what goes in comes back, and nothing that is damaged does."""

import doctest
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn as jr
from jaxrnn.interop import safetensors
from jaxrnn.interop.safetensors import load, save
from tests.user_cells import clockwork, textbook_lstm

pytest.importorskip("safetensors")

I, H = 3, 4

MODELS = {
    "cell": jr.lstm(I, H),
    "learned": jr.gru(I, H, reset="after", learned_carry=True),
    "reversed": jr.scan(jr.elman(I, H, output_size=2, activation="relu"), reverse=True),
    "narrow": jr.scan(jr.gru(I, H, param_dtype="bfloat16"), plan=jr.Plan(hoist=False), checkpoint=jr.Budget(5)),
    "no parameters": jr.scan(jr.dropout(0.3)),
    "deep": jr.stack(
        jr.embedding(7, I),
        jr.bidirectional(jr.gru(I, H), jr.peephole_lstm(I, H, peephole="full"), merge="sum"),
        jr.dropout(0.2),
        jr.residual(jr.normalized(jr.lstm(H, H))),
        jr.readout(H, 2),
    ),
    "chain": jr.chain(jr.leaky(jr.elman(I, H), rate=0.3), jr.layer_norm(H)),
}


def randomised(model, seed=0):
    """Parameters in the dtypes of ``init``, none of them zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)


def assert_same(got, want):
    """The same bits in the same places."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert isinstance(a, jax.Array) and (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# ---- what goes in comes back -------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_file_alone_rebuilds_the_model(name, path):
    model = MODELS[name]
    params = randomised(model)
    assert save(path, model, params) is None
    again, weights, metadata = load(path)
    assert type(again) is type(model) and again.spec == model.spec and metadata == {}
    assert_same(weights, params)


def test_the_rebuilt_model_computes_the_same(path):
    model = MODELS["deep"]
    params = randomised(model)
    save(path, model, params)
    again, weights, _ = load(path)
    tokens = jnp.array([[1, 2], [6, 0], [3, 3]])
    assert_same(jax.jit(again.apply)(weights, tokens), jax.jit(model.apply)(params, tokens))


def test_names_and_texts_of_the_file(path):
    model = jr.stack(jr.bidirectional(jr.gru(I, H, reset="after"), jr.gru(I, H)), jr.dropout(0.2), jr.lstm(8, H))
    save(path, model, randomised(model), {"epoch": 3})
    header = safetensors.read_header("test", path)
    assert header.tensors.keys() == {
        *("0.forward.W_xh", "0.forward.W_hh", "0.forward.b", "0.forward.b_hh"),
        *("0.backward.W_xh", "0.backward.W_hh", "0.backward.b"),
        *("2.W_xh", "2.W_hh", "2.b"),
    }
    assert header.tensors["2.W_hh"] == ((H, 4 * H), "float32")
    assert header.metadata.keys() == {"jaxrnn"}
    kept = json.loads(header.metadata["jaxrnn"])
    assert (kept["format"], kept["version"], kept["metadata"]) == (1, jr.__version__, {"epoch": 3})
    assert kept["spec"] == model.spec.to_dict()


def test_the_same_model_gives_the_same_bytes(path, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name, MODELS["deep"], randomised(MODELS["deep"]), {"note": "x"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def of_every_dtype():
    """A user's cell whose parameters are of every dtype that the format has, a scalar and an empty array among them."""
    rng = np.random.default_rng(3)
    arrays = {
        dtype.name: np.asarray(rng.integers(0, 2, (2, 3)), dtype)
        for dtype in map(jnp.dtype, safetensors.DTYPES.values())
    }
    arrays |= {"scalar": np.array(-0.0, np.float32), "empty": np.zeros((0, 3), np.float16)}
    arrays["floats"] = np.array([np.nan, -np.nan, np.inf, -np.inf, 5e-324, -0.0])
    arrays["floats"].view(np.uint64)[0] |= 0xBEEF  # a NaN with a payload
    arrays["bytes"] = np.arange(7, dtype=np.int8)
    init = lambda key: {name: jnp.asarray(a) for name, a in arrays.items()}  # noqa: E731
    return jr.Cell(init, lambda params, batch_shape=(): (), lambda params, carry, x: (carry, x)), arrays


@pytest.mark.usefixtures("x64")
def test_every_dtype_and_every_bit(path):
    cell, arrays = of_every_dtype()
    save(path, cell, arrays)
    _, params, _ = load(path, cell)
    assert_same(params, arrays)


def test_what_was_loaded_can_be_donated(path):
    params = randomised(MODELS["cell"])
    save(path, MODELS["cell"], params)
    weights = load(path)[1]
    step = jax.jit(lambda params: jax.tree.map(lambda a: a - a / 2, params), donate_argnums=0)
    assert_same(step(weights), jax.tree.map(lambda a: a / 2, params))
    assert_same(load(path)[1], params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_floats_of_another_width_than_those_of_init_stay_as_they_are(dtype, path):
    params = jax.tree.map(lambda a: a.astype(dtype), randomised(MODELS["cell"]))
    save(path, MODELS["cell"], params)
    assert_same(load(path)[1], params)


def test_arrays_of_numpy_in_any_layout(path):
    params = jax.tree.map(np.asarray, randomised(MODELS["cell"]))
    odd = params._replace(
        W_xh=np.asfortranarray(params.W_xh),
        W_hh=np.repeat(params.W_hh, 2, axis=0)[::2],
        b=params.b.astype(">f4"),  # the other order of bytes
    )
    save(path, MODELS["cell"], odd)
    assert_same(load(path)[1], params)


def test_sharded_arrays_are_fetched(path):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.P(None, "d"))
    params = randomised(MODELS["cell"])
    save(path, MODELS["cell"], params._replace(W_hh=jax.device_put(params.W_hh, spread)))
    assert_same(load(path)[1], params)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(metadata=st.dictionaries(st.text(max_size=9), VALUES, max_size=4))
def test_metadata_come_back_equal(metadata, tmp_path_factory):
    path = tmp_path_factory.mktemp("metadata") / "m.safetensors"
    save(path, MODELS["no parameters"], (), metadata)
    assert load(path)[2] == metadata


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"loss": float("nan")}, r"save: metadata \{'loss': nan\} cannot be kept as JSON"),
        ({"when": {1}}, r"save: metadata \{'when': \{1\}\} cannot be kept as JSON"),
        ({"shape": (2, 3)}, r"save: metadata .* would come back from JSON as \{'shape': \[2, 3\]\}"),
        ({"steps": {1: "a"}}, r"would come back from JSON as \{'steps': \{'1': 'a'\}\}"),
        ({1: "a"}, r"would come back from JSON as \{'1': 'a'\}; .*text as keys"),
        (["a"], r"metadata must be a dict, got list"),
    ],
)
def test_metadata_that_would_not_come_back_are_refused(metadata, message, path):
    with pytest.raises(TypeError, match=message):
        save(path, MODELS["no parameters"], (), metadata)
    assert not path.exists()


# ---- the safetensors library -------------------------------------------------------------------


def test_the_safetensors_library_reads_the_file(path):
    library_numpy = pytest.importorskip("safetensors.numpy")
    params = randomised(MODELS["deep"])
    save(path, MODELS["deep"], params, {"note": "ü"})
    tensors = library_numpy.load_file(path)
    named = safetensors.by_name("test", params)
    assert tensors.keys() == named.keys()
    for name, a in named.items():
        np.testing.assert_array_equal(tensors[name], a, strict=True)


@pytest.mark.usefixtures("x64")
def test_files_that_the_library_alone_wrote(path):
    """With tensors in another order, and none of jaxrnn's text in the metadata."""
    library_numpy = pytest.importorskip("safetensors.numpy")
    _, arrays = of_every_dtype()
    library_numpy.save_file(arrays, path)
    read = safetensors.read_tensors("test", path)
    assert read.keys() == arrays.keys()
    for name, a in arrays.items():
        assert (read[name].dtype, read[name].shape, read[name].tobytes()) == (a.dtype, a.shape, a.tobytes())


def test_without_the_library(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)  # importing it fails
    for run in (lambda: save(path, MODELS["no parameters"], ()), lambda: load(path)):
        with pytest.raises(ImportError, match=r"needs safetensors: pip install 'jaxrnn\[interop\]'"):
            run()


# ---- models of one's own -----------------------------------------------------------------------


OWN = {
    "cell": (clockwork(I, H), "user cell"),
    "stack": (jr.stack(textbook_lstm(I, H), jr.readout(H, 2)), "user layer"),
    "function": (jr.elman(I, H, activation=jnp.arctan), "elman's option activation is the function"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_model_without_a_spec_is_saved_and_needs_the_model_at_load(name, path):
    model, said = OWN[name]
    params = randomised(model)
    save(path, model, params, {"epoch": 1})
    assert "spec" not in json.loads(safetensors.read_header("test", path).metadata["jaxrnn"])
    again, weights, metadata = load(path, model=model)
    assert again is model and metadata == {"epoch": 1}
    assert_same(weights, params)
    with pytest.raises(ValueError, match=rf"holds parameters without their model: .*{said}.*load\(path, model=model\)"):
        load(path)


def test_a_lone_array_and_ambiguous_names(path):
    lone = jr.Cell(lambda key: jnp.ones(3), lambda params, batch_shape=(): (), lambda params, carry, x: (carry, x))
    save(path, lone, jnp.arange(3.0))
    assert list(safetensors.read_header("test", path).tensors) == ["params"]
    assert_same(load(path, lone)[1], jnp.arange(3.0))
    twice = lone._replace(init=lambda key: {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"save: the parameters' names a\.b are ambiguous"):
        save(path, twice, twice.init(None))
    taken = lone._replace(init=lambda key: {"__metadata__": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"save: the parameters' names __metadata__ are ambiguous"):
        save(path, taken, taken.init(None))


# ---- a model that is given ---------------------------------------------------------------------


DEEP = jr.stack(jr.lstm(I, H), jr.dropout(0.2), jr.readout(H, 2))
SAME = {
    "the same": DEEP,
    "another plan": jr.stack(jr.scan(jr.lstm(I, H), plan="plain", unroll=2), jr.dropout(0.2), jr.readout(H, 2)),
    "a chain": jr.chain(jr.lstm(I, H), jr.dropout(0.2), jr.readout(H, 2)),
    "another start": jr.stack(jr.lstm(I, H, T_max=9, recurrent_init="zeros"), jr.dropout(0.5), jr.readout(H, 2)),
    "another dtype": jr.stack(jr.lstm(I, H, dtype="bfloat16"), jr.dropout(0.2), jr.readout(H, 2)),
    "truncated": jr.tbptt(DEEP, window=3),
    "clipped": jr.stack(jr.cotangent_clip(jr.lstm(I, H), max_norm=1.0), jr.dropout(0.2), jr.readout(H, 2)),
    "a default named": jr.stack(jr.lstm(I, H, learned_carry=False), jr.dropout(0.2), jr.readout(H, 2)),
}


@pytest.mark.parametrize("name", SAME)
def test_a_given_model_that_computes_the_same_is_taken(name, path):
    params = randomised(DEEP)
    save(path, DEEP, params)
    model, weights, _ = load(path, SAME[name])
    assert model is SAME[name]
    assert_same(weights, params)


@pytest.mark.parametrize(
    ("saved", "given"),
    [
        (jr.elman(I, H), jr.elman(I, H, activation="relu")),
        (jr.scan(jr.lstm(I, H)), jr.scan(jr.lstm(I, H), reverse=True)),
        (jr.leaky(jr.elman(I, H), rate=0.1), jr.leaky(jr.elman(I, H), rate=0.2)),
        (jr.lstm(I, H), jr.lstm(I, H + 1)),
    ],
)
def test_a_given_model_that_computes_something_else_is_refused(saved, given, path):
    save(path, saved, randomised(saved))
    with pytest.raises(ValueError, match=r"load: '.*model.safetensors' holds the parameters of .*something else"):
        load(path, given)


def test_what_is_no_model_is_refused(path):
    with pytest.raises(TypeError, match=r"save: expected a Cell or a Layer as model, got tuple"):
        save(path, (), ())
    with pytest.raises(TypeError, match=r"load: expected a Cell or a Layer as model, got str"):
        load(path, "lstm")


# ---- parameters that do not fit ----------------------------------------------------------------


def test_parameters_of_another_shape_name_or_kind_are_refused_at_save(path):
    model = jr.stack(jr.gru(I, H), jr.readout(H, 2))
    gru, readout = randomised(model)

    def refused(params, message, kind=ValueError):
        with pytest.raises(kind, match=message):
            save(path, model, params)

    refused(
        (gru._replace(b=jnp.ones(3)), readout), r"save: params .* \(stack\): 0\.b should be float32 \(12,\), got fl"
    )
    refused((gru._replace(b=jnp.ones(12, int)), readout), r"0\.b should be float32 \(12,\), got int32 \(12,\)")
    refused((gru._replace(b=None), readout), r"0\.b is missing, float32 \(12,\)")
    refused((gru._replace(h0=jnp.ones(H)), readout), r"0\.h0, float32 \(4,\), is none of them")
    refused((gru,), r"1\.W_hy is missing, float32 \(4, 2\); 1\.b_y is missing")
    refused([gru, readout], r"save: stack: params should be tuple of 2: .*, got list of 2")
    refused((gru._replace(b=1.0), readout), r"0\.b must be an array, got float; use jnp\.asarray", TypeError)
    refused((gru._replace(b=jnp.ones(12, jnp.int4)), readout), r"0\.b is int4, which a file cannot hold", TypeError)
    refused((gru._replace(b=jax.random.key(0)), readout), r"0\.b is a PRNG key .*jax\.random\.key_data", TypeError)
    assert not path.exists()


def test_traced_parameters_are_refused(path):
    with pytest.raises(TypeError, match=r"save: params W_xh is traced .*outside of jit"):
        jax.jit(lambda params: save(path, MODELS["cell"], params))(randomised(MODELS["cell"]))


@pytest.mark.usefixtures("x64")
def test_64_bits_are_never_dropped(path):
    wide = jax.tree.map(lambda a: a.astype("float64"), randomised(MODELS["cell"]))
    save(path, MODELS["cell"], wide)
    assert_same(load(path)[1], wide)
    with (
        jax.enable_x64(False),
        pytest.raises(TypeError, match=r"the weights are float64 but JAX would make them float32 .*jax_enable_x64"),
    ):
        load(path)


# ---- files that are not sound ------------------------------------------------------------------


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def saved(path, model=MODELS["cell"]):
    """The header, as JSON has it, and the data of a sound file."""
    save(path, model, randomised(model))
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:start]), raw[start:]


def test_a_file_cut_short_anywhere(path):
    saved(path)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    for end in (0, 5, 8, 100, start - 1, start, start + 50, len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(
            ValueError, match=rf"load: '.*model\.safetensors' \({end:,} bytes\) is no sound .*cut short"
        ):
            load(path)
    path.write_bytes(raw + b"x")
    with pytest.raises(ValueError, match=r"incomplete metadata, file not fully covered"):
        load(path)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": NaN}', "invalid JSON in header: expected value"),
        (b'{"a": -Infinity}', "invalid JSON in header: invalid number"),
        (b'{"a": 1e999}', "invalid JSON in header: number out of range"),
        (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "duplicate field `dtype`"),
        (b'{"__metadata__": {}, "__metadata__": {}}', "duplicate field `__metadata__`"),
        (b"[]", "invalid JSON in header"),
        (b'{"a": ', "invalid JSON in header: EOF"),
        (b'{"\xff": 1}', "invalid UTF-8 in header"),
        (b'{"a": ' + b"[" * 100_000, "recursion limit exceeded"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number out of range"),
        ({"a": 1}, "invalid type: integer `1`"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "missing field `data_offsets`"),
        ({"__metadata__": {"a": 1}}, "invalid type: integer `1`, expected a string"),
        ({"__metadata__": ["a"]}, "invalid type: sequence, expected a map"),
        (entry(dtype=4), "invalid type: integer `4`"),
        (entry(dtype="F5"), "unknown variant `F5`"),
        (entry(shape=(2.0,)), "invalid type: floating point `2.0`"),
        (entry(shape=(True,)), "invalid type: boolean `true`"),
        (entry(shape=(-2,)), "invalid value: integer `-2`"),
        (entry(shape=(2**70,)), "expected usize"),
        (entry(offsets=(0,)), "invalid length 1, expected a tuple of size 2"),
        (entry(offsets=(8, 0)), "invalid offset for tensor `a`"),
        (entry(offsets=(-8, 0)), "invalid value: integer `-8`"),
        (entry(offsets=(0, 4)), "invalid shape, data type, or offset for tensor"),
        (entry(shape=(2**40, 2**40)), "overflow computing buffer size"),
        (entry(offsets=(4, 12)), "invalid offset for tensor `a`"),
        ({**entry(), "b": entry()["a"]}, "invalid offset for tensor `[ab]`"),  # the same bytes twice
        ({**entry(), "b": entry(shape=(1,), offsets=(12, 16))["a"]}, "invalid offset for tensor `[ab]`"),  # a hole
        ({**entry(), "b": entry(shape=(4,), offsets=(8, 24))["a"]}, "incomplete metadata, file not fully covered"),
    ],
)
def test_a_malformed_header(header, message, path):
    write(path, header, bytes(16 if isinstance(header, dict) and "b" in header else 8))
    with pytest.raises(ValueError, match=rf"load: '.*model\.safetensors' .* is no sound safetensors file: .*{message}"):
        load(path)


def test_a_name_that_comes_twice_hides_no_numbers(path):
    """The last entry counts, as in most readers of JSON; but every byte must belong to an entry that counts."""
    text = [json.dumps(entry(offsets=offsets))[1:-1] for offsets in ((0, 8), (8, 16))]
    write(path, f"{{{text[0]}, {text[1]}}}".encode(), bytes(16))
    with pytest.raises(ValueError, match="invalid offset for tensor `a`"):
        safetensors.read_tensors("test", path)
    write(path, f"{{{text[0]}, {text[0]}}}".encode(), bytes(8))
    assert safetensors.read_tensors("test", path)["a"].tobytes() == bytes(8)


def test_headers_of_gigantic_length_are_not_read(path):
    write(path, b"{}", length=2**63)
    with pytest.raises(ValueError, match="header too large"):
        load(path)
    with open(path, "wb") as file:  # sparse: no disk is taken
        file.write((150_000_000).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(ValueError, match="header too large"):
        load(path)


def test_other_safetensors_files(path):
    write(path, entry(), bytes(8))
    with pytest.raises(ValueError, match=r"'.*' is a safetensors file, but not one .*a float32 \(2,\); read it with"):
        load(path)
    write(path, {"weight_ih_l0": entry()["a"]}, bytes(8))
    with pytest.raises(ValueError, match=r"torch's names: python -m jaxrnn convert"):
        load(path)
    path.write_bytes(b"\x80\x04\x95 a pickle")
    with pytest.raises(ValueError, match="no sound safetensors file"):
        load(path)


def test_files_that_are_ours_but_changed(path):
    def changed(message, kept=None, **fields):
        """Other entries in jaxrnn's text, and other fields of tensors."""
        header, data = saved(path)
        theirs = {**json.loads(header["__metadata__"]["jaxrnn"]), **(kept or {})}
        header["__metadata__"]["jaxrnn"] = json.dumps({name: v for name, v in theirs.items() if v != "absent"})
        for name, other in fields.items():
            header[name].update(other)
        write(path, header, data)
        with pytest.raises(ValueError, match=rf"load: .*{message}") as caught:
            load(path)
        assert repr(str(path)) in str(caught.value)

    changed(f"the format 2 of jaxrnn {jr.__version__}, .* reads 1; upgrade", {"format": 2})
    changed("the format None of jaxrnn None", {"format": "absent", "version": "absent"})
    changed("is damaged: .*'NaN'", {"metadata": {"a": float("nan")}})
    changed("is damaged: expected a dict", {"metadata": []})
    larger = {"kind": "lstm", "options": {"input_size": 10**30, "hidden_size": 4}}
    changed(r"W_xh should be float32 \(10{30}, 16\), got float32 \(3, 16\)", {"spec": larger})
    for spec in ({"kind": "eval"}, "lstm", {"kind": "Plan"}, None, 4):
        changed("cannot be rebuilt: .*saved by jaxrnn", {"spec": spec})
    for options in ({"input_size": 3}, {"input_size": 3, "hidden_size": [4]}):
        changed("cannot be rebuilt", {"spec": {"kind": "lstm", "options": options}})
    changed("without their model: the file has no spec", {"spec": "absent"})
    changed(r"W_xh should be float32 \(3, 16\), got float32 \(16, 3\)", W_xh={"shape": [16, 3]})
    changed(r"b should be float32 \(16,\), got int32 \(16,\)", b={"dtype": "I32"})
    changed(r"b should be float32 \(16,\), got F4 \(128,\)", b={"dtype": "F4", "shape": [128]})
    for text in ("[" * 100_000, "[]", "", "{"):
        header, data = saved(path)
        header["__metadata__"]["jaxrnn"] = text
        write(path, header, data)
        with pytest.raises(ValueError, match=r"jaxrnn's part of the metadata in .* is damaged"):
            load(path)
    header, data = saved(path)
    header["c"] = header.pop("b")
    write(path, header, data)
    with pytest.raises(ValueError, match=r"b is missing, .*; c, float32 \(16,\), is"):
        load(path)


def test_dtypes_that_are_not_known_here(path):
    write(path, entry(dtype="F4", shape=(16,)), bytes(8))
    assert safetensors.read_header("test", path).tensors == {"a": ((16,), "F4")}
    with pytest.raises(ValueError, match=r"test: '.*' holds dtypes that jaxrnn does not read: a \(F4\)"):
        safetensors.read_tensors("test", path)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_changed_byte_gives_a_clear_error_or_other_numbers(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("changed") / "m.safetensors"
    saved(path)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 8 + int.from_bytes(raw[:8], "little")))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        model, params, _ = load(path)
    except (ValueError, TypeError) as error:
        assert str(error).startswith("load: ") and repr(str(path)) in str(error)
    else:
        wanted = jax.eval_shape(model.init, jax.random.key(0))
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)


def test_booleans_are_0_or_1(path):
    cell = jr.Cell(
        lambda key: jnp.array([True]), lambda params, batch_shape=(): (), lambda params, carry, x: (carry, x)
    )
    save(path, cell, jnp.array([True]))
    path.write_bytes(path.read_bytes()[:-1] + b"\x02")  # the one byte of data
    with pytest.raises(ValueError, match="is boolean, but has bytes other than 0 and 1"):
        load(path, cell)


def test_no_file_and_no_regular_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file.*absent'"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"load: '.*' is a directory"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"save: '.*' is a directory"):
        save(tmp_path, MODELS["no parameters"], ())
    with pytest.raises(FileNotFoundError, match=r"save: cannot write in a folder that is not there: '.*absent'"):
        save(tmp_path / "absent" / "m.safetensors", MODELS["no parameters"], ())
    os.mkfifo(tmp_path / "pipe")
    for run in (load, lambda path: save(path, MODELS["no parameters"], ())):
        with pytest.raises(ValueError, match="is no regular file"):
            run(tmp_path / "pipe")


# ---- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_an_error_on_the_way_leaves_the_old_file_and_no_other(call, path, monkeypatch):
    params = randomised(MODELS["cell"])
    save(path, MODELS["cell"], params)

    def fail(*args):
        raise OSError("no space left")

    if call == "write":
        library = pytest.importorskip("safetensors.numpy")
        monkeypatch.setattr(library, "save_file", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="no space left"):
        save(path, MODELS["cell"], jax.tree.map(jnp.zeros_like, params))
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    assert_same(load(path)[1], params)


def test_permissions_are_those_of_a_usual_file(path):
    old = os.umask(0o027)
    try:
        save(path, MODELS["no parameters"], ())
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o664)
        save(path, MODELS["no parameters"], ())
        assert stat.S_IMODE(path.stat().st_mode) == 0o664
    finally:
        os.umask(old)


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(target)
    for step in range(2):  # a link to nothing, then one to a file
        save(link, MODELS["no parameters"], (), {"step": step})
        assert link.is_symlink() and load(target)[2] == {"step": step}
    assert os.listdir(target.parent) == [target.name]


SAVING = """
import sys, jax, jax.numpy as jnp, jaxrnn as jr
from jaxrnn.interop.safetensors import save
model = jr.scan(jr.elman(500, 500))
shapes = jax.eval_shape(model.init, jax.random.key(0))
versions = [jax.tree.map(lambda a: jnp.full(a.shape, n, a.dtype), shapes) for n in (1, 2)]
save(sys.argv[1], model, versions[0], {"version": 1})
print("ready", flush=True)
while True:
    for n in (2, 1):
        save(sys.argv[1], model, versions[n - 1], {"version": n})
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    paths = [tmp_path / f"{n}.safetensors" for n in range(3)]
    command = [sys.executable, "-c", SAVING]
    running = [subprocess.Popen([*command, path], stdout=subprocess.PIPE, text=True) for path in paths]
    try:
        for process, path in zip(running, paths, strict=True):
            assert process.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0.01, 0.1))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            _, params, metadata = load(path)
            assert metadata["version"] in (1, 2)
            assert all((np.asarray(a) == metadata["version"]).all() for a in jax.tree.leaves(params))
    finally:
        for process in running:
            process.kill()
            process.communicate()


LIMITED = """
import resource, sys
import jax, jaxrnn as jr
model = jr.embedding(1000, 100)
params = model.init(jax.random.key(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    jr.save(sys.argv[1], model, params)
except OSError as error:
    print(error)
"""


def test_a_full_disk(path):
    save(path, MODELS["no parameters"], ())
    run = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"save: {str(path)!r} cannot be written: Error while serializing: I/O error")
    assert os.listdir(path.parent) == [path.name]
    load(path)


LOADING = """
import resource, sys
from jaxrnn.interop.safetensors import load
load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, params, _ = load(sys.argv[2])
params[0].table.block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_loading_takes_the_memory_of_the_file(tmp_path):
    paths = [tmp_path / "small", tmp_path / "large"]
    for path, rows in zip(paths, (2, 5_000), strict=True):
        model = jr.stack(jr.embedding(rows, 1000), *(jr.readout(1000, 1000) for _ in range(24)))
        save(
            path,
            model,
            jax.tree.map(lambda a: np.ones(a.shape, a.dtype), jax.eval_shape(model.init, jax.random.key(0))),
        )
    run = subprocess.run([sys.executable, "-c", LOADING, *paths], capture_output=True, text=True, check=True)
    file, grown = paths[1].stat().st_size, 1024 * int(run.stdout)
    assert grown < 1.25 * file  # a copy of each tensor would make it 2


def test_examples():
    assert doctest.testmod(safetensors).failed == 0
