"""from_keras and to_keras against Keras 3: outputs, final states, every gradient; files; round trips; refusals."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn as jr
from tests.interop.comparing import B, H, I, T, assert_close, assert_same, drawn_params, quick_jit
from tests.interop.keras_cells import in_full_precision

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")
from keras import layers as kl  # noqa: E402

from jaxrnn.interop.keras import from_keras, to_keras  # noqa: E402

LENGTHS = np.array([3, T, 1])
VALID = (np.arange(T)[:, None] < LENGTHS)[..., None]

pytestmark = pytest.mark.usefixtures("x64")


UNDRAWN = {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}  # orthogonal ones take long to compile
BOTH = {"return_sequences": True, "return_state": True}


SIMPLE = functools.partial(kl.SimpleRNN, H, **UNDRAWN)
LSTM = functools.partial(kl.LSTM, H, **UNDRAWN)
GRU = functools.partial(kl.GRU, H, **UNDRAWN)
simple, lstm, gru = (functools.partial(layer, **BOTH) for layer in (SIMPLE, LSTM, GRU))

LAYERS = {
    "simple": simple,
    "lstm": lstm,
    "lstm, softsign, hard sigmoid, no bias, backwards": lambda **o: lstm(
        activation="softsign", recurrent_activation="hard_sigmoid", use_bias=False, go_backwards=True, **o
    ),
    "gru, reset after": gru,
    "gru, reset before, backwards": lambda **o: gru(reset_after=False, go_backwards=True, **o),
    "bidirectional, concat": lambda **o: kl.Bidirectional(lstm(**o), merge_mode="concat", **o),
    "bidirectional, sum": lambda **o: kl.Bidirectional(gru(use_bias=False, **o), merge_mode="sum", **o),
    "bidirectional, ave": lambda **o: kl.Bidirectional(
        simple(activation="relu", use_bias=False, **o), merge_mode="ave", **o
    ),
    "bidirectional, mul, of two kinds": lambda **o: kl.Bidirectional(
        gru(reset_after=False, **o), backward_layer=simple(go_backwards=True, **o), merge_mode="mul", **o
    ),
    "stacked cells": lambda **o: kl.RNN(
        kl.StackedRNNCells([kl.LSTMCell(H, **UNDRAWN, **o), kl.GRUCell(H, **UNDRAWN, **o)], **o), **BOTH, **o
    ),
}


def built(layer, seed=0):
    """With random weights, biases too."""
    layer.build((None, None, I))
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=w.shape).astype(w.dtype) for w in layer.get_weights()])
    return layer


def carry_of(layer, states):
    """Our carry from Keras' states: h and c, those of each direction, or of each stacked cell."""

    def of_run(states):
        return jr.LSTMCarry(*states) if len(states) == 2 else states[0]

    if isinstance(layer, kl.Bidirectional):
        half = len(states) // 2
        return jr.BiCarry(of_run(states[:half]), of_run(states[half:]))
    if isinstance(layer.cell, kl.StackedRNNCells):
        return tuple(of_run(s if isinstance(s, list | tuple) else [s]) for s in states)
    return of_run(states)


