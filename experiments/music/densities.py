"""How the notes of one step are distributed, given what the recurrence says: each by itself, or one after the other.

v   (*B, K) the notes of a step, 0 or 1 for each key from the lowest on
y   (*B, O) what the recurrence puts out
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn as jr

PyTree = Any


class Density(NamedTuple):
    """p(v | y)."""

    size: int  # O
    cell: jr.Cell  # without a carry: reads (y, v), puts out log p(v | y), (*B)
    sample: Callable[[PyTree, jax.Array, jax.Array], jax.Array]  # (params, key, y) -> v


class NADEParams(NamedTuple):
    W: jax.Array  # (K, H), from the notes to the hidden units
    V: jax.Array  # (K, H), from the hidden units to the notes


def independent(keys: int) -> Density:
    """Each note by itself.

    log p(v | y) = Σ_i v_i y_i - log(1 + exp y_i)
    """

    def sample(params, key, y):
        return jax.random.bernoulli(key, jax.nn.sigmoid(y)).astype(jnp.float32)

    return Density(keys, _without_carry(lambda key: (), lambda params, y, v: bernoulli(y, v)), sample)


def nade(keys: int, hidden_size: int, most: int) -> Density:
    """Each note given those below it, by a network that they share; the recurrence puts out its biases.

        y = [b, c]
        h_i = σ(c + Σ_{j<i} v_j W_j)
        p(v_i = 1 | v_1 … v_{i-1}) = σ(b_i + V_i · h_i)

    As i rises h_i changes only where a note sounds: the n notes of a step leave n + 1 different ones. These alone are
    computed, all of them at once, and a running sum of the notes says which of them belongs to each key.

    Args:
        keys: K.
        hidden_size: H.
        most: notes that one step may have. The log-probability of a step with more is NaN.

    References:
        Larochelle & Murray, "The neural autoregressive distribution estimator", AISTATS 2011.
        Boulanger-Lewandowski, Bengio & Vincent, "Modeling temporal dependencies in high-dimensional sequences", ICML
        2012.
    """

    def init(key):
        k_W, k_V = jax.random.split(key)
        glorot = jax.nn.initializers.glorot_uniform()
        return NADEParams(glorot(k_W, (keys, hidden_size)), glorot(k_V, (keys, hidden_size)))

    def log_prob(params, y, v):
        W, V = params
        b, c = y[..., :keys], y[..., keys:]
        below = jnp.cumsum(v, axis=-1) - v  # (*B, K), how many notes each key has below it
        n = jnp.arange(most + 1, dtype=v.dtype)[:, None]
        lowest = jnp.where(below[..., None, :] < n, v[..., None, :], 0)  # (*B, most + 1, K), the n lowest notes
        h = jax.nn.sigmoid(c[..., None, :] + lowest @ W)  # (*B, most + 1, H)
        logits = b + jnp.where(below[..., None, :] == n, h @ V.T, 0).sum(-2)
        return jnp.where(v.sum(-1) <= most, bernoulli(logits, v), jnp.nan)

    def sample(params, key, y):
        y = y.astype(params.W.dtype)
        b, c = y[..., :keys], y[..., keys:]

        def note(a, at):
            W_i, V_i, b_i, u_i = at
            v_i = u_i < jax.nn.sigmoid(b_i + jax.nn.sigmoid(a) @ V_i)
            return a + v_i[..., None] * W_i, v_i

        u = jax.random.uniform(key, (keys, *b.shape[:-1]))
        _, v = jax.lax.scan(note, c, (*params, jnp.moveaxis(b, -1, 0), u))
        return jnp.moveaxis(v, 0, -1).astype(jnp.float32)

    return Density(keys + hidden_size, _without_carry(init, log_prob), sample)


def bernoulli(logits: jax.Array, v: jax.Array) -> jax.Array:
    """(*B): the log-probability of all notes."""
    return (v * logits - jax.nn.softplus(logits)).sum(-1)


def _without_carry(init: Callable[[jax.Array], PyTree], log_prob: Callable[..., jax.Array]) -> jr.Cell:
    """A Cell of one function, so that wrappers of cells hold for its parameters too."""

    def step(params, carry, x):
        y, v = x
        return carry, log_prob(params, y.astype(v.dtype), v)

    return jr.Cell(init, lambda params, batch_shape=(): (), step)
