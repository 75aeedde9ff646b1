"""Random strings of several lengths, and the same strings reversed or sorted."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from experiments.runner.strings import STOP, Strings

Order = Literal["reverse", "sort"]


def draw(key: jax.Array, symbols: int, shortest: int, longest: int, batch_size: int, order: Order) -> Strings:
    """Strings of lengths from ``shortest`` to ``longest``, all as likely, every symbol as likely; S = ``longest``."""
    k_symbols, k_lengths = jax.random.split(key)
    drawn = jax.random.randint(k_symbols, (longest, batch_size), 1, symbols + 1)
    lengths = jax.random.randint(k_lengths, (batch_size,), shortest, longest + 1)
    place = jnp.arange(longest)[:, None]
    tokens = jnp.where(place < lengths, drawn, STOP)
    if order == "sort":
        after = symbols + 1  # behind all symbols
        ordered = jnp.sort(jnp.where(tokens == STOP, after, tokens), axis=0)
        ordered = jnp.where(ordered == after, STOP, ordered)
    else:
        ordered = jnp.take_along_axis(tokens, jnp.where(place < lengths, lengths - 1 - place, place), axis=0)
    return Strings(tokens, jnp.concatenate([ordered, jnp.full((1, batch_size), STOP)]))
