"""Where a closed loop begins, and what goes round in it: checked once, for every way of decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree, expect_cell, name_of
from jaxrnn._checks import (
    check_carry,
    check_features,
    check_params,
    step_batch_shape,
)
from jaxrnn._narrowing import as_lengths, check_held
from jaxrnn.devices.placement import shard_like_batch, vary_alike
from jaxrnn.running.scan import scan, shapes_of_params
from jaxrnn.sequences import last

NextInput = Callable[[PyTree], PyTree]


class Beginning(NamedTuple):
    """The state of a closed loop before its first step."""

    carry: PyTree  # (*B, …)
    sample: PyTree  # the one that the first step reads, each leaf (*B, …)
    batch_shape: tuple[int, ...]


def as_next_input(next_input: Any) -> NextInput:
    """The function from a sample to the input of the next step; None: the sample itself."""
    return (lambda sample: sample) if next_input is None else next_input


def begin(
    who: str,
    cell: Cell,
    params: PyTree,
    carry: PyTree,
    first: PyTree,
    next_input: Any,
    *,
    tokens: bool,
) -> Beginning:
    """Parameters, carry and first sample, of one batch; ``tokens``: samples are integers (*B)."""
    expect_cell(who, cell, if_layer="a loop runs step by step; put the Cells together with jr.chain, not jr.stack")
    if not jax.tree.leaves(first):
        raise ValueError(f"{who}: first must be the first sample, such as a begin token (*B), got {first!r}.")
    check_held(who, "first", first)
    first = jax.tree.map(jnp.asarray, first)
    if tokens and not _is_token(first):
        came = ", ".join(f"{a.dtype} {a.shape}" for a in jax.tree.leaves(first))
        fix = "cast it with first.astype('int32')" if hasattr(first, "dtype") else "give one array of them"
        raise TypeError(f"{who}: first must be tokens, integers (*B), got {came}; {fix}.")
    batch_shape = batch_shape_of(who, cell, first, next_input)
    if tokens and first.shape != batch_shape:
        raise ValueError(
            f"{who}: first has shape {first.shape}, but what next_input makes of it has the batch axes {batch_shape}; "
            f"there is one token for each sequence."
        )
    check_params(who, params, shapes_of_params(cell))
    x = as_next_input(next_input)(first)
    expected = jax.eval_shape(lambda: cell.initial_carry(params, batch_shape))
    if carry is None:
        carry = cell.initial_carry(params, batch_shape)
    else:
        check_held(who, "carry", carry)
        _check_of_one_batch(who, carry, expected, batch_shape)
        check_carry(who, carry, expected, batch_shape)
    carry, first, x, _ = vary_alike(carry, first, x, params)
    carry = shard_like_batch(carry, jax.tree.map(lambda a: a[None], x), len(batch_shape))
    return Beginning(carry, first, batch_shape)


def batch_shape_of(who: str, cell: Cell, first: PyTree, next_input: Any) -> tuple[int, ...]:
    """*B, from what the cell reads when the first sample is given."""
    if next_input is None and cell.x_ndim == 1 and _is_token(first):
        size = "I" if cell.input_size is None else cell.input_size
        raise TypeError(
            f"{who}: first is {first.dtype}, but {name_of(cell)} reads vectors; put jr.embedding in front of it with "
            f"jr.chain, or give next_input=lambda token: jax.nn.one_hot(token, {size})."
        )
    x = jax.eval_shape(as_next_input(next_input), first)
    batch_shape = step_batch_shape(f"{who}: first, as an input", x, cell.x_ndim)
    if cell.input_size is not None and cell.x_ndim == 1:
        check_features(f"{who}: first, as an input", x, cell.input_size)
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        if leaf.shape[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f"{who}: first{jax.tree_util.keystr(path)} has shape {leaf.shape}, but what next_input makes of it has "
                f"the batch axes {batch_shape}; every leaf of a sample must lead with them."
            )
    return batch_shape


def _alike(tree: PyTree, other: PyTree) -> bool:
    """Whether two trees have one structure."""
    return len({jax.tree.structure(a) for a in (tree, other)}) == 1


def _is_token(sample: PyTree) -> bool:
    return hasattr(sample, "dtype") and jnp.issubdtype(sample.dtype, jnp.integer)


def _check_of_one_batch(who: str, carry: PyTree, expected: PyTree, batch_shape: tuple[int, ...]) -> None:
    if not _alike(carry, expected):
        return
    for (path, leaf), want in zip(jax.tree_util.tree_leaves_with_path(carry), jax.tree.leaves(expected), strict=True):
        if jnp.shape(leaf) != want.shape:
            raise ValueError(
                f"{who}: first has the batch axes {batch_shape}, for which carry{jax.tree_util.keystr(path)} should "
                f"have shape {want.shape}, got {jnp.shape(leaf)}; give a first sample and a carry for each sequence "
                f"of one batch."
            )


def read_prefix(
    who: str,
    cell: Cell,
    params: PyTree,
    beginning: Beginning,
    prefix: PyTree,
    lengths: Any,
    next_input: Any,
    noise_key: jax.Array | None,
    start: Any,
) -> tuple[Beginning, int]:
    """``(beginning, P)``: what the loop begins with after a prefix (P, *B). The first sample is read, then the prefix.

    Its last valid sample is not: the first step of the loop reads it. So a prefix of length 0 changes nothing.
    """
    if prefix is None:
        if lengths is not None:
            raise ValueError(f"{who}: lengths are those of a prefix, and there is none; give prefix=, or no lengths.")
        return beginning, 0
    check_held(who, "prefix", prefix)
    prefix, first = jax.tree.map(jnp.asarray, prefix), beginning.sample
    check_sequence(who, "prefix", prefix, first, beginning.batch_shape)
    if lengths is not None:
        lengths = as_lengths(who, lengths, beginning.batch_shape)
    inputs = shifted(first, prefix)
    xs = jax.vmap(as_next_input(next_input))(inputs)
    carry, _ = scan(cell).apply(params, xs, beginning.carry, lengths=lengths, key=noise_key, start=start)
    P = jax.tree.leaves(prefix)[0].shape[0]
    whole = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, prefix)
    counts = jnp.full(beginning.batch_shape, P, jnp.int32) if lengths is None else lengths.clip(0, P)
    sample = jax.tree.map(lambda a: last(a, counts + 1), whole)
    return beginning._replace(carry=carry, sample=sample), P


def check_sequence(who: str, name: str, samples: PyTree, first: PyTree, batch_shape: tuple[int, ...]) -> None:
    """A sequence of samples (T, *B, …), alike the first one."""
    same = _alike(samples, first)
    pairs = zip(jax.tree.leaves(samples), jax.tree.leaves(first), strict=True) if same else ()
    if not same or any(a.ndim == 0 or a.shape[1:] != b.shape or a.dtype != b.dtype for a, b in pairs):
        came, want = (", ".join(f"{a.dtype} {a.shape}" for a in jax.tree.leaves(tree)) for tree in (samples, first))
        raise ValueError(
            f"{who}: {name} must be samples (T, *B, …), time first, of the kind of first, {want}, got {came}; the "
            f"batch axes are {batch_shape}."
        )


def shifted(first: PyTree, samples: PyTree) -> PyTree:
    """What is read when each of the samples (T, *B, …) is to come: the one before it, ``first`` at the start."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]) if b.shape[0] else b, first, samples)