def gradients_of(layer, factory, gradients, dtype):
    """The gradient by our parameters: the conversion is linear, but a merged bias's gradient is one's, not the sum."""
    twin = factory(dtype=dtype)
    twin.build((None, None, I))
    for v, gradient in zip(twin.trainable_variables, gradients, strict=True):
        gradient = np.array(gradient)
        if gradient.shape == (2, 3 * H):
            gradient[1, : 2 * H] = 0
        v.assign(gradient)
    return from_keras(twin)[1]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float64") for name in LAYERS] + [(name, "float32") for name in ("lstm", "gru, reset after")],
)
def test_layer(name, dtype):
    """float64 with lengths, float32 without. Keras repeats outputs on masked steps: the valid ones are compared."""
    factory = LAYERS[name]
    theirs = built(factory(dtype=dtype))
    layer, params = from_keras(theirs)
    in_full_precision(theirs)
    lengths, valid = (LENGTHS, VALID) if dtype == "float64" else (None, np.ones((T, B, 1), bool))
    rng = np.random.default_rng(1)

    def draw(a):
        return rng.normal(size=a.shape).astype(dtype)

    runs = [theirs] if isinstance(theirs, kl.RNN) else [theirs.forward_layer, theirs.backward_layer]
    states = jax.tree.map(draw, [s for run in runs for s in run.get_initial_state(batch_size=B)])
    xs, w_states = draw(np.empty((T, B, I))), jax.tree.map(draw, states)
    w_ys = draw(np.empty(jax.eval_shape(layer.apply, params, xs)[1].shape)) * valid

    def run_theirs(weights, xs, states):
        mask = None if lengths is None else valid[..., 0].T
        others = [v.value for v in theirs.non_trainable_variables]
        (ys, *states), _ = theirs.stateless_call(weights, others, xs.swapaxes(0, 1), initial_state=states, mask=mask)
        ys = ys.swapaxes(0, 1)
        ys = ys[::-1] if getattr(theirs, "go_backwards", False) else ys
        return states, jnp.where(valid, ys, 0)

    def run_ours(params, xs, carry):
        return layer.apply(params, xs, carry, lengths=lengths)

    def gradients(run, w_carry, *inputs):
        def loss(inputs):
            carry, ys = run(*inputs)
            total = jnp.vdot(ys, w_ys)
            for a, w in zip(jax.tree.leaves(carry), jax.tree.leaves(w_carry), strict=True):
                total = total + jnp.vdot(a, w)
            return total, (carry, ys)

        return quick_jit(jax.grad(loss, has_aux=True))(inputs)

    weights = [v.value for v in theirs.trainable_variables]
    (want_params, want_xs, want_start), (want_states, want_ys) = gradients(run_theirs, w_states, weights, xs, states)
    (by_params, by_xs, by_start), (carry, ys) = gradients(
        run_ours, carry_of(theirs, w_states), params, xs, carry_of(theirs, states)
    )
    assert_close(ys, want_ys, dtype)
    assert_close(carry, carry_of(theirs, want_states), dtype)
    assert_close(by_params, gradients_of(theirs, factory, want_params, dtype), dtype)
    assert_close(by_xs, want_xs, dtype)
    assert_close(by_start, carry_of(theirs, want_start), dtype)


def sequential(dtype="float64"):
    """After the layer that goes backwards Keras' outputs stand last step first."""
    options = {"return_sequences": True, "dtype": dtype}
    return keras.Sequential(
        [
            keras.Input((T, I), dtype=dtype),
            kl.Dropout(0.25, dtype=dtype),
            kl.Bidirectional(LSTM(**options), dtype=dtype),
            GRU(go_backwards=True, **options),
            kl.Dropout(0.5, dtype=dtype),
            SIMPLE(recurrent_dropout=0.25, **options),
            kl.Dense(2, dtype=dtype),
        ]
    )


def test_sequential():
    theirs = sequential()
    rng = np.random.default_rng(0)
    theirs.set_weights([rng.normal(size=w.shape) for w in theirs.get_weights()])
    xs = rng.normal(size=(T, B, I))
    model, params = from_keras(theirs)
    in_full_precision(*theirs.layers)
    want = np.asarray(theirs(xs.swapaxes(0, 1))).swapaxes(0, 1)
    own = {"param_dtype": "float64"}
    other = jr.stack(
        jr.dropout(0.25),
        jr.bidirectional(jr.lstm(I, H, **own), jr.lstm(I, H, **own)),
        jr.scan(jr.gru(2 * H, H, reset="after", **own), reverse=True),
        jr.dropout(0.5),
        jr.scan(jr.recurrent_dropout(jr.elman(H, H, **own), rate=0.25, input_rate=0.0), reverse=True),
        jr.readout(H, 2, **own),
    )
    assert model.spec == other.spec
    _, ys = quick_jit(model.apply)(params, xs)
    assert_close(ys[::-1], want, "float64")
    back = to_keras(model, params)
    again, came = from_keras(back)
    assert again.spec == model.spec
    assert_same(came, params)


