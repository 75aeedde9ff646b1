"""Arguments of public functions, checked by their annotations."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._checks import check_array, check_sizes
from jaxrnn._narrowing import check_held, known_integer

Function = TypeVar("Function", bound=Callable[..., Any])

# whole numbers that may be 0; all others are sizes or counts
FROM_ZERO = ("blank", "burn_in", "seed", "sequence", "stop", "washout", "x_ndim")
TOKENS = ("blank", "stop")  # of these an array of JAX may be one, too
CLAMPED = ("lengths", "start")  # integers of any size, which the function clamps or refuses itself
ANY_NUMBER = ("exponent",)  # a measured number, which may be infinite
TEXT = ("title", "ylabel", "axis", "measure")  # all other words are one of a few names, which the function knows
FIX = {
    "bias": "; how biases start is bias_init",
    "items": "; give map(at, range(start, steps)), say",
    "put": "; give jax.device_put, say",
    "metadata": "; use {'note': …}",
    "mesh": "; jr.devices.batch_mesh makes one",
    "keep": "; give lambda state: state.params, say",
}


@overload
def checks_arguments(function: Function) -> Function: ...
@overload
def checks_arguments(*, who: str) -> Callable[[Function], Function]: ...
def checks_arguments(function: Any = None, *, who: str | None = None) -> Any:
    """A decorator: before the function runs, each plain option is what its annotation says.

    ``int`` is a positive whole number, ``float`` a finite number, ``bool`` True or False, each with ``| None`` also
    None; ``dtype`` and ``param_dtype`` are floating-point dtypes; functions, dicts, sequences, paths, meshes, records
    and arrays are such, their numbers those of the dtype that JAX makes of theirs, and no leaf of a ``PyTree`` is a
    string. Ranges, names, shapes and all else are the function's own to check.

    Args:
        who: what messages call the function; its own name by default.
    """
    if function is None:
        return functools.partial(checks_arguments, who=who)
    signature, name = inspect.signature(function), who or function.__name__
    annotations = {p.name: str(p.annotation) for p in signature.parameters.values()}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python's own error names the function
            return function(*args, **kwargs)
        for option, value in given.items():
            check_argument(name, option, value, annotations[option], function.__globals__)
        return function(*args, **kwargs)

    return checked


def check_argument(who: str, name: str, value: Any, annotation: str, known: Mapping[str, Any]) -> None:
    """One argument, by its annotation as it is written in a module that knows these names."""
    kind = annotation.removesuffix(" | None")
    if name in TOKENS and (token := known_integer(value)) is not None:
        value = token
    if name in ("dtype", "param_dtype"):
        if value is not None or name == "param_dtype":
            _check_dtype(who, name, value)
    elif value is None and kind != annotation:
        return
    elif kind == "int" and name not in FROM_ZERO:
        check_sizes(who, **{name: value})
    elif kind == "float":
        _check_number(who, name, value)
    elif kind == "str" and name not in TEXT:
        return
    elif kind in ("jax.Array", "ArrayLike"):
        check_array(who, name, value)
        if name not in CLAMPED:
            check_held(who, name, np.asarray(value) if _is_of_the_host(value) else value)
    elif kind == "PyTree":
        _check_tree_of_arrays(who, name, value)
        check_held(who, name, value)
    else:
        fits, expected = KINDS.get(kind.partition("[")[0], (None, ""))
        record = known.get(kind)  # Cells and Layers are told apart by ``check_cell`` and ``check_model``
        if fits is None and isinstance(record, type) and kind not in ("Any", "Cell", "Layer"):
            fits, expected = functools.partial(_is_instance, record), f"a{'n' * (kind[0] in 'AEIOU')} {kind}"
        if fits is not None and not fits(value):
            came = f"{value!r} ({type(value).__name__}){FIX.get(name, '')}"
            raise TypeError(f"{who}: {name} must be {expected}, got {came}.")
        if fits is _is_path:
            _check_path(who, name, os.fspath(value))
        if kind == "int" and value < 0:
            raise ValueError(f"{who}: {name} must be an int, 0 or above, got {value}.")


def _is_path(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str))


def _check_path(who: str, name: str, path: str) -> None:
    if "\0" in path:
        raise ValueError(f"{who}: {name} must be a path, got {path!r}, in which no character may be 0.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(
            f"{who}: {name} must be a path, got {path!r}, which is no text that a file's name can be."
        ) from None


def _is_of_the_host(value: Any) -> bool:
    """Lists of Python's numbers, of which JAX makes an array by the way of NumPy."""
    return isinstance(value, list | tuple) and not any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(value))


def _is_instance(record: type, value: Any) -> bool:
    return isinstance(value, record)


# By what an annotation begins with: whether a value fits, and what is expected.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool), "an int, 0 or above"),
    "bool": (lambda v: isinstance(v, bool | np.bool_), "True or False"),
    "str": (lambda v: isinstance(v, str), "a string"),
    "Callable": (callable, "a function"),
    "Mapping": (lambda v: isinstance(v, Mapping), "a dict"),
    "Sequence": (lambda v: isinstance(v, Iterable) and not isinstance(v, str), "a sequence"),
    "Iterable": (lambda v: isinstance(v, Iterable) and not isinstance(v, str), "an iterable"),
    "str | os.PathLike": (_is_path, "a path"),
    "Path": (_is_path, "a path"),
    "Mesh": (lambda v: isinstance(v, jax.sharding.Mesh | jax.sharding.AbstractMesh), "a jax.sharding.Mesh"),
}


def _check_tree_of_arrays(who: str, name: str, value: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        words = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU"
        if words or isinstance(leaf, str | bytes):
            raise TypeError(
                f"{who}: {name}{jax.tree_util.keystr(path)} must be an array, got {leaf!r} ({type(leaf).__name__})."
            )


def _check_number(who: str, name: str, value: Any) -> None:
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
        return  # it may be traced; whoever needs its value says so
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{who}: {name} must be a number, got {value!r} ({type(value).__name__}).")
    if name not in ANY_NUMBER and not math.isfinite(value):
        raise ValueError(f"{who}: {name} must be a finite number, got {value}.")


def _check_dtype(who: str, name: str, value: Any) -> None:
    try:
        dtype = jnp.dtype(value) if value is not None else None
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{who}: {name} must be a floating-point dtype, such as jnp.float32 or 'bfloat16', got {value!r}."
        )
