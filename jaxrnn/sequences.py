"""Around a recurrent model: padding in, the last valid output, pooling and losses over valid steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import select
from jaxrnn._checks import check_flags, check_lengths
from jaxrnn.running.scan import valid_steps


@checks_arguments
def pad(sequences: Sequence[Any], *, length: int | None = None, value: float = 0) -> tuple[jax.Array, jax.Array]:
    """Put sequences of different lengths into one array, time first.

    Args:
        sequences: N arrays (T_n, …) that agree in everything but their length.
        length: T of the result; None means that of the longest. A fixed one saves compilations.
        value: what stands in the padding; it never reaches a result.

    Returns:
        ``(xs, lengths)``: xs (T, N, …) and lengths (N,), int32.

    Raises:
        ValueError: no sequences, shapes or dtypes that do not agree, a sequence longer than ``length``.

    Example:
        >>> import numpy as np, jaxrnn as jr
        >>> xs, lengths = jr.pad([np.ones((3, 2)), np.ones((5, 2))])
        >>> xs.shape, lengths.tolist()
        ((5, 2, 2), [3, 5])
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("pad: needs at least one sequence, got none.")
    first = arrays[0]
    if not np.issubdtype(first.dtype, np.inexact) and first.dtype.type(int(np.nan_to_num(value))) != value:
        raise ValueError(f"pad: value={value!r} does not fit into sequences of {first.dtype}; give a whole number.")
    for index, array in enumerate(arrays):
        if array.ndim == 0:
            raise ValueError(f"pad: sequence {index} is a scalar; each must be an array (T_n, …), time first.")
        if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
            raise ValueError(
                f"pad: sequence {index} is {array.dtype} {array.shape} but sequence 0 is {first.dtype} {first.shape}; "
                f"all must agree in dtype and in every axis but the first, which is time."
            )
    lengths = np.array([len(array) for array in arrays], np.int32)
    T = int(lengths.max()) if length is None else length
    if lengths.max() > T:
        raise ValueError(
            f"pad: sequence {lengths.argmax()} has {lengths.max()} steps, more than length={T}; nothing is cut "
            f"silently, so slice it first or give a larger length."
        )
    xs = np.full((T, len(arrays), *first.shape[1:]), value, first.dtype)
    for index, array in enumerate(arrays):
        xs[: len(array), index] = array
    return jnp.asarray(xs), jnp.asarray(lengths)


