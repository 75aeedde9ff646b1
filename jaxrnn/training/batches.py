"""Which examples make a batch, of sequences of many lengths: little padding, few shapes.

The order is a function of seed and step. ``padded`` (padding.py) makes arrays of the batches, ``prefetch``
(prefetching.py) has them ready in time.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._checks import check_sizes
from jaxrnn._deprecated import moved_names

CANDIDATES = 1024  # lengths among which bucket boundaries are sought: the search takes their square


class Batch(NamedTuple):
    """Which examples make a batch."""

    indices: np.ndarray  # (B,) of the examples, -1 in an empty row; rows with an example come first
    length: int  # T of the bucket, which no example of the batch exceeds
    valid: np.ndarray  # (B,) booleans, False in an empty row


class Bucketed(NamedTuple):
    """What ``training.bucketed`` makes: a plan for any number of epochs."""

    steps_per_epoch: int
    at: Callable[[int], Batch]
    shapes: tuple[tuple[int, int], ...]  # the (T, B) that occur, in every epoch the same, shortest first
    padding: float  # the share of steps that are padding, in every epoch the same
    lengths: np.ndarray  # (N,) of the examples


@checks_arguments
def bucketed(
    lengths: Sequence[int] | np.ndarray, *, batch_size: int, seed: int, buckets: int | Sequence[int] = 8
) -> Bucketed:
    """Batches of examples of similar lengths, every example once an epoch.

    Examples are shuffled, sorted into buckets by length and cut into batches, which are shuffled again. What does not
    fill a batch of its bucket joins the next longer one; so all batches are full but one of the shortest bucket, where
    empty rows cost least. The shapes (T, B) are those of the buckets: as many compilations.

    A loss that is the mean over the steps of a batch weighs the steps of short sequences more than one of mixed batches
    would: their batches hold fewer steps, and each batch counts the same. A sum, or a mean over sequences, does not.

    Args:
        lengths: (N,) integers, those of the examples; 0 is a length.
        batch_size: B, of all processes together.
        seed: with the epoch it determines the order, on any platform and with any version of NumPy.
        buckets: how many at most, or the T of each, in ascending order. For a number, those T are chosen that leave
            the least padding.

    Returns:
        :class:`Bucketed`. ``at(step)`` -> :class:`Batch` is a pure function: steps may be asked for in any order, a
        restart goes on with the batch that was due, and every process sees the same. ``epoch = step //
        steps_per_epoch``; each epoch is planned once, in O(N log N).

    Raises:
        ValueError, TypeError: lengths that are not (N,) integers from 0 to 2**31 - 1; a batch size below 1; a seed or a
            step below 0; boundaries that do not ascend or do not reach the longest example.

    Example:
        >>> from jaxrnn import training
        >>> batches = training.bucketed([3, 9, 2, 8, 3, 2, 9], batch_size=2, seed=0, buckets=2)
        >>> batches.steps_per_epoch, batches.shapes
        (4, ((3, 2), (9, 2)))
        >>> sorted(index for step in range(4) for index in batches.at(step).indices.tolist())
        [-1, 0, 1, 2, 3, 4, 5, 6]
    """
    lengths = _check_lengths("bucketed", lengths)
    check_counts("bucketed", seed=seed)
    N, B = len(lengths), int(batch_size)
    empty = -N % B
    ascending = np.sort(lengths)
    longest = ascending[B - 1 - empty :: B]  # of each batch, were all examples sorted, with the empty rows first
    if isinstance(buckets, numbers.Integral):
        check_sizes("bucketed", buckets=buckets)
        bounds = _least_padding(np.maximum(longest, 1), int(buckets))  # at T = 0 a user's ys[-1] would fail
    else:
        bounds = _check_bounds("bucketed", buckets, int(lengths.max()))
    bucket = np.searchsorted(bounds, lengths)  # the first that is long enough
    T = bounds[np.searchsorted(bounds, longest)]  # of each batch: a batch goes by its last example

    # Raw bits and argsort: NumPy keeps the streams of bit generators for good, those of permutation() it may change.
    @functools.lru_cache(maxsize=2)  # two, for the turn of the epoch, where some look ahead and others back
    def plan(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        bits = np.random.PCG64(np.random.SeedSequence(int(seed), spawn_key=(epoch,)))
        order = np.argsort(bits.random_raw(N), kind="stable")
        order = order[np.argsort(bucket[order], kind="stable")]
        rows = np.concatenate([np.full(empty, -1), order]).reshape(-1, B)
        rows[0] = np.roll(rows[0], -empty)
        turn = np.argsort(bits.random_raw(len(rows)), kind="stable")
        rows = rows[turn]
        rows.flags.writeable = False
        return rows, T[turn]

    def at(step: int) -> Batch:
        check_counts("bucketed.at", step=step)
        epoch, place = divmod(int(step), len(T))
        rows, T_of = plan(epoch)
        return Batch(rows[place], int(T_of[place]), rows[place] >= 0)

    shapes = tuple((length, B) for length in np.unique(T).tolist())
    return Bucketed(len(T), at, shapes, float(1 - lengths.sum() / (T.sum() * B)), lengths)


def _least_padding(longest: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` lengths, the largest among them, for which Σ_batches T is least: by dynamic programming.

        least_k(j) = min_{i ≤ j} least_{k-1}(i) + T_j · (batches from i to j)

    ``longest`` (batches,) is the least T of each batch, ascending.
    """
    T = np.unique(longest)
    T = T[::-1][:: -(-len(T) // CANDIDATES)][::-1]
    up_to = np.concatenate([[0], np.searchsorted(longest, T, side="right")])
    one_bucket = np.where(np.tri(len(T), dtype=bool), T[:, None] * (up_to[1:, None] - up_to[:-1]), np.inf)
    least, starts = np.where(np.arange(len(T) + 1), np.inf, 0), []
    for _ in range(min(count, len(T))):
        total = least[:-1] + one_bucket
        starts.append(total.argmin(1))
        least = np.concatenate([[np.inf], total.min(1)])
    bounds, j = [], len(T)
    for start in reversed(starts):
        bounds.append(T[j - 1])
        j = start[j - 1]
    return np.array(bounds[::-1])


def _check_lengths(who: str, lengths: Any) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.shape == (0,):
        raise ValueError(f"{who}: lengths must hold at least one example, got none.")
    if lengths.ndim != 1:
        raise ValueError(f"{who}: lengths must be (N,), one for each example, got shape {lengths.shape}.")
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"{who}: lengths must be integers, got {lengths.dtype}; use lengths.astype('int32').")
    if lengths.min() < 0:
        raise ValueError(
            f"{who}: lengths must be 0 or more, got {lengths.min()} for example {lengths.argmin()}; give len(sequence)."
        )
    if lengths.max() >= 2**31:
        raise ValueError(
            f"{who}: lengths must be below 2**31, got {lengths.max()} for example {lengths.argmax()}; give "
            f"len(sequence)."
        )
    lengths = lengths.astype(np.int64)
    lengths.flags.writeable = False
    return lengths


def check_counts(who: str, **counts: Any) -> None:
    """Each is an int from 0."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, numbers.Integral):
            raise TypeError(f"{who}: {name} must be an int, got {count!r} ({type(count).__name__}).")
        if count < 0:
            raise ValueError(f"{who}: {name} must be 0 or more, got {count}; the first is 0.")


def _check_bounds(who: str, buckets: Any, longest: int) -> np.ndarray:
    bounds = np.array(buckets)
    if bounds.ndim != 1 or not np.issubdtype(bounds.dtype, np.integer):
        raise TypeError(
            f"{who}: buckets must be a number of buckets, or the T of each as ints, got {buckets!r}; give 8, or "
            f"[50, 100, {longest}], say."
        )
    bounds = bounds.astype(np.int64)  # differences of unsigned numbers are never negative
    if bounds[0] < 1 or (np.diff(bounds) <= 0).any():
        raise ValueError(
            f"{who}: buckets must ascend from 1 or more, got {bounds.tolist()}; give "
            f"{np.unique(bounds[bounds > 0]).tolist()}."
        )
    if bounds[-1] < longest:
        raise ValueError(
            f"{who}: the longest example has {longest} steps, more than the last bucket, {bounds[-1]}; nothing is cut "
            f"silently, so slice it first, or add {longest} to buckets."
        )
    return bounds


__getattr__ = moved_names(
    "jaxrnn.training.batches",
    {
        "Padded": "jaxrnn.training.padding.Padded",
        "padded": "jaxrnn.training.padding.padded",
        "prefetch": "jaxrnn.training.prefetching.prefetch",
    },
)