def test_one_step_alone():
    """return_sequences=False is the last valid step of our outputs; a readout commutes with taking it."""
    theirs = keras.Sequential([keras.Input((T, I)), LSTM(), kl.Dense(2)])
    rng = np.random.default_rng(0)
    theirs.set_weights([rng.normal(size=w.shape) for w in theirs.get_weights()])
    model, params = from_keras(theirs)
    xs = rng.normal(size=(T, B, I)).astype("float32")
    _, ys = quick_jit(model.apply)(params, xs)
    assert_close(ys[-1], np.asarray(theirs(xs.swapaxes(0, 1))), "float32")


@pytest.mark.parametrize("cell_class", [kl.SimpleRNNCell, kl.LSTMCell, kl.GRUCell])
def test_cell(cell_class):
    theirs = cell_class(H, dtype="float64", **UNDRAWN)
    theirs.build((None, I))
    rng = np.random.default_rng(2)
    theirs.set_weights([rng.normal(size=w.shape) for w in theirs.get_weights()])
    cell, params = from_keras(theirs)
    assert isinstance(cell, jr.Cell)
    x, h, c = (rng.normal(size=(B, size)) for size in (I, H, H))
    theirs.activation = jnp.tanh  # see in_full_precision
    y, states = theirs(x, [h, c] if cell_class is kl.LSTMCell else [h])
    carry = jr.LSTMCarry(h, c) if cell_class is kl.LSTMCell else h
    carry, ours = cell.step(params, carry, x)
    assert_close(ours, np.asarray(y), "float64")
    assert_close(jax.tree.leaves(carry), list(map(np.asarray, states)), "float64")
    back = to_keras(cell, params)
    assert type(back) is cell_class
    assert_same(from_keras(back)[1], params)


def test_weights_files(tmp_path):
    """Their file into our model, and ours into theirs, by the two lines that the module's docstring gives."""
    theirs, other = sequential("float32"), sequential("float32")
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    want_model, want = from_keras(theirs)

    mine = to_keras(want_model, drawn_params(want_model, seed=4))
    mine.load_weights(tmp_path / "theirs.weights.h5")
    _, came = from_keras(mine)
    assert_same(came, want)

    params = drawn_params(want_model, seed=5)
    to_keras(want_model, params).save_weights(tmp_path / "ours.weights.h5")
    other.load_weights(tmp_path / "ours.weights.h5")
    assert_same(from_keras(other)[1], params)


def test_lists_of_arrays():
    theirs = built(GRU())
    layer, want = from_keras(theirs)
    mine = to_keras(layer, drawn_params(layer, seed=0))
    mine.set_weights(theirs.get_weights())
    assert_same(from_keras(mine)[1], want)


def test_a_mixed_policy_computes_in_its_dtype():
    layer, params = from_keras(built(LSTM(dtype="mixed_bfloat16")))
    assert params.W_xh.dtype == "float32"
    assert layer.spec == jr.scan(jr.lstm(I, H, dtype="bfloat16")).spec
    assert to_keras(layer, params).cell.dtype_policy.name == "mixed_bfloat16"


def test_weights_are_copies():
    theirs = built(SIMPLE())
    _, params = from_keras(theirs)
    before = jax.tree.map(np.array, params)
    theirs.set_weights([0 * w for w in theirs.get_weights()])
    assert_same(params, before)


