"""Batches as arrays: sequences padded to the length of their bucket, of all rows or of those of one process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn._base import PyTree
from jaxrnn._checks import check_sizes
from jaxrnn.training.batches import Bucketed


class Padded(NamedTuple):
    """A batch as arrays, of all rows or of those of one process."""

    data: PyTree  # sequences (T, B, …), padded with 0, and arrays (B, …), 0 in an empty row
    lengths: np.ndarray  # (B,) int32, 0 in an empty row
    valid: np.ndarray  # (B,) booleans, False in an empty row


def padded(
    batches: Bucketed,
    data: PyTree | Callable[[np.ndarray], PyTree],
    *,
    below: PyTree = None,
    process: tuple[int, int] | None = None,
) -> Callable[[int], Padded]:
    """Batches as arrays: sequences padded to the length of their bucket, time first.

    Args:
        batches: from :func:`bucketed`, for the lengths of these sequences.
        data: a list of N arrays (L_n, …), inputs or targets, one sequence each; or an array (N, …), such as labels, an
            entry each; or a tree of both. Or a function: indices (n,) -> such a list, array or tree, of those n.
        below: how many tokens or classes there are, for all data or as a tree like them, None where they are no such
            numbers. A compiled program cannot refuse a token out of range, here it is: integers from 0 to below - 1.
        process: (p, P) for the p-th of P equal parts of the rows; None means this process among those of JAX. From
            the parts ``jr.devices.shard_batch`` makes one global batch.

    Returns:
        ``at(step)`` -> :class:`Padded`, in NumPy arrays (in main memory, so that they move but once, to wherever they
        belong), their dtypes those of the data. For ``jr.devices.shard_batch`` the batch axes are ``Padded(1, 0, 0)``,
        where all data are sequences. Losses by step take ``lengths``, losses by example ``valid``.

    Raises:
        ValueError, TypeError: sequences whose lengths are not those of ``batches``, or that differ in dtype or in the
            shape of a step; too few or too many; tokens or labels out of range, with the number of their example; a
            number of processes that does not divide the batch.

    Example:
        >>> import numpy as np
        >>> from jaxrnn import training
        >>> xs, label = [np.ones((n, 4), np.float32) for n in (5, 2, 3)], np.array([7, 8, 9])
        >>> batches = training.bucketed([len(x) for x in xs], batch_size=2, seed=0, buckets=2)
        >>> at = training.padded(batches, {"xs": xs, "label": label}, below={"xs": None, "label": 10})
        >>> batch = max((at(step) for step in range(batches.steps_per_epoch)), key=lambda batch: batch.lengths.max())
        >>> batch.data["xs"].shape, sorted(batch.lengths.tolist()), sorted(batch.data["label"].tolist())
        ((5, 2, 4), [3, 5], [7, 9])
    """
    if not isinstance(batches, Bucketed):
        raise TypeError(f"padded: batches must come from training.bucketed, got {type(batches).__name__}.")
    part = _part_of_process(batches.shapes[0][1], process)
    N = len(batches.lengths)
    if not jax.tree.leaves(data):
        raise ValueError(f"padded: data holds no list and no array, got {data!r}.")
    if callable(data):

        def load(indices: np.ndarray) -> PyTree:
            loaded = data(indices)
            _check_range(loaded, below, indices)
            return loaded

    else:
        _each(functools.partial(_check, indices=np.arange(N), lengths=batches.lengths), data)
        _check_range(data, below, np.arange(N))

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


def _each(function: Callable[[str, Any], Any], data: PyTree) -> PyTree:
    """``function(name, leaf)`` of every list and every array of a tree; a list is one leaf."""

    def named(path: Any, leaf: Any) -> Any:
        return function(f"data{jax.tree_util.keystr(path)}", leaf)

    return jax.tree_util.tree_map_with_path(named, data, is_leaf=lambda node: isinstance(node, list))


def _part_of_process(B: int, process: tuple[int, int] | None) -> slice:
    process = (jax.process_index(), jax.process_count()) if process is None else process
    whole = isinstance(process, tuple | list) and all(type(number) is int for number in process)
    if not whole or len(process) != 2 or not 0 <= process[0] < process[1]:
        raise (ValueError if whole else TypeError)(
            f"padded: process must be (p, P), two ints with 0 ≤ p < P, got {process!r}; the first of two is (0, 2)."
        )
    p, P = process
    if B % P:
        raise ValueError(
            f"padded: batch_size, {B}, cannot be divided among {P} processes; give bucketed a multiple of {P}, such as "
            f"{-(-B // P) * P}."
        )
    return slice(p * B // P, (p + 1) * B // P)


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


def _check_range(data: PyTree, below: PyTree, indices: np.ndarray) -> None:
    """The examples ``indices`` hold integers from 0 to below - 1, where that is not None."""

    def check(path: Any, leaf: Any, limit: int | None) -> None:
        if limit is None:
            return
        check_sizes("padded", below=limit)
        name = f"data{jax.tree_util.keystr(path)}"
        for place, array in enumerate(map(np.asarray, leaf if isinstance(leaf, list) else [leaf])):
            if array.dtype.kind not in "biu":
                raise TypeError(
                    f"padded: {name} must be integers from 0 to {limit - 1}, got {array.dtype}; give below as a tree "
                    f"like data, with None for what is neither tokens nor labels."
                )
            outside = np.argwhere((array < 0) | (array >= limit))
            if len(outside):
                at = tuple(outside[0])
                where = f" at step {at[0]}" if isinstance(leaf, list) else ""
                example = indices[place if isinstance(leaf, list) else at[0]]
                raise ValueError(
                    f"padded: {name} holds {array[at]}{where} of example {example}, but must be from 0 to {limit - 1}; "
                    f"correct it, or give a larger below (and a model that has as many)."
                )

    def is_leaf(node: Any) -> bool:
        return node is None or isinstance(node, list)

    try:
        limits = jax.tree.map(lambda limit, part: _each(lambda *_: limit, part), below, data, is_leaf=is_leaf)
    except ValueError:
        outline = jax.tree.structure(data, is_leaf=is_leaf)
        raise ValueError(
            f"padded: below must be a number, or a tree like data, {outline}, or its upper part, got {below!r}."
        ) from None
    jax.tree_util.tree_map_with_path(check, data, limits, is_leaf=is_leaf)
