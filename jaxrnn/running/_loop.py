"""The loop over time itself: one run as one record, already checked and clean of padding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree, flatten, is_narrow, select
from jaxrnn._checks import check_carry_kept, check_leads_with_batch, check_pair
from jaxrnn.devices.placement import shard_like_batch, vary_alike
from jaxrnn.instruments import (
    NormProbe,
    PerStep,
    call_with_norm_probes,
    carry_without_marks,
    is_marked,
    is_per_step,
    perturbations_of,
    step_with_leaves_changed,
    without_marks,
)
from jaxrnn.loops.chunked import Chunking, Way, scan_in_chunks
from jaxrnn.planning.explanation import ScanExplanation, start_explanation
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.planned_scan import planned_scan
from jaxrnn.running.segments import Budget, run_in_segments, segment_lengths

# ``(steps, initial carry, batch_shape, devices=…)`` to the way in which so many steps are run in parallel, and why;
# None: one by one.
WayOf = Callable[..., tuple[Way | None, str]]


class Run(NamedTuple):
    """One run of a cell over time: what it reads, where it starts, and how it is executed."""

    who: str  # for error messages
    cell: Cell
    params: PyTree  # of the cell; leaves may carry marks (instruments/marks.py)
    xs: PyTree  # (T, *B, …); zeros at steps that are not valid
    carry: PyTree  # (*B, …), where the run starts; None: at the cell's initial carry. Leaves may carry marks
    batch_shape: tuple[int, ...]  # *B
    valid: jax.Array | None  # (T, *B) booleans, False where the carry is held; None: every step is valid
    resets: jax.Array | None  # (T, *B) booleans, True where the carry is reset before xs[t] is read; None: nowhere
    noise: PyTree  # the cell's, each leaf (T, …), or (1, …) where one draw serves all steps; None: evaluation
    reverse: bool
    unroll: int
    plan: str | Plan
    checkpoint: bool | int | Budget
    way_of: WayOf | None = None  # in which way so many of its steps are run in parallel; None: one after the other


class StepInputs(NamedTuple):
    """What the loop reads, each leaf (T, …); in the body of the loop, what its step reads. None is nothing to read."""

    x: PyTree  # (*B, …) at each step
    valid: jax.Array | None  # (*B)
    starts: jax.Array | None  # (): whether the run starts here, and the step has to make the initial carry
    resets: jax.Array | None  # (*B)
    params: list[jax.Array]  # the parts of the parameters that each step has for itself
    noise: list[jax.Array]  # the parts of the noise that each step has for itself
    perturbations: list[jax.Array | None]  # what is added to each leaf of the new carry; empty: nothing


def run_over_time(run: Run, not_packed: str | None = None) -> tuple[PyTree, PyTree]:
    """``(carry, ys)``: the carry after the run, and the outputs (T, *B, …) in input order.

    ``not_packed`` is why the sequences do not share lanes, where the plan asked for that; for the explanation.
    """
    run = vary_alike_in(run)
    T = jax.tree.leaves(run.xs)[0].shape[0]
    params, noise = split_params(run.params), split_noise(run.noise, T)
    initial = initial_carry_of(run, params_at_start(run.params, run.reverse))
    given = carry_without_marks(run.carry)
    # The gradient norms of params count what the initial carry adds as part of the step that reads it: that step
    # then makes the initial carry itself.
    probed = any(isinstance(a, NormProbe) for a in jax.tree.leaves(run.params, is_leaf=is_marked))
    starts = jnp.arange(T) == (T - 1 if run.reverse else 0) if given is None and probed else None
    carry = initial if given is None else shard_like_batch(given, run.xs, len(run.batch_shape))
    inputs = StepInputs(
        run.xs, run.valid, starts, run.resets, params.per_step, noise.per_step, perturbations_of(run.carry)
    )
    body = body_of(run, params, noise, initial)
    segments = segment_lengths(run.who, run.checkpoint, T)
    explanation = start_explanation(run.who, T, run.plan, segments)
    explanation.not_packed = not_packed

    def run_segment(carry, inputs):
        chunking = chunking_of(run, inputs, initial, explanation)
        if run.plan == "plain" and chunking is not None:
            return scan_in_chunks(body, carry, inputs, reverse=run.reverse, chunking=chunking)
        if run.plan == "plain":
            return jax.lax.scan(body, carry, inputs, reverse=run.reverse, unroll=run.unroll)
        return planned_scan(
            body,
            carry,
            inputs,
            reverse=run.reverse,
            unroll=run.unroll,
            plan=run.plan if isinstance(run.plan, Plan) else Plan(),
            explanation=explanation,
            chunking=chunking,
        )

    return run_in_segments(run_segment, carry, inputs, segments, run.reverse)


def chunking_of(run: Run, inputs: StepInputs, initial: PyTree, explanation: ScanExplanation) -> Chunking | None:
    """How the steps of a segment are cut into chunks that run side by side; None where they are not."""
    steps = jax.tree.leaves(inputs)[0].shape[0]
    way = None
    if run.way_of is not None:
        way, why = run.way_of(steps, initial, run.batch_shape)
        explanation.in_parallel, explanation.not_in_parallel = (why, None) if way else (None, why)
    if way is None:
        return None
    held = inputs.valid if inputs.valid is None else ~inputs.valid
    if held is not None and inputs.resets is not None:
        held = held & ~inputs.resets
    return Chunking(way, jax.tree.leaves(initial), held)


def params_at_start(params: PyTree, reverse: bool) -> PyTree:
    """The parameters without marks; those that are given step by step, as they are at the first step of the run."""
    split = split_params(params)
    return without_marks(split.join([a[-1 if reverse else 0] for a in split.per_step]))


class Split(NamedTuple):
    """A tree in two: what each step has for itself, and what all steps share."""

    per_step: list[jax.Array]  # each (T, …)
    join: Callable[[list[jax.Array]], PyTree]  # of one step's share of ``per_step``, the tree that this step sees


def vary_alike_in(run: Run) -> Run:
    """Everything that enters the loop varies over the same mesh axes (in ``shard_map``)."""
    params, xs, carry, valid, resets, noise = vary_alike(
        run.params, run.xs, run.carry, run.valid, run.resets, run.noise
    )
    return run._replace(params=params, xs=xs, carry=carry, valid=valid, resets=resets, noise=noise)


def initial_carry_of(run: Run, params: PyTree) -> PyTree:
    """The cell's initial carry, placed on the mesh as the batch is."""
    carry = run.cell.initial_carry(params, run.batch_shape)
    carry = jax.tree.map(lambda a: vary_alike(a, run.xs)[0], carry)
    return shard_like_batch(carry, run.xs, len(run.batch_shape))


