"""jaxrnn.interop.haiku against Haiku: values, gradients, round trips, refusals."""

import re

import jax
import numpy as np
import pytest

import jaxrnn as jr

hk = pytest.importorskip("haiku")
pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from jaxrnn.interop.haiku import from_haiku, to_haiku  # noqa: E402
from tests.interop.comparing import B, H, I, T, assert_close, assert_same, compare, drawn, drawn_params  # noqa: E402

S = {"Conv1DLSTM": (5,), "Conv2DLSTM": (4, 3), "Conv3DLSTM": (3, 2, 2)}

# The core, and the bias of which only the sum with another matters: it has that one's gradient.
CORES = {
    "VanillaRNN": (lambda: hk.VanillaRNN(H), "vanilla_rnn/linear_1"),
    "VanillaRNN with one bias": (lambda: hk.VanillaRNN(H, double_bias=False), None),
    "LSTM": (lambda: hk.LSTM(H), None),
    "GRU": (lambda: hk.GRU(H), None),
    "Conv1DLSTM": (lambda: hk.Conv1DLSTM(S["Conv1DLSTM"], H, 3), "conv1_dlstm/hidden_to_hidden"),
    "Conv2DLSTM": (lambda: hk.Conv2DLSTM(S["Conv2DLSTM"], H, (3, 2)), "conv2_dlstm/hidden_to_hidden"),
    "Conv3DLSTM": (lambda: hk.Conv3DLSTM(S["Conv3DLSTM"], H, 2), "conv3_dlstm/hidden_to_hidden"),
}

pytestmark = pytest.mark.usefixtures("x64")


def unroll(make):
    return hk.without_apply_rng(hk.transform(lambda xs, state: hk.dynamic_unroll(make(), xs, state)))


def state_of(carry):
    return hk.LSTMState(*carry) if isinstance(carry, jr.LSTMCarry) else carry


def carry_of(state):
    return jr.LSTMCarry(*state) if isinstance(state, hk.LSTMState) else state


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, "float64") for name in CORES] + [(name, "float32") for name in ("LSTM", "GRU")]
)
def test_from_haiku(name, dtype):
    make, second = CORES[name]
    kind = name.split()[0]
    theirs, space = unroll(make), S.get(kind, ())
    xs = drawn(jax.ShapeDtypeStruct((T, B, *space, I), dtype), dtype, seed=1)
    zeros = jax.ShapeDtypeStruct((B, *space, H), dtype)
    state = hk.LSTMState(zeros, zeros) if "LSTM" in kind else zeros
    weights = drawn(jax.eval_shape(theirs.init, jax.random.key(0), xs, state), dtype)
    options = {"spatial_shape": space} if space else {}
    cell, params = from_haiku(kind, weights, **options)
    start = drawn(carry_of(state), dtype, seed=2)

    def run(weights, xs, start):
        ys, end = theirs.apply(weights, xs, state_of(start))
        return carry_of(end), ys

    def of_sum(gradients):
        """A gradient by the sum of two biases is that by either, not both."""
        if second is not None:
            gradients = gradients | {second: gradients[second] | {"b": np.zeros_like(gradients[second]["b"])}}
        return from_haiku(kind, gradients, **options)[1]

    compare(jr.scan(cell, plan="plain").apply, run, params, weights, xs, start, of_sum, dtype)


def test_deep_rnn_both_ways():
    """A chain of cells; the second LSTM is Haiku's lstm_1."""
    cell = jr.chain(jr.lstm(I, H), jr.gru(H, 2), jr.lstm(2, H, bias=False))
    params = drawn_params(cell, "float64")
    weights = to_haiku(cell, params)
    assert sorted(weights) == ["gru", "lstm/linear", "lstm_1/linear"]
    theirs = unroll(lambda: hk.DeepRNN([hk.LSTM(H), hk.GRU(2), hk.LSTM(H)]))
    xs = drawn(jax.ShapeDtypeStruct((T, B, I), "float64"), "float64")
    start = drawn(jax.eval_shape(lambda: cell.initial_carry(params, (B,))), "float64", seed=2)
    ys, state = jax.jit(theirs.apply)(weights, xs, tuple(map(state_of, start)))
    layer = jr.scan(cell, plan="plain")
    assert_close(jax.jit(layer.apply)(params, xs, start), (tuple(map(carry_of, state)), ys), "float64")
    again, own = from_haiku([hk.LSTM, "GRU", hk.LSTM], weights)
    assert [child.kind for child in again.spec.children] == ["lstm", "gru", "lstm"]
    assert_close(own[0], params[0], "float64")
    assert_same(own[1], params[1])


