"""Random strings of several lengths, and the same strings reversed or sorted."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

STOP = 0  # ends every answer, begins what the decoder reads, and stands in the padding; symbols count from 1
Order = Literal["reverse", "sort"]


class Strings(NamedTuple):
    tokens: jax.Array  # (S, B) integers: the symbols, then STOP
    targets: jax.Array  # (S + 1, B) integers: the symbols in the order asked for, then STOP


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


def lengths_of(tokens: jax.Array) -> jax.Array:
    """(B,): the symbols of each string."""
    return (tokens != STOP).sum(axis=0)


def read(targets: jax.Array) -> jax.Array:
    """What a decoder reads as it is taught: STOP first, then what it should have said one step before."""
    return jnp.concatenate([jnp.full_like(targets[:1], STOP), targets[:-1]])


def exact(answers: jax.Array, targets: jax.Array) -> jax.Array:
    """(B,): whether every symbol is right, and the end too; answers (≥ S + 1, B), of which what follows is not read."""
    due = jnp.arange(len(targets))[:, None] <= lengths_of(targets)
    return ((answers[: len(targets)] == targets) | ~due).all(axis=0)
