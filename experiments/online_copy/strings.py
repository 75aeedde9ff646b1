"""The task: strings to be copied, longer ones once these are learnt."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

INPUTS = 3  # a channel for each of the two characters, and one that says: now


class Place(NamedTuple):
    """Where a learner is in its course: in a batch of strings, of which each has a length of its own."""

    longest: jax.Array  # (), L: the longest strings of this batch
    lengths: jax.Array  # (B,), n
    position: jax.Array  # (): the step within the batch, from 0 to 2 L
    lost: jax.Array  # (): the bits that the answers of this batch have cost so far


class Wanted(NamedTuple):
    character: jax.Array  # (B,), 0 or 1
    due: jax.Array  # (B,), where one is wanted


def first(batch_size: int) -> Place:
    """Strings of one character."""
    return Place(jnp.int32(1), jnp.ones(batch_size, jnp.int32), jnp.int32(0), jnp.float32(0))


def shown(place: Place, characters: jax.Array, t: jax.Array) -> tuple[jax.Array, Wanted]:
    """What is read and wanted at step t of all.

        step     0 … n - 1    n      n + 1 … 2 n   beyond, until the longest string of the batch is copied
        read     the string   now    blank         blank
        wanted                       the string

    What is wanted was read n + 1 steps before.

    Args:
        place: of step t.
        characters: (T, B), 0 or 1: those of all steps, of which the strings are made.
        t: ().

    Returns:
        ``(x, target)``: x (B, 3); target is of use where it is due.
    """
    n, p = place.lengths, place.position
    reads, due = p < n, (p > n) & (p <= 2 * n)
    now = characters[t]
    x = jnp.stack([reads & (now == 0), reads & (now == 1), p == n], axis=-1)
    before = characters[t - n - 1, jnp.arange(n.size)]
    return x.astype(jnp.float32), Wanted(before.astype(jnp.float32), due)


def bits(y: jax.Array, target: Wanted) -> jax.Array:
    """(): what the answers cost together; y (B, 1) is the log odds of a 1."""
    log_odds, character = y[..., 0], target.character
    cost = jax.nn.softplus(log_odds) - character * log_odds  # -log p
    return jnp.where(target.due, cost, 0).sum() / jnp.log(2.0)


def ends(place: Place) -> jax.Array:
    """(): whether this is the last step of a batch."""
    return place.position == 2 * place.longest


def following(place: Place, lost: jax.Array, u: jax.Array, *, bound: float, shorter: int) -> Place:
    """The place of the next step: after a batch that cost less than the bound, strings may be one longer.

        L' = L + 1 where the batch cost less than ``bound`` bits a character, else L
        n' from max(1, L' - shorter) to L', each as likely

    Args:
        place: of this step.
        lost: (), the bits that this step's answers cost.
        u: (B,), from 0 to 1, drawn for this step: they choose the lengths of the next batch.
    """
    lost = place.lost + lost
    longest = place.longest + (lost < bound * place.lengths.sum())
    lengths = longest - (u * jnp.minimum(longest, shorter + 1)).astype(jnp.int32)
    last = ends(place)
    within = place._replace(position=place.position + 1, lost=lost)
    following = Place(longest, lengths, jnp.int32(0), jnp.float32(0))
    return jax.tree.map(lambda new, old: jnp.where(last, new, old), following, within)
