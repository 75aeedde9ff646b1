"""Wrappers around users' cells whose steps are written in other ways: inner programs, rules of their own, casts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import H, I, T


def written(step, carry=lambda h: h, dtype=None):
    """A user's cell of 2 units that starts from ones, the identity its weight."""

    def start(W, batch_shape=()):
        return carry(jnp.ones((*batch_shape, 2), dtype))

    return jr.Cell(lambda key: jnp.eye(2), start, step)


@jax.custom_jvp
def ruled(h, W):
    return 0.5 * h + jnp.tanh(h @ W)


ruled.defjvp(lambda primals, tangents: (ruled(*primals), tangents[0]))


def dropped(cell, rate=0.5, **options):
    xs = jnp.array([[0.5, -0.5], [0.1, 0.2], [-0.3, 0.4]])
    return jr.scan(jr.recurrent_dropout(cell, rate=rate, **options)).apply(jnp.eye(2), xs, key=jax.random.key(0))


@pytest.mark.parametrize(
    "inside",
    [
        lambda W, h, x: jax.lax.cond(x[0] > 0, lambda h: jnp.tanh(h @ W + x), lambda h: h, h),
        lambda W, h, x: jax.lax.fori_loop(0, 2, lambda _, h: 0.9 * h + 0.1 * jnp.tanh(h @ W), h),
        lambda W, h, x: ruled(h, W),
    ],
    ids=["cond", "loop", "custom_jvp"],
)
def test_recurrent_dropout_refuses_products_that_it_cannot_tell_apart(inside):
    cell = written(lambda W, h, x: (inside(W, h, x),) * 2)
    with pytest.raises(ValueError, match=r"recurrent_dropout\(user cell\): the step reads its state or input inside"):
        dropped(cell)


def test_recurrent_dropout_allows_elementwise_rules_of_their_own():
    """relu has a derivative of its own, and no product: it is computed of both."""
    inline = written(lambda W, h, x: (jnp.maximum(h, 0) @ W + x,) * 2)
    by_rule = written(lambda W, h, x: (jax.nn.relu(h) @ W + x,) * 2)
    np.testing.assert_allclose(dropped(inline)[1], dropped(by_rule)[1], rtol=1e-6)  # two programs, float32


def test_recurrent_dropout_around_a_clip_is_refused():
    inner = jr.cotangent_clip(jr.gru(I, H), max_norm=1.0)
    layer = jr.scan(jr.recurrent_dropout(inner, rate=0.5))
    with pytest.raises(ValueError, match=r"inside 'custom_vjp.* wrap jr\.cotangent_clip around this"):
        layer.apply(layer.init(jax.random.key(0)), jnp.ones((T, I)), key=jax.random.key(0))


def test_recurrent_dropout_reads_the_new_state_whole():
    """Whatever is done to the new state before it is carried, the readout's product reads it as it is."""

    def step(W, h, x):
        new = 0.5 * h + 0.5 * jnp.tanh(h @ W + x)
        return jnp.clip(new, -5, 5), new @ jnp.eye(2)

    h, ys = dropped(written(step))
    np.testing.assert_allclose(ys[-1], h, rtol=1e-6)  # float32


@pytest.mark.parametrize("options", [{"rate": 0.9}, {"rate": 0.0, "input_rate": 0.9}], ids=["state", "input"])
def test_recurrent_dropout_without_products_is_refused(options):
    cell = written(lambda W, h, x: (jnp.tanh(W[0] * h + x),) * 2)
    with pytest.raises(ValueError, match=r"no product of the step .* reads the state or the input"):
        dropped(cell, **options)


def test_recurrent_dropout_leaves_a_skip_connection_alone():
    skip = jr.residual(jr.elman(2, 2))
    params = jax.tree.map(jnp.zeros_like, skip.init(jax.random.key(0)))
    layer = jr.scan(jr.recurrent_dropout(skip, rate=0.0, input_rate=0.5))
    _, ys = layer.apply(params, jnp.ones((4, 3, 2)), key=jax.random.key(1))
    np.testing.assert_array_equal(ys, np.ones((4, 3, 2)))


@pytest.mark.parametrize(
    "wrap",
    [lambda cell: jr.clip_state(cell, max_value=100), lambda cell: jr.zoneout(cell, rate=0.0)],
    ids=["clip_state", "zoneout"],
)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16], ids=["int32", "bfloat16"])
def test_a_leaf_that_is_a_cast_of_the_state_does_not_round_it(wrap, dtype):
    def step(W, carry, x):
        v = 0.9 * carry["v"] + x @ W
        return {"cast": v.astype(dtype), "v": v}, v

    cell = written(step, lambda h: {"cast": h.astype(dtype), "v": h})
    xs = jnp.array([[0.72, 0.1], [1.31, 0.2]])
    runs = (jax.tree.leaves(jr.scan(c).apply(jnp.eye(2), xs)) for c in (wrap(cell), cell))
    for a, b in zip(*runs, strict=True):
        assert a.dtype == b.dtype
        # Two programs, in float32; a bfloat16 of a number that differs in its last digit may be the next one.
        np.testing.assert_allclose(*(v.astype(float) for v in (a, b)), rtol=1e-6 if a.dtype == jnp.float32 else 8e-3)


def test_states_cast_out_of_an_inner_program_are_refused_too():
    """A cond that computes both states: what h owes to the clipped c cannot be told, in bfloat16 as in float32."""

    def step(W, carry, x):
        def both(h, c):
            return jnp.tanh(c + x), c + x

        h, c = jax.lax.cond(x[0] > 0, both, lambda h, c: (h, c), *(a.astype(jnp.float32) for a in carry))
        return jr.LSTMCarry(h.astype(jnp.bfloat16), c.astype(jnp.bfloat16)), h

    cell = jr.clip_state(written(step, lambda h: jr.LSTMCarry(h, h), jnp.bfloat16), max_value=0.5)
    with pytest.raises(ValueError, match="clip_state"):
        cell.step(jnp.eye(2), cell.initial_carry(jnp.eye(2)), jnp.ones(2))


def test_a_record_of_another_class_is_refused():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class State:
        c: jax.Array
        h: jax.Array

    cell = written(lambda W, s, x: (State(s.h @ W, s.c @ W), s.h), lambda h: State(h, h))
    with pytest.raises(TypeError, match=r"recurrent_dropout: the carry of user cell must be .* or a NamedTuple"):
        dropped(cell)


@pytest.mark.parametrize("x", [{"a": jnp.ones((T, 2))}, jnp.ones((T, 2), int)], ids=["dict", "integers"])
def test_inputs_that_cannot_be_dropped_are_refused(x):
    cell = written(lambda W, h, x: (h @ W,) * 2)._replace(x_ndim=jax.tree.map(lambda a: 1, x))
    with pytest.raises(TypeError, match=r"input_rate=0\.5 needs x to be one array of floats"):
        jr.scan(jr.recurrent_dropout(cell, rate=0.1, input_rate=0.5)).apply(jnp.eye(2), x, key=jax.random.key(0))
