"""Parameters by their names, and cells whose weights are made of others before each use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, InitFn, PyTree, is_float, is_inexact, name_of

Names = str | Sequence[str] | None
MASKS = "masks"  # the field of MaskedParams, whose arrays are no weights


class Weights(NamedTuple):
    """Some arrays of a tree of parameters, and the way back into it."""

    arrays: list[jax.Array]
    names: list[str]
    put: Callable[[Sequence[Any]], PyTree]  # others in their place -> the tree


def check_names(who: str, names: str | Sequence[str]) -> None:
    """Names are one, or several."""
    several = [names] if isinstance(names, str) else names
    if isinstance(several, list | tuple) and several and all(isinstance(name, str) and name for name in several):
        return
    raise TypeError(
        f"{who}: names must be the names of parameters, such as 'W_hh' or ('W_hh', 'W_xh'), got {names!r} "
        f"({type(names).__name__})."
    )


def weights_named(
    who: str, cell: Cell, params: PyTree, names: Names, *, matrices: bool = False, real: bool = False
) -> Weights:
    """The parameters that bear one of these names; all that can where there are none.

    A parameter is called by the path to it: ``W_hh``, ``0.W_hh`` in the first member of a chain, ``i.U`` in a dict of
    dicts. A name stands for every parameter whose path ends with it. What masks a weight is none.

    Args:
        who: for error messages.
        cell: whose params they are.
        matrices: whether only arrays of two axes and more can be meant.
        real: whether complex numbers cannot.
    """
    found = jax.tree_util.tree_leaves_with_path(params)
    treedef: Any = jax.tree.structure(params)
    leaves, paths = [leaf for _, leaf in found], [_called(path) for path, _ in found]
    fits = is_float if real else is_inexact
    able = [
        fits(leaf) and jnp.ndim(leaf) >= (2 if matrices else 0) and MASKS not in path[:-1]
        for leaf, path in zip(leaves, paths, strict=True)
    ]
    labels = [".".join(path) for path in paths]
    what = f"{'real' if real else 'real or complex'} numbers{', of two axes or more' if matrices else ''}"
    wanted = None if names is None else [names] if isinstance(names, str) else list(names)
    places = [n for n, can in enumerate(able) if can and (wanted is None or _is_called(labels[n], wanted))]
    for name in [None] if wanted is None else wanted:
        if any(name is None or _is_called(labels[n], [name]) for n in places):
            continue
        called = "" if name is None else f" called {name!r}"
        own = ", ".join(label for label, can in zip(labels, able, strict=True) if can) or "none"
        raise ValueError(
            f"{who}: {name_of(cell)} has no parameter{called} of {what}; it has {own}; name those to change with "
            f"names=…, or wrap another cell."
        )

    def put(new: Sequence[Any]) -> PyTree:
        changed = dict(zip(places, new, strict=True))
        return treedef.unflatten([changed.get(n, leaf) for n, leaf in enumerate(leaves)])

    return Weights([jnp.asarray(leaves[n]) for n in places], [labels[n] for n in places], put)


def _called(path: Sequence[Any]) -> list[str]:
    """The parts of a path, as text: fields, keys and places."""
    return [str(next(getattr(key, a) for a in ("name", "key", "idx") if hasattr(key, a))) for key in path]


def _is_called(label: str, names: Sequence[str]) -> bool:
    return any(label == name or label.endswith(f".{name}") for name in names)


def with_weights_made(cell: Cell, init: InitFn, made: Callable[[PyTree], PyTree]) -> Cell:
    """The cell with other parameters, of which ``made(params)`` makes its own wherever they are used.

    What ``made`` computes depends on parameters alone, so plans take it out of the loop over time, and so does XLA
    where a loop has no gradient. A linear recurrence stays one.
    """
    changed: dict[str, Any] = {
        "init": init,
        "initial_carry": lambda params, batch_shape=(): cell.initial_carry(made(params), batch_shape),
    }
    if cell.gates is not None:
        own_gates = cell.gates
        changed["gates"] = lambda params, carry, x: own_gates(made(params), carry, x)
    if cell.noise is not None:
        own_noise = cell.noise
        changed["noise"] = lambda params, key, times, x: own_noise(made(params), key, times, x)
    if cell.affine is None:
        changed["step"] = lambda params, carry, x, *noise: cell.step(made(params), carry, x, *noise)
        return cell._replace(**changed)
    own_affine, own_output = cell.affine, cell.output
    changed["affine"] = lambda params, x: own_affine(made(params), x)
    if own_output is not None:
        changed["output"] = lambda params, carry, x: own_output(made(params), carry, x)
    return cell._replace(**changed)
