"""The fixed points of a trained network under a constant input, searched from states near its runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from pydantic import Field

import jaxrnn as jr
from experiments.runner.config import Rate, Seed, Table

PyTree = Any


class Search(Table):
    """``[search]`` for fixed points, from states along the held-out runs."""

    starts: int = Field(default=1024, gt=0)
    noise: float = Field(default=0.5, ge=0)  # standard deviation of what is added to each number of a start
    steps: int = Field(default=100, gt=0)  # of Newton's method
    tolerance: Rate = 1e-12  # of q = ½ ‖F(h) - h‖²
    seed: Seed = 0  # draws the starts


class Points(NamedTuple):
    """What was found in one network."""

    points: jr.gradients.FixedPoints  # M
    analysis: jr.gradients.LinearAnalysis
    states: PyTree  # the carry along the runs, each leaf (T, B, …)


def search(cell: jr.Cell, params: PyTree, xs: jax.Array, x: jax.Array, settings: Search) -> Points:
    """Under the input x (I,), by Newton's method; the runs are those over xs (T, B, I), without noise."""
    states = states_of(cell, params, xs)
    starts = near(jax.random.key(settings.seed), states, settings.starts, settings.noise)
    points = jr.gradients.find_fixed_points(
        cell, params, starts, x, method="newton", steps=settings.steps, tolerance=settings.tolerance
    )
    return Points(points, jr.gradients.linear_analysis(cell, params, points.carry, x), states)


def states_of(cell: jr.Cell, params: PyTree, xs: jax.Array) -> PyTree:
    """The carry after each step of a run over xs (T, B, I), each leaf (T, B, …)."""

    def step(carry, x):
        carry, _ = cell.step(params, carry, x)
        return carry, carry

    return jax.lax.scan(step, cell.initial_carry(params, xs.shape[1:-1]), xs)[1]


def near(key: jax.Array, states: PyTree, count: int, noise: float) -> PyTree:
    """``count`` of the states (T, B, …), drawn with replacement, with normal noise on every number."""
    k_choice, k_noise = jax.random.split(key)
    leaves, treedef = jax.tree.flatten(states)
    T, B = leaves[0].shape[:2]
    chosen = jax.random.choice(k_choice, T * B, (count,))
    keys = jax.random.split(k_noise, len(leaves))
    some = [a.reshape(T * B, *a.shape[2:])[chosen] for a in leaves]
    noisy = [a + noise * jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, some, strict=True)]
    return jax.tree.unflatten(treedef, noisy)
