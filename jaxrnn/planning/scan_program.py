"""A loop's program, run: what depends on constants alone once, what left the loop for all steps at once, the rest in
``lax.scan``."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import flatten
from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import LoopProgram
from jaxrnn.programs.calls import as_one_kernel, on_one_cpu
from jaxrnn.programs.counted import counted_scan, in_blocks
from jaxrnn.programs.program import evaluate


def scan_program(
    loop: LoopProgram,
    consts: Sequence[Any],
    carry: Sequence[Any],
    xs: Sequence[Any],
    *,
    reverse: bool,
    unroll: int,
    recompute: bool = False,
    otherwise: LoopProgram | None = None,
    count: Any = None,
) -> list[Any]:
    """The final carry, then what the loop puts out, stacked over time.

    Args:
        consts: the values of ``loop.consts``, then of ``loop.d_consts``.
        carry: where to start.
        xs: (T, …) each, in the order of the program's inputs after the carry.
        reverse, unroll: as for ``lax.scan``.
        recompute: the backward pass computes what it needs again, beside its use, and saves none of it.
        otherwise: what runs in its place elsewhere than on one CPU device, and under ``vmap``; None: the same.
        count: how many of the steps are run, () int32; None: all.
    """
    run = functools.partial(_run, reverse=reverse, unroll=unroll, recompute=recompute)
    if otherwise is None:
        return run(loop, consts, carry, xs, count)
    arrays, tree = flatten((list(consts), list(carry), list(xs), count))
    forms = ((lambda *arrays, form=form: run(form, *tree.unflatten(arrays))) for form in (loop, otherwise))
    return on_one_cpu(*forms, *arrays)


def _run(
    loop: LoopProgram,
    consts: Sequence[Any],
    carry: Sequence[Any],
    xs: Sequence[Any],
    count: Any,
    *,
    reverse: bool,
    unroll: int,
    recompute: bool,
) -> list[Any]:
    program, parts = loop.program, loop.parts()
    of_consts = program.consts | dict(zip([*loop.consts, *loop.d_consts], consts, strict=True))
    fixed = of_consts | dict(zip(parts.fixed, evaluate(parts.once, of_consts, parts.fixed), strict=True))
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=False) if recompute else lambda f: f

    @checkpoint
    def before_the_loop(fixed, xs):
        def one_step(x):
            return evaluate(parts.all_steps, fixed | dict(zip(loop.x, x, strict=True)), parts.ready)

        return jax.vmap(one_step)(xs) if count is None else in_blocks(one_step, count, xs)

    ready = dict(zip(parts.ready, before_the_loop(fixed, list(xs)) if parts.ready else [], strict=True))
    outputs = [*program.outputs[: loop.n_carry], *parts.stacked]
    used = {n for op in parts.each_step for n in op.inputs}.union(outputs)
    T, given = xs[0].shape[0], dict(zip(loop.x, xs, strict=True))
    enter = {n: a for n, a in (*ready.items(), *given.items()) if n in used}
    least = _rules.least_bytes_to_stack()
    if not enter and not isinstance(T, int):
        enter = given  # from which the scan takes how long it is
    fixed_inside = {n: a for n, a in fixed.items() if n in used}

    @checkpoint
    def step(fixed, carry, entering):
        known = fixed | dict(zip(loop.carry, carry, strict=True)) | dict(zip(enter, entering, strict=True))
        values = evaluate(parts.each_step, known, outputs)
        return values[: loop.n_carry], [_padded(a, least) for a in values[loop.n_carry :]]

    def run(*arrays):
        fixed, carry, entering, count = tree.unflatten(arrays)
        if count is not None:
            end, ys = counted_scan(functools.partial(step, fixed), count, carry, entering, reverse=reverse)
            return [*end, *ys]
        length = T if isinstance(T, int) else None
        end, ys = jax.lax.scan(
            functools.partial(step, fixed), carry, entering, length=length, reverse=reverse, unroll=unroll
        )
        return [*end, *ys]

    arrays, tree = flatten((fixed_inside, list(carry), list(enter.values()), count))
    made = as_one_kernel(run, *arrays) if loop.one_kernel and isinstance(T, int) else run(*arrays)
    end, ys = made[: loop.n_carry], made[loop.n_carry :]
    if least:
        ys = [jax.vmap(lambda a, n=n: _cut(a, program.kinds[n]))(a) for n, a in zip(parts.stacked, ys, strict=True)]
    stacked = ready | dict(zip(parts.stacked, ys, strict=True))
    return [*end, *(stacked[n] for n in program.outputs[loop.n_carry :])]


def _padded(a: Any, least: int) -> Any:
    """An array of at least so many bytes, in one axis where it had less; keys and open sizes as they are."""
    is_number = jnp.issubdtype(a.dtype, jnp.number) or a.dtype == bool
    if not least or not is_number or not all(isinstance(axis, int) for axis in a.shape):
        return a
    missing = -(-least // a.dtype.itemsize) - a.size
    return a if missing <= 0 else jnp.pad(a.reshape(-1), (0, missing))


def _cut(a: Any, kind: Any) -> Any:
    """The array of which ``_padded`` made this one."""
    return a if a.shape == kind.shape else a[: math.prod(kind.shape)].reshape(kind.shape)
