"""What a gradient may be taken by at each step of a run: markers around the leaves of params and carry.

A layer hands its params and its carry down to the runs that it is made of, leaf by leaf, so a marked leaf arrives at
the right loop whatever stands in between (stack, bidirectional, residual …), and the result has the tree of what was
marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxrnn._base import PyTree
from jaxrnn.instruments.norms import Probed


class OverTime(NamedTuple):
    """A parameter with a value of its own for each time step; the gradient by it is each step's contribution."""

    array: jax.Array  # (T, …)


class Perturbed(NamedTuple):
    """A leaf of the carry, ``zeros[t]`` added where step t computes it: the gradient by them is ∂L/∂h_t."""

    array: jax.Array | None  # where the run starts; None in every leaf of a run that starts from its initial carry
    zeros: jax.Array  # (T, *B, …)


def is_marked(a: Any) -> bool:
    return isinstance(a, OverTime | Probed | Perturbed)


def is_over_time(a: Any) -> bool:
    """Whether a parameter comes with something of its own for each step."""
    return isinstance(a, OverTime | Probed)


def unmarked(tree: PyTree) -> PyTree:
    """The tree with the arrays of marked leaves in their place."""

    def bare(a):
        if isinstance(a, Probed) and a.dtype is not None:
            return a.array.astype(a.dtype)
        return a.array if is_marked(a) else a

    return jax.tree.map(bare, tree, is_leaf=is_marked)


def start_of(carry: PyTree) -> PyTree:
    """The carry without its marks; None where it has nothing but marks."""
    if not any(isinstance(a, Perturbed) for a in jax.tree.leaves(carry, is_leaf=is_marked)):
        return carry
    bare = unmarked(carry)
    return bare if jax.tree.leaves(bare) else None


def perturbations_of(carry: PyTree) -> list[jax.Array | None]:
    """What is added to each leaf of the carry, (T, *B, …); nothing at all where no leaf is marked."""
    leaves = jax.tree.leaves(carry, is_leaf=is_marked)
    if not any(isinstance(a, Perturbed) for a in leaves):
        return []
    return [a.zeros if isinstance(a, Perturbed) else None for a in leaves]


def plus(a: jax.Array, zeros: jax.Array | None) -> jax.Array:
    return a if zeros is None else a + zeros


def refuse_marks(who: str, fix: str, *trees: Sequence[PyTree]) -> None:
    """Raise where any leaf carries a mark that measures gradients."""
    if any(isinstance(a, Probed | Perturbed) for a in jax.tree.leaves(trees, is_leaf=is_marked)):
        raise ValueError(f"{who}: {fix}")