def like_first(who: str, now: PyTree, first: PyTree) -> PyTree:
    """A sample of the structure, shapes and dtypes of the first; integers may be of another width."""
    if _alike(now, first):
        now = jax.tree.map(lambda a, b: a.astype(b.dtype) if _are_integers(a, b) else jnp.asarray(a), now, first)
        pairs = zip(jax.tree.leaves(now), jax.tree.leaves(first), strict=True)
        if all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs):
            return now
    came, want = (
        ", ".join(f"{jnp.result_type(a)} {jnp.shape(a)}" for a in jax.tree.leaves(tree)) for tree in (now, first)
    )
    raise ValueError(
        f"{who}: what is drawn, {came}, must be of the kind of first, {want}, for it is read at the next step; give "
        f"such a first sample, or another sample=."
    )


def check_vocabulary(who: str, V: int, first: jax.Array) -> None:
    """Each of V tokens fits into the dtype of the first, in which they are kept."""
    largest = jnp.iinfo(first.dtype).max
    if largest < V - 1:
        raise ValueError(
            f"{who}: first is {first.dtype}, which holds tokens up to {largest}, but the cell puts out {V} logits; "
            f"give first.astype('int32')."
        )


def _are_integers(a: Any, b: Any) -> bool:
    return all(jnp.issubdtype(jnp.result_type(c), jnp.integer) for c in (a, b))
