"""Strings of symbols, and what they should become: symbols count from 1, 0 is the end."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

STOP = 0  # ends every answer, begins what a decoder reads, and stands in the padding; symbols count from 1


class Strings(NamedTuple):
    tokens: jax.Array  # (S, B) integers: the symbols that are read, then STOP
    targets: jax.Array  # (N, B) integers: the symbols that should be said, then STOP, at least once


def lengths_of(tokens: jax.Array) -> jax.Array:
    """(B,): the symbols of each string."""
    return (tokens != STOP).sum(axis=0)


def read(targets: jax.Array) -> jax.Array:
    """What a decoder reads as it is taught: STOP first, then what it should have said one step before."""
    return jnp.concatenate([jnp.full_like(targets[:1], STOP), targets[:-1]])


def exact(answers: jax.Array, targets: jax.Array) -> jax.Array:
    """(B,): whether every symbol is right, and the end too; answers (≥ N, B), of which what follows is not read."""
    due = jnp.arange(len(targets))[:, None] <= lengths_of(targets)
    return ((answers[: len(targets)] == targets) | ~due).all(axis=0)