def body_of(run: Run, params: Split, noise: Split, initial: PyTree) -> Callable[..., tuple[PyTree, PyTree]]:
    """The body of the loop, ``(carry, StepInputs of one step) -> (carry, y)``: reset, step, hold."""

    def reset_and_step(params_t, carry, x, starts, resets, *noise_t):
        if starts is not None:
            carry = jax.tree.map(functools.partial(jnp.where, starts), initial_carry_of(run, params_t), carry)
        if resets is not None:
            carry = select(resets, initial_carry_of(run, params_t) if params.per_step else initial, carry)
        new, y = check_pair(run.who, run.cell.step(params_t, carry, x, *noise_t))
        check_carry_kept(run.who, carry, new)
        return new, (y, carry)

    def body(carry, inputs):
        step = functools.partial(call_with_norm_probes, reset_and_step, params.join(inputs.params))
        if inputs.perturbations:

            def perturb(index, leaf):
                added = inputs.perturbations[index]
                return leaf if added is None else leaf + added

            step = functools.partial(step_with_leaves_changed, run.who, step, perturb)
        noise_t = () if run.noise is None else (noise.join(inputs.noise),)
        new, (y, before) = step(carry, inputs.x, inputs.starts, inputs.resets, *noise_t)
        if inputs.valid is None:
            return new, y
        check_leads_with_batch(run.who, "the output of step", y, run.batch_shape)
        return select(inputs.valid, new, before), select(inputs.valid, y, jax.tree.map(jnp.zeros_like, y))

    return body


def split_params(params: PyTree) -> Split:
    """The parts of the parameters that a mark gives each step for itself.

    Floats of less than 32 bits stand in float32 outside the loop and are cast back inside the step, so that the
    gradients that autodiff adds up over the steps are added in float32: in bfloat16 a sum of ones stops at 256.
    """
    leaves, treedef = flatten(params, is_per_step)
    arrays = [a.array if is_per_step(a) else a for a in leaves]
    narrow = [is_narrow(a) for a in arrays]
    wide = [a.astype(jnp.float32) if n else a for a, n in zip(arrays, narrow, strict=True)]

    def at_this_step(leaf, a, dtype, rest):
        if isinstance(leaf, NormProbe):
            return NormProbe(a, next(rest), dtype)
        a = next(rest) if isinstance(leaf, PerStep) else a
        return a if dtype is None else a.astype(dtype)

    def join(per_step):
        rest = iter(per_step)
        dtypes = [a.dtype if n else None for a, n in zip(arrays, narrow, strict=True)]
        return treedef.unflatten([at_this_step(*of, rest) for of in zip(leaves, wide, dtypes, strict=True)])

    per_step = [a.zeros if isinstance(a, NormProbe) else w for a, w in zip(leaves, wide, strict=True) if is_per_step(a)]
    return Split(per_step, join)


def split_noise(noise: PyTree, T: int) -> Split:
    """The leaves of the noise that lead with T; the others were drawn once for all steps."""
    leaves, treedef = flatten(noise)
    for a in leaves:
        if a.shape[:1] not in ((T,), (1,)):
            raise ValueError(
                f"scan: the cell's noise has a leaf of shape {a.shape}, but each must lead with T = {T}, or with 1 "
                f"where one draw serves the whole sequence."
            )
    own = [a.shape[0] == T for a in leaves]

    def join(per_step):
        rest = iter(per_step)
        return treedef.unflatten([next(rest) if o else a[0] for a, o in zip(leaves, own, strict=True)])

    return Split([a for a, o in zip(leaves, own, strict=True) if o], join)
