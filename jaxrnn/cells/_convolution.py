"""What the convolutional cells share: fields of one to three dimensions, channels last, and products with kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrnn._checks import check_real, check_sizes
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._products import carry_dtype

Sizes = tuple[int, ...]


def sizes_of_field(
    who: str, spatial_shape: int | Sequence[int], kernel_size: int | Sequence[int]
) -> tuple[Sizes, Sizes]:
    """``(S, K)``: the sizes of space and of the kernel, one to three of each, checked."""
    S = tuple(np.atleast_1d(spatial_shape).tolist())
    K = tuple(np.atleast_1d(kernel_size).tolist()) * (len(S) if np.ndim(kernel_size) == 0 else 1)
    if not 1 <= len(S) <= 3:
        raise ValueError(f"{who}: spatial_shape must have 1 to 3 sizes, got {spatial_shape!r}.")
    if len(K) != len(S):
        raise ValueError(
            f"{who}: kernel_size={kernel_size!r} and spatial_shape={spatial_shape!r} have different numbers of "
            f"dimensions; give one size for each, or one for all."
        )
    sizes = {f"spatial_shape[{n}]": size for n, size in enumerate(S)} | {
        f"kernel_size[{n}]": k for n, k in enumerate(K)
    }
    check_sizes(who, **sizes)
    return S, K


def check_field(who: str, x: jax.Array, S: Sizes, input_size: int, weights: Any, dtype: Any) -> None:
    """An input is a field of those sizes with that many channels, in a dtype that weights or ``dtype`` can take."""
    if x.shape[-len(S) - 1 :] != (*S, input_size):
        expected = ", ".join(map(str, (*S, input_size)))
        raise ValueError(
            f"{who}: expected x of shape (*B, {expected}), got {x.shape}; build the cell with the spatial_shape and "
            f"input_size of your fields, channels last."
        )
    check_real(who, x, weights if dtype is None else dtype, declared=dtype is not None)


def convolve(who: str, x: jax.Array, W: jax.Array, dtype: Any) -> jax.Array:
    """``x`` (*B, *S, I) by the kernel W (*K, I, O), the edges padded with zeros, as ``project`` does it for vectors."""
    if any(jax.typeof(x).sharding.spec) or any(jax.typeof(W).sharding.spec):
        raise ValueError(
            f"{who}: JAX cannot divide all that the gradients of convolutions need over a mesh with Explicit axes; "
            f"make the mesh with jax.sharding.AxisType.Auto, or run inside jax.shard_map."
        )
    kept, dtype = carry_dtype(W, dtype), W.dtype if dtype is None else dtype
    axes = W.ndim - 1  # of x, without a batch
    if x.ndim == axes:
        return convolve(who, x[None], W, dtype)[0]
    if x.ndim > axes + 1:
        return jax.vmap(lambda x: convolve(who, x, W, dtype))(x)
    space = "DHW"[-(axes - 1) :]
    order = (f"N{space}C", f"{space}IO", f"N{space}C")
    return jax.lax.conv_general_dilated(
        x.astype(dtype),
        W.astype(dtype),
        (1,) * (axes - 1),
        "SAME",
        dimension_numbers=order,
        preferred_element_type=accumulator(dtype),
    ).astype(kept)
