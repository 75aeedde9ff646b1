"""Learning online: ``jr.online``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, expect_cell, name_of, select
from jaxrnn._checks import (
    check_batch_shape,
    check_carry,
    check_features,
    check_flags,
    check_key,
    check_leads_with_batch,
    check_params,
    check_scalar_loss,
    step_batch_shape,
)
from jaxrnn._narrowing import as_start, check_held
from jaxrnn.online._batch import Batch, Chosen, example
from jaxrnn.online.problem import output_of, shapes
from jaxrnn.online.rules import OnlineRule, Step
from jaxrnn.running.scan import shapes_of_params


class OnlineState(NamedTuple):
    """What a learner hands from step to step: a pytree of arrays, to be saved and resumed as it is."""

    carry: PyTree  # the cell's, (*B, …)
    trace: PyTree  # the rule's, (*B, …)
    time: jax.Array  # (): the absolute time of the next step
    key: jax.Array | None  # of the cell's noise and of rules that draw


class Online(NamedTuple):
    """What ``jr.online`` makes; both functions are pure."""

    init: Callable[..., OnlineState]  # (params, batch_shape=(), *, x=None, carry=None, key=None, start=0) -> state
    step: Callable[..., tuple[OnlineState, PyTree, PyTree]]  # (params, state, x, target, …) -> (state, y, grads)


@checks_arguments
def online(
    cell: Cell,
    loss: Callable[[PyTree, PyTree], Any],
    *,
    rule: str | OnlineRule = "rtrl",
    window: int | None = None,
    masks: PyTree = None,
) -> Online:
    """TODO."""
    expect_cell("online", cell)
    who = f"online({name_of(cell)})"
    chosen = Chosen(who, rule, window, masks)

    def init(params, batch_shape=(), *, x=None, carry=None, key=None, start=0):
        check_batch_shape(who, batch_shape)
        batch_shape = tuple(batch_shape)
        check_params(who, params, shapes_of_params(cell))
        if key is not None:
            check_key(who, key)
        x = example(who, cell, params, batch_shape, x)
        expected = jax.eval_shape(lambda: cell.initial_carry(params, batch_shape))
        check_leads_with_batch(who, "initial_carry()", expected, batch_shape)
        if carry is not None:
            check_held(who, "carry", carry)
            check_carry(who, carry, expected, batch_shape)
        time = jnp.asarray(as_start(who, start, 1), jnp.int32)
        batch = Batch(who, cell, params, batch_shape, x, key)
        trace = chosen.start(batch, params, key, time, fresh=carry is None)
        carry = cell.initial_carry(params, batch_shape) if carry is None else carry
        return OnlineState(jax.tree.map(jnp.copy, carry), trace, time, key)

    def step(params, state, x, target, mask=None, resets=None):
        if not isinstance(state, OnlineState):
            raise TypeError(f"{who}: state must be what init returned, or the last step, got {type(state).__name__}.")
        if cell.input_size is not None and cell.x_ndim == 1:
            check_features(who, x, cell.input_size)
        check_held(who, "x", x)
        batch_shape = step_batch_shape(who, x, cell.x_ndim)
        check_params(who, params, shapes_of_params(cell))
        check_carry(who, state.carry, jax.eval_shape(lambda: cell.initial_carry(params, batch_shape)), batch_shape)
        for name, flags in (("mask", mask), ("resets", resets)):
            if flags is not None:
                meaning = "have an input" if name == "mask" else "begin anew"
                check_flags(who, name, flags, (batch_shape,), f"True for members that {meaning}", axes="*B")
        check_leads_with_batch(who, "target", target, batch_shape)
        if mask is not None:
            mask = jnp.asarray(mask)
            x, target = (select(mask, a, jax.tree.map(jnp.zeros_like, a)) for a in (x, target))
        batch = Batch(who, cell, params, batch_shape, shapes(x), state.key)
        theta, others = batch.problem.params.split(params)
        noise = batch.draw(params, state.key, state.time)
        key = chosen.keys(state.key, state.time, 0, batch_shape)
        old = batch.over(batch.problem.carry.flat)(state.carry)
        trace = state.trace
        if resets is not None:
            resets = jnp.asarray(resets)
            fresh = cell.initial_carry(params, batch_shape)
            old = select(resets, batch.over(batch.problem.carry.flat)(fresh), old)
            trace = select(resets, chosen.start(batch, params, state.key, state.time, fresh=True), trace)
        output = output_of(batch.problem)

        def stepped(h, x, noise):
            return batch.problem.step(theta, h, others, x, noise)[0]

        new = batch.over(stepped, noise)(old, x)

        def lost(theta, old, new):
            def put_out(h, h_new, x, noise):
                return output.compute(theta, h, h_new, others, x, noise)

            y = batch.over(put_out, noise)(old, new, x)
            check_leads_with_batch(who, "the output of step", y, batch_shape)
            if mask is not None:
                y = select(mask, y, jax.tree.map(jnp.zeros_like, y))
            value = loss(y, target)
            check_scalar_loss(who, value, "loss(y, target)")
            return value, y

        (direct, by_old, by_new), y = jax.grad(lost, (0, 1, 2), has_aux=True)(theta, old, new)

        def learned(h, x, key, trace, by_old, by_new, noise):
            at = Step(batch.problem, theta, h, others, x, noise, key)
            updated = chosen.rule.update(at, trace)
            sums = chosen.rule.gradient(at, updated, by_new)
            if output.reads_old:
                sums = [a + b for a, b in zip(sums, chosen.rule.gradient(at, trace, by_old), strict=True)]
            return updated, sums

        updated, sums = batch.over(learned, noise)(old, x, key, trace, by_old, by_new)
        if mask is not None:
            new, updated = select(mask, new, old), select(mask, updated, trace)
        axes = tuple(range(len(batch_shape)))
        grads = [a + b.sum(axes) for a, b in zip(direct, sums, strict=True)]
        carry = batch.over(batch.problem.carry.tree)(new)
        state = OnlineState(carry, updated, state.time + 1, state.key)
        return state, y, batch.problem.params.gradient(grads)

    return Online(init, step)