@st.composite
def cells(draw, input_size, dtype):
    kind = draw(st.sampled_from(["elman", "lstm", "gru"]))
    options = {"activation": draw(st.sampled_from(["tanh", "relu", "softsign", "identity"]))}
    if kind != "elman":
        options["gate_activation"] = draw(st.sampled_from(["sigmoid", "hard_sigmoid"]))
    if kind == "gru":
        options["reset"] = draw(st.sampled_from(["before", "after"]))
    if not draw(st.booleans()):
        options["bias"] = False
    if dtype != "float32":
        options["param_dtype"] = dtype
    cell = getattr(jr, kind)(input_size, H, **options)
    return jr.recurrent_dropout(cell, rate=0.5, input_rate=0.25) if draw(st.booleans()) else cell


@st.composite
def models(draw):
    dtype = draw(st.sampled_from(["float32", "float64", "bfloat16"]))
    own = {} if dtype == "float32" else {"param_dtype": dtype}
    merge = draw(st.sampled_from(["concat", "sum", "mean", "product"]))
    size = 2 * H if merge == "concat" else H
    members = [
        jr.bidirectional(draw(cells(I, dtype)), draw(cells(I, dtype)), merge=merge),
        jr.scan(draw(cells(size, dtype)), reverse=True),
        jr.dropout(0.125),
        jr.chain(draw(cells(H, dtype)), draw(cells(H, dtype))),
        jr.readout(H, 2, **own),
    ]
    return jr.stack(*members[: draw(st.integers(1, len(members)))])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(models())
def test_round_trip_from_jaxrnn_is_bitwise(model):
    params = drawn_params(model, seed=3)
    again, came = from_keras(to_keras(model, params))
    assert again.spec == model.spec
    assert_same(came, params)


def test_round_trip_from_keras_computes_the_same():
    """Where Keras has two biases and ours is their sum; elsewhere the weights are the same."""
    theirs = built(gru(dtype="float64"))
    back = to_keras(*from_keras(theirs))
    in_full_precision(theirs, back)
    x = np.random.default_rng(0).normal(size=(B, T, I))
    np.testing.assert_allclose(back(x), theirs(x)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in LAYERS if name.split(",")[0] in ("simple", "lstm")])
def test_round_trip_from_keras_is_bitwise(name):
    theirs = built(LAYERS[name](dtype="float64"))
    back = to_keras(*from_keras(theirs))
    assert type(back) is type(theirs)
    assert_same(back.get_weights(), theirs.get_weights())
    for option in ("units", "activation", "use_bias", "go_backwards", "dropout", "recurrent_dropout"):
        assert back.get_config()[option] == theirs.get_config()[option]


def stacked(*layers):
    return keras.Sequential([keras.Input((T, I)), *layers])


def double(x):
    return 2 * x


class OwnCell(kl.GRUCell):
    """Another's equations."""


class OwnModel(keras.Model):
    """Its call may be anything."""


SEQUENCES = {"return_sequences": True}
UNREAD = {
    r"masking\w* \(Masking\) has no counterpart: it has no weights; pass lengths or mask": lambda: kl.Masking(),
    r"'s merge_mode=None has no counterpart": lambda: built(kl.Bidirectional(GRU(), merge_mode=None)),
    r"whose forward layer runs backwards, has no counterpart": lambda: built(
        kl.Bidirectional(GRU(go_backwards=True), backward_layer=GRU())
    ),
    r"with return_sequences=False below dense\w*, has no counterpart": lambda: stacked(
        kl.Bidirectional(GRU()), kl.Dense(2)
    ),
    r"lstm\w*'s activation='gelu' has no counterpart: by that name Keras means the exact form": lambda: built(
        LSTM(activation="gelu")
    ),
    r"'s activation='mish' has no counterpart: both know tanh, relu": lambda: built(GRU(activation="mish")),
    r"'s activation='double, a function or layer' has no counterpart": lambda: built(SIMPLE(activation=double)),
    r"the cell OwnCell has no counterpart": lambda: built(kl.RNN(OwnCell(H))),
    r"spatial_dropout1d\w* \(SpatialDropout1D\) has no counterpart: SimpleRNN, LSTM": lambda: stacked(
        kl.SpatialDropout1D(0.5)
    ),
    r"'s noise_shape=\(None, 1, 3\) has no counterpart": lambda: kl.Dropout(0.5, noise_shape=(None, 1, I)),
    r"dense\w*'s activation='softmax' has no counterpart: both know": lambda: stacked(kl.Dense(2, "softmax")),
    r"OwnModel 'own_model\w*', a model of one's own, has no counterpart": lambda: OwnModel(),
    r"gru_cell\w* \(GRUCell\) has no weights yet: it does not know the size of its inputs. Call it": lambda: GRU(),
    r"from_keras: there is no layer in it; pass a model or a list": lambda: [],
}


