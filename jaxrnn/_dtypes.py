"""Dtypes that hold what others hold, products in them, small arrays spread over a batch; strict promotion or not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def promoted(*dtypes: Any) -> Any:
    """The dtype in which numbers of all these are added, whatever ``jax.numpy_dtype_promotion`` lets arrays do."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def accumulator(*dtypes: Any) -> Any:
    """The dtype in which sums, gates and carries are kept: at least float32."""
    return promoted(*dtypes, jnp.float32)


def aligned(a: jax.Array, like: jax.Array) -> jax.Array:
    """``a``, which has the last axes of another array, with axes of size 1 for those in front of them, in both dtypes.

    What NumPy does by itself, said aloud: ``jax.numpy_rank_promotion("raise")`` forbids it to do so.
    """
    return jax.lax.broadcast_to_rank(a.astype(promoted(a.dtype, like.dtype)), jnp.ndim(like))


def carry_dtype(W: jax.Array, dtype: Any) -> Any:
    """What a cell carries its state in: at least float32, and as wide as its weights and its compute dtype."""
    return accumulator(W.dtype, *(() if dtype is None else (dtype,)))


def product(multiply: Callable[..., jax.Array], x: jax.Array, W: jax.Array, dtype: Any) -> jax.Array:
    """``multiply(x, W)`` with both sides in the compute dtype (None: that of W), summed in at least float32.

    The cast of W stands here, inside the step, so that its gradient accumulates in the dtype of W.
    """
    kept, dtype = carry_dtype(W, dtype), W.dtype if dtype is None else dtype
    return multiply(x.astype(dtype), W.astype(dtype), preferred_element_type=accumulator(dtype)).astype(kept)
