"""The adding problem: two numbers among T are marked, their sum is wanted at the end."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

FEATURES = 2
BASELINE = 1 / 6  # the mean squared error of the answer 1: the variance of a sum of two U(0, 1)


class Sums(NamedTuple):
    xs: jax.Array  # (T, B, 2): a value, U(0, 1), and its marker, 0 or 1
    sums: jax.Array  # (B,): of the two values that are marked


def draw(key: jax.Array, length: int, batch_size: int) -> Sums:
    """Sequences with one marked step in the first half and one in the second."""
    k_values, k_early, k_late = jax.random.split(key, 3)
    values = jax.random.uniform(k_values, (length, batch_size))
    early = jax.random.randint(k_early, (batch_size,), 0, length // 2)
    late = jax.random.randint(k_late, (batch_size,), length // 2, length)
    steps = jnp.arange(length)[:, None]
    markers = ((steps == early) | (steps == late)).astype(values.dtype)
    return Sums(jnp.stack([values, markers], axis=-1), (markers * values).sum(0))
