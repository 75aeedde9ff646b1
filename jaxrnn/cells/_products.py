"""Products in the compute dtype, states in the carry's, outputs in their own; carries of zeros, or learned."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import PyTree
from jaxrnn._dtypes import aligned, carry_dtype, product, promoted

LARGE = 2**14  # numbers of a matrix from which one row is multiplied by all of it, where some columns are wanted


def project(x: jax.Array, W: jax.Array, dtype: Any, columns: slice = slice(None)) -> jax.Array:
    """``x @ W`` with both sides in the compute dtype (None: that of W), summed in at least float32, for the carry.

    By some columns of a large W, one row is multiplied by all, and cut then: of the cut of W and the product a CPU's
    compiler makes one loop, which reads down the columns. A step of a GRU, reset before, B = 1, took 2.5, 5 and 12
    times as long with 128, 256 and 512 units (two AVX-512 cores). Under a plan a run over time has W cut once, before
    the loop (``planning/cut_weights.py``).
    """
    if columns == slice(None):
        return product(jnp.dot, x, W, dtype)
    if math.prod(x.shape[:-1]) == 1 and W.size >= LARGE:
        return product(jnp.dot, x, W, dtype)[..., columns]
    return product(jnp.dot, x, W[..., columns], dtype)


def project_blocks(x: jax.Array, W: jax.Array, dtype: Any) -> jax.Array:
    """``project`` by a block-diagonal matrix: x (*B, n k) by the n blocks of W (n, k, m), (*B, n, m)."""
    x = x.reshape(*x.shape[:-1], *W.shape[:2])
    return product(functools.partial(jnp.einsum, "...nk,nkm->...nm"), x, W, dtype)


def project_heads(h: jax.Array, W: jax.Array, gates: int, dtype: Any, columns: slice = slice(None)) -> jax.Array:
    """``project`` of a state by W (R, gates * H), or by one block a head, W (heads, R / heads, gates * H / heads).

    Either way (*B, gates * H), gate by gate; each head's units stand together. The gates are those in the columns.
    """
    if W.ndim == 2:
        return project(h, W, dtype, columns)
    a = project_blocks(h, W[..., columns], dtype)
    heads, width = a.shape[-2:]
    a = a.reshape(*h.shape[:-1], heads, gates, width // gates)
    return jnp.swapaxes(a, -3, -2).reshape(*h.shape[:-1], heads * width)


def project_complex(x: jax.Array, W_re: jax.Array, W_im: jax.Array, dtype: Any) -> jax.Array:
    """``x @ (W_re + i W_im)`` of real inputs, complex numbers for the carry."""
    return jax.lax.complex(project(x, W_re, dtype), project(x, W_im, dtype))


def project_real(h: jax.Array, W_re: jax.Array, W_im: jax.Array, dtype: Any) -> jax.Array:
    """Re(h @ (W_re + i W_im)) of complex states."""
    return project(h.real, W_re, dtype) - project(h.imag, W_im, dtype)


def complex_dtype(W: jax.Array, dtype: Any) -> Any:
    """``carry_dtype`` of a complex state: complex64 or complex128."""
    return promoted(carry_dtype(W, dtype), jnp.complex64)


def plus_bias(a: jax.Array, b: jax.Array | None) -> jax.Array:
    """``a + b``; without a bias ``a``."""
    return a if b is None else plus(a, b)


def plus(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a + b``: (*B, H) and (H,), say."""
    b = aligned(b, a)
    return a.astype(b.dtype) + b


def times(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a * b``: (*B, H) and (H,), say."""
    b = aligned(b, a)
    return a.astype(b.dtype) * b


def output(h: jax.Array, W: jax.Array, dtype: Any) -> jax.Array:
    """``h`` in the declared output dtype: the compute dtype, or that of the weights."""
    return h.astype(W.dtype if dtype is None else dtype)


def initial_state(learned: jax.Array | None, batch_shape: tuple[int, ...], size: int, dtype: Any) -> jax.Array:
    """(*B, size): zeros, or the learned initial state for every sequence of the batch."""
    if learned is None:
        return jnp.zeros((*batch_shape, size), dtype)
    state = jnp.broadcast_to(learned.astype(dtype), (*batch_shape, size))
    # Outside of jit that may be the parameter itself, which whoever donates the carry would delete.
    return state if isinstance(state, jax.core.Tracer) else jnp.copy(state)


def empty_carry(params: PyTree, batch_shape: tuple[int, ...] = ()) -> tuple[()]:
    """The carry of a cell that remembers nothing."""
    return ()
