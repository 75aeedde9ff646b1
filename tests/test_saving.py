"""``jr.save`` and ``jr.load``: what goes in comes back, and what does not fit is refused."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn as jr
from jaxrnn import load, save
from jaxrnn.saving.files import DTYPES, read_header, read_tensors
from jaxrnn.saving.parameters import by_name
from tests.saved import MODELS, H, I, assert_same, randomised
from tests.user_cells import clockwork, textbook_lstm


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
    header = read_header("test", path)
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
    arrays = {dtype.name: np.asarray(rng.integers(0, 2, (2, 3)), dtype) for dtype in map(jnp.dtype, DTYPES.values())}
    arrays |= {"scalar": np.array(-0.0, np.float32), "empty": np.zeros((0, 3), np.float16)}
    arrays["floats"] = np.array([np.nan, -np.nan, np.inf, -np.inf, 5e-324, -0.0])
    arrays["floats"].view(np.uint64)[0] |= 0xBEEF  # a NaN with a payload
    arrays["bytes"] = np.arange(7, dtype=np.int8)

    def init(key):
        return {name: jnp.asarray(a) for name, a in arrays.items()}

    return jr.Cell(init, lambda params, batch_shape=(): (), lambda params, carry, x: (carry, x)), arrays


@pytest.mark.usefixtures("x64")
def test_every_dtype_and_every_bit(path):
    cell, arrays = of_every_dtype()
    with pytest.warns(UserWarning, match="holds parameters without their model"):
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
        (["a"], r"metadata must be a dict, got \['a'\] \(list\)"),
    ],
)
def test_metadata_that_would_not_come_back_are_refused(metadata, message, path):
    with pytest.raises(TypeError, match=message):
        save(path, MODELS["no parameters"], (), metadata)
    assert not path.exists()


# ---- the safetensors library -------------------------------------------------------------------


def test_the_safetensors_library_reads_the_file(path):
    params = randomised(MODELS["deep"])
    save(path, MODELS["deep"], params, {"note": "ü"})
    tensors = safetensors.numpy.load_file(path)
    named = by_name("test", params)
    assert tensors.keys() == named.keys()
    for name, a in named.items():
        np.testing.assert_array_equal(tensors[name], a, strict=True)


@pytest.mark.usefixtures("x64")
def test_files_that_the_library_alone_wrote(path):
    """With tensors in another order, and none of jaxrnn's text in the metadata."""
    _, arrays = of_every_dtype()
    safetensors.numpy.save_file(arrays, path)
    read = read_tensors("test", path)
    assert read.keys() == arrays.keys()
    for name, a in arrays.items():
        assert (read[name].dtype, read[name].shape, read[name].tobytes()) == (a.dtype, a.shape, a.tobytes())


def test_without_the_library(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)  # importing it fails
    for run in (lambda: save(path, MODELS["no parameters"], ()), lambda: load(path)):
        with pytest.raises(ImportError, match=r"needs safetensors, a dependency of jaxrnn: pip install safetensors"):
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
    message = (
        rf"^save: '.*' holds parameters without their model: .*{said}.*\. Keep the code .*; load\(path, model=model\)"
    )
    with pytest.warns(UserWarning, match=message) as told:
        save(path, model, params, {"epoch": 1})
    assert told[0].filename == __file__
    assert "spec" not in json.loads(read_header("test", path).metadata["jaxrnn"])
    again, weights, metadata = load(path, model=model)
    assert again is model and metadata == {"epoch": 1}
    assert_same(weights, params)
    with pytest.raises(ValueError, match=rf"holds parameters without their model: .*{said}.*load\(path, model=model\)"):
        load(path)


@pytest.mark.filterwarnings("ignore:save:UserWarning")
def test_a_lone_array_and_ambiguous_names(path):
    lone = jr.Cell(lambda key: jnp.ones(3), lambda params, batch_shape=(): (), lambda params, carry, x: (carry, x))
    save(path, lone, jnp.arange(3.0))
    assert list(read_header("test", path).tensors) == ["params"]
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
    with pytest.raises(TypeError, match=r"save: expected a Cell or a Layer, got tuple"):
        save(path, (), ())
    with pytest.raises(TypeError, match=r"load: expected the name of a model, or a Cell or a Layer, got int"):
        load(path, 3)
    with pytest.raises(TypeError, match=r"load: expected a Cell or a Layer, got str"):
        load(path, model="lstm")
    with pytest.raises(TypeError, match=r"load: got two models; give one"):
        load(path, MODELS["cell"], MODELS["cell"])


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


def test_the_old_home_warns():
    from jaxrnn.interop import safetensors as old

    for name in ("save", "load"):
        with pytest.warns(
            DeprecationWarning, match=rf"jaxrnn\.interop\.safetensors\.{name} is now jaxrnn\.{name}; the old"
        ):
            assert getattr(old, name) is getattr(jr, name)
