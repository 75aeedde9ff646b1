"""Affine recurrences in blocks and in one loop, beside a plain loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.loops.affine_scan import affine_scan

KINDS = {  # the shapes of A and of b at one step
    "diagonal": ((2, 5), (2, 5)),
    "complex diagonal": ((2, 5), (2, 5)),
    "units": ((2, 3, 2, 2), (2, 3, 2)),
    "full": ((5, 5), (5,)),
}


def drawn(kind, T, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        a = rng.normal(size=shape)
        return a + 1j * rng.normal(size=shape) if kind.startswith("complex") else a

    of_A, of_b = KINDS[kind]
    return draw(T, *of_A) * 0.4, draw(T, *of_b), draw(*of_b)


def in_numpy(A, b, h, reverse):
    made = np.empty_like(b)
    for t in reversed(range(len(b))) if reverse else range(len(b)):
        h = (A[t] * h if A.ndim == b.ndim else np.einsum("...ij,...j->...i", A[t], h)) + b[t]
        made[t] = h
    return made


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [None, 3])
def test_equals_a_loop(x64, kind, reverse, block):
    """23 steps are 8 blocks of 3 with one step too many, these 3 blocks, with one too many again."""
    A, b, start = drawn(kind, 23)
    h = jax.jit(lambda *arrays: affine_scan(*arrays, reverse=reverse, block=block))(A, b, start)
    np.testing.assert_allclose(h, in_numpy(A, b, start, reverse), rtol=0, atol=1e-12)


def test_orthogonal_matrices_lose_nothing(x64):
    """|h| stays as it was; blocks multiply matrices in another order."""
    rng = np.random.default_rng(1)
    A = np.linalg.qr(rng.normal(size=(300, 5, 5)))[0]
    start = rng.normal(size=5)
    h = jax.jit(affine_scan, static_argnames="block")(A, np.zeros((300, 5)), start, block=16)
    np.testing.assert_allclose(h, in_numpy(A, np.zeros((300, 5)), start, False), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(h, axis=-1), np.linalg.norm(start), rtol=1e-12)


def test_vmap_and_no_steps(x64):
    A, b, start = drawn("diagonal", 20)
    h = jax.jit(jax.vmap(affine_scan, (1, 1, 0), 1))(A, b, start)
    np.testing.assert_allclose(h, in_numpy(A, b, start, False), rtol=0, atol=1e-12)
    assert affine_scan(jnp.zeros((0, 5)), jnp.zeros((0, 5)), jnp.ones(5)).shape == (0, 5)
    assert affine_scan(jnp.zeros((0, 5, 5)), jnp.zeros((0, 5)), jnp.ones(5), block=3).shape == (0, 5)
