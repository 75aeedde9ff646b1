"""What is computed: a cell, a shape, a variant, and the data that every contestant gets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

GATES = {"elman": 1, "lstm": 4, "gru": 3}
SHAPES = (  # (B, T, I, H)
    (32, 128, 128, 128),
    (256, 64, 64, 64),
    (16, 100, 2, 64),
    (64, 256, 256, 256),
    (1, 1000, 64, 64),
    (32, 128, 512, 512),
)
VARIANTS = ("bidirectional", "masked")
LENGTHS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {  # of B sequences, up to T
    "masked": lambda rng, B, T: rng.integers(1, T + 1, size=B),
    "geometric": lambda rng, B, T: np.minimum(rng.geometric(4 / T, size=B), T),
    "equal": lambda rng, B, T: np.full(B, T),
}
READOUT = "readout"  # y = W_y h + b_y, of H outputs, on top of the cell


class NotOffered(Exception):
    """Why a contestant does not run a problem; the table says it."""

    word = "not offered"


class OutOfTime(NotOffered):
    """It could, but the run has a time limit."""

    word = "skipped"


class Problem(NamedTuple):
    cell: str  # a key of GATES
    B: int
    T: int
    I: int
    H: int
    variant: str = ""  # or one of VARIANTS or LENGTHS; of a step: READOUT
    dtype: str = "float32"  # of inputs, weights and outputs

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.B, self.T, self.I, self.H

    @property
    def directions(self) -> int:
        return 2 if self.variant == "bidirectional" else 1

    @property
    def gate_columns(self) -> int:
        """The columns of all weight matrices of one direction side by side."""
        return GATES[self.cell] * self.H


class Data(NamedTuple):
    xs: np.ndarray  # (T, B, I), or (B, T, I) where batch_axis is 0
    cotangent: np.ndarray  # (T, B, directions · H), or batch first likewise; 0 in the padding
    lengths: np.ndarray | None  # (B,) int32 in a variant of LENGTHS


@functools.lru_cache(maxsize=2)  # the two layouts of the problem that is being measured
def data(problem: Problem, batch_axis: int = 1) -> Data:
    rng = np.random.default_rng(0)
    B, T, I, H = problem.shape
    xs = rng.standard_normal((T, B, I), dtype=np.float32)
    cotangent = rng.standard_normal((T, B, problem.directions * H), dtype=np.float32)
    lengths = None
    if problem.variant in LENGTHS:
        lengths = LENGTHS[problem.variant](rng, B, T).astype(np.int32)
        lengths[0] = T
        cotangent *= (np.arange(T)[:, None] < lengths)[:, :, None]
    if batch_axis == 0:
        xs, cotangent = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (xs, cotangent))
    xs, cotangent = in_dtype(problem, (xs, cotangent))
    return Data(xs, cotangent, lengths)


def in_dtype(problem: Problem, tree: PyTree) -> PyTree:
    """Arrays in the dtype of the problem; those that are in it already as they stand."""
    return jax.tree.map(lambda a: np.asarray(a).astype(jnp.dtype(problem.dtype), copy=False), tree)


def drawn(shapes: PyTree, H: int, seed: int = 0) -> PyTree:
    """Weights for a tree of arrays or shapes: U(-1/√H, 1/√H) for all, so that nobody's own init (zeros …) counts."""
    rng = np.random.default_rng(seed)
    bound = H**-0.5
    return jax.tree.map(lambda a: rng.uniform(-bound, bound, a.shape).astype(np.float32), shapes)


def check_weights(problem: Problem, params: PyTree) -> None:
    """The matrices of the equations, all of them and no others; up to two biases beside them."""
    columns = problem.directions * problem.gate_columns
    readout = problem.H if problem.variant == READOUT else 0
    matrices = columns * (problem.I + problem.H) + readout * problem.H
    biases = columns + readout
    size = sum(a.size for a in jax.tree.leaves(params))
    if not matrices <= size <= matrices + 2 * biases:
        raise ValueError(f"{size} parameters; the equations have {matrices} to {matrices + 2 * biases}")


def check_forward(problem: Problem, ys: PyTree) -> None:
    """Outputs at every step, all of them numbers."""
    (leaf,) = jax.tree.leaves(ys)
    outputs = np.asarray(leaf)
    wanted = sorted((problem.T, problem.B, problem.directions * problem.H))
    if sorted(outputs.shape) != wanted or not np.isfinite(outputs).all() or not outputs.any():
        raise ValueError(f"outputs {outputs.shape} are wrong in shape, not finite, or all 0")


def check_train(problem: Problem, result: tuple[PyTree, tuple[PyTree, PyTree]]) -> None:
    """A loss, and a gradient of every parameter and of the inputs: shapes as they are, finite, not 0."""
    loss, (by_params, by_xs) = result
    check_weights(problem, by_params)
    if sorted(by_xs.shape) != sorted((problem.T, problem.B, problem.I)):
        raise ValueError(f"the gradient by the inputs has shape {tuple(by_xs.shape)}")
    for leaf in jax.tree.leaves((loss, by_params, by_xs)):
        values = np.asarray(leaf)
        if not np.isfinite(values).all() or not values.any():
            raise ValueError(f"a gradient of shape {values.shape} is 0 or not finite")


CHECKS: dict[str, Callable[[Problem, Any], None]] = {"forward": check_forward, "train": check_train}
