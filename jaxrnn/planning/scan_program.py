"""A loop's program, run: what depends on constants alone once, what left the loop for all steps at once, the rest in
``lax.scan``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import flatten
from jaxrnn.kernels.persistent import run_recurrence, run_transposed
from jaxrnn.loops.chunked import Chunking, chunked_scan
from jaxrnn.loops.counted import counted_scan, loop_in_place, map_in_blocks
from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import LoopProgram, Parts
from jaxrnn.programs.calls import as_gpu_kernel, as_one_kernel, on_one_cpu
from jaxrnn.programs.primitives import PRODUCT, has
from jaxrnn.programs.program import Program, evaluate


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
    chunking: Chunking | None = None,
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
        chunking: how the steps are run in chunks side by side; None: one after the other.
    """
    run = functools.partial(_run, reverse=reverse, unroll=unroll, recompute=recompute, chunking=chunking)
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
    chunking: Chunking | None,
) -> list[Any]:
    program, parts = loop.program, loop.parts()
    of_consts = program.consts | dict(zip([*loop.consts, *loop.d_consts], consts, strict=True))
    fixed = of_consts | dict(zip(parts.fixed, evaluate(parts.once, of_consts, parts.fixed), strict=True))
    options: dict[str, Any] = {"reverse": reverse, "unroll": unroll, "recompute": recompute, "chunking": chunking}
    T, size = xs[0].shape[0], loop.segment
    if not size or chunking is not None or not isinstance(T, int) or T % size or size == T:
        return _run_steps(loop, parts, fixed, carry, xs, count, **options)

    def of_segment(carry, xs, count=None):
        made = _run_steps(loop, parts, fixed, carry, xs, count, **options)
        return made[: loop.n_carry], made[loop.n_carry :]

    def of_counted(carry, entering):
        start, *xs = entering
        return of_segment(carry, xs, jnp.minimum(count - start, size))

    checkpoint = functools.partial(jax.checkpoint, prevent_cse=False) if recompute else lambda f: f
    cut = [a.reshape(T // size, size, *a.shape[1:]) for a in xs]
    if count is None:
        end, ys = jax.lax.scan(checkpoint(of_segment), list(carry), cut, reverse=reverse)
    else:
        starts = jnp.arange(0, T, size, dtype=jnp.int32)
        end, ys = counted_scan(checkpoint(of_counted), -(-count // size), list(carry), [starts, *cut], reverse=reverse)
    return [*end, *(a.reshape(T, *a.shape[2:]) for a in ys)]


def _run_steps(
    loop: LoopProgram,
    parts: Parts,
    fixed: dict[int, Any],
    carry: Sequence[Any],
    xs: Sequence[Any],
    count: Any,
    *,
    reverse: bool,
    unroll: int,
    recompute: bool,
    chunking: Chunking | None,
) -> list[Any]:
    """``_run`` of what is not done once."""
    program = loop.program
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=False) if recompute else lambda f: f
    products = {n for op in parts.all_steps if loop.one_kernel and has(op.name, PRODUCT) for n in op.outputs}
    squeezed = products.intersection(parts.ready).difference(program.outputs)  # (T, K): as (T, 1, K) XLA copies it

    @checkpoint
    def before_the_loop(fixed, xs):
        def one_step(x):
            made = evaluate(parts.all_steps, fixed | dict(zip(loop.x, x, strict=True)), parts.ready)
            return [jnp.squeeze(a) if n in squeezed else a for n, a in zip(parts.ready, made, strict=True)]

        return jax.vmap(one_step)(xs) if count is None else map_in_blocks(one_step, count, xs)

    outputs = [*program.outputs[: loop.n_carry], *parts.stacked]
    used = {n for op in parts.each_step for n in op.inputs}.union(outputs)
    T, least = xs[0].shape[0], _rules.least_bytes_to_stack()
    fixed_inside = {n: a for n, a in fixed.items() if n in used}

    def made_ready(xs):
        """What is computed for these steps at once, and all that enters the loop."""
        ready = dict(zip(parts.ready, before_the_loop(fixed, xs) if parts.ready else [], strict=True))
        return ready, {n: a for n, a in (*ready.items(), *zip(loop.x, xs, strict=True)) if n in used}

    @checkpoint
    def step(fixed, carry, entering):
        entering = entering | {n: entering[n].reshape(program.kinds[n].shape) for n in squeezed}
        known = fixed | dict(zip(loop.carry, carry, strict=True)) | entering
        values = evaluate(parts.each_step, known, outputs)
        return values[: loop.n_carry], [_padded(a, least) for a in values[loop.n_carry :]]

    def compiled(run, *arguments, gpu=False):
        """``run(*arguments)``, a carry and what is stacked, as one kernel where the loop is to be one."""
        arrays, tree = flatten(arguments)
        flat = lambda *arrays: [a for part in run(*tree.unflatten(arrays)) for a in part]
        if loop.one_kernel and isinstance(T, int) and chunking is None:
            made = as_one_kernel(flat, *arrays)
        elif gpu and (loop.forward_kernel is not None or loop.backward_kernel is not None):
            kernels = _kernels(loop, loop.step(parts), tree, T, reverse=reverse)
            made = as_gpu_kernel(flat, *arrays, interpreted=loop.interpreted, **kernels)
        else:
            made = flat(*arrays)
        return made[: loop.n_carry], made[loop.n_carry :]

    if loop.block and count is None and isinstance(T, int) and loop.block < T and unroll == 1 and not least:

        def in_block(fixed, carry, entering, ys, start, skipped):
            body = lambda carry, x: step(fixed, carry, dict(zip(entering, x, strict=True)))
            xs = list(entering.values())
            turns = (0 if skipped is None else skipped, len(xs[0]))
            return loop_in_place(body, turns, carry, xs, ys, reverse=reverse, offset=start)

        run_block = lambda carry, xs, *rest: compiled(in_block, fixed_inside, carry, made_ready(xs)[1], *rest)
        ys = [jnp.zeros((T, *program.kinds[n].shape), program.kinds[n].dtype) for n in parts.stacked]
        end, ys = _block_by_block(run_block, list(carry), list(xs), ys, loop.block, reverse=reverse)
        return [*end, *ys]

    def run(fixed, carry, entering, count):
        if count is not None:
            body = lambda carry, x: step(fixed, carry, dict(zip(entering, x, strict=True)))
            return counted_scan(body, count, carry, list(entering.values()), reverse=reverse)
        if chunking is not None:
            body = lambda carry, x: step(fixed, carry, dict(zip(entering, x, strict=True)))
            xs, one_kernel = list(entering.values()), loop.one_kernel
            return chunked_scan(body, carry, xs, reverse=reverse, chunking=chunking, one_kernel=one_kernel)
        length = T if isinstance(T, int) else None
        return jax.lax.scan(
            functools.partial(step, fixed), carry, entering, length=length, reverse=reverse, unroll=unroll
        )

    ready, entering = made_ready(list(xs))
    if not entering and not isinstance(T, int):
        entering = dict(zip(loop.x, xs, strict=True))  # from which the scan takes how long it is
    end, ys = compiled(run, fixed_inside, list(carry), entering, count, gpu=count is None)
    if least:
        ys = [jax.vmap(lambda a, n=n: _cut(a, program.kinds[n]))(a) for n, a in zip(parts.stacked, ys, strict=True)]
    stacked = ready | dict(zip(parts.stacked, ys, strict=True))
    return [*end, *(stacked[n] for n in program.outputs[loop.n_carry :])]


def _block_by_block(
    run_block: Callable[..., tuple[list[Any], list[Any]]],
    carry: list[Any],
    xs: list[Any],
    ys: list[Any],
    block: int,
    *,
    reverse: bool,
) -> tuple[list[Any], list[Any]]:
    """The run in blocks of at most so many steps, what each puts out written into ys. It cannot be transposed.

    All blocks have one size, so that one is compiled: the last begins within the one before, and skips its steps.
    """
    T = len(xs[0])
    n_blocks = -(-T // block)
    size = -(-T // n_blocks)

    def of_block(number, state):
        carry, ys = state
        offset = jnp.minimum(number * size, T - size)  # in the order of the run
        skipped = number * size - offset if T % size else None
        start = T - size - offset if reverse else offset
        part = lambda a: jax.lax.dynamic_slice_in_dim(a, start, size)
        return run_block(carry, [part(x) for x in xs], ys, start, skipped)

    return jax.lax.fori_loop(0, n_blocks, of_block, (carry, ys))


def _kernels(loop: LoopProgram, step: Program, tree: Any, T: int, *, reverse: bool) -> dict[str, Any]:
    """The kernels of a loop, as functions of the arrays that it is run with, flat."""
    consts, enters = list(step.consts), step.inputs[loop.n_carry :]
    forward, backward = loop.forward_kernel, loop.backward_kernel
    options: dict[str, Any] = {"steps": T, "interpret": loop.interpreted}
    kernels: dict[str, Any] = {"kernel": None, "transposed_kernel": None}
    if forward is not None:

        def of_loop(*arrays):
            fixed, carry, entering, _ = tree.unflatten(arrays)
            xs = [entering[n] for n in enters]
            return run_recurrence(forward, [fixed[n] for n in consts], carry, xs, reverse=reverse, **options)

        kernels["kernel"] = of_loop
    if backward is not None:

        def of_transpose(arrays, cotangents):
            fixed, carry, entering, _ = tree.unflatten(arrays)
            xs = [entering[n] for n in enters]
            d_end, d_ys = cotangents[: len(carry)], cotangents[len(carry) :]
            d_consts, d_carry, d_x = run_transposed(
                backward, [fixed[n] for n in consts], xs, d_end, d_ys, reverse=not reverse, **options
            )
            d_fixed, d_entering = dict(zip(consts, d_consts, strict=True)), dict(zip(enters, d_x, strict=True))
            return [*(d_fixed[n] for n in sorted(fixed)), *d_carry, *(d_entering[n] for n in sorted(entering))]

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
