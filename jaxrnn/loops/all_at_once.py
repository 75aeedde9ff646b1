"""A scan run for all steps at once: its carries by Newton's method (``newton.py``), then the steps, side by side."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.loops.newton import newton_carries
from jaxrnn.loops.steps import Arrays, Outcome, Steps, Way, run_rest
from jaxrnn.programs.rows import mixes_rows
from jaxrnn.programs.tracing import flat_program


def run_all_at_once(steps: Steps, start: Arrays, guess: Arrays, held: Any, way: Way) -> Outcome:
    """The scan, for all steps at once, or step by step where Newton's method does not converge."""
    del held  # where nothing changes is no work for it either

    def step(carry, x):
        new, _, y = steps.split(steps.step(*carry, *x))
        return new, y

    before, end, report = newton_carries(
        step,
        start,
        steps.xs,
        guess=guess,
        reverse=steps.reverse,
        tol=way.tol,
        max_iterations=way.sweeps,
        batch_ndim=_rows_apart(steps, start, way),
    )
    _, sums, ys = steps.split(jax.vmap(steps.step)(*before, *steps.xs))
    found = run_rest(steps, start, (end, [a.sum(0) for a in sums], ys), ~report.converged)
    residuals = report.residuals.astype(jnp.float32)
    return Outcome(found, report.converged, report.iterations, jnp.int32(0), residuals)


def _rows_apart(steps: Steps, start: Arrays, way: Way) -> int:
    """How many leading axes of the carry are rows that do not depend on each other: 1 or 0."""
    if not way.row_axes:
        return 0
    entering = [jax.eval_shape(lambda a: a[0], a) for a in steps.xs]
    program, _, _ = flat_program(lambda *arrays: list(steps.step(*arrays)), *start, *entering)
    return 0 if mixes_rows(program, program.inputs) else 1
