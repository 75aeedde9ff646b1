"""Truncated BPTT on a stream: back through the last k steps, at every step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import is_inexact
from jaxrnn._dtypes import promoted
from jaxrnn.online.rules import OnlineRule, Start, Step


class Window(NamedTuple):
    """The last k steps, the newest last."""

    h: Any  # (k, S): the carries that they started from
    x: Any  # (k, …)
    noise: Any  # (k, …)
    count: Any  # (): the steps since the start, at most k + 1
    fresh: Any  # (): whether that was at the cell's initial carry


def tbptt(window: int) -> OnlineRule:
    """uᵀ J_t ≈ Σ uᵀ D_t … D_{i+1} I_i over the last k steps i, with h_0 where they reach back to the start."""

    def init(start: Start) -> Window:
        problem = start.problem
        empty = lambda a: jnp.zeros((window, *a.shape), a.dtype)
        h, x, noise = jax.tree.map(empty, (problem.h, problem.x, problem.noise))
        return Window(h, x, noise, jnp.zeros((), jnp.int32), jnp.full((), start.fresh))

    def update(step: Step, trace: Window) -> Window:
        _check_inputs(step, trace)
        old, new = (trace.h, trace.x, trace.noise), (step.h, step.x, step.noise)
        h, x, noise = jax.tree.map(lambda a, b: jnp.concatenate([a[1:], jnp.asarray(b, a.dtype)[None]]), old, new)
        return Window(h, x, noise, jnp.minimum(trace.count + 1, window + 1), trace.fresh)

    def gradient(step: Step, trace: Window, u: Any) -> list[Any]:
        def back(state, past):
            u, sums = state
            h, x, noise, age = past
            by_h, by_theta = step._replace(h=h, x=x, noise=noise).pull(u)
            there = age < trace.count
            sums = [s + jnp.where(there, d, 0) for s, d in zip(sums, by_theta, strict=True)]
            return (jnp.where(there, by_h, u), sums), None

        past = (trace.h, trace.x, trace.noise, jnp.arange(window)[::-1])
        start = (u, [jnp.zeros_like(a) for a in step.theta])
        (u, sums), _ = jax.lax.scan(back, start, past, reverse=True)
        reaches = trace.fresh & (trace.count <= window)
        first = Start(step.problem, step.theta, step.others, None, True).pull(u)
        return [s + jnp.where(reaches, d, 0) for s, d in zip(sums, first, strict=True)]

    return OnlineRule(init, update, gradient)


def _check_inputs(step: Step, trace: Window) -> None:
    """The window keeps the inputs' digits: its arrays are of the input that ``init`` was told of."""
    for kept, x in zip(jax.tree.leaves(trace.x), jax.tree.leaves(step.x), strict=True):
        if is_inexact(x) and promoted(kept.dtype, x.dtype) != kept.dtype:
            raise TypeError(
                f"{step.problem.who}: x is {x.dtype} and the window of this state holds {kept.dtype}; tell init of the "
                f"input, init(params, batch_shape, x=…), or cast x to {kept.dtype}."
            )
