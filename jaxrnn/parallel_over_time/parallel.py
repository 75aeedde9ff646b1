"""A cell run over all of time at once: ``jr.parallel``."""

from __future__ import annotations

from typing import Any

from jaxrnn._base import Cell, Layer, expect_cell, name_of
from jaxrnn._checks import check_choice, check_sizes
from jaxrnn._spec import specified
from jaxrnn.parallel_over_time.choice import Asked
from jaxrnn.planning.plan import Plan, check_plan
from jaxrnn.running.scan import layer_of
from jaxrnn.running.segments import Budget, check_checkpoint

METHODS = ("auto", "chunks", "newton", "associative", "scan")


@specified
def parallel(
    cell: Cell,
    *,
    method: str = "auto",
    reverse: bool = False,
    tol: float | None = None,
    max_iterations: int | None = None,
    chunks: int | None = None,
    checkpoint: bool | int | Budget | None = None,
    plan: str | Plan = "auto",
) -> Layer:
    """Run a cell over time in parallel: what ``jr.scan`` computes, with many steps at once.

        carry_t, y_t = step(params, carry_{t-1}, x_t)        t = 0 … T-1, or T-1 … 0 with ``reverse``

    T steps one after the other take T turns, however many cores there are. A cell that forgets need not wait: time is
    cut into chunks that run side by side as one batch, each from a carry found by a warm-up on the steps before it, and
    again while what they hand on to each other moves. The result is that of ``jr.scan`` to ``tol``, **or is computed by
    the scan**: a program checks while it runs how far its result may be off, and runs step by step where it cannot say.

    Gradients are those of the run, not of the way by which it was found: at the solution the adjoint is a linear
    recurrence, λ_{t-1} = J_tᵀ λ_t + ∂L/∂carry_{t-1}, which is solved and checked in the same way; so are tangents, and
    derivatives of any order. Weight gradients stay one contraction over time.

    Time may be sharded over devices, by ``jax.jit`` of arrays that are sharded along axis 0: chunks stay where they are
    then, and carries travel between devices once a sweep. Inside ``jax.shard_map`` time cannot be shared: what a device
    has there is a sequence of its own, which starts from the carry that is given.

    Args:
        cell: a Cell, built in or your own.
        method: "chunks", for any cell. "newton", all steps at once by Newton's iteration (DEER), whose linear
            recurrences are solved by a blocked associative scan: for small carries of floats that chunks find too slow
            to forget. "associative", exact without iteration, for a linear cell, one with ``affine``. "scan", step by
            step. "auto" takes one of them by cell and shapes; ``jr.explain`` says which, and why.
        reverse: run from the last step to the first.
        tol: how far the carry may be from that of the scan, relative to the largest number of its row and leaf; None is
            32 times the epsilon of its dtype.
        max_iterations: sweeps of chunks, or Newton's iterations, before the rest is left to the scan; None is 4 sweeps
            or 32 iterations.
        chunks: how many; None by a rule. What is left of T comes after them, step by step, but with "newton", which
            has none. Where devices share time it must be a multiple of their number.
        checkpoint: as for ``jr.scan``, segments that the backward pass runs forward again; each is run in parallel
            within itself, so give long ones.
        plan: as for ``jr.scan``.

    Returns:
        A Layer, whose ``apply`` takes and gives what that of ``jr.scan`` does.

    Raises:
        ValueError, TypeError: an unknown method, ``chunks`` above T or not a multiple of the devices along an Explicit
            mesh's time, a cell that the method cannot run.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.gru(3, 5)
        >>> params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4096, 3))
        >>> _, ys = jr.parallel(cell, method="chunks").apply(params, xs)
        >>> bool(jnp.allclose(ys, jr.scan(cell).apply(params, xs)[1], atol=1e-6))
        True

    References:
        Lim, Zhu, Selfridge & Kasim, "Parallelizing non-linear sequential models over the sequence length", ICLR 2024
        (DEER); Gonzalez, Warrington, Smith & Linderman, "Towards scalable and stable parallelization of nonlinear
        RNNs", NeurIPS 2024 (ELK); Blelloch, "Prefix sums and their applications", 1990.
    """
    who = "parallel"
    expect_cell(who, cell, if_layer="it already runs over time, use it as it is")
    check_choice(who, "method", method, METHODS)
    check_plan(who, plan)
    checkpoint = False if checkpoint is None else checkpoint
    check_checkpoint(who, checkpoint)
    check_sizes(who, **{n: a for n, a in (("max_iterations", max_iterations), ("chunks", chunks)) if a is not None})
    _check_tolerance(who, tol)
    if method == "associative" and cell.affine is None:
        raise TypeError(
            f"{who}: method='associative' is for cells that are linear in their carry, Cells with affine, and "
            f"{name_of(cell)} has none; use method='chunks', which runs any cell."
        )
    who = f"{who}({name_of(cell)})"
    asked = Asked(who, cell, method, tol, max_iterations, chunks)
    return layer_of(who, cell, reverse, plan=plan, checkpoint=checkpoint, way_of=asked.way_of)


def _check_tolerance(who: str, tol: Any) -> None:
    if tol is None:
        return
    if isinstance(tol, bool) or not isinstance(tol, int | float):
        raise TypeError(f"{who}: tol must be a Python number above 0, or None, got {tol!r}.")
    if not 0 < tol < 1:
        raise ValueError(f"{who}: tol is relative to the carry and must be above 0 and below 1, got {tol!r}.")
