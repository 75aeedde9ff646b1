"""jaxrnn.interop.equinox against Equinox: values, gradients, round trips, refusals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

eqx = pytest.importorskip("equinox")
pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from jaxrnn.interop.equinox import from_equinox, to_equinox  # noqa: E402
from tests.interop.comparing import B, H, I, T, assert_same, compare, drawn, drawn_params  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("kind", "use_bias", "dtype"),
    [
        ("LSTMCell", True, "float32"),
        ("LSTMCell", True, "float64"),
        ("LSTMCell", False, "float64"),
        ("GRUCell", True, "float32"),
        ("GRUCell", True, "float64"),
        ("GRUCell", False, "float64"),
    ],
)
def test_from_equinox(kind, use_bias, dtype):
    shapes = eqx.filter_eval_shape(getattr(eqx.nn, kind), I, H, use_bias, key=jax.random.key(0))
    module = drawn(shapes, dtype)
    cell, params = from_equinox(module)
    xs = drawn(jax.ShapeDtypeStruct((T, B, I), dtype), dtype, seed=1)
    start = drawn(jax.eval_shape(lambda: cell.initial_carry(params, (B,))), dtype, seed=2)

    def theirs(module, xs, start):
        def step(carry, x):
            carry = jax.vmap(module)(x, carry)
            return carry, carry[0] if kind == "LSTMCell" else carry

        carry, ys = jax.lax.scan(step, tuple(start) if kind == "LSTMCell" else start, xs)
        return jr.LSTMCarry(*carry) if kind == "LSTMCell" else carry, ys

    compare(jr.scan(cell, plan="plain").apply, theirs, params, module, xs, start, lambda m: from_equinox(m)[1], dtype)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([jr.lstm, lambda *sizes, **options: jr.gru(*sizes, reset="after", **options)]),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    options=st.sampled_from([{}, {"bias": False}, {"param_dtype": "float64"}, {"param_dtype": "bfloat16"}]),
    seed=st.integers(0, 9),
)
def test_round_trip(kind, sizes, options, seed):
    """jaxrnn -> Equinox -> jaxrnn, and then -> Equinox, changes nothing."""
    with jax.enable_x64(True):
        cell = kind(*sizes, **options)
        params = drawn_params(cell, options.get("param_dtype", "float32"), seed)
        module = to_equinox(cell, params)
        again, own = from_equinox(module)
        assert again.spec == cell.spec
        assert_same(own, params)
        assert_same(to_equinox(again, own), module)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (jr.elman(I, H), "to_equinox: elman has no counterpart: Equinox has an LSTM and a GRU"),
        (jr.gru(I, H), "gru with reset='before' has no counterpart: eqx.nn.GRUCell has 'after'"),
        (jr.lstm(I, H, projection_size=2), "lstm with projection_size=2 has no counterpart: eqx.nn.LSTMCell has None"),
        (jr.lstm(I, H, activation="relu"), "lstm with activation='relu' has no counterpart"),
        (jr.gru(I, H, reset="after", gate_activation=jnp.sin), "gru with gate_activation="),
        (jr.lstm(I, H, learned_carry=True), "a learned initial carry has no counterpart: Equinox has no such"),
        (jr.lstm(I, H, dtype="bfloat16"), "dtype='bfloat16' with weights in float32 has no counterpart"),
        (jr.scan(jr.lstm(I, H)), "a Layer has no counterpart: Equinox has cells alone"),
        (jr.chain(jr.lstm(I, H)), "chain has no counterpart"),
        (jr.zoneout(jr.lstm(I, H), rate=0.5), "zoneout has no counterpart"),
    ],
    ids=["elman", "reset", "projection", "activation", "gate", "learned", "dtype", "layer", "chain", "zoneout"],
)
def test_not_to_equinox(model, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        to_equinox(model, drawn_params(model, "float32"))


def test_not_from_equinox():
    with pytest.raises(ValueError, match="a Linear has no counterpart: known are eqx"):
        from_equinox(eqx.filter_eval_shape(eqx.nn.Linear, I, H, key=jax.random.key(0)))
    module = drawn(eqx.filter_eval_shape(eqx.nn.GRUCell, I, H, key=jax.random.key(0)), "float32")
    with pytest.raises(ValueError, match=re.escape("weight_ih must have the shape (12, 3), got (2, 12, 3)")):
        from_equinox(jax.tree.map(lambda a: np.stack([a, a]), module))


def test_functions_given_as_such_pass():
    cell = jr.lstm(I, H, activation=jnp.tanh, gate_activation=jax.nn.sigmoid)
    assert from_equinox(to_equinox(cell, drawn_params(cell, "float32")))[0].spec == jr.lstm(I, H).spec
