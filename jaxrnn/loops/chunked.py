"""``chunked_scan``: a scan cut into chunks of time that run side by side, as one batch.

A chunk must know the carry with which it starts. It is guessed, and the guess is made good by what recurrences do:
they forget. Each chunk runs from a carry that is too old to matter, hands its end on as the start of the next, and
runs again until nothing that matters is handed on (``sweeping.py``). What does not come to rest so is run step by step.

The scan may be linear, as that of a tangent or of its transpose; it is solved in the same way, or exactly where that is
cheap. Derivatives are scans of the same kind, so they hold to any order: the tangent of a run is a linear recurrence
along it, whatever way it was found.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxrnn._base import PyTree, flatten
from jaxrnn.devices.placement import vary_alike
from jaxrnn.loops.all_at_once import run_all_at_once
from jaxrnn.loops.steps import Steps, Way
from jaxrnn.loops.sweeping import run_in_chunks
from jaxrnn.programs.calls import has_whole_arrays

Arrays = list[Any]


class Chunking(NamedTuple):
    """How a run is cut into chunks, and what is known of its carry beforehand."""

    way: Way
    guess: Any = (
        None  # like the carry: from where chunks may start before theirs is known; None: zeros, of a linear run
    )
    held: Any = None  # (T, *rows) booleans, True where a step changes nothing and puts out 0; None: nowhere


class Report(NamedTuple):
    """How a run in chunks went."""

    way: Way
    steps: int
    accepted: bool  # else all steps were run one by one
    sweeps: int  # beside the warm-up
    warm_up: int  # steps
    residuals: list[float]  # by how much starts moved in each sweep at most, in units of the tolerance


class Parts(NamedTuple):
    """How many arrays of each sort a run takes, in this order, then what it reads at each step."""

    consts: int
    carry: int
    guess: int  # as many as the carry; 0: the run is linear, and zeros will do
    held: int  # 1 or 0

    def of(self, arrays: Sequence[Any]) -> tuple[Arrays, Arrays, Arrays, Arrays, Arrays]:
        """Constants, carry, guess, held, xs."""
        parts, begin = [], 0
        for n in self:
            parts.append(list(arrays[begin : begin + n]))
            begin += n
        return *parts, list(arrays[begin:])  # type: ignore[return-value]


def chunked_scan(
    body: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]],
    carry: Arrays,
    xs: Arrays,
    *,
    chunking: Chunking,
    reverse: bool = False,
    one_kernel: bool = False,
) -> tuple[Arrays, Arrays]:
    """``jax.lax.scan(body, carry, xs, reverse=reverse)``, in chunks side by side.

    Args:
        body: ``(carry, x) -> (carry, y)``, flat lists.
        carry: where to start.
        xs: (T, …) each, at least one.
        chunking: how it is cut.
        reverse: from step T - 1 to step 0.
        one_kernel: where they are run one by one after all, the steps can be one kernel of a CPU.
    """
    way, guess, held = chunking
    T = xs[0].shape[0]
    tail = 0 if way.method == "newton" else T % way.chunks  # Newton's method takes any number of steps
    first, last = (slice(tail, T), slice(0, tail)) if reverse else (slice(0, T - tail), slice(T - tail, T))
    guess = [] if guess is None else guess
    held = [] if held is None else [held]
    parts = [xs, held] if not tail else [[a[first] for a in arrays] for arrays in (xs, held)]
    carry, guess, (entering, held) = vary_alike(carry, guess, parts)
    n = len(carry)

    def flat(*values):
        new, ys = body(list(values[:n]), list(values[n:]))
        return [*new, *ys]

    closed = jax.make_jaxpr(flat)(*carry, *(jax.eval_shape(lambda a: a[0], a) for a in entering))
    made = _bind(
        closed.jaxpr,
        closed.consts,
        carry,
        guess,
        held,
        entering,
        n_added=0,
        reverse=reverse,
        way=way,
        one_kernel=one_kernel,
    )
    carry, ys = made[:n], made[n:]
    if not tail:
        return carry, ys
    carry, more = jax.lax.scan(lambda carry, x: body(carry, x), carry, [a[last] for a in xs], reverse=reverse)
    return carry, [jnp.concatenate([b, a] if reverse else [a, b]) for a, b in zip(ys, more, strict=True)]


def scan_in_chunks(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    xs: PyTree,
    *,
    chunking: Chunking,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """``jax.lax.scan(body, carry, xs, reverse=reverse)`` of any pytrees, in chunks side by side."""
    carry_leaves, carry_tree = flatten(carry)
    xs_leaves, xs_tree = flatten(xs)
    y_trees = []

    def flat(carry, x):
        new, y = body(carry_tree.unflatten(carry), xs_tree.unflatten(x))
        y_leaves, y_tree = flatten(y)
        y_trees.append(y_tree)
        return jax.tree.leaves(new), y_leaves

    end, ys = chunked_scan(flat, carry_leaves, xs_leaves, chunking=chunking, reverse=reverse)
    return carry_tree.unflatten(end), y_trees[0].unflatten(ys)


_reports: contextvars.ContextVar[list[Report] | None] = contextvars.ContextVar("reports", default=None)


@contextlib.contextmanager
def reporting() -> Iterator[list[Report]]:
    """Inside, every run in chunks that is computed at once, not traced, adds a Report to the list."""
    reports: list[Report] = []
    token = _reports.set(reports)
    try:
        yield reports
    finally:
        _reports.reset(token)


def tell(numbers: Any, way: Way, steps: int) -> None:
    """Add the report that a run put out, if it is there and somebody asks for it."""
    reports = _reports.get()
    if reports is None or isinstance(numbers, jax.core.Tracer):
        return
    accepted, sweeps, warm_up, *residuals = np.asarray(numbers).tolist()
    reports.append(Report(way, steps, bool(accepted), int(sweeps), int(warm_up), residuals[: int(sweeps)]))


def _bind(*run: Any, **params: Any) -> Arrays:
    """As ``_bind_with_report``; the report is told, and all else returned."""
    *made, report = _bind_with_report(*run, **params)
    xs = run[-1]
    tell(report, params["way"], xs[0].shape[0])
    return made


def _bind_with_report(
    jaxpr: Any,
    consts: Sequence[Any],
    carry: Sequence[Any],
    guess: Sequence[Any],
    held: Sequence[Any],
    xs: Sequence[Any],
    **params: Any,
) -> Arrays:
    """The run of a jaxpr; what it closes over becomes arguments. All outputs, the report last."""
    closed = ClosedJaxpr(jaxpr.replace(invars=[*jaxpr.constvars, *jaxpr.invars], constvars=[]), [])
    parts = Parts(len(consts), len(carry), len(guess), len(held))
    arrays = [*consts, *carry, *guess, *held, *xs]
    return chunked_scan_p.bind(*arrays, jaxpr=closed, parts=parts, length=xs[0].shape[0], **params)


def as_loops(*arrays, jaxpr, parts, n_added, length, reverse, way, one_kernel, on_devices=False):
    consts, *rest = parts.of(arrays)
    carry, guess, held, xs = vary_alike(*rest)
    linear, guess = not guess, guess or [jnp.zeros_like(a) for a in carry]
    pieces = math.gcd(length, way.chunks) if on_devices else 0
    sizes = len(carry), n_added, jaxpr.out_avals
    steps = Steps(jaxpr_as_fun(jaxpr), consts, *sizes, xs, length, reverse, one_kernel, pieces)
    run = run_all_at_once if way.method == "newton" else functools.partial(run_in_chunks, linear=linear)
    return run(steps, carry, guess, held[0] if held else None, way).outputs()


def _impl(*arrays, **params):
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return as_loops(*arrays, **params)
    return jax.jit(lambda *arrays: chunked_scan_p.bind(*arrays, **params))(*arrays)


def _lower(ctx, *arrays, **params):
    run = functools.partial(as_loops, on_devices=not has_whole_arrays(ctx))
    return mlir.lower_fun(run, multiple_results=True)(ctx, *arrays, **params)


def _abstract(*arrays, jaxpr, parts, n_added, length, reverse, way, one_kernel):
    kinds, n = jaxpr.out_avals, parts.carry
    ys = [kind.update(shape=(length, *kind.shape)) for kind in kinds[n + n_added :]]
    return [*kinds[: n + n_added], *ys, way.kind_of_report()]


def _jvp(primals, tangents, *, jaxpr, parts, n_added, length, reverse, way, one_kernel):
    """The tangent is a linear scan along the carries of the run."""
    consts, carry, guess, held, xs = parts.of(primals)
    d_consts, d_carry, _, _, d_xs = parts.of(tangents)
    step, n = jaxpr_as_fun(jaxpr), len(carry)
    is_float = [jnp.issubdtype(a.dtype, jnp.inexact) for a in carry]
    moved_consts, moved_xs = ([not isinstance(d, ad.Zero) for d in ds] for ds in (d_consts, d_xs))

    def with_carries(*values):
        made = step(*consts, *values)
        return [*made, *values[:n]]

    traced = jax.make_jaxpr(with_carries)(*_one_step(carry, xs))
    options = {"n_added": n_added, "reverse": reverse, "way": way, "one_kernel": False}
    *made, report = _bind_with_report(traced.jaxpr, traced.consts, carry, guess, held, xs, **options)
    outputs, before = made[: len(made) - n], made[len(made) - n :]

    def tangent(*values):
        rest = iter(values)
        d_carry = [next(rest) if f else None for f in is_float]
        d_x = [next(rest) if m else None for m in moved_xs]
        carry, x = [next(rest) for _ in range(n)], [next(rest) for _ in xs]
        d_fixed = [d if m else None for d, m in zip(d_consts, moved_consts, strict=True)]
        inputs, given = [*consts, *carry, *x], [*d_fixed, *d_carry, *d_x]
        moved = [i for i, d in enumerate(given) if d is not None]

        def of_moved(*values):
            arguments = list(inputs)
            for i, a in zip(moved, values, strict=True):
                arguments[i] = a
            return step(*arguments)

        made, d_made = jax.jvp(of_moved, [inputs[i] for i in moved], [given[i] for i in moved])
        return [d for a, d in zip(made, d_made, strict=True) if jnp.issubdtype(a.dtype, jnp.inexact)]

    d_start = [ad.instantiate_zeros(d) for d, f in zip(d_carry, is_float, strict=True) if f]
    d_entering = [d for d, m in zip(d_xs, moved_xs, strict=True) if m]
    d_start, entering = vary_alike(d_start, [*d_entering, *before, *xs])
    traced = jax.make_jaxpr(tangent)(*_one_step(d_start, entering))
    d_made = iter(_bind(traced.jaxpr, traced.consts, d_start, [], held, entering, **options))
    floats = [jnp.issubdtype(a.dtype, jnp.inexact) for a in outputs]
    d_outputs = [next(d_made) if f else _no_tangent(a) for a, f in zip(outputs, floats, strict=True)]
    return [*outputs, report], [*d_outputs, _no_tangent(report)]


def _transpose(cotangents, *arrays, jaxpr, parts, n_added, length, reverse, way, one_kernel):
    """The scan back, which adds up the cotangents of the constants."""
    asked = [ad.is_undefined_primal(a) for a in arrays]
    of_consts, of_carry, _, _, of_xs = parts.of(asked)
    consts, carry, _, held, xs = parts.of(arrays)
    n = len(carry)
    linear = [*of_consts, *[True] * n, *of_xs]  # a carry that is known is the 0 where a tangent starts
    cotangents = [ad.instantiate_zeros(ct) for ct in cotangents[:-1]]
    d_end, d_added, d_ys = cotangents[:n], cotangents[n : n + n_added], cotangents[n + n_added :]
    step = jaxpr_as_fun(jaxpr)
    known_consts = [a for a, is_linear in zip(consts, of_consts, strict=True) if not is_linear]
    known_xs = [a for a, is_linear in zip(xs, of_xs, strict=True) if not is_linear]
    kinds = [a for a, is_linear in zip(jaxpr.in_avals, linear, strict=True) if is_linear]
    n_sums = sum(of_consts)

    def back(*values):
        d_new, d_y, known = values[:n], values[n : n + len(d_ys)], values[n + len(d_ys) :]

        def of_linear(*values):
            rest = {True: iter(values), False: iter([*known_consts, *known])}
            return step(*(next(rest[is_linear]) for is_linear in linear))

        made = jax.linear_transpose(of_linear, *kinds)([*d_new, *d_added, *d_y])
        return [*made[n_sums : n_sums + n], *made[:n_sums], *made[n_sums + n :]]

    d_end, entering = vary_alike(d_end, [*d_ys, *known_xs])
    traced = jax.make_jaxpr(back)(*_one_step(d_end, entering))
    options = {"n_added": n_sums, "reverse": not reverse, "way": way, "one_kernel": one_kernel}
    made = _bind(traced.jaxpr, traced.consts, d_end, [], held, entering, **options)
    d_carry, d_consts, d_xs = made[:n], made[n : n + n_sums], made[n + n_sums :]
    d_carry = [d for d, is_asked in zip(d_carry, of_carry, strict=True) if is_asked]
    found = iter([*d_consts, *d_carry, *d_xs])
    return [next(found) if is_asked else None for is_asked in asked]


def _batch(arrays, axes, *, jaxpr, parts, n_added, length, reverse, way, one_kernel):
    """The batch becomes rows of the step, before its own: all its members run in one and the same way."""
    size = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)

    def moved(a, axis, to):
        return a if axis is None else jnp.moveaxis(a, axis, to)

    def broadcast(a, axis, to):
        if axis is not None:
            return jnp.moveaxis(a, axis, to)
        return jnp.broadcast_to(jnp.expand_dims(a, to), (*a.shape[:to], size, *a.shape[to:]))

    places = parts.of(axes)
    consts, carry, guess, held, xs = parts.of(arrays)
    consts = [moved(a, axis, 0) for a, axis in zip(consts, places[0], strict=True)]
    carry = [broadcast(a, axis, 0) for a, axis in zip(carry, places[1], strict=True)]
    guess = [broadcast(a, axis, 0) for a, axis in zip(guess, places[2], strict=True)]
    held = [broadcast(a, axis, 1) for a, axis in zip(held, places[3], strict=True)]
    xs = [moved(a, axis, 1) for a, axis in zip(xs, places[4], strict=True)]
    at = lambda axes: [None if axis is None else 0 for axis in axes]
    step = jax.vmap(jaxpr_as_fun(jaxpr), in_axes=(*at(places[0]), *(0 for _ in carry), *at(places[4])))
    kinds = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in [*consts, *carry]]
    traced = jax.make_jaxpr(step)(*kinds, *_one_step([], xs))
    own = way._replace(row_axes=way.row_axes + 1)
    made = chunked_scan_p.bind(
        *consts,
        *carry,
        *guess,
        *held,
        *xs,
        jaxpr=traced,
        parts=parts,
        n_added=n_added,
        length=length,
        reverse=reverse,
        way=own,
        one_kernel=False,
    )
    n = parts.carry + n_added
    return made, [*(0 for _ in made[:n]), *(1 for _ in made[n:-1]), None]


def _one_step(carry: Sequence[Any], xs: Sequence[Any]) -> Arrays:
    """What a step takes, as shapes."""
    return [*(jax.eval_shape(lambda a: a, a) for a in carry), *(jax.eval_shape(lambda a: a[0], a) for a in xs)]


def _no_tangent(a: Any) -> Any:
    return ad.Zero(jax.typeof(a).to_tangent_aval())


chunked_scan_p = Primitive("chunked_scan")
chunked_scan_p.multiple_results = True
chunked_scan_p.def_impl(_impl)
chunked_scan_p.def_abstract_eval(_abstract)
mlir.register_lowering(chunked_scan_p, _lower)
ad.primitive_jvps[chunked_scan_p] = _jvp
ad.primitive_transposes[chunked_scan_p] = _transpose
batching.primitive_batchers[chunked_scan_p] = _batch
