"""In which way a run is made parallel over time: by what was asked for, the cell and the shapes."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree
from jaxrnn.loops.chunked import Way

SWEEPS = 4
ITERATIONS = 32
FEWEST = 1024  # steps that "auto" takes in parallel
MOST_ROWS = 16  # for which it takes chunks


_one_by_one: contextvars.ContextVar[bool] = contextvars.ContextVar("one_by_one", default=False)


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """Inside, whatever is traced anew runs step by step: what a run in parallel is compared with."""
    token = _one_by_one.set(True)
    try:
        yield
    finally:
        _one_by_one.reset(token)


class Asked(NamedTuple):
    """What the caller of ``jr.parallel`` asked for."""

    who: str
    cell: Cell
    method: str
    tol: float | None
    max_iterations: int | None
    chunks: int | None

    def way_of(
        self, steps: int, initial: PyTree, batch_shape: tuple[int, ...], devices: int = 1
    ) -> tuple[Way | None, str]:
        """The way in which so many steps are run, and why; None: one after the other. Devices: those that are known to
        share time."""
        if self.chunks is not None and self.chunks > steps:
            raise ValueError(
                f"{self.who}: chunks={self.chunks} is more than the {steps} steps of the run; give at most {steps}."
            )
        if self.chunks is not None and self.chunks % devices:
            raise ValueError(
                f"{self.who}: chunks={self.chunks} cannot be shared by the {devices} devices along time; give a "
                f"multiple of {devices}."
            )
        carry = jax.tree.leaves(initial)
        method, why = self.method, "as was asked for"
        if method == "newton":
            _check_floats(self.who, initial)
        if method == "scan" or _one_by_one.get():
            return None, why
        if steps < 2 or not sum(a.size for a in carry):
            return None, f"{steps} steps" if steps < 2 else "a carry that is empty"
        if method == "auto":
            method, why = _automatic(self.cell, steps, math.prod(batch_shape), carry, devices)
            if method == "scan":
                return None, why
        chunks = min(self.chunks or chunks_of(steps, devices), steps)
        if chunks < 2 and method != "newton":
            return None, "one chunk"
        most = self.max_iterations or (ITERATIONS if method == "newton" else SWEEPS)
        how = {
            "chunks": f"{chunks} chunks of {steps // chunks} steps side by side, a warm-up and at most {most} sweeps",
            "associative": f"{chunks} chunks of {steps // chunks} steps side by side, exact after a first run of each",
            "newton": f"Newton's iteration over all {steps} steps, at most {most} times",
        }[method]
        return Way(chunks, most, self.tol, method=method, row_axes=len(batch_shape), who=self.who), f"{how}; {why}"


def chunks_of(steps: int, devices: int = 1) -> int:
    """How many chunks: about √T, such that the devices can share them and few steps are left over.

    Where devices are not known (types show those of Explicit axes alone), 2, 4 or 8 can share them if T allows it.
    """
    about = max(1, min(steps, round(math.sqrt(steps))))
    near = range(max(1, about * 2 // 3), max(2, about * 3 // 2 + 1))  # with a power of 2
    fits = [k for k in near if k <= steps and k % devices == 0] or [devices]
    return min(fits, key=lambda k: (steps % k, k % math.lcm(devices, 8) != 0, abs(k - about)))


def _automatic(cell: Cell, steps: int, rows: int, carry: list[jax.Array], devices: int) -> tuple[str, str]:
    """The method for these shapes, and why.

    On one CPU device the scan of few rows is one kernel, and the scan of many has work for all cores: chunks do more
    work in no less time, of linear cells too. A loop of complex numbers is not made one kernel: there, with one row, a
    training step takes 0.7 to 0.85 (docs/results/parallel.md). What accelerators gain by fewer turns was not measured.
    """
    linear = cell.affine is not None
    if devices > 1:
        return "associative" if linear else "chunks", f"time on {devices} devices"
    if jax.default_backend() == "cpu":
        if linear and rows == 1 and steps >= FEWEST and any(jnp.iscomplexobj(a) for a in carry):
            return "associative", "a linear cell with a complex carry, one row"
        return "scan", "on one CPU device it is as fast; over several, name a method"
    if steps < FEWEST or (not linear and rows > MOST_ROWS):
        return "scan", f"{steps} steps of {rows} rows give it enough to do at each"
    return "associative" if linear else "chunks", "a linear cell" if linear else f"{steps} steps of {rows} rows"


def _check_floats(who: str, initial: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(initial):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{who}: method='newton' needs a carry of floats, and carry{jax.tree_util.keystr(path)} is "
                f"{leaf.dtype}; use method='chunks'."
            )
