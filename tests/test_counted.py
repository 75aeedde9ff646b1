"""A scan that ends after a number of steps known when it runs, and its transpose, beside ``lax.scan`` of as many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.loops.counted import counted_scan, map_in_blocks
from tests.cases import draw

T, B, H = 5, 3, 4


def assert_trees_close(got, want):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), got, want)


def counted(W, h, xs, count, reverse):
    """h ← 0.5 h W + x, linear in h and xs; y = 2 h before it, plus x."""

    def body(carry, x):
        return [0.5 * carry[0] @ W + x[0]], [2 * carry[0] + x[0]]

    (end,), (ys,) = counted_scan(body, count, [h], [xs], reverse=reverse)
    return end, ys


def scanned(W, h, xs, count, reverse):
    end, ys = jax.lax.scan(lambda h, x: (0.5 * h @ W + x, 2 * h + x), h, xs[:count], reverse=reverse)
    return end, jnp.concatenate([ys, jnp.zeros((T - count, B, H))])


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("count", [0, 1, 3, T])
def test_values_transpose_and_derivative(count, reverse, x64):
    W, h, xs = draw((H, H), 1), draw((B, H), 2), draw((T, B, H), 3)
    cotangents = (draw((B, H), 4), draw((T, B, H), 5))

    def found(run, count):
        return (
            run(W, h, xs, count, reverse),
            jax.linear_transpose(lambda h, xs: run(W, h, xs, count, reverse), h, xs)(cotangents),
            jax.linear_transpose(lambda xs: run(W, jnp.zeros_like(h), xs, count, reverse), xs)(cotangents),
            jax.jvp(lambda W, h: run(W, h, xs, count, reverse), (W, h), (W + 1, h - 1)),
            jax.vmap(lambda h: run(W, h, xs, count, reverse))(jnp.stack([h, -h])),
        )

    got = jax.jit(lambda count: found(counted, count))(jnp.int32(count))
    assert_trees_close(got, found(scanned, count))


def test_steps_beyond_the_count_are_not_run():
    """A step that would make NaN of everything: not run, where ``0 · NaN`` would show."""
    xs = jnp.array([1.0, 2.0, 0.0, 0.0])

    def run(count):
        return counted_scan(lambda carry, x: ([carry[0] + 1 / x[0]], [1 / x[0]]), count, [0.0], [xs])

    (end,), (ys,) = jax.jit(run)(jnp.int32(2))
    assert end == 1.5
    np.testing.assert_array_equal(ys, [1, 0.5, 0, 0])


@pytest.mark.parametrize("count", [0, 1, 16, 17, 48])
def test_blocks_hold_the_steps_of_the_count(count):
    xs = draw((48, 2), 1)
    (got,) = jax.jit(lambda count: map_in_blocks(lambda x: [jnp.sin(x[0])], count, [xs]))(jnp.int32(count))
    np.testing.assert_allclose(got[:count], np.sin(xs[:count]), rtol=1e-6)
    assert (got[-(-count // 16) * 16 :] == 0).all()
