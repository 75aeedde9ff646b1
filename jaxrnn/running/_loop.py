"""The loop over time itself: its inputs are checked, its padding is clean."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn._base import PyTree, flatten, is_narrow, select
from jaxrnn._checks import check_carry_kept, check_leads_with_batch, check_pair
from jaxrnn.devices.placement import shard_like_batch, vary_alike
from jaxrnn.instruments.marks import (
    OverTime,
    is_marked,
    is_over_time,
    perturbations_of,
    plus,
    start_of,
    unmarked,
)
from jaxrnn.instruments.norms import Probed, probed
from jaxrnn.instruments.stepping import step_with_leaves_changed
from jaxrnn.planning.explanation import report
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.planned_scan import map_over_time, scan_deferred
from jaxrnn.running.segments import run_in_segments, segment_lengths


def params_at_start(params: PyTree, reverse: bool) -> PyTree:
    """The parameters without marks, those given over time as they stand at the first step of the run."""
    own, join = _split_params(params)
    return unmarked(join([a[-1 if reverse else 0] for a in own]))


def loop(who, cell, params, xs, carry, batch_shape, on, resets, noise, reverse, unroll, plan, checkpoint):
    """``(carry, ys)`` of the cell over xs (T, *B, …); ``on`` and ``resets`` are (T, *B) or None."""
    params, xs, carry, on, resets, noise = vary_alike(params, xs, carry, on, resets, noise)
    T = jax.tree.leaves(xs)[0].shape[0]
    own_params, join_params = _split_params(params)
    own_noise, join_noise = _split_noise(noise, T)

    def initial(params):
        carry = cell.initial_carry(params, batch_shape)
        carry = jax.tree.map(lambda a: vary_alike(a, xs)[0], carry)
        return shard_like_batch(carry, xs, len(batch_shape))

    fresh = initial(params_at_start(params, reverse))
    perturbations, carry = perturbations_of(carry), start_of(carry)
    measured = any(isinstance(a, Probed) for a in jax.tree.leaves(params, is_leaf=is_marked))
    # What the initial carry adds to a gradient is measured with what its step adds: it is made again in that step.
    first = None if carry is not None or not measured else jnp.arange(T) == (T - 1 if reverse else 0)
    carry = fresh if carry is None else shard_like_batch(carry, xs, len(batch_shape))

    def reset_and_step(params, carry, x, first_t, reset_t, *drawn):
        if first_t is not None:
            carry = jax.tree.map(functools.partial(jnp.where, first_t), initial(params), carry)
        if reset_t is not None:
            carry = select(reset_t, initial(params) if own_params else fresh, carry)
        new, y = check_pair(who, cell.step(params, carry, x, *drawn))
        check_carry_kept(who, carry, new)
        return new, (y, carry)

    def body(carry, inputs):
        x, on_t, first_t, reset_t, own_params_t, own_noise_t, added_t = inputs
        drawn = () if noise is None else (join_noise(own_noise_t),)
        step = functools.partial(probed, reset_and_step, join_params(own_params_t))
        if added_t:
            step = functools.partial(step_with_leaves_changed, who, step, lambda i, a: plus(a, added_t[i]))
        new, (y, held) = step(carry, x, first_t, reset_t, *drawn)
        if on_t is not None:
            check_leads_with_batch(who, "the output of step", y, batch_shape)
            new, y = select(on_t, new, held), select(on_t, y, jax.tree.map(jnp.zeros_like, y))
        return new, y

    inputs = (xs, on, first, resets, own_params, own_noise, perturbations)
    lengths = segment_lengths(who, checkpoint, T)
    said = report(who, T, plan, lengths)

    def run(carry, inputs):
        if plan == "plain":
            return jax.lax.scan(body, carry, inputs, reverse=reverse, unroll=unroll)
        planned = scan_deferred if jax.tree.leaves(carry) else map_over_time
        chosen = Plan() if plan == "auto" else plan
        return planned(body, carry, inputs, reverse=reverse, unroll=unroll, plan=chosen, said=said)

    return run_in_segments(run, carry, inputs, lengths, reverse)


Split = tuple[list[jax.Array], Callable[[list[jax.Array]], PyTree]]


def _split_params(params: PyTree) -> Split:
    """What parameters have for each step alone, and ``join``, which makes the parameters of one step.

    Floats of less than 32 bits stand in float32 outside the loop and are cast back inside the step, so that the
    gradients that autodiff adds up over the steps are added in float32: in bfloat16 a sum of ones stops at 256.
    """
    leaves, treedef = flatten(params, is_over_time)
    arrays = [a.array if is_over_time(a) else a for a in leaves]
    narrow = [is_narrow(a) for a in arrays]
    wide = [a.astype(jnp.float32) if n else a for a, n in zip(arrays, narrow, strict=True)]

    def at_this_step(leaf, a, dtype, rest):
        if isinstance(leaf, Probed):
            return Probed(a, next(rest), dtype)
        a = next(rest) if isinstance(leaf, OverTime) else a
        return a if dtype is None else a.astype(dtype)

    def join(own_t):
        rest = iter(own_t)
        dtypes = [a.dtype if n else None for a, n in zip(arrays, narrow, strict=True)]
        return treedef.unflatten([at_this_step(*of, rest) for of in zip(leaves, wide, dtypes, strict=True)])

    own = [a.zeros if isinstance(a, Probed) else w for a, w in zip(leaves, wide, strict=True) if is_over_time(a)]
    return own, join


def _split_noise(noise: PyTree, T: int) -> Split:
    """The noise drawn for each step, and ``join``, which adds what was drawn once for the sequence."""
    leaves, treedef = flatten(noise)
    for a in leaves:
        if a.shape[:1] not in ((T,), (1,)):
            raise ValueError(
                f"scan: the cell's noise has a leaf of shape {a.shape}, but each must lead with T = {T}, or with 1 "
                f"where one draw serves the whole sequence."
            )
    own = [a.shape[0] == T for a in leaves]

    def join(own_t):
        rest = iter(own_t)
        return treedef.unflatten([next(rest) if o else a[0] for a, o in zip(leaves, own, strict=True)])

    return [a for a, o in zip(leaves, own, strict=True) if o], join
