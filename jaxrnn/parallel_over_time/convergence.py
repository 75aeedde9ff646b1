"""How runs in parallel over time went: ``jr.convergence``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree, flatten
from jaxrnn._checks import check_sizes
from jaxrnn.loops.chunked import Report, reporting
from jaxrnn.parallel_over_time.choice import one_by_one
from jaxrnn.planning.explanation import explain


class ParallelRun(NamedTuple):
    """One run of a cell over time, forward or backward, as it went."""

    who: str  # as "parallel(gru)"
    direction: str  # "forward" or "backward", of the derivative
    method: str  # "chunks", "associative" or "newton"
    steps: int
    chunks: int
    warm_up: int  # steps of each chunk before its first sweep
    iterations: int  # sweeps beside the warm-up, or Newton's
    residuals: tuple[float, ...]  # after each: by how much what chunks start from has moved, in units of the tolerance;
    # of Newton's the largest correction, relative to the carry
    fell_back: int  # chunks that were run step by step: all of them, or none

    def __str__(self) -> str:
        at_once, unit = f"{self.steps} steps in {self.chunks} chunks", "the tolerance"
        if self.method == "newton":
            at_once, unit = f"{self.steps} steps at once", "the carry"
        what = f"{self.who}, {self.direction}: {self.method}, {at_once}"
        went = f"{self.iterations} sweeps after a warm-up of {self.warm_up} steps"
        if self.method == "newton":
            went = f"{self.iterations} iterations"
        if self.fell_back:
            went = (
                f"run step by step, as the scan, after {went}" if self.iterations else "run step by step, as the scan"
            )
        moved = ", ".join(f"{r:.2g}" for r in self.residuals)
        return f"{what}: {went}" + (f"; residuals {moved} of {unit}" if moved else "")


class Convergence(NamedTuple):
    """What ``convergence`` found; ``print`` it."""

    runs: tuple[ParallelRun, ...]
    not_in_parallel: tuple[str, ...]  # runs that took the scan by shapes alone, and why
    seconds: float | None  # of a forward run, compiled; None: not measured
    scan_seconds: float | None  # of the same run with all its cells scanned

    @property
    def method(self) -> str:
        """Of the forward runs; "scan" where there is none in parallel."""
        return ", ".join(dict.fromkeys(run.method for run in self._forward)) or "scan"

    @property
    def sweeps(self) -> int:
        """The most of any forward run."""
        return max((run.iterations for run in self._forward), default=0)

    @property
    def fell_back(self) -> int:
        """Chunks of the forward runs that were run step by step."""
        return sum(run.fell_back for run in self._forward)

    @property
    def _forward(self) -> list[ParallelRun]:
        return [run for run in self.runs if run.direction == "forward"]

    def __str__(self) -> str:
        lines = [*map(str, self.runs), *self.not_in_parallel]
        if self.seconds is not None and self.scan_seconds is not None:
            lines.append(
                f"forward {1e3 * self.seconds:.3g} ms, with scans {1e3 * self.scan_seconds:.3g} ms: "
                f"{self.seconds / self.scan_seconds:.2f} of it"
            )
        return "\n".join(lines)


@checks_arguments
def convergence(
    layer: Layer, params: PyTree, xs: PyTree, carry: PyTree = None, *, repeats: int | None = 5, **options: Any
) -> Convergence:
    """Run a layer once, forward and backward, and say how its runs in parallel over time went.

    Args:
        layer: a Layer with ``jr.parallel`` in it.
        params, xs, carry, options: as for ``layer.apply``; arrays.
        repeats: how often the compiled forward run, and the same with scans, are measured, in turns; None: not at all.

    Returns:
        A :class:`Convergence`. The backward runs are those of the sum of the squares of the outputs. What runs inside a
        loop or under ``jit``, as the segments of ``checkpoint`` do, is not seen.

    Raises:
        TypeError: something else than a Layer; called while tracing.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.parallel(jr.gru(3, 5), method="chunks")
        >>> params = layer.init(jax.random.key(0))
        >>> xs = jax.random.normal(jax.random.key(1), (4096, 3))
        >>> report = jr.convergence(layer, params, xs, repeats=None)
        >>> report.method, report.sweeps, report.fell_back
        ('chunks', 1, 0)
    """
    who = "convergence"
    if not isinstance(layer, Layer):
        fix = "; lift it with jr.parallel." if isinstance(layer, Cell) else "."
        raise TypeError(f"{who}: expected a Layer, got {type(layer).__name__}{fix}")
    if repeats is not None:
        check_sizes(who, repeats=repeats)
    leaves, treedef = flatten((params, xs, carry))
    if any(isinstance(a, jax.core.Tracer) for a in leaves):
        raise TypeError(f"{who}: was called while tracing, where nothing runs; call it outside jit, grad and vmap.")

    def run(leaves):
        params, xs, carry = treedef.unflatten(leaves)
        return layer.apply(params, xs, carry, **options)

    with reporting() as forward:
        energy, pull_back = jax.vjp(lambda leaves: _energy(run(leaves)), leaves)
    with reporting() as backward:
        pull_back(jnp.ones_like(energy))
    runs = [*(_told(r, "forward") for r in forward), *(_told(r, "backward") for r in backward)]
    scans = explain(layer, params, xs, carry, **options).scans
    others = tuple(f"{scan.who}: the scan; {scan.not_in_parallel}" for scan in scans if scan.not_in_parallel)
    times = (None, None) if repeats is None else _measured(run, leaves, repeats)
    return Convergence(tuple(runs), others, *times)


def _energy(outputs: tuple[PyTree, PyTree]) -> jax.Array:
    """The sum of the squares of what is put out."""
    floats = [y for y in jax.tree.leaves(outputs[1]) if jnp.issubdtype(y.dtype, jnp.inexact)]
    return sum((jnp.square(jnp.abs(y)).sum() for y in floats), start=jnp.zeros(()))


def _told(report: Report, direction: str) -> ParallelRun:
    way = report.way
    return ParallelRun(
        who=way.who,
        direction=direction,
        method=way.method,
        steps=report.steps,
        chunks=way.chunks,
        warm_up=report.warm_up,
        iterations=report.sweeps,
        residuals=tuple(r for r in report.residuals if r == r),
        fell_back=0 if report.accepted else way.chunks,
    )


def _measured(run: Callable[[list[Any]], Any], leaves: list[Any], repeats: int) -> tuple[float, float]:
    """Medians of the run and of the same with scans, in seconds, compiled, in turns."""
    ahead = jax.jit(lambda leaves: run(leaves))
    jax.block_until_ready(ahead(leaves))
    step_by_step = jax.jit(lambda leaves: run(leaves))
    with one_by_one():
        jax.block_until_ready(step_by_step(leaves))
    taken: dict[Any, list[float]] = {ahead: [], step_by_step: []}
    for _ in range(repeats):
        for program, seconds in taken.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(leaves))
            seconds.append(time.perf_counter() - begun)
    return statistics.median(taken[ahead]), statistics.median(taken[step_by_step])
