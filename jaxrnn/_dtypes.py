"""Dtypes that hold what others hold, and small arrays spread over a batch: also under JAX's strict promotion."""

from __future__ import annotations

import functools
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
