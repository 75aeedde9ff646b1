"""A jaxrnn layer beside another JAX library's run with the same weights: outputs, final state, every gradient."""

import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.interop.registry import converters

I, H, T, B = 3, 4, 5, 3
LENGTHS = np.array([3, T, 1], np.int32)

# Relative to the largest entry. float32: some 30 units of the last place (6e-8), as each gradient is a sum over steps
# and sequences of products that each library rounds in its own order.
TOLERANCE = {"float32": 2e-6, "float64": 1e-10}


# Each program runs once, so that its compilation is what takes time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(tree, dtype, seed=0):
    """Arrays of the tree's shapes, N(0, 1/4), so that no gate saturates and no bias or state is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape).astype(dtype)), tree)


def assert_close(got, want, dtype="float32"):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype == (dtype if jnp.issubdtype(b.dtype, jnp.floating) else b.dtype)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max(initial=0))


def assert_same(got, want):
    """Equal bit by bit."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def compare(ours, theirs, params, weights, xs, start, convert, dtype):
    """``ours(params, xs, start)`` and ``theirs(weights, xs, start)`` -> (carry, ys), carries as ours has them.

    ``convert(weights)`` gives params. It is affine, so its linear part takes gradients by weights to those by params.
    """

    def of(run):
        def loss(inputs):
            carry, ys = run(*inputs)
            # Every entry of the outputs and of the final state weighs differently, so that no two errors cancel.
            leaves = [ys, *jax.tree.leaves(carry)]
            total = sum(jnp.vdot(a, np.cos(np.arange(a.size)).astype(a.dtype).reshape(a.shape)) for a in leaves)
            return total, (carry, ys)

        return jax.grad(loss, has_aux=True)

    @quick_jit
    def both(params, weights, xs, start):
        return of(ours)((params, xs, start)), of(theirs)((weights, xs, start))

    ((by_params, *by_rest), got), ((by_weights, *by_their_rest), want) = both(params, weights, xs, start)
    zero = convert(jax.tree.map(np.zeros_like, by_weights))
    mapped = jax.tree.map(lambda a, b: np.subtract(a, b), convert(by_weights), zero)
    assert_close(got, want, dtype)
    assert_close((by_params, by_rest), (mapped, by_their_rest), dtype)


def drawn_params(member, dtype=None, seed=0):
    """Random parameters of a cell or layer, in its own dtypes where none is given; ``init`` would compile first."""
    shapes = jax.eval_shape(member.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape).astype(dtype or a.dtype)), shapes)


def start_of(layer, params, dtype):
    return drawn(jax.eval_shape(lambda params: layer.initial_carry(params, (B,)), params), dtype, seed=2)


def xs_of(dtype):
    return drawn(np.zeros((T, B, I)), dtype, seed=1)


def tables(name):
    """The tables of this name that stand in the tests of converters, ``test_<converter>.py``."""
    for converter in converters():
        path = Path(__file__).with_name(f"test_{converter}.py")
        if path.exists() and f"\n{name} = " in path.read_text(encoding="utf-8"):
            yield getattr(importlib.import_module(f"tests.interop.{path.stem}"), name)
