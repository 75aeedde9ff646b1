"""The fixed points of a trained network without input, and the memories that they stand for."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

import jaxrnn as jr
from experiments.runner.config import Rate, Seed, Table

PyTree = Any
NEAR = 0.5  # what a readout may be away from a memory in each channel


class Search(Table):
    """``[search]`` for fixed points, from states along the held-out runs."""

    starts: int = Field(default=1024, gt=0)
    noise: float = Field(default=0.5, ge=0)  # standard deviation of what is added to each number of a start
    steps: int = Field(default=100, gt=0)  # of Newton's method
    tolerance: Rate = 1e-12  # of q = ½ ‖F(h) - h‖²
    seed: Seed = 0  # draws the starts


class Found(NamedTuple):
    """What was found in one network."""

    points: jr.gradients.FixedPoints  # M
    analysis: jr.gradients.LinearAnalysis
    outputs: jax.Array  # (M, channels): the readout at each point
    states: PyTree  # the carry along the runs, each leaf (T, B, …)

    def measures(self) -> dict[str, float]:
        """The counts of one seed."""
        stable = np.asarray(self.analysis.stable)
        everything = 2 ** self.outputs.shape[-1]
        return {
            "stable": stable.sum(),
            "complete": float(stable.sum() == corners(np.asarray(self.outputs)[stable]) == everything),
            "unstable": (~stable).sum(),
            "slowest": np.asarray(self.analysis.time_constants)[stable].max(initial=0.0),
        }

    def by_directions(self) -> list[int]:
        """How many points have 0, 1, … unstable directions, up to as many as there are channels."""
        directions = (np.abs(self.analysis.eigenvalues) > 1).sum(-1)
        return [int((directions == count).sum()) for count in range(self.outputs.shape[-1] + 1)]


def find(cell: jr.Cell, readout: jr.Cell, params: PyTree, pulses: jax.Array, settings: Search) -> Found:
    """Fixed points under zero input, searched from states along runs; ``params`` are those of cell and readout."""
    cell_params, readout_params = params
    states = states_of(cell, cell_params, pulses)
    starts = near(jax.random.key(settings.seed), states, settings.starts, settings.noise)
    silence = jnp.zeros(pulses.shape[-1])
    points = jr.gradients.find_fixed_points(
        cell, cell_params, starts, silence, method="newton", steps=settings.steps, tolerance=settings.tolerance
    )
    analysis = jr.gradients.linear_analysis(cell, cell_params, points.carry, silence)
    h = points.carry.h if isinstance(points.carry, jr.LSTMCarry) else points.carry
    return Found(points, analysis, readout.step(readout_params, (), h)[1], states)


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


def corners(outputs: np.ndarray) -> int:
    """How many different corners of {-1, 1}^channels the outputs (M, channels) lie at, each channel within NEAR."""
    there = (np.abs(np.abs(outputs) - 1) < NEAR).all(-1)
    return len(np.unique(np.sign(outputs[there]), axis=0))
