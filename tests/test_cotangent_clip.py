"""Cotangents clipped inside the backward recurrence, against one vjp a step by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import B, H, I, T, draw, drawn, randomised
from tests.user_cells import clockwork


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

    def run(carry, params):
        return (layer.apply(params, xs, carry)[1] * d_ys).sum()

    found = jax.grad(run, (0, 1))(carry, params)
    for a, b in zip(*map(jax.tree.leaves, (found, backward_loop(cell, params, xs, carry, d_ys, clip))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    plain = backward_loop(cell, params, xs, carry, d_ys, lambda tree: tree)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True)) > 1e-2
    clipped, free = (jr.scan(c, plan="plain") for c in (jr.cotangent_clip(cell, **option), cell))
    np.testing.assert_array_equal(clipped.apply(params, xs, carry)[1], free.apply(params, xs, carry)[1])


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
