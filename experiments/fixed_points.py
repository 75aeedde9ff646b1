"""The fixed points of a trained network under constant inputs, searched from states near its runs.

Of a network that is linear between kinks, as one of ReLU units, Newton's method may stall at a kink. States that ran on
until they rest, ``search.settle`` steps, are starts of their own: what is stable and drew a run in is found.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

import jaxrnn as jr
from experiments.runner.config import Rate, Seed, Table
from jaxrnn._base import select

PyTree = Any
BOUND = 1e6  # no state of a trained network; beyond it a run explodes


class Search(Table):
    """``[search]`` for fixed points, from states along the held-out runs."""

    starts: int = Field(default=1024, gt=0)
    noise: float = Field(default=0.5, ge=0)  # standard deviation of what is added to each number of a start
    settle: int = Field(default=0, ge=0)  # each start also after so many steps under the input; 0: not that
    steps: int = Field(default=100, gt=0)  # of Newton's method
    tolerance: Rate = 1e-12  # of q = ½ ‖F(h) - h‖²
    seed: Seed = 0  # draws the starts


class Points(NamedTuple):
    """What was found in one network."""

    points: jr.gradients.FixedPoints  # M
    analysis: jr.gradients.LinearAnalysis
    inputs: np.ndarray  # (M,): which of the inputs each is of
    states: PyTree  # the carry along the runs, each leaf (T, B, …)

    def under(self, number: int) -> Points:
        """Those of one input."""
        own = np.flatnonzero(self.inputs == number)
        points, analysis, inputs = jax.tree.map(lambda a: a[own], (self.points, self.analysis, self.inputs))
        return Points(points, analysis, inputs, self.states)


def search(cell: jr.Cell, params: PyTree, xs: jax.Array, inputs: jax.Array, settings: Search) -> Points:
    """Under each of the inputs (K, I), by Newton's method; the runs are those over xs (T, B, I), without noise."""
    states = states_of(cell, params, xs)
    starts = near(jax.random.key(settings.seed), states, settings.starts, settings.noise)
    each = [starts_under(cell, params, starts, x, settings.settle) for x in inputs]
    per_input = len(jax.tree.leaves(each[0])[0])
    points = jr.gradients.find_fixed_points(
        cell,
        params,
        jax.tree.map(lambda *of: jnp.concatenate(of), *each),
        jnp.repeat(inputs, per_input, axis=0),
        method="newton",
        steps=settings.steps,
        tolerance=settings.tolerance,
    )
    found = np.asarray(points.start) // per_input
    return Points(points, jr.gradients.linear_analysis(cell, params, points.carry, inputs[found]), found, states)


def starts_under(cell: jr.Cell, params: PyTree, starts: PyTree, x: jax.Array, settle: int) -> PyTree:
    """The starts, then where each is after ``settle`` steps under x, or itself again where that explodes."""
    if not settle:
        return starts
    x = jnp.broadcast_to(x, (len(jax.tree.leaves(starts)[0]), *x.shape))
    later, _ = jax.lax.scan(lambda carry, _: (cell.step(params, carry, x)[0], None), starts, length=settle)
    bounded = [(jnp.abs(a) < BOUND).reshape(len(a), -1).all(1) for a in jax.tree.leaves(later)]  # NaN is not
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), starts, select(jnp.stack(bounded).all(0), later, starts))


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
