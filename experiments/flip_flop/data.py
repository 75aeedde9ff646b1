"""The flip-flop task: each channel of the output holds the sign of the last pulse on its channel of the input."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Runs(NamedTuple):
    pulses: jax.Array  # (T, B, channels): now and then 1 or -1, else 0
    memories: jax.Array  # (T, B, channels): what the outputs should be, 1 or -1


def draw(key: jax.Array, steps: int, batch_size: int, channels: int, rate: float) -> Runs:
    """Random pulses, and what they leave in memory; ``rate`` is their probability, at each step of each channel.

    At the first step every channel has a pulse, so that there is always something to remember.
    """
    k_when, k_sign = jax.random.split(key)
    shape = (steps, batch_size, channels)
    when = jax.random.bernoulli(k_when, rate, shape).at[0].set(True)
    pulses = jnp.where(when, jax.random.rademacher(k_sign, shape, jnp.float32), 0.0)
    return Runs(pulses, held(pulses))


def held(pulses: jax.Array) -> jax.Array:
    """The last pulse of each channel up to each step, 0 before the first; time is the first axis."""

    def step(memory, pulse):
        memory = jnp.where(pulse == 0, memory, pulse)
        return memory, memory

    return jax.lax.scan(step, jnp.zeros_like(pulses[0]), pulses)[1]
