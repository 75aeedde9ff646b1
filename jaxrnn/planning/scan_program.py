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
from jaxrnn.kernels.persistent import run_recurrence, run_transposed
from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import LoopProgram
from jaxrnn.programs.calls import as_gpu_kernel, as_one_kernel, on_one_cpu
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
) -> list[Any]:
    """The final carry, then what the loop puts out, stacked over time.

    Args:
        consts: the values of ``loop.consts``, then of ``loop.d_consts``.
        carry: where to start.
        xs: (T, …) each, in the order of the program's inputs after the carry.
        reverse, unroll: as for ``lax.scan``.
        recompute: the backward pass computes what it needs again, beside its use, and saves none of it.
        otherwise: what runs in its place elsewhere than on one CPU device, and under ``vmap``; None: the same.
    """
    run = functools.partial(_run, reverse=reverse, unroll=unroll, recompute=recompute)
    if otherwise is None:
        return run(loop, consts, carry, xs)
    arrays, tree = flatten((list(consts), list(carry), list(xs)))
    forms = ((lambda *arrays, form=form: run(form, *tree.unflatten(arrays))) for form in (loop, otherwise))
    return on_one_cpu(*forms, *arrays)


def _run(
    loop: LoopProgram,
    consts: Sequence[Any],
    carry: Sequence[Any],
    xs: Sequence[Any],
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

        return jax.vmap(one_step)(xs)

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
        fixed, carry, entering = tree.unflatten(arrays)
        length = T if isinstance(T, int) else None
        end, ys = jax.lax.scan(
            functools.partial(step, fixed), carry, entering, length=length, reverse=reverse, unroll=unroll
        )
        return [*end, *ys]

    arrays, tree = flatten((fixed_inside, list(carry), list(enter.values())))
    if loop.one_kernel and isinstance(T, int):
        made = as_one_kernel(run, *arrays)
    elif loop.forward_kernel is not None or loop.backward_kernel is not None:
        kernels = _kernels(loop, list(loop.step(parts).consts), tree, T, reverse=reverse)
        made = as_gpu_kernel(run, *arrays, interpreted=loop.interpreted, **kernels)
    else:
        made = run(*arrays)
    end, ys = made[: loop.n_carry], made[loop.n_carry :]
    if least:
        ys = [jax.vmap(lambda a, n=n: _cut(a, program.kinds[n]))(a) for n, a in zip(parts.stacked, ys, strict=True)]
    stacked = ready | dict(zip(parts.stacked, ys, strict=True))
    return [*end, *(stacked[n] for n in program.outputs[loop.n_carry :])]


def _kernels(loop: LoopProgram, consts: list[int], tree: Any, T: int, *, reverse: bool) -> dict[str, Any]:
    """The kernels of a loop, as functions of the arrays that it is run with, flat."""
    forward, backward = loop.forward_kernel, loop.backward_kernel
    options: dict[str, Any] = {"steps": T, "interpret": loop.interpreted}
    kernels: dict[str, Any] = {"kernel": None, "transposed_kernel": None}
    if forward is not None:

        def of_loop(*arrays):
            fixed, carry, entering = tree.unflatten(arrays)
            return run_recurrence(forward, [fixed[n] for n in consts], carry, entering, reverse=reverse, **options)

        kernels["kernel"] = of_loop
    if backward is not None:

        def of_transpose(arrays, cotangents):
            fixed, carry, entering = tree.unflatten(arrays)
            d_end, d_ys = cotangents[: len(carry)], cotangents[len(carry) :]
            d_consts, d_carry, d_x = run_transposed(
                backward, [fixed[n] for n in consts], entering, d_end, d_ys, reverse=not reverse, **options
            )
            d_fixed = dict(zip(consts, d_consts, strict=True))
            return [*(d_fixed[n] for n in sorted(fixed)), *d_carry, *d_x]

        kernels["transposed_kernel"] = of_transpose
    return kernels


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
