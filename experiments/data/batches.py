"""Batches by length for all seeds of a model at once, from ``jaxrnn.training``; and a whole split as one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrnn as jr
from experiments.data.sequences import Sequences
from jaxrnn import training


class Batch(NamedTuple):
    xs: Any  # (T, B, I) float32, 0 in the padding
    lengths: Any  # (B,) int32, 0 in an empty row
    valid: Any  # (B,) booleans, False in an empty row
    labels: Any  # (B,) int32, or None
    targets: Any  # (T, B, O) float32, or None


BATCH_AXIS = Batch(1, 0, 0, 0, 1)  # where a batch is divided among devices


def in_buckets(
    lengths: np.ndarray, data: Any, batch_size: int, buckets: int | Sequence[int] = 2
) -> Callable[[Sequence[int]], Callable[[int], training.Padded]]:
    """``feed(seeds)(step)`` -> the arrays of a step, each leading with the seeds: what ``Task.feed`` takes.

    Each seed sees every example once an epoch, in an order of its own (``training.bucketed``). Which length is due at
    a step is the same for all seeds, so that they train as one program: the batches of an epoch are those of
    ``bucketed``, the lengths in the order of the first seed's.

    Args:
        lengths: (N,) of the examples.
        data: of all examples, or a function of their indices: what ``training.padded`` takes.
        batch_size, buckets: as for ``training.bucketed``.
    """

    def feed(seeds: Sequence[int]) -> Callable[[int], training.Padded]:
        plans = [training.bucketed(lengths, batch_size=batch_size, seed=seed, buckets=buckets) for seed in seeds]
        ats = [training.padded(in_step(plan, plans[0]), data, process=(0, 1)) for plan in plans]
        return lambda step: jax.tree.map(lambda *a: np.stack(a), *(padded(step) for padded in ats))

    return feed


def by_length(
    sequences: Sequences, batch_size: int, buckets: int | Sequence[int] = 2
) -> Callable[[Sequence[int]], Callable[[int], Batch]]:
    """``feed(seeds)(step)`` -> the Batch of a step, each array leading with the seeds: ``in_buckets`` of sequences."""
    data = {"xs": sequences.xs, "labels": sequences.labels, "targets": sequences.targets}
    fed = in_buckets(sequences.lengths, data, batch_size, buckets)

    def feed(seeds: Sequence[int]) -> Callable[[int], Batch]:
        at = fed(seeds)

        def batch(step: int) -> Batch:
            padded = at(step)
            return Batch(lengths=padded.lengths, valid=padded.valid, **padded.data)

        return batch

    return feed


def in_step(plan: training.Bucketed, leader: training.Bucketed) -> training.Bucketed:
    """The plan, the batches of each epoch put in such an order that their lengths are the leader's."""
    steps = plan.steps_per_epoch

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        numbers = range(epoch * steps, (epoch + 1) * steps)
        theirs, mine = (np.array([of.at(n).length for n in numbers]) for of in (leader, plan))
        placed = np.empty(steps, int)
        placed[np.argsort(theirs, kind="stable")] = np.argsort(mine, kind="stable")
        return placed

    def at(step: int) -> training.Batch:
        epoch, place = divmod(step, steps)
        return plan.at(epoch * steps + int(order(epoch)[place]))

    return plan._replace(at=at)


def whole(sequences: Sequences, length: int | None = None) -> Batch:
    """A split as one batch, for an evaluation: padded to its longest sequence, or to a length."""
    xs, lengths = jr.pad(sequences.xs, length=length)
    targets = None if sequences.targets is None else np.asarray(jr.pad(sequences.targets, length=length)[0])
    valid = np.ones(len(sequences.xs), bool)
    return Batch(np.asarray(xs), np.asarray(lengths, np.int32), valid, sequences.labels, targets)
