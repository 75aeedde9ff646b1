"""Any cell's parameters under the names by which a Flax module holds them, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from jaxrnn._base import Cell, PyTree, expect_cell, name_of
from jaxrnn.interop.conversion import names_in, refuse


def nested(tree: PyTree) -> dict[str, Any]:
    """Any pytree of arrays as dicts in dicts under the names of its paths; a bare array under ``value``."""
    out: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *way, last = names_on(path)
        at = out
        for name in way:
            at = at.setdefault(name, {})
        at[last] = leaf
    return out


def names_on(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names of the keys on the path to a leaf: of attributes, dict entries, places in a tuple."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return names or ("value",)


def params_like(who: str, like: PyTree, names: Any) -> PyTree:
    """The inverse of :func:`nested`: a tree of the structure of ``like``, with the arrays of these names."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    try:
        leaves = [at_path(names, names_on(path)) for path, _ in paths]
    except (IndexError, KeyError, TypeError) as error:
        expected = ", ".join(".".join(names_on(path)) for path, _ in paths)
        raise ValueError(f"{who}: expected the parameters {expected}, but {error} is not among those given.") from error
    check_all_taken(who, names, [names_on(path) for path, _ in paths])
    return jax.tree.unflatten(structure, leaves)


def leading(who: str, input_shape: Any, features: int) -> tuple[int, ...]:
    """The batch axes of an input's shape."""
    if not isinstance(input_shape, tuple | list) or len(input_shape) < features:
        raise TypeError(
            f"{who}: input_shape must be the shape (*B, …) of one step's input, got {input_shape!r}; give x.shape."
        )
    return tuple(input_shape[:-features])


def at_path(names: Any, path: tuple[str, ...]) -> Any:
    """What stands there in dicts as ``in_dicts`` makes them, without the level ``value`` on an array.

    Raises:
        KeyError: nothing does.
    """
    for name in names_in(path):
        if isinstance(names, Mapping):
            names = names[name]
        elif name != "value":
            raise KeyError(name)
    return names


def check_all_taken(who: str, names: Any, paths: Iterable[tuple[str, ...]]) -> None:
    """Every array in these dicts stands on one of the paths, so that none is left out without a word."""
    known = {_without_value(names_in(path)) for path in paths}
    if more := [".".join(path) for path in paths_in(names) if _without_value(path) not in known]:
        raise ValueError(
            f"{who}: {', '.join(more[:5])} among the parameters given {'is' if len(more) == 1 else 'are'} not of this "
            f"module; give one that was made with the options of the one that was saved, and its part of a file alone."
        )


def paths_in(names: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names on the way to each array in dicts in dicts."""
    if not isinstance(names, Mapping):
        yield above
        return
    for name, part in names.items():
        yield from paths_in(part, (*above, *names_in(name)))


def _without_value(path: tuple[str, ...]) -> tuple[str, ...]:
    return path[:-1] if path[-1:] == ("value",) else path


def feature_axes(who: str, cell: Cell) -> int:
    """What Flax's RNN asks of a cell: the number of axes of one input that are not batch axes."""
    expect_cell(who, cell)
    if cell.noise is not None:
        refuse(who, f"the noise of {name_of(cell)}", "it is drawn for a whole run, and Flax's RNN goes step by step")
    if not isinstance(cell.x_ndim, int) or cell.x_ndim < 1:
        refuse(who, f"x_ndim={cell.x_ndim!r} of {name_of(cell)}", "Flax's RNN takes one array with feature axes")
    return cell.x_ndim
