"""Attention without parameters: ``jr.attend``."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn.attention.weighting import (
    as_memory,
    check_query,
    context_of,
    normalised,
    positions,
    scores_by_product,
    without_padding,
)


class Attended(NamedTuple):
    context: jax.Array  # (*E, *B, V): the mean of the values by the weights
    weights: jax.Array  # (*E, *B, S), which sum to 1, or to 0 where no position is valid


@checks_arguments
def attend(
    query: jax.Array,
    memory: jax.Array,
    *,
    values: jax.Array | None = None,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    scale: float | None = None,
) -> Attended:
    """Scaled dot-product attention of a query to a memory.

        e_s     = scale * q · m_s                    s = 0 … S-1
        α       = softmax(e)                         over the valid positions
        context = Σ_s α_s v_s

    Args:
        query: q, (*B, M), or with further axes in front, (*E, *B, M): the outputs of a whole run, (T, *B, M), attend at
            once.
        memory: m, (S, *B, M), positions first: the outputs of an encoder.
        values: v, (S, *B, V); None means the memory itself.
        lengths: (*B) integers, the valid positions of each memory; mask: (S, *B) booleans; both together mean both.
        scale: None means 1/√M; 1.0 is Luong's "dot".

    Returns:
        ``Attended(context, weights)``: context (*E, *B, V) of the dtype of the values, weights (*E, *B, S), in which
        the softmax is computed, at least float32. Where no position is valid (length 0, S = 0) both are 0. What stands
        in the padding, NaN included, reaches neither values nor gradients.

    Raises:
        ValueError, TypeError: arrays that do not fit each other, are no floats, lengths or masks of another shape.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> memory = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]], [[jnp.nan, jnp.nan]]])  # S = 3, B = 1, M = 2
        >>> context, weights = jr.attend(jnp.array([[500.0, 0.0]]), memory, lengths=jnp.array([2]))
        >>> context.tolist(), weights.tolist()
        ([[1.0, 0.0]], [[1.0, 0.0, 0.0]])

    Reference:
        Vaswani et al., "Attention is all you need", NeurIPS 2017. Luong, Pham & Manning, "Effective approaches to
        attention-based neural machine translation", EMNLP 2015, for the form without the scale.

    Differs from: torch's ``scaled_dot_product_attention``, which wants the batch first, and gives NaN (by some of its
    ways 0) where no position is valid.
    """
    memory = as_memory("attend", "memory", memory)
    values = memory if values is None else as_memory("attend", "values", values)
    if values.shape[:-1] != memory.shape[:-1]:
        raise ValueError(
            f"attend: values must lead with the axes (S, *B) of memory, {memory.shape[:-1]}, got shape {values.shape}."
        )
    M, batch_shape = memory.shape[-1], memory.shape[1:-1]
    check_query("attend", query, M, "project one of the two, query or memory, or use jr.attention.general")
    query = jnp.asarray(query)
    extra = query.ndim - 1 - len(batch_shape)
    if extra < 0 or query.shape[extra:-1] != batch_shape:
        raise ValueError(
            f"attend: query must be (*B, M) as the memory, with or without axes in front, here "
            f"(…, {', '.join(map(str, (*batch_shape, M)))}), got shape {query.shape}; a memory that all sequences "
            f"share needs jax.vmap, or jnp.broadcast_to."
        )
    valid = positions("attend", memory, lengths, mask)
    keys = without_padding(memory, valid)
    read = keys if values is memory else without_padding(values, valid)
    scale = M**-0.5 if scale is None else scale

    def one(query):
        scores = scores_by_product(query, keys)
        weights = normalised(scores * jnp.asarray(scale, scores.dtype), valid)
        return Attended(context_of(weights, read).astype(values.dtype), weights)

    for _ in range(extra):
        one = jax.vmap(one)
    return one(query)