def last(ys: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """The output at each sequence's last valid step.

    Args:
        ys: (T, *B, …).
        lengths: (*B) integers, clamped to T; None means T for all.

    Returns:
        (*B, …); 0 where the length is 0.

    Raises:
        ValueError, TypeError: lengths that are not integers of a leading batch shape; T = 0 without lengths.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.last(jnp.arange(6.0).reshape(3, 2), jnp.array([3, 1])).tolist()
        [4.0, 1.0]
    """
    if ys.ndim == 0 or (lengths is None and ys.shape[0] == 0):
        raise ValueError(f"last: ys must be (T, *B, …) with at least one step, got shape {ys.shape}.")
    if lengths is None:
        return ys[-1]
    lengths = jnp.asarray(lengths)
    check_lengths("last", lengths, ys.shape[1 : 1 + lengths.ndim])
    T = ys.shape[0]
    if T == 0:
        return jnp.zeros_like(ys, shape=ys.shape[1:])
    index = jnp.clip(lengths.astype(jnp.int32) - 1, 0, T - 1)
    picked = jnp.take_along_axis(ys, index.reshape(1, *index.shape, *(1,) * (ys.ndim - 1 - index.ndim)), axis=0)[0]
    return select(lengths > 0, picked, jnp.zeros_like(picked))


def mean_pool(ys: jax.Array, *, lengths: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
    """The mean of the outputs over the valid steps of each sequence.

        pooled = Σ_t valid_t y_t / Σ_t valid_t

    Args:
        ys: (T, *B, …).
        lengths: (*B) integers; mask: (T, *B) booleans; both together mean both.

    Returns:
        (*B, …); 0 where no step is valid. What stands in the padding does not matter, NaN included.

    Raises:
        ValueError, TypeError: lengths or masks of the wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.mean_pool(jnp.array([[1.0], [3.0], [jnp.nan]]), lengths=jnp.array([2])).tolist()
        [2.0]
    """
    on = _valid("mean_pool", ys, lengths, mask)
    if on is None:
        on = jnp.ones(ys.shape[:1], bool)
    total = select(on, ys, jnp.zeros_like(ys)).sum(axis=0, dtype=_wide(ys))
    steps = jnp.maximum(on.sum(axis=0), 1).astype(total.dtype)
    return (total / steps.reshape(steps.shape + (1,) * (total.ndim - steps.ndim))).astype(ys.dtype)


def max_pool(ys: jax.Array, *, lengths: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
    """The largest output over the valid steps of each sequence, feature by feature.

        pooled = max_{t valid} y_t

    Args:
        ys: (T, *B, …), floating point.
        lengths: (*B) integers; mask: (T, *B) booleans; both together mean both.

    Returns:
        (*B, …); 0 where no step is valid. What stands in the padding does not matter, NaN included.

    Raises:
        ValueError, TypeError: lengths or masks of the wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.max_pool(jnp.array([[-1.0], [-3.0], [9.0]]), lengths=jnp.array([2])).tolist()
        [-1.0]
    """
    on = _valid("max_pool", ys, lengths, mask)
    if ys.shape[0] == 0:
        return jnp.zeros_like(ys, shape=ys.shape[1:])
    if on is None:
        return ys.max(axis=0)
    lowest = select(on, ys, jnp.full_like(ys, -jnp.inf)).max(axis=0)
    return select(on.any(axis=0), lowest, jnp.zeros_like(lowest))


def masked_mean(losses: jax.Array, *, lengths: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
    """The mean of per-step losses over all valid steps of all sequences: every step weighs the same.

        loss = Σ_{t,b} valid_{t,b} loss_{t,b} / Σ_{t,b} valid_{t,b}

    Args:
        losses: (T, *B).
        lengths: (*B) integers; mask: (T, *B) booleans; both together mean both.

    Returns:
        A scalar; 0 where nothing is valid. Losses at padded steps do not matter, NaN included; for a gradient, the loss
        function must have finite derivatives there too, so put finite targets into the padding.

    Raises:
        ValueError, TypeError: lengths or masks of the wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> losses = jnp.array([[1.0, 3.0], [5.0, jnp.nan]])
        >>> float(jr.masked_mean(losses, lengths=jnp.array([2, 1])))
        3.0
    """
    on = _valid("masked_mean", losses, lengths, mask)
    if on is None:
        on = jnp.ones(losses.shape, bool)
    if on.shape != losses.shape:
        raise ValueError(
            f"masked_mean: losses must be (T, *B), one number a step, got {losses.shape} with valid steps of shape "
            f"{on.shape}; reduce the feature axes first."
        )
    total = jnp.where(on, losses, 0).sum(dtype=_wide(losses))
    return (total / jnp.maximum(on.sum(), 1).astype(total.dtype)).astype(losses.dtype)


def _wide(a: jax.Array) -> Any:
    """The dtype to sum in: float16 overflows, and a bfloat16 sum of ones stops at 256."""
    return jnp.promote_types(a.dtype, jnp.float32)


def _valid(who: str, ys: jax.Array, lengths: Any, mask: Any) -> jax.Array | None:
    """(T, *B) booleans from lengths and mask, whose shapes say how many batch axes there are."""
    if lengths is not None:
        lengths = jnp.asarray(lengths)
        check_lengths(who, lengths, ys.shape[1 : 1 + lengths.ndim])
    if mask is not None and jnp.ndim(mask) == 0:
        raise ValueError(f"{who}: mask must have shape (T, *B), got (); broadcast it with jnp.broadcast_to.")
    if mask is not None:
        batch_axes = jnp.ndim(mask) - 1 if lengths is None else lengths.ndim
        check_flags(who, "mask", mask, (ys.shape[: 1 + batch_axes],), "True where a step is valid")
    return valid_steps(jnp.arange(ys.shape[0], dtype=jnp.int32), lengths, mask)