CELLS = {
    "elman": lambda **options: jr.elman(I, H, activation="relu", **options),
    "lstm": lambda **options: jr.lstm(I, H, **options),
    "gru": lambda **options: jr.gru(I, H, **options),
    "conv": lambda **options: jr.conv_lstm(I, H, spatial_shape=(4, 3), kernel_size=(3, 2), **options),
}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(CELLS)),
    options=st.sampled_from([{}, {"param_dtype": "float64"}]),
    name=st.sampled_from([None, "net/~/core"]),
    double_bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_round_trip(kind, options, name, double_bias, seed):
    """jaxrnn -> Haiku -> jaxrnn: nothing changes, but for the rounding of 1 less and 1 more on a forget gate's bias."""
    with jax.enable_x64(True):
        dtype = options.get("param_dtype", "float32")
        cell = CELLS[kind](**options)
        params = drawn_params(cell, dtype, seed)
        weights = to_haiku(cell, params, name=name, double_bias=double_bias)
        core = {"elman": hk.VanillaRNN, "lstm": hk.LSTM, "gru": hk.GRU, "conv": hk.Conv2DLSTM}[kind]
        again, own = from_haiku(core, weights, name=name, spatial_shape=(4, 3))
        # No initialisers go over, but the kernel's sizes are written as a tuple.
        assert again.spec == cell.spec
        assert_close(own, params, dtype)
        assert_same(own._replace(b=None), params._replace(b=None))
        if kind in ("elman", "gru"):
            assert_same(own.b, params.b)


@pytest.mark.parametrize("kind", CELLS)
def test_without_biases(kind):
    """Haiku has a bias everywhere: its forget gate's takes the 1 away that is added at every step."""
    cell = CELLS[kind](bias=False)
    params = drawn_params(cell, "float32")
    core = {"elman": "VanillaRNN", "lstm": "LSTM", "gru": "GRU", "conv": "Conv2DLSTM"}[kind]
    _, own = from_haiku(core, to_haiku(cell, params), spatial_shape=(4, 3))
    np.testing.assert_array_equal(own.b, np.zeros_like(own.b))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (jr.elman(I, H), "elman with activation='tanh' has no counterpart: hk.VanillaRNN has 'relu'"),
        (jr.gru(I, H, reset="after"), "gru with reset='after' has no counterpart: hk.GRU has 'before'"),
        (jr.lstm(I, H, gate_activation="hard_sigmoid"), "lstm with gate_activation='hard_sigmoid' has no counterpart"),
        (jr.lstm(I, H, projection_size=2), "lstm with projection_size=2 has no counterpart: hk.LSTM has None"),
        (jr.gru(I, H, learned_carry=True), "a learned initial carry has no counterpart: Haiku has no such parameter"),
        (jr.gru(I, H, dtype="bfloat16"), "dtype='bfloat16' with weights in float32 has no counterpart: Haiku computes"),
        (jr.conv_lstm(I, H, spatial_shape=(4,), peephole=True), "conv_lstm with peephole=True has no counterpart"),
        (jr.mgu(I, H), "mgu has no counterpart: Haiku's cores are VanillaRNN, LSTM, GRU"),
        (jr.chain(jr.lstm(I, H), jr.readout(H, 2)), "readout has no counterpart"),
        (jr.scan(jr.gru(I, H)), "a Layer has no counterpart: Haiku's cores are cells"),
    ],
    ids=["tanh", "reset", "gate", "projection", "learned", "dtype", "peephole", "mgu", "readout", "layer"],
)
def test_not_to_haiku(model, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        to_haiku(model, drawn_params(model, "float32"))


def test_not_from_haiku():
    weights = to_haiku(jr.gru(I, H), drawn_params(jr.gru(I, H), "float32"), name="net/~/gru")
    with pytest.raises(ValueError, match=re.escape("from_haiku: the core IdentityCore has no counterpart")):
        from_haiku(hk.IdentityCore, weights)
    with pytest.raises(
        ValueError, match=re.escape("in the module 'gru' of a GRU, got no such module; the modules given")
    ):
        from_haiku(hk.GRU, weights)
    with pytest.raises(ValueError, match=re.escape("Conv1DLSTM needs spatial_shape, its input_shape; the weights do")):
        from_haiku("Conv1DLSTM", {})
    broken = {"gru": weights["net/~/gru"] | {"b": np.zeros(3, "float32")}}
    with pytest.raises(ValueError, match=re.escape("params['gru']['b'] must have the shape")):
        from_haiku("GRU", broken)
