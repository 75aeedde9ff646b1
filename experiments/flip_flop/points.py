"""The fixed points of a trained network without input, and the memories that they stand for."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from experiments.fixed_points import Search, search

PyTree = Any
NEAR = 0.5  # what a readout may be away from a memory in each channel


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
    points, analysis, _, states = search(cell, cell_params, pulses, jnp.zeros((1, pulses.shape[-1])), settings)
    h = points.carry.h if isinstance(points.carry, jr.LSTMCarry) else points.carry
    return Found(points, analysis, readout.step(readout_params, (), h)[1], states)


def corners(outputs: np.ndarray) -> int:
    """How many different corners of {-1, 1}^channels the outputs (M, channels) lie at, each channel within NEAR."""
    there = (np.abs(np.abs(outputs) - 1) < NEAR).all(-1)
    return len(np.unique(np.sign(outputs[there]), axis=0))
