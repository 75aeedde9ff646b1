"""Around a recurrent model: padding in, the last valid output, pooling and losses over valid steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import select
from jaxrnn._checks import check_array, check_flags
from jaxrnn._dtypes import accumulator
from jaxrnn._narrowing import as_lengths, check_fits, check_held
from jaxrnn.running.scan import valid_steps


@checks_arguments
def pad(sequences: Sequence[Any], *, length: int | None = None, value: complex = 0) -> tuple[jax.Array, jax.Array]:
    """Put sequences of different lengths into one array, time first.

    Args:
        sequences: N arrays (T_n, …) that agree in everything but their length.
        length: T of the result; None means that of the longest. A fixed one saves compilations.
        value: what stands in the padding, a number that their dtype holds; it never reaches a result.

    Returns:
        ``(xs, lengths)``: xs (T, N, …) and lengths (N,), int32. With JAX's 64 bits off, xs of 64 bits become 32.

    Raises:
        ValueError: no sequences, shapes or dtypes that do not agree, a sequence longer than ``length``, numbers that do
            not fit into the dtype of xs. TypeError: a value that is no number, sequences that are not of numbers or are
            traced. MemoryError: an xs larger than the memory.

    Example:
        >>> import numpy as np, jaxrnn as jr
        >>> xs, lengths = jr.pad([np.ones((3, 2)), np.ones((5, 2))])
        >>> xs.shape, lengths.tolist()
        ((5, 2, 2), [3, 5])
    """
    arrays = [_on_the_host(f"sequence {index}", sequence) for index, sequence in enumerate(sequences)]
    if not arrays:
        raise ValueError("pad: needs at least one sequence, got none.")
    first = arrays[0]
    for index, array in enumerate(arrays):
        check_array("pad", f"sequence {index}", array)
        if array.ndim == 0:
            raise ValueError(f"pad: sequence {index} is a scalar; each must be an array (T_n, …), time first.")
        if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
            raise ValueError(
                f"pad: sequence {index} is {array.dtype} {array.shape} but sequence 0 is {first.dtype} {first.shape}; "
                f"all must agree in dtype and in every axis but the first, which is time."
            )
        check_held("pad", f"sequence {index}", array)
    check_fits("pad", "value", value, first.dtype)
    lengths = np.array([len(array) for array in arrays], np.int32)
    T = int(lengths.max()) if length is None else length
    if lengths.max() > T:
        raise ValueError(
            f"pad: sequence {lengths.argmax()} has {lengths.max()} steps, more than length={T}; nothing is cut "
            f"silently, so slice it first or give a larger length."
        )
    shape = (T, len(arrays), *first.shape[1:])
    try:
        xs = np.full(shape, value, first.dtype)
    except MemoryError as error:
        raise MemoryError(
            f"pad: xs, {first.dtype} {shape}, needs {math.prod(shape) * first.dtype.itemsize:,} bytes, which are not "
            f"there; give a smaller length, or fewer sequences."
        ) from error
    for index, array in enumerate(arrays):
        xs[: len(array), index] = array
    return jnp.asarray(xs), jnp.asarray(lengths)


def _on_the_host(name: str, sequence: Any) -> np.ndarray:
    """A sequence in NumPy, once it is seen to hold values now, and numbers."""
    for leaf in jax.tree.leaves(sequence):
        if isinstance(leaf, jax.Array) and not (jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool):
            raise TypeError(
                f"pad: {name} must be an array of numbers, got {leaf.dtype}; pad jax.random.key_data of keys."
            )
        if isinstance(leaf, jax.core.Tracer):
            raise TypeError(f"pad: {name} is traced and has no value yet; pad outside of jit, grad and vmap.")
    return np.asarray(sequence)


@checks_arguments
def last(ys: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """The output at each sequence's last valid step.

    Args:
        ys: (T, *B, …).
        lengths: (*B) integers, clamped to T, however large (an argument of a jitted function has been narrowed to int32
            by then); None means T for all.

    Returns:
        (*B, …); 0 where the length is 0.

    Raises:
        ValueError, TypeError: lengths that are not integers of a leading batch shape; T = 0 without lengths.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.last(jnp.arange(6.0).reshape(3, 2), jnp.array([3, 1])).tolist()
        [4.0, 1.0]
    """
    ys = _sequence("last", "ys", ys)
    if lengths is None and ys.shape[0] == 0:
        raise ValueError(f"last: ys must be (T, *B, …) with at least one step, got shape {ys.shape}.")
    if lengths is None:
        return ys[-1]
    lengths = as_lengths("last", lengths, ys.shape[1 : 1 + np.ndim(lengths)])
    T = ys.shape[0]
    if T == 0:
        return jnp.zeros_like(ys, shape=ys.shape[1:])
    index = jnp.clip(lengths - 1, 0, T - 1)
    picked = jnp.take_along_axis(ys, index.reshape(1, *index.shape, *(1,) * (ys.ndim - 1 - index.ndim)), axis=0)[0]
    return select(lengths > 0, picked, jnp.zeros_like(picked))


@checks_arguments
def mean_pool(ys: jax.Array, *, lengths: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
    """The mean of the outputs over the valid steps of each sequence.

        pooled = Σ_t valid_t y_t / Σ_t valid_t

    Args:
        ys: (T, *B, …).
        lengths: (*B) integers; mask: (T, *B) booleans; both together mean both.

    Returns:
        (*B, …), of the dtype of ys; of integers and booleans float32. 0 where no step is valid. What stands in the
        padding does not matter, NaN included.

    Raises:
        ValueError, TypeError: lengths or masks of the wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.mean_pool(jnp.array([[1.0], [3.0], [jnp.nan]]), lengths=jnp.array([2])).tolist()
        [2.0]
    """
    ys = _sequence("mean_pool", "ys", ys)
    on = _valid("mean_pool", ys, lengths, mask)
    if on is None:
        on = jnp.ones(ys.shape[:1], bool)
    total = select(on, ys, jnp.zeros_like(ys)).sum(axis=0, dtype=_wide(ys))
    steps = jnp.maximum(on.sum(axis=0), 1).astype(total.dtype)
    return (total / steps.reshape(steps.shape + (1,) * (total.ndim - steps.ndim))).astype(_dtype_of_mean(ys))


@checks_arguments
def max_pool(ys: jax.Array, *, lengths: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
    """The largest output over the valid steps of each sequence, feature by feature.

        pooled = max_{t valid} y_t

    Args:
        ys: (T, *B, …), floats, integers or booleans, for which it is "any".
        lengths: (*B) integers; mask: (T, *B) booleans; both together mean both.

    Returns:
        (*B, …), of the dtype of ys; 0 where no step is valid. What stands in the padding does not matter, NaN included.

    Raises:
        ValueError, TypeError: lengths or masks of the wrong shape or dtype; complex ys, which have no order.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.max_pool(jnp.array([[-1.0], [-3.0], [9.0]]), lengths=jnp.array([2])).tolist()
        [-1.0]
    """
    ys = _sequence("max_pool", "ys", ys)
    if jnp.issubdtype(ys.dtype, jnp.complexfloating):
        raise TypeError(
            f"max_pool: ys must be real, got {ys.dtype}, and complex numbers have no order; take jnp.abs(ys), or .real "
            f"and .imag apart."
        )
    on = _valid("max_pool", ys, lengths, mask)
    if ys.shape[0] == 0:
        return jnp.zeros_like(ys, shape=ys.shape[1:])
    if on is None:
        return ys.max(axis=0)
    largest = select(on, ys, jnp.full_like(ys, _lowest(ys.dtype))).max(axis=0)
    return select(on.any(axis=0), largest, jnp.zeros_like(largest))


@checks_arguments
def masked_mean(losses: jax.Array, *, lengths: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
    """The mean of per-step losses over all valid steps of all sequences: every step weighs the same.

        loss = Σ_{t,b} valid_{t,b} loss_{t,b} / Σ_{t,b} valid_{t,b}

    Args:
        losses: (T, *B), numbers or booleans, such as whether a prediction is right.
        lengths: (*B) integers; mask: (T, *B) booleans; both together mean both.

    Returns:
        A scalar, of the dtype of losses; of integers and booleans float32. 0 where nothing is valid. Losses at padded
        steps do not matter, NaN included; for a gradient, the loss function must have finite derivatives there too, so
        put finite targets into the padding.

    Raises:
        ValueError, TypeError: lengths or masks of the wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> losses = jnp.array([[1.0, 3.0], [5.0, jnp.nan]])
        >>> float(jr.masked_mean(losses, lengths=jnp.array([2, 1])))
        3.0
    """
    losses = _sequence("masked_mean", "losses", losses)
    on = _valid("masked_mean", losses, lengths, mask)
    if on is None:
        on = jnp.ones(losses.shape, bool)
    if on.shape != losses.shape:
        raise ValueError(
            f"masked_mean: losses must be (T, *B), one number a step, got {losses.shape} with valid steps of shape "
            f"{on.shape}; reduce the feature axes first."
        )
    total = jnp.where(on, losses, jnp.zeros_like(losses)).sum(dtype=_wide(losses))
    return (total / jnp.maximum(on.sum(), 1).astype(total.dtype)).astype(_dtype_of_mean(losses))


def _sequence(who: str, name: str, ys: Any) -> jax.Array:
    """An array that has a time axis."""
    ys = jnp.asarray(ys)
    if not jnp.issubdtype(ys.dtype, jnp.number) and ys.dtype != bool:
        raise TypeError(f"{who}: {name} must be numbers or booleans, got {ys.dtype}; keys have neither order nor mean.")
    if ys.ndim == 0:
        raise ValueError(f"{who}: {name} must be (T, *B, …), time first, got shape ().")
    return ys


def _wide(a: jax.Array) -> Any:
    """The dtype to sum in: float16 overflows, and a bfloat16 sum of ones stops at 256."""
    return accumulator(a.dtype)


def _dtype_of_mean(a: jax.Array) -> Any:
    """That of the numbers; a mean of integers or booleans is a fraction."""
    return a.dtype if jnp.issubdtype(a.dtype, jnp.inexact) else jnp.float32


def _lowest(dtype: Any) -> Any:
    """No number of the dtype is less."""
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).min
    return False if jnp.issubdtype(dtype, jnp.bool_) else -jnp.inf


def _valid(who: str, ys: jax.Array, lengths: Any, mask: Any) -> jax.Array | None:
    """(T, *B) booleans from lengths and mask, whose shapes say how many batch axes there are."""
    if lengths is not None:
        lengths = as_lengths(who, lengths, ys.shape[1 : 1 + np.ndim(lengths)])
    if mask is not None and jnp.ndim(mask) == 0:
        raise ValueError(f"{who}: mask must have shape (T, *B), got (); broadcast it with jnp.broadcast_to.")
    if mask is not None:
        batch_axes = jnp.ndim(mask) - 1 if lengths is None else lengths.ndim
        check_flags(who, "mask", mask, (ys.shape[: 1 + batch_axes],), "True where a step is valid")
    return valid_steps(jnp.arange(ys.shape[0], dtype=jnp.int32), lengths, mask)
