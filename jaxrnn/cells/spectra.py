"""Where the eigenvalues of linear recurrences start, and what they read out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._dtypes import accumulator
from jaxrnn.cells._products import project_real, times


def check_ring(who: str, r_min: float, r_max: float, *, lowest: float = 0.0) -> None:
    """The moduli of eigenvalues lie within ``lowest`` ≤ r_min < r_max ≤ 1."""
    if not lowest <= r_min < r_max <= 1:
        raise ValueError(
            f"{who}: r_min and r_max must be {lowest:g} <= r_min < r_max <= 1, got {r_min!r} and {r_max!r}; beyond 1 "
            f"the state grows without bound."
        )


def log_decay(key: jax.Array, size: int, r_min: float, r_max: float, dtype: Any) -> jax.Array:
    """ν = -log |λ| of eigenvalues that are spread evenly over the area of a ring, in at least float32."""
    share = uniform(key, size, accumulator(dtype))
    return -0.5 * jnp.log(share * (r_max**2 - r_min**2) + r_min**2)


def uniform(key: jax.Array, size: int, dtype: Any) -> jax.Array:
    """U(0, 1) without 0, whose logarithm is not finite."""
    return jax.random.uniform(key, (size,), dtype, minval=float(jnp.finfo(dtype).tiny))


def normal(key: jax.Array, shape: tuple[int, ...], scale: float, dtype: Any) -> jax.Array:
    """Normal numbers, drawn in at least float32, then rounded."""
    return (scale * jax.random.normal(key, shape, accumulator(dtype))).astype(dtype)


def read_out(
    h: jax.Array, x: jax.Array, C_re: jax.Array, C_im: jax.Array, D: jax.Array | None, dtype: Any
) -> jax.Array:
    """Re(C h) + D x, D diagonal; without a D Re(C h)."""
    y = project_real(h, C_re, C_im, dtype)
    return y if D is None else y + times(x.astype(y.dtype), D.astype(y.dtype))


@functools.lru_cache(8)
def hippo_n(size: int) -> tuple[np.ndarray, np.ndarray]:
    """``(Λ, V)``: the eigenvalues of the normal HiPPO matrix with positive imaginary part, and their eigenvectors.

        A_nk = - √(n + 1/2) √(k + 1/2)  where n > k,  - 1/2  where n = k,  + √(n + 1/2) √(k + 1/2)  where n < k

    A + 1/2 is skew-symmetric, so i times it is Hermitian: its eigenvectors are orthonormal, and Re Λ = -1/2. The other
    half of the eigenvalues are the conjugates of these; of an odd size there would be one more, which is real.
    """
    root = np.sqrt(np.arange(size) + 0.5)
    upper = np.triu(np.outer(root, root), 1)
    imaginary, V = np.linalg.eigh(-1j * (upper - upper.T))  # in ascending order
    return -0.5 + 1j * imaginary[size // 2 :], V[:, size // 2 :]
