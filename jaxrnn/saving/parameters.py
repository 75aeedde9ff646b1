"""Parameters by name, as a file holds them: fetched, checked against those that the model's ``init`` gives."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import Cell, Layer, PyTree, name_of
from jaxrnn._checks import check_params
from jaxrnn.saving.files import DTYPES, few


def by_name(who: str, tree: PyTree, owner: str = "") -> dict[str, Any]:
    """A tree's leaves by name: their paths, as in ``0.forward.W_xh``, after the name of the model that owns them.

    Raises:
        ValueError: two leaves of one name.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # A lone array has an empty path, but should be told from a missing name.
    before = f"{owner}." if owner else ""
    names = [before + (jax.tree_util.keystr(path, simple=True, separator=".") or "params") for path, _ in leaves]
    ambiguous = [name for name, times in collections.Counter([*names, "__metadata__"]).items() if times > 1]
    if ambiguous:
        raise ValueError(
            f"{who}: the parameters' names {', '.join(ambiguous)} are ambiguous in a file, where a tensor is named by "
            f"its path, joined by points; rename those keys."
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{who}: the name {name!r} is no Unicode text, as a file's names are; rename it."
            ) from None
    return {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def fitting_arrays(model: Cell | Layer, params: PyTree, owner: str = "") -> dict[str, np.ndarray]:
    """Parameters by name, in NumPy, once they are seen to be those of the model."""
    expected = expected_params(model)
    leaves = by_name("save", params, owner)
    for name, leaf in leaves.items():
        _check_array(name, leaf)
    fix = "pass what this model's own init(key) gave, as it is or trained"
    check_fit(f"save: params do not fit the model ({name_of(model)})", fix, leaves, by_name("save", expected, owner))
    check_params(
        f"save: {f'{owner}, ' if owner else ''}{name_of(model)}", params, expected
    )  # a list in place of a tuple, say
    return {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}


def expected_params(model: Cell | Layer) -> PyTree:
    """What the model's ``init`` gives, as shapes and dtypes."""
    return jax.eval_shape(model.init, jax.random.key(0))


def _check_array(name: str, leaf: Any) -> None:
    """An array that a file can hold."""
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(f"save: params {name} is traced and has no value yet; call save outside of jit, grad and vmap.")
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"save: params {name} must be an array, got {type(leaf).__name__}; use jnp.asarray.")
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"save: params {name} is a PRNG key ({leaf.dtype}), which is no tensor: its bits mean nothing without the "
            f"generator's name; keep jax.random.key_data(key) in its place, and jax.random.wrap_key_data it after load."
        )
    if leaf.dtype.name not in DTYPES.values():
        raise TypeError(
            f"save: params {name} is {leaf.dtype}, which a file cannot hold; cast it to one of "
            f"{', '.join(DTYPES.values())}."
        )


def check_fit(title: str, fix: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Names, shapes and kinds of numbers agree; values have ``shape`` and ``dtype``."""
    faults = [f"{name} is missing, {outline(a)}" for name, a in wanted.items() if name not in got]
    faults += [f"{name}, {outline(a)}, is none of them" for name, a in got.items() if name not in wanted]
    for name in wanted.keys() & got.keys():
        ours, theirs = wanted[name], got[name]
        if tuple(ours.shape) != tuple(theirs.shape) or _kind(ours.dtype) != _kind(theirs.dtype):
            faults.append(f"{name} should be {outline(ours)}, got {outline(theirs)}")
    if faults:
        raise ValueError(f"{title}: {few(sorted(faults), '; ')}. Fix: {fix}.")


def outline(a: Any) -> str:
    """An array or a tensor of a file in words: ``float32 (3, 16)``."""
    return f"{a.dtype} {tuple(a.shape)}"


def _kind(dtype: Any) -> str:
    """Kinds of numbers that no cast may confuse; widths may differ."""
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:  # a PRNG key, or one that NumPy lacks
        return str(dtype)
    kinds = (jnp.floating, jnp.integer, jnp.complexfloating)
    return next((kind.__name__ for kind in kinds if jnp.issubdtype(dtype, kind)), dtype.name)


def as_jax(who: str, params: PyTree) -> PyTree:
    """NumPy arrays as JAX's, their dtype kept.

    Raises:
        TypeError: dtypes of 64 bits while JAX's are off, which would drop digits.
    """

    def convert(a):
        dtype = np.asarray(a).dtype
        if dtype.kind in "OSU":
            raise TypeError(f"{who}: the weights must be arrays of numbers, got {type(a).__name__} of {dtype}.")
        if (narrow := jax.dtypes.canonicalize_dtype(dtype)).itemsize < dtype.itemsize:
            raise TypeError(
                f"{who}: the weights are {dtype} but JAX would make them {narrow} and drop digits; set "
                f"jax.config.update('jax_enable_x64', True), or cast the weights to {narrow} first."
            )
        return jnp.asarray(a)

    return jax.tree.map(convert, params)
