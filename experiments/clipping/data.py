"""Sine waves to be generated: the input, constant over time, says the frequency."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

SLOWEST, FASTEST = 0.1, 0.3  # radians a step


class Waves(NamedTuple):
    levels: jax.Array  # (T, B, 1) from 0.25 to 1.25, the same at every step
    waves: jax.Array  # (T, B, 1): sin(ω t), t = 0, 1, …


def draw(key: jax.Array, steps: int, batch_size: int) -> Waves:
    """Frequencies ω, each from SLOWEST to FASTEST, uniformly."""
    share = jax.random.uniform(key, (batch_size, 1))
    omega = SLOWEST + (FASTEST - SLOWEST) * share
    t = jnp.arange(steps)[:, None, None]
    return Waves(jnp.broadcast_to(0.25 + share, (steps, batch_size, 1)), jnp.sin(omega * t))
