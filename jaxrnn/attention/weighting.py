"""Scores become weights, weights a context: what all forms of attention share, padding kept out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import select
from jaxrnn._checks import check_flags, check_one_array
from jaxrnn._dtypes import accumulator, promoted
from jaxrnn._narrowing import as_lengths


def positions(who: str, memory: jax.Array, lengths: Any, mask: Any) -> jax.Array | None:
    """(S, *B) booleans: which positions of a memory (S, *B, M) may be attended to; None: all of them."""
    S, batch_shape = memory.shape[0], memory.shape[1:-1]
    if lengths is not None:
        lengths = as_lengths(who, lengths, batch_shape)
    if mask is not None:
        check_flags(who, "mask", mask, ((S, *batch_shape),), "True where a position is valid", "(S, *B)")
        mask = jnp.asarray(mask)
    if lengths is None:
        return mask
    within = jnp.arange(S, dtype=jnp.int32).reshape(-1, *(1,) * lengths.ndim) < lengths[None]
    return within if mask is None else within & mask


def as_memory(who: str, name: str, memory: Any) -> jax.Array:
    """An array (S, *B, M) of floats."""
    check_one_array(who, name, memory)
    memory = jnp.asarray(memory)
    if not jnp.issubdtype(memory.dtype, jnp.floating):
        raise TypeError(
            f"{who}: {name} must be floating-point, got {memory.dtype}; embed integers first, or cast them with "
            f".astype('float32')."
        )
    if memory.ndim < 2:
        raise ValueError(
            f"{who}: {name} must be (S, *B, M), positions first and features last, got shape {memory.shape}."
        )
    return memory


def without_padding(memory: jax.Array, valid: jax.Array | None) -> jax.Array:
    """0 in the padding: 0 * NaN would be NaN, in values and in gradients."""
    return memory if valid is None else select(valid, memory, jnp.zeros_like(memory))


def scores_by_product(query: jax.Array, keys: jax.Array) -> jax.Array:
    """(*B, S): the products of a query (*B, K) with each of the keys (S, *B, K), in at least float32."""
    dtype, batch = promoted(query.dtype, keys.dtype), tuple(range(query.ndim - 1))
    contracted = ((query.ndim - 1,), (keys.ndim - 1,)), (batch, tuple(axis + 1 for axis in batch))
    return jax.lax.dot_general(
        query.astype(dtype), keys.astype(dtype), contracted, preferred_element_type=accumulator(dtype)
    )


def normalised(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
    """exp(e_s) / Σ exp(e_s) over the last axis, in at least float32; 0 where a position is not valid, or none is.

    ``valid`` is (S, *B), as ``positions`` gives it.
    """
    scores = scores.astype(accumulator(scores.dtype))
    valid = jnp.ones(scores.shape, bool) if valid is None else jnp.moveaxis(valid, 0, -1)
    largest = jnp.max(scores, axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    # What is not valid is made harmless before exp as well: where() alone leaves 0 * inf in the gradient.
    risen = jnp.where(valid, jnp.exp(jnp.where(valid, scores - largest, 0)), 0)
    total = risen.sum(axis=-1, keepdims=True)
    return risen / jnp.where(total > 0, total, 1)


def context_of(weights: jax.Array, values: jax.Array) -> jax.Array:
    """(*B, V): the sum of the values (S, *B, V) by the weights (*B, S), in at least float32."""
    batch = tuple(range(weights.ndim - 1))
    contracted = ((weights.ndim - 1,), (0,)), (batch, tuple(axis + 1 for axis in batch))
    return jax.lax.dot_general(
        weights.astype(values.dtype), values, contracted, preferred_element_type=accumulator(values.dtype)
    )


def check_query(who: str, query: Any, size: int, fix: str) -> None:
    """The last axis of a query has the features that it is to be compared with."""
    check_one_array(who, "query", query)
    shape = jnp.shape(query)
    if not jnp.issubdtype(jnp.result_type(query), jnp.floating):
        raise TypeError(f"{who}: query must be floating-point, got {jnp.result_type(query)}.")
    if not shape or shape[-1] != size:
        raise ValueError(f"{who}: query must have {size} features, (*B, {size}), got shape {shape}; {fix}.")
