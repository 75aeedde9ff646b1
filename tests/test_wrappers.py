"""Wrappers, by hand: what a leaky, normalized or clipped cell computes at each step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import B, H, I, T, draw, randomised
from tests.user_cells import clockwork


def drawn(cell):
    params = randomised(cell.init(jax.random.key(0)), 1)
    return params, randomised(cell.initial_carry(params, (B,)), 2), draw((B, I), 3)


@pytest.mark.parametrize(("rate", "keep"), [(0.1, None), (0.5, 1.0), (1.0, None)])
def test_leaky_moves_part_of_the_way(rate, keep, x64):
    inner = jr.elman(I, H)
    params, h, x = drawn(inner)
    new, y = jr.leaky(inner, rate=rate, keep=keep).step(params, h, x)
    kept = 1 - rate if keep is None else keep
    np.testing.assert_allclose(new, kept * h + rate * inner.step(params, h, x)[0], rtol=1e-12)
    np.testing.assert_array_equal(y, new)


def test_leaky_lstm_blends_both_states_and_the_readout_sees_it(x64):
    inner = jr.chain(jr.lstm(I, H), jr.readout(H, 2))
    params, carry, x = drawn(inner)
    (new, _), y = jr.leaky(inner, rate=0.25).step(params, carry, x)
    (own, _), _ = inner.step(params, carry, x)
    for a, b, c in zip(new, carry[0], own, strict=True):
        np.testing.assert_allclose(a, 0.75 * b + 0.25 * c, rtol=1e-12)
    np.testing.assert_allclose(y, new.h @ params[1].W_hy + params[1].b_y, rtol=1e-12)


def test_leaky_leaves_integers_alone():
    inner = clockwork(I, H)
    params = inner.init(jax.random.key(0))
    carry, _ = jr.leaky(inner, rate=0.5).step(params, inner.initial_carry(params), jnp.ones(I))
    assert carry["clock"].dtype == jnp.int32 and carry["clock"] == 1


def test_leaky_gradient_has_a_way_back():
    """With keep = 1 and no weights at all the gradient of a state 200 steps back is 1."""
    cell = jr.leaky(jr.elman(I, H), rate=0.1, keep=1.0)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    last = lambda h: jr.scan(cell).apply(params, jnp.ones((200, I)), h)[0].sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(last)(jnp.zeros(H)), np.ones(H))


@pytest.mark.parametrize("inner", [jr.elman(I, H), jr.lstm(I, H)], ids=["elman", "lstm"])
def test_normalized_reads_its_state_normalized(inner, x64):
    cell = jr.normalized(inner, epsilon=1e-3)
    params, carry, x = drawn(cell)
    h = np.asarray(getattr(carry, "h", carry))
    read = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-3) * params.scale + params.shift
    expected = inner.step(params.cell, carry._replace(h=read) if hasattr(carry, "h") else read, x)
    for a, b in zip(jax.tree.leaves(cell.step(params, carry, x)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_normalized_keeps_gates_and_noise():
    cell = jr.normalized(jr.lstm(I, H))
    params, carry, x = drawn(cell)
    gates = jr.gates(cell, params, carry, x)
    np.testing.assert_allclose(gates.h, cell.step(params, carry, x)[1], rtol=1e-6)


def backward_loop(cell, params, xs, carry, d_ys, clip):
    """∂L/∂(carry at the start, params) by hand: one vjp a step, the carry's gradient clipped before it goes on."""
    carries = [carry]
    for x in xs:
        carries.append(cell.step(params, carries[-1], x)[0])
    d_carry, d_params = jax.tree.map(jnp.zeros_like, carry), jax.tree.map(jnp.zeros_like, params)
    for t in reversed(range(len(xs))):
        back = jax.vjp(lambda p, c, t=t: cell.step(p, c, xs[t]), params, carries[t])[1]
        d_p, d_carry = back((d_carry, d_ys[t]))
        d_params = jax.tree.map(jnp.add, d_params, d_p)
        d_carry = clip(d_carry)
    return d_carry, d_params


def by_norm(limit):
    def clip(tree):
        size = jnp.sqrt(sum((a**2).sum(-1, keepdims=True) for a in jax.tree.leaves(tree)))
        return jax.tree.map(lambda a: a * jnp.minimum(1, limit / size), tree)

    return clip


def by_value(limit):
    return lambda tree: jax.tree.map(lambda a: jnp.clip(a, -limit, limit), tree)


@pytest.mark.parametrize("name", ["elman", "lstm"])
@pytest.mark.parametrize(
    ("option", "clip"), [({"max_norm": 0.5}, by_norm(0.5)), ({"max_value": 0.2}, by_value(0.2))], ids=["norm", "value"]
)
def test_cotangent_clip(name, option, clip, x64):
    cell = getattr(jr, name)(I, H)
    params, carry, _ = drawn(cell)
    xs, d_ys = draw((T, B, I), 4), draw((T, B, H), 5)
    layer = jr.scan(jr.cotangent_clip(cell, **option))
    run = lambda carry, params: (layer.apply(params, xs, carry)[1] * d_ys).sum()  # noqa: E731
    found = jax.grad(run, (0, 1))(carry, params)
    for a, b in zip(*map(jax.tree.leaves, (found, backward_loop(cell, params, xs, carry, d_ys, clip))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    plain = backward_loop(cell, params, xs, carry, d_ys, lambda tree: tree)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True)) > 1e-2
    np.testing.assert_array_equal(layer.apply(params, xs, carry)[1], jr.scan(cell).apply(params, xs, carry)[1])


def test_cotangent_clip_with_integer_parts_and_masks(x64):
    """The clock of a user's cell has no gradient; steps that are not valid pass the gradient on as it is."""
    inner = clockwork(I, H)
    params = randomised(inner.init(jax.random.key(0)), 1)
    xs, mask = draw((T, B, I), 4), jnp.asarray(np.random.default_rng(0).random((T, B)) < 0.6)

    def by_h(cell, weight=1.0):
        def last(h):
            carry = {"h": h, "clock": jnp.zeros(B, jnp.int32)}
            return weight * jr.scan(cell).apply(params, xs, carry, mask=mask)[0]["h"].sum()

        return np.asarray(jax.grad(last)(draw((B, H), 6)))

    np.testing.assert_allclose(by_h(jr.cotangent_clip(inner, max_norm=1e6)), by_h(inner), rtol=1e-12)
    # So large a loss is clipped at the last valid step already; the steps before it shrink what is left.
    tight = by_h(jr.cotangent_clip(inner, max_norm=1e-3), weight=1e6)
    assert (np.linalg.norm(tight, axis=-1) <= 1e-3 + 1e-12).all() and (tight != 0).all()


WRAPS = {
    "leaky": lambda cell: jr.leaky(cell, rate=0.5),
    "normalized": jr.normalized,
    "cotangent_clip": lambda cell: jr.cotangent_clip(cell, max_norm=1),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_spec_rebuilds(wrap):
    cell = wrap(jr.lstm(I, H))
    again = jr.build(cell.spec.to_dict())
    assert again.spec == cell.spec
    params, carry, x = drawn(cell)
    for a, b in zip(*(jax.tree.leaves(c.step(params, carry, x)) for c in (cell, again)), strict=True):
        np.testing.assert_array_equal(a, b)