@pytest.mark.parametrize("message", UNREAD)
def test_unread(message):
    with pytest.raises(ValueError, match=message):
        from_keras(UNREAD[message]())


def test_a_bidirectional_layer_above_a_reversed_one():
    model = stacked(GRU(go_backwards=True, **SEQUENCES), kl.Bidirectional(GRU()))
    with pytest.raises(ValueError, match="whose forward layer runs backwards, has no counterpart"):
        from_keras(model)


def test_the_layers_of_a_functional_model():
    inputs = keras.Input((T, I))
    model = keras.Model(inputs, kl.TimeDistributed(kl.Dense(2))(GRU(**SEQUENCES)(inputs)))
    for source in (model.layers, model):
        ours, _ = from_keras(source)
        assert ours.spec == jr.stack(jr.gru(I, H, reset="after"), jr.readout(H, 2)).spec


REFUSED = {
    "to_keras: a learned initial carry has no counterpart": jr.scan(jr.lstm(I, H, learned_carry=True)),
    "to_keras: peephole_lstm has no counterpart: Keras has the recurrences elman, lstm, gru": jr.peephole_lstm(I, H),
    "to_keras: layer_norm has no counterpart": jr.stack(jr.gru(I, H), jr.layer_norm(H)),
    "to_keras: recurrent_dropout's kind='moon2015' has no counterpart: Keras has gal2016": jr.recurrent_dropout(
        jr.gru(I, H), rate=0.5, kind="moon2015"
    ),
    "lstm's projection_size=2 has no counterpart": jr.lstm(I, H, projection_size=2),
    "elman's output_size=2 has no counterpart": jr.elman(I, H, output_size=2),
    "elman's activation='gelu' has no counterpart: by that name": jr.elman(I, H, activation="gelu"),
    "gru's gate_activation='leaky_relu' has no counterpart": jr.gru(I, H, gate_activation="leaky_relu"),
    "bidirectional of different sizes has no counterpart": jr.bidirectional(jr.gru(I, H), jr.gru(I, 2)),
    "a bidirectional layer above a reversed one has no counterpart": jr.stack(
        jr.scan(jr.gru(I, H), reverse=True), jr.bidirectional(jr.gru(H, H), jr.gru(H, H))
    ),
    "computing in bfloat16 with weights in float64 has no": jr.gru(I, H, dtype="bfloat16", param_dtype="float64"),
    "a user's own cell or layer has no counterpart": jr.gru(I, H)._replace(spec=None),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    model = REFUSED[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        to_keras(model, drawn_params(model, seed=0))


def test_a_merge_that_is_a_function():
    model = jr.bidirectional(jr.gru(I, H), jr.gru(I, H), merge=jnp.maximum)
    with pytest.raises(ValueError, match="to_keras: a merge that is a function has no counterpart: Keras has concat"):
        to_keras(model, drawn_params(model, seed=0))


def test_float64_without_64_bits():
    theirs = built(GRU(dtype="float64"))
    with jax.enable_x64(False), pytest.raises(TypeError, match="the weights are float64 but JAX would make them"):
        from_keras(theirs)
