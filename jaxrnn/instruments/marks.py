"""Marks around leaves of params and carry, which ask a run for gradients step by step.

A layer hands its params and its carry down to the runs that it is made of, leaf by leaf. So a marked leaf arrives at
the right run whatever stands in between (stack, bidirectional, residual …), and the gradient has the tree of what was
marked. ``running/_loop.py`` reads the marks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import PyTree
from jaxrnn._dtypes import accumulator

USES = 4  # products with disjoint parts of a parameter that are told apart; a GRU's W_hh has two


class PerStep(NamedTuple):
    """A parameter with a value of its own for each time step: the gradient by it is each step's contribution."""

    array: jax.Array  # (T, …)


class NormProbe(NamedTuple):
    """A parameter with a probe: the norm of the gradient by ``zeros[t]`` is that of step t's contribution."""

    array: jax.Array
    zeros: jax.Array  # (T, USES), made by ``probe_zeros``
    dtype: Any = None  # the one in which a step sees the array; None: its own


class PerturbedState(NamedTuple):
    """A leaf of the carry, ``zeros[t]`` added where step t computes it: the gradient by them is ∂L/∂h_t."""

    array: jax.Array | None  # where the run starts; None in every leaf of a run that starts from its initial carry
    zeros: jax.Array  # (T, *B, …)


def probe_zeros(T: int, dtype: Any) -> jax.Array:
    """The zeros of a :class:`NormProbe`, (T, USES), for a parameter of that dtype."""
    return jnp.zeros((T, USES), accumulator(dtype))


def is_marked(a: Any) -> bool:
    return isinstance(a, PerStep | NormProbe | PerturbedState)


def is_per_step(a: Any) -> bool:
    """Whether a parameter comes with something of its own for each step."""
    return isinstance(a, PerStep | NormProbe)


def without_marks(tree: PyTree) -> PyTree:
    """The tree with the arrays of marked leaves in their place."""

    def array_of(a):
        if isinstance(a, NormProbe) and a.dtype is not None:
            return a.array.astype(a.dtype)
        return a.array if is_marked(a) else a

    return jax.tree.map(array_of, tree, is_leaf=is_marked)


def carry_without_marks(carry: PyTree) -> PyTree:
    """The carry without its marks; None where it has nothing but marks."""
    if not any(isinstance(a, PerturbedState) for a in jax.tree.leaves(carry, is_leaf=is_marked)):
        return carry
    arrays = without_marks(carry)
    return arrays if jax.tree.leaves(arrays) else None


def perturbations_of(carry: PyTree) -> list[jax.Array | None]:
    """What is added to each leaf of the carry, (T, *B, …); an empty list where no leaf is marked."""
    leaves = jax.tree.leaves(carry, is_leaf=is_marked)
    if not any(isinstance(a, PerturbedState) for a in leaves):
        return []
    return [a.zeros if isinstance(a, PerturbedState) else None for a in leaves]


def refuse_marks(who: str, fix: str, *trees: PyTree) -> None:
    """Raise where any leaf carries a mark that measures gradients."""
    if any(isinstance(a, NormProbe | PerturbedState) for a in jax.tree.leaves(trees, is_leaf=is_marked)):
        raise ValueError(f"{who}: {fix}")
