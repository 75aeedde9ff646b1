"""Trials of evidence for two alternatives: noisy evidence for left and for right, then silence in which to answer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr


class Trials(NamedTuple):
    evidence: jax.Array  # (T, B, 2): for left and for right, while the stimulus is on; else 0
    coherence: jax.Array  # (B,): above 0 where right is more likely
    right: jax.Array  # (B,) integers: 1 where right is the answer


class Epochs(NamedTuple):
    """Steps of each part of a trial."""

    fixation: int
    stimulus: int
    answer: int

    @property
    def steps(self) -> int:
        return sum(self)


def draw(key: jax.Array, coherence: jax.Array, epochs: Epochs, noise: float) -> Trials:
    """A trial for each coherence (B,): evidence of mean (1 ∓ coherence) / 2, and noise of its own at every step."""
    sides = jnp.stack([1 - coherence, 1 + coherence], axis=-1) / 2
    shape = (epochs.stimulus, *sides.shape)
    shown = sides + noise * jax.random.normal(key, shape, sides.dtype)
    before, after = (jnp.zeros((count, *sides.shape), sides.dtype) for count in (epochs.fixation, epochs.answer))
    return Trials(jnp.concatenate([before, shown, after]), coherence, (coherence > 0).astype(jnp.int32))


def ideal(coherence: np.ndarray, epochs: Epochs, noise: float) -> np.ndarray:
    """How often the best observer answers right: it sums all evidence, whose difference is c n ± σ √(2 n)."""
    return ndtr(np.asarray(coherence) * np.sqrt(epochs.stimulus / 2) / noise)
