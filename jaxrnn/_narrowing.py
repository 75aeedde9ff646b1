"""Numbers of the host as JAX takes them: with its 64 bits off it keeps the low half of an integer, without a word.

Lengths are clamped, what has no meaning but its own value is refused. An array of JAX, an argument of a jitted function
among them, has been narrowed already.
"""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._checks import LONGEST, check_array

PyTree = Any


def as_lengths(who: str, lengths: Any, batch_shape: tuple[int, ...] | None = None) -> jax.Array:
    """Lengths (*B) as int32, those beyond it clamped: no sequence has so many steps.

    ``batch_shape`` None: whatever shape they have.
    """
    check_array(who, "lengths", lengths)
    if not isinstance(lengths, jax.Array):
        is_list = isinstance(lengths, list | tuple)
        lengths = np.asarray(lengths)
        lengths = lengths.astype(np.int32) if is_list and not lengths.size else lengths  # NumPy takes [] for floats
        if lengths.dtype == object and all(isinstance(length, int) for length in lengths.flat):  # beyond 64 bits
            lengths = np.clip(lengths, -LONGEST, LONGEST).astype(np.int64)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        came = _narrowed(lengths.dtype) or lengths.dtype
        raise TypeError(f"{who}: lengths must be integers, got {came}; use lengths.astype('int32').")
    if batch_shape is not None and lengths.shape != batch_shape:
        raise ValueError(
            f"{who}: lengths must have the batch shape {batch_shape} (one length for each sequence), "
            f"got {lengths.shape}."
        )
    info = jnp.iinfo(lengths.dtype)
    if info.max > LONGEST:
        lengths = lengths.clip(max(info.min, -LONGEST), LONGEST)
    return jnp.asarray(lengths).astype(jnp.int32)


def as_start(who: str, start: Any, T: int) -> Any:
    """The absolute time of the first of T steps: one integer for the whole batch, an int where it is known."""
    dtype, shape = getattr(start, "dtype", np.dtype(type(start))), getattr(start, "shape", ())
    is_int = isinstance(start, int) and not isinstance(start, bool)  # beyond 64 bits NumPy has no dtype for it
    if shape != () or not (is_int or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(
            f"{who}: start must be one integer, the absolute time of xs[0], got {dtype} of shape {shape}; sequences "
            f"that start at different times need a mask."
        )
    if isinstance(start, jax.core.Tracer) or (isinstance(start, jax.Array) and start.dtype == jnp.int32):
        return start.astype(jnp.int32)  # unknown, or not worth waiting for
    start = int(start)
    if not -LONGEST <= start <= LONGEST - (T if isinstance(T, int) else 0):  # no number: exported for any T
        raise ValueError(
            f"{who}: start={start} with T = {T} steps is beyond int32, in which times are counted; count from a later "
            f"time 0, and lengths with it."
        )
    return start


def known_integer(value: Any) -> int | None:
    """One integer of Python, NumPy or JAX whose value is known; None for all else: booleans, fractions, tracers."""
    is_one = isinstance(value, jax.Array | np.ndarray | np.generic) and value.ndim == 0
    if is_one and not isinstance(value, jax.core.Tracer) and jnp.issubdtype(value.dtype, np.integer):
        return int(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def check_held(who: str, what: str, tree: PyTree) -> None:
    """JAX's dtype holds every value of the tree's NumPy arrays and Python ints."""
    if not any(isinstance(leaf, np.ndarray | np.generic | int) for leaf in jax.tree.leaves(tree)):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, int) and not isinstance(leaf, bool):
            narrow = _narrowed(np.dtype(np.int64))
            if not np.iinfo(narrow).min <= leaf <= np.iinfo(narrow).max:
                _cut(who, what + jax.tree_util.keystr(path), leaf, "a Python int", narrow)
        if not isinstance(leaf, np.ndarray | np.generic):
            continue
        narrow = _narrowed(leaf.dtype)
        if narrow == leaf.dtype or narrow is None:
            continue
        with np.errstate(over="ignore"):
            kept = leaf.astype(narrow)
        lost = kept != leaf if np.issubdtype(leaf.dtype, np.integer) else np.isfinite(leaf) & ~np.isfinite(kept)
        if lost.any():
            value = np.asarray(leaf)[lost].flat[0]
            _cut(who, what + jax.tree_util.keystr(path), value, str(leaf.dtype), narrow)


def _cut(who: str, where: str, value: Any, came: str, narrow: Any) -> NoReturn:
    raise ValueError(
        f"{who}: {where} holds {value} in {came}, which JAX makes {narrow}, too narrow for it; set "
        f"jax.config.update('jax_enable_x64', True), or give numbers that fit."
    )


def check_fits(who: str, what: str, value: Any, dtype: Any) -> None:
    """A number is an entry of an array of that dtype, as JAX makes it; a float may be rounded."""
    is_one = isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and not isinstance(value, jax.core.Tracer)
    value = value.item() if is_one and jnp.issubdtype(value.dtype, np.number) else value
    dtype, is_number = _narrowed(dtype), isinstance(value, int | float | complex | np.number | np.bool_)
    if not is_number:
        raise TypeError(f"{who}: {what} must be a number, got {type(value).__name__}; give 0, say.")
    if np.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        fits, fix = False, "a real number"
    elif jnp.issubdtype(dtype, jnp.inexact):
        fits = not abs(value) > float(jnp.finfo(dtype).max) or abs(value) == np.inf  # NaN fits
        fix = f"one that {dtype} holds"
    else:
        info = None if jnp.issubdtype(dtype, jnp.bool_) else jnp.iinfo(dtype)
        low, high = (0, 1) if info is None else (info.min, info.max)
        fits, fix = low <= value <= high and value == int(value), f"a whole number from {low} to {high}"
    if not fits:
        raise ValueError(f"{who}: {what}={value!r} does not fit into {dtype}; give {fix}.")


def _narrowed(dtype: np.dtype) -> Any:
    """What JAX makes of a dtype; None for those that it does not know (strings, keys)."""
    try:
        return jax.dtypes.canonicalize_dtype(dtype)
    except TypeError:
        return None
