"""Batches of sequences of many lengths: little padding, few shapes, an order that is a function of seed and step.

``bucketed`` says which examples make batch n, ``padded`` makes arrays of them, ``prefetch`` has them ready in time.
"""

from __future__ import annotations

import functools
import numbers
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxrnn._base import PyTree
from jaxrnn._checks import check_sizes

CANDIDATES = 1024  # lengths among which bucket boundaries are sought: the search takes their square

Item = TypeVar("Item")


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


class Padded(NamedTuple):
    """A batch as arrays, of all rows or of those of one process."""

    data: PyTree  # sequences (T, B, …), padded with 0, and arrays (B, …), 0 in an empty row
    lengths: np.ndarray  # (B,) int32, 0 in an empty row
    valid: np.ndarray  # (B,) booleans, False in an empty row


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
        ValueError, TypeError: lengths that are not (N,) integers from 0; a batch size below 1; a seed or a step below
            0; boundaries that do not ascend or do not reach the longest example.

    Example:
        >>> from jaxrnn.training.batches import bucketed
        >>> batches = bucketed([3, 9, 2, 8, 3, 2, 9], batch_size=2, seed=0, buckets=2)
        >>> batches.steps_per_epoch, batches.shapes
        (4, ((3, 2), (9, 2)))
        >>> sorted(index for step in range(4) for index in batches.at(step).indices.tolist())
        [-1, 0, 1, 2, 3, 4, 5, 6]
    """
    lengths = _check_lengths("bucketed", lengths)
    check_sizes("bucketed", batch_size=batch_size)
    _check_count("bucketed", seed=seed)
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
        _check_count("bucketed.at", step=step)
        epoch, place = divmod(int(step), len(T))
        rows, T_of = plan(epoch)
        return Batch(rows[place], int(T_of[place]), rows[place] >= 0)

    shapes = tuple((length, B) for length in np.unique(T).tolist())
    return Bucketed(len(T), at, shapes, float(1 - lengths.sum() / (T.sum() * B)), lengths)


def padded(
    batches: Bucketed, data: PyTree | Callable[[np.ndarray], PyTree], *, process: tuple[int, int] | None = None
) -> Callable[[int], Padded]:
    """Batches as arrays: sequences padded to the length of their bucket, time first.

    Args:
        batches: from :func:`bucketed`, for the lengths of these sequences.
        data: a list of N arrays (L_n, …), inputs or targets, one sequence each; or an array (N, …), such as labels, an
            entry each; or a tree of both. Or a function: indices (n,) -> such a list, array or tree, of those n.
        process: (p, P) for the p-th of P equal parts of the rows; None means this process among those of JAX. From
            the parts ``jr.devices.shard_batch`` makes one global batch.

    Returns:
        ``at(step)`` -> :class:`Padded`, in NumPy arrays (in main memory, so that they move but once, to wherever they
        belong), their dtypes those of the data. For ``jr.devices.shard_batch`` the batch axes are ``Padded(1, 0, 0)``,
        where all data are sequences. Losses by step take ``lengths``, losses by example ``valid``.

    Raises:
        ValueError, TypeError: sequences whose lengths are not those of ``batches``, or that differ in dtype or in the
            shape of a step; too few or too many; a number of processes that does not divide the batch.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.training.batches import bucketed, padded
        >>> xs, label = [np.ones((n, 4), np.float32) for n in (5, 2, 3)], np.array([7, 8, 9])
        >>> batches = bucketed([len(x) for x in xs], batch_size=2, seed=0, buckets=2)
        >>> at = padded(batches, {"xs": xs, "label": label})
        >>> batch = max((at(step) for step in range(batches.steps_per_epoch)), key=lambda batch: batch.lengths.max())
        >>> batch.data["xs"].shape, sorted(batch.lengths.tolist()), sorted(batch.data["label"].tolist())
        ((5, 2, 4), [3, 5], [7, 9])
    """
    if not isinstance(batches, Bucketed):
        raise TypeError(f"padded: batches must come from training.bucketed, got {type(batches).__name__}.")
    part = _part_of_process(batches.shapes[0][1], process)
    N = len(batches.lengths)
    if callable(data):
        load = data
    else:
        _each(functools.partial(_check, indices=np.arange(N), lengths=batches.lengths), data)

        def load(indices: np.ndarray) -> PyTree:
            def choose(_, leaf):
                return [leaf[n] for n in indices.tolist()] if isinstance(leaf, list) else np.asarray(leaf)[indices]

            return _each(choose, data)

    def at(step: int) -> Padded:
        batch = batches.at(step)
        indices, valid = batch.indices[part], batch.valid[part]
        # A process without examples needs one all the same, of another process, to know shapes and dtypes.
        wanted = indices[valid] if valid.any() else batch.indices[batch.valid][:1]

        def place(name, leaf):
            _check(name, leaf, wanted, batches.lengths)
            if not isinstance(leaf, list):
                array = np.asarray(leaf)
                whole = np.zeros((len(valid), *array.shape[1:]), array.dtype)
                whole[valid] = array[: valid.sum()]
                return whole
            first = np.asarray(leaf[0])
            whole = np.zeros((batch.length, len(valid), *first.shape[1:]), first.dtype)
            for row, sequence in zip(np.flatnonzero(valid), leaf, strict=False):
                whole[: len(sequence), row] = sequence
            return whole

        lengths = np.where(valid, batches.lengths[indices], 0).astype(np.int32)
        return Padded(_each(place, load(wanted)), lengths, valid)

    return at


def prefetch(items: Iterable[Item], *, size: int = 2, put: Callable[[Item], Any] = jax.device_put) -> Iterator[Any]:
    """Batches made, and moved to where they are used, ahead of their use.

    One thread takes the items, in order, and puts them. JAX returns from a jitted step long before its result is there,
    on a CPU too, so a loop that never waits for a result overlaps with the loading of data by itself. A loop that does
    (it fetches the loss, looks for NaN, saves) leaves the device idle while the next batch is made, unless a thread
    makes it: with loading and step of 6 ms each on a CPU, 12 ms a step become 6–7.

    Args:
        items: such as ``map(at, range(start, steps))`` with ``at`` from :func:`padded`. Taken in the thread: what is
            slow should happen in NumPy, files and the like, which run beside Python.
        size: how many items may be ahead of the one that was handed out last.
        put: what is done with each in the thread; for a mesh ``lambda batch: jr.devices.shard_batch(batch, mesh,
            batch_axis=Padded(1, 0, 0))``. The thread has its caller's x64 mode and default device; name a mesh.

    Returns:
        An iterator of what ``put`` returned. It starts when first asked. What goes wrong with an item is raised in its
        place. ``close()``, the end of a loop that nothing else refers to it from, or an error end the thread; by then
        up to ``size`` further items may have been taken, so go on from a step, not from what is left of ``items``.

    Raises:
        ValueError, TypeError: a size below 1; items that are not iterable; put that is no function.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.training.batches import prefetch
        >>> [float(x.sum()) for x in prefetch(np.full(2, n) for n in range(3))]
        [0.0, 2.0, 4.0]
    """
    check_sizes("prefetch", size=size)
    if not callable(put):
        raise TypeError(f"prefetch: put must be a function of an item, got {put!r}; give jax.device_put, say.")
    if not isinstance(items, Iterable):
        raise TypeError(
            f"prefetch: items must be iterable, got {type(items).__name__}; give map(at, range(start, steps)), say."
        )
    config: Any = jax.config  # options are attributes, of which its type knows nothing
    # A thread would start from the defaults.
    return _ahead(iter(items), int(size), put, config.jax_enable_x64, config.jax_default_device)


def _ahead(items, size, put, x64, device):
    end = object()

    def one():
        with jax.enable_x64(x64), jax.default_device(device):
            item = next(items, end)
            return item if item is end else put(item)

    # Not a daemon: one that is still inside JAX when Python ends would crash; a pool's thread is waited for.
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    ahead: deque[Future[Any]] = deque()
    stop = weakref.finalize(ahead, pool.shutdown, cancel_futures=True)  # where Python ends too, in good time
    try:
        ahead.extend(pool.submit(one) for _ in range(size))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(one))
            yield item
    finally:
        stop()


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


def _each(function: Callable[[str, Any], Any], data: PyTree) -> PyTree:
    """``function(name, leaf)`` of every list and every array of a tree; a list is one leaf."""
    is_list = lambda node: isinstance(node, list)  # noqa: E731
    named = lambda path, leaf: function(f"data{jax.tree_util.keystr(path)}", leaf)  # noqa: E731
    return jax.tree_util.tree_map_with_path(named, data, is_leaf=is_list)


def _part_of_process(B: int, process: tuple[int, int] | None) -> slice:
    p, P = (jax.process_index(), jax.process_count()) if process is None else process
    check_sizes("padded", P=P)
    _check_count("padded", p=p)
    if p >= P:
        raise ValueError(f"padded: process must be (p, P) with 0 ≤ p < P, got ({p}, {P}); the first is (0, {P}).")
    if B % P:
        raise ValueError(
            f"padded: batch_size, {B}, cannot be divided among {P} processes; give bucketed a multiple of {P}, such as "
            f"{-(-B // P) * P}."
        )
    return slice(p * B // P, (p + 1) * B // P)


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
    lengths = lengths.astype(np.int64)
    lengths.flags.writeable = False
    return lengths


def _check_count(who: str, **counts: Any) -> None:
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


def _check(name: str, leaf: Any, indices: np.ndarray, lengths: np.ndarray) -> None:
    """A list or an array holds the examples ``indices``, its sequences as long as ``lengths`` says of them."""
    if not isinstance(leaf, list):
        if not np.ndim(leaf):
            raise TypeError(
                f"padded: {name} must be a list of sequences, or an array with an entry for each example, got {leaf!r}."
            )
        leaf = np.asarray(leaf)
    if len(leaf) != len(indices):
        raise ValueError(
            f"padded: {name} must hold {len(indices)} examples, as many as there are lengths or as were to be loaded, "
            f"got {len(leaf)}."
        )
    if not isinstance(leaf, list):
        return
    first = np.asarray(leaf[0])
    for index, sequence in zip(indices.tolist(), leaf, strict=True):
        array = np.asarray(sequence)
        if array.ndim == 0:
            raise ValueError(
                f"padded: {name} must be a list of sequences (L, …), time first, but example {index} is a scalar; give "
                f"what is one entry an example as one array, np.array({name})."
            )
        if len(array) != lengths[index]:
            raise ValueError(
                f"padded: {name} has {len(array)} steps for example {index}, but bucketed was given {lengths[index]}; "
                f"give it the lengths of these sequences."
            )
        if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
            raise ValueError(
                f"padded: {name} is {array.dtype} {array.shape} for example {index} but {first.dtype} {first.shape} "
                f"for example {indices[0]}; all must agree in dtype and in every axis but the first, which is time."
            )
