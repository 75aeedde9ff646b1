"""The run of a ragged batch: sequences share lanes (``packing.py``), and the loop ends with the last of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxrnn._base import PyTree, flatten, select
from jaxrnn._checks import check_carry_kept, check_pair
from jaxrnn.instruments import is_marked, without_marks
from jaxrnn.planning.explanation import start_explanation
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.planned_scan import planned_scan
from jaxrnn.programs.rows import counts_rows, mixes_rows
from jaxrnn.programs.tracing import trace
from jaxrnn.running._loop import (
    Run,
    Split,
    StepInputs,
    body_of,
    initial_carry_of,
    split_noise,
    split_params,
    vary_alike_in,
)
from jaxrnn.running.packing import lanes_of, of_member, pack

LEAST_ROWS = 3


def why_not_packed(run: Run) -> str | None:
    """What keeps the sequences of a run from sharing lanes; None where nothing does."""
    leaves = jax.tree.leaves((run.xs, run.carry, run.params), is_leaf=is_marked)
    if run.valid is None:
        return "neither lengths nor a mask"
    if len(run.batch_shape) != 1:
        return f"{len(run.batch_shape)} batch axes, not 1"
    (B,), T = run.batch_shape, run.valid.shape[0]
    if not (isinstance(B, int) and isinstance(T, int)):
        return "sizes that are open"
    if B < LEAST_ROWS or T < 2:
        return f"a batch of {B} and {T} steps"
    if run.checkpoint:
        return "checkpoint"
    if run.unroll > 1:
        return "unroll"
    if any(map(is_marked, leaves)):
        return "parameters or a carry that differ from step to step"
    if any(any(jax.typeof(a).sharding.spec) for a in leaves if hasattr(a, "dtype")):
        return "a batch over a mesh, outside shard_map"
    split_noise(run.noise, T)  # or says what is wrong with it
    if run.noise is not None and (reason := _why_noise_stays(run, T, B)):
        return reason
    return _why_rows_stay(run)


def run_packed(run: Run) -> tuple[PyTree, PyTree]:
    """``(carry, ys)`` of a run that nothing keeps from being packed."""
    run = vary_alike_in(run)
    assert run.valid is not None and isinstance(run.plan, Plan)
    packing = pack(run.valid if run.resets is None else run.valid | run.resets, run.reverse)
    initials = packing.split(initial_carry_of(run, run.params))
    starts = initials if run.carry is None else packing.split(run.carry)
    lanes = run._replace(batch_shape=(packing.lanes,), reverse=False)
    noise, noise_tree = flatten(run.noise)
    of_row = [a.shape[0] == 1 for a in noise]  # one draw serves the whole sequence
    of_rows = [packing.split(a[0]) if one else None for a, one in zip(noise, of_row, strict=True)]
    valid = packing.pack_flags(run.valid)
    inputs = StepInputs(
        x=packing.pack_inputs(run.xs, valid),
        valid=valid,
        starts=None,
        resets=None if run.resets is None else packing.pack_flags(run.resets),
        params=[],
        noise=[packing.pack(a) for a, one in zip(noise, of_row, strict=True) if not one],
        perturbations=[],
    )
    params = split_params(run.params)

    def body(state, entering):
        carry, ends = state
        inputs, member, begins = entering
        for m, begins_m in enumerate(begins, start=1):
            ends[m - 1] = select(begins_m, carry, ends[m - 1])
            carry = select(begins_m, starts[m], carry)
        initial = initials[0] if inputs.resets is None else of_member(initials, member)
        each_step = iter(inputs.noise)
        noise_t = [next(each_step) if rows is None else of_member(rows, member) for rows in of_rows]
        step = body_of(lanes, params, Split([], noise_tree.unflatten), initial)
        carry, y = step(carry, inputs._replace(noise=noise_t))
        return (carry, ends), y

    explanation = start_explanation(run.who, run.valid.shape[0], run.plan, ())
    explanation.packed = f"{packing.members} sequences in each of {packing.lanes} lanes"
    (end, ends), ys = planned_scan(
        body,
        (starts[0], starts[:-1]),
        (inputs, packing.member, packing.begins),
        reverse=False,
        unroll=1,
        plan=run.plan,
        explanation=explanation,
        count=packing.longest,
    )
    return packing.join([*ends, end]), packing.unpack(ys)


def _why_rows_stay(run: Run) -> str | None:
    """By the step, traced for the batch and for as many rows as there are lanes."""
    params, (B,) = run.params, run.batch_shape

    def at_one_step():
        carry = initial_carry_of(run, params) if run.carry is None else run.carry
        return carry, *jax.tree.map(lambda a: a[0], (run.xs, run.noise))

    of_rows = jax.eval_shape(at_one_step)
    if not jax.tree.leaves(of_rows[0]):
        return "a carry that is empty"
    of_lanes = jax.eval_shape(lambda: jax.tree.map(lambda a: a[: lanes_of(B)], at_one_step()))

    def traced(of_rows):
        leaves, treedef = flatten((params, *of_rows))

        def step(*leaves):
            params, carry, x, noise = treedef.unflatten(leaves)
            made = run.cell.step(params, carry, x) if run.noise is None else run.cell.step(params, carry, x, noise)
            new, y = check_pair(run.who, made)
            check_carry_kept(run.who, carry, new)
            return jax.tree.leaves((new, y))

        return trace(step, *leaves)

    program, reason = traced(of_rows)
    if program is None:
        return str(reason)
    n = len(jax.tree.leaves(params))
    if reason := mixes_rows(program, program.inputs[n:]):
        return f"rows that may meet: {reason}"
    try:
        fewer, _ = traced(of_lanes)
    except Exception:  # whatever a step raises that was written for one size of batch
        return f"a step that does not run with {lanes_of(B)} rows"
    reason = counts_rows(program, fewer) if fewer else "other operations"
    return reason and f"a step that depends on how many rows there are: {reason}"


def _why_noise_stays(run: Run, T: int, B: int) -> str | None:
    """Noise moves with its row where it leads with (T, B), or with (1, B); so it does with a wider batch."""
    assert run.cell.noise is not None
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((B + 1, *a.shape[2:]), a.dtype), run.xs)
    times = jax.ShapeDtypeStruct((T,), jnp.int32)
    draw = functools.partial(run.cell.noise, without_marks(run.params))
    wider = jax.eval_shape(lambda times: draw(jax.random.key(0), times, x), times)
    own = [(B,), (B + 1,)]  # both: an array (1, H, …) that the rows share may have as many units as there are rows
    pairs = zip(jax.tree.leaves(run.noise), jax.tree.leaves(wider), strict=True)
    if all([a.shape[1:2], b.shape[1:2]] == own for a, b in pairs):
        return None
    return "noise that the rows share"
