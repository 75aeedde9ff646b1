"""The copy memory task: ten symbols, a long wait, and the ten symbols again."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

SYMBOLS = 8  # numbered from 1: 0 is the blank
BLANK = 0
DELIMITER = 9  # says that the answer is due; never a target
COPIED = 10  # symbols in a sequence
TOKENS = 10  # that are read
CLASSES = 9  # that can be answered: the blank and the symbols


class Copies(NamedTuple):
    tokens: jax.Array  # (T + 20, B) integers
    targets: jax.Array  # (T + 20, B) integers


def draw(key: jax.Array, delay: int, batch_size: int) -> Copies:
    """Sequences for a delay of T steps.

    step     0 … 9        10 … T + 8   T + 9       T + 10 … T + 19
    tokens   the symbols  blank        delimiter   blank
    targets  blank        blank        blank       the symbols
    """
    symbols = jax.random.randint(key, (COPIED, batch_size), 1, SYMBOLS + 1)
    blanks = jnp.full((delay + COPIED, batch_size), BLANK)
    tokens = jnp.concatenate([symbols, blanks]).at[delay + COPIED - 1].set(DELIMITER)
    return Copies(tokens, jnp.concatenate([blanks, symbols]))


def baseline(delay: int) -> float:
    """The mean cross entropy, in nats, of knowing when to answer but no symbol: blanks first, then guesses."""
    return COPIED * math.log(SYMBOLS) / (delay + 2 * COPIED)
