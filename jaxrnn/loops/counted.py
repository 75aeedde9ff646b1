"""``counted_scan``: a scan that ends after so many steps, a number that is known only when the program runs.

``lax.scan`` takes all of its T steps, and ``lax.while_loop`` has no backward pass. Here the loop is a while loop that
writes what it stacks in place, and so is its transpose. Further derivatives, and ``vmap``, are those of a ``lax.scan``
that takes all steps and holds at those beyond the count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxrnn.devices.placement import vary_alike

Arrays = list[Any]
BLOCK = 16  # steps done at once where all of them could be


def counted_scan(
    body: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]],
    count: jax.Array,
    carry: Arrays,
    xs: Arrays,
    *,
    reverse: bool = False,
) -> tuple[Arrays, Arrays]:
    """``jax.lax.scan`` of the first ``count`` steps of ``xs``; what is stacked beyond them is 0.

    Args:
        body: ``(carry, x) -> (carry, y)``, flat lists.
        count: () int32, 0 to T.
        carry: where to start.
        xs: (T, …) each, at least one.
        reverse: from step ``count - 1`` to step 0.
    """
    carry, xs = vary_alike(carry, xs)
    n = len(carry)

    def flat(*values):
        new, ys = body(list(values[:n]), list(values[n:]))
        return [*new, *ys]

    closed = jax.make_jaxpr(flat)(*carry, *(jax.eval_shape(lambda a: a[0], a) for a in xs))
    made = _bind(closed.jaxpr, closed.consts, count, carry, xs, reverse)
    return made[:n], made[n:]


def loop_in_place(
    body: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]],
    turns: tuple[Any, Any],
    carry: Arrays,
    xs: Arrays,
    ys: Arrays,
    *,
    reverse: bool,
    offset: Any = 0,
) -> tuple[Arrays, Arrays]:
    """The turns from the first to before the last of a loop, which cannot be transposed, over the steps of ``xs``.

    What the body puts out is written into ``ys``, each at its step and so many steps further on. In reverse, turn 0 is
    the last step.
    """

    def turn(i, state):
        carry, ys = state
        t = turns[1] - 1 - i if reverse else i
        x = [jax.lax.dynamic_index_in_dim(a, t, keepdims=False, allow_negative_indices=False) for a in xs]
        carry, new = body(carry, x)
        write = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0, allow_negative_indices=False)
        return carry, [write(a, y, offset + t) for a, y in zip(ys, new, strict=True)]

    return jax.lax.fori_loop(*turns, turn, (carry, ys))


def map_in_blocks(function: Callable[[Arrays], Arrays], count: jax.Array, xs: Arrays) -> Arrays:
    """``jax.vmap(function)(xs)`` for the first ``count`` steps of ``xs``, (T, …) each; any beyond."""
    T = xs[0].shape[0]
    size = math.gcd(T, BLOCK)

    def of_block(start, block):
        counts = start + jnp.arange(size, dtype=jnp.int32) < count
        return jax.vmap(function)([_filled(a, counts) for a in block])

    if size == T:
        return of_block(0, xs)
    starts = jnp.arange(0, T, size, dtype=jnp.int32)
    blocks = [a.reshape(T // size, size, *a.shape[1:]) for a in xs]
    _, made = counted_scan(
        lambda _, entering: ([], of_block(entering[0], entering[1:])), -(-count // size), [], [starts, *blocks]
    )
    return [a.reshape(T, *a.shape[2:]) for a in made]


def _filled(a: jax.Array, counts: jax.Array) -> jax.Array:
    """The steps that count, and in place of the others the first.

    Beyond the count stand zeros that no step has met. Of what a tangent reads, as 1 / h, they would make an infinity,
    and of that NaN, times the 0 that comes back from there.
    """
    return jnp.where(jnp.expand_dims(counts, tuple(range(1, a.ndim))), a, a[:1])


def _bind(
    jaxpr: Any, consts: Sequence[Any], count: jax.Array, carry: Sequence[Any], xs: Sequence[Any], reverse: bool
) -> Arrays:
    """The loop of a jaxpr; what it closes over becomes arguments."""
    closed = ClosedJaxpr(jaxpr.replace(invars=[*jaxpr.constvars, *jaxpr.invars], constvars=[]), [])
    params = {"jaxpr": closed, "n_consts": len(consts), "n_carry": len(carry), "length": xs[0].shape[0]}
    return counted_scan_p.bind(count, *consts, *carry, *xs, reverse=reverse, **params)


def _parts(arrays: Sequence[Any], n_consts: int, n_carry: int) -> tuple[Arrays, Arrays, Arrays]:
    """Constants, carry, xs."""
    end = n_consts + n_carry
    return list(arrays[:n_consts]), list(arrays[n_consts:end]), list(arrays[end:])


def _run(count, *arrays, jaxpr, n_consts, n_carry, length, reverse):
    """As a while loop."""
    consts, carry, xs = _parts(arrays, n_consts, n_carry)

    def step(carry, x):
        made = jaxpr_as_fun(jaxpr)(*consts, *carry, *x)
        return made[:n_carry], made[n_carry:]

    ys = [jnp.zeros((length, *kind.shape), kind.dtype) for kind in jaxpr.out_avals[n_carry:]]
    ys, _ = vary_alike(ys, arrays)
    carry, ys = loop_in_place(step, (0, count), carry, xs, ys, reverse=reverse)
    return [*carry, *ys]


def _run_all(count, *arrays, jaxpr, n_consts, n_carry, length, reverse):
    """As a scan of all steps."""
    consts, carry, xs = _parts(arrays, n_consts, n_carry)
    step = functools.partial(jaxpr_as_fun(jaxpr), *consts)

    def masked(carry, entering):
        t, x = entering
        made, counts = step(*carry, *x), t < count
        new = [jnp.where(counts, a, before) for a, before in zip(made[:n_carry], carry, strict=True)]
        return new, [jnp.where(counts, y, jnp.zeros_like(y)) for y in made[n_carry:]]

    times = jnp.arange(length, dtype=jnp.int32)
    xs = [_filled(a, times < count) for a in xs]
    carry, ys = jax.lax.scan(masked, carry, (times, xs), reverse=reverse)
    return [*carry, *ys]


def _impl(*arrays, **params):
    run = _run_all if jax.config.jax_disable_jit else _run  # type: ignore[attr-defined]
    return jax.jit(functools.partial(run, **params))(*arrays)


def _abstract(count, *arrays, jaxpr, n_consts, n_carry, length, reverse):
    carry, ys = jaxpr.out_avals[:n_carry], jaxpr.out_avals[n_carry:]
    return [*carry, *(kind.update(shape=(length, *kind.shape)) for kind in ys)]


def _jvp(primals, tangents, **params):
    """The second derivative: the first was planned, and its tangent comes here as a loop of its own."""
    given = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def of_given(*values):
        arrays = list(primals)
        for i, a in zip(given, values, strict=True):
            arrays[i] = a
        return _run_all(*arrays, **params)

    return jax.jvp(of_given, [primals[i] for i in given], [tangents[i] for i in given])


def _transpose(cotangents, count, *arrays, jaxpr, n_consts, n_carry, length, reverse):
    """The loop back from the last step, which adds up the cotangents of the constants."""
    asked = [ad.is_undefined_primal(a) for a in arrays]
    of_consts, of_carry, of_xs = _parts(asked, n_consts, n_carry)
    linear = [*of_consts, *[True] * n_carry, *of_xs]  # a carry that is known is the 0 where a tangent starts
    consts, _, xs = _parts(arrays, n_consts, n_carry)
    cotangents = [ad.instantiate_zeros(ct) for ct in cotangents]
    d_end, d_ys = cotangents[:n_carry], cotangents[n_carry:]
    step = jaxpr_as_fun(jaxpr)
    known_consts = [a for a, is_linear in zip(consts, of_consts, strict=True) if not is_linear]
    known_xs = [a for a, is_linear in zip(xs, of_xs, strict=True) if not is_linear]
    kinds = [a for a, is_linear in zip(jaxpr.in_avals, linear, strict=True) if is_linear]
    n_sums = sum(of_consts)

    def back(state, entering):
        d_new, sums = state[:n_carry], state[n_carry:]
        d_y, known = entering[: len(d_ys)], entering[len(d_ys) :]

        def of_linear(*values):
            rest = {True: iter(values), False: iter([*known_consts, *known])}
            return step(*(next(rest[is_linear]) for is_linear in linear))

        made = jax.linear_transpose(of_linear, *kinds)([*d_new, *d_y])
        d_consts, d_carry, d_x = _parts(made, n_sums, n_carry)
        return [*d_carry, *(a + b for a, b in zip(sums, d_consts, strict=True))], d_x

    sums = [jnp.zeros(kind.shape, kind.dtype) for kind in kinds[:n_sums]]
    end, d_xs = counted_scan(back, count, [*d_end, *sums], [*d_ys, *known_xs], reverse=not reverse)
    made = iter([*end[n_carry:], *(d for d, is_asked in zip(end, of_carry, strict=False) if is_asked), *d_xs])
    return [None, *(next(made) if is_asked else None for is_asked in asked)]


def _batch(arrays, axes, **params):
    made = jax.vmap(functools.partial(_run_all, **params), axes)(*arrays)
    return made, [0] * len(made)


counted_scan_p = Primitive("counted_scan")
counted_scan_p.multiple_results = True
counted_scan_p.def_impl(_impl)
counted_scan_p.def_abstract_eval(_abstract)
mlir.register_lowering(counted_scan_p, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[counted_scan_p] = _jvp
ad.primitive_transposes[counted_scan_p] = _transpose
batching.primitive_batchers[counted_scan_p] = _batch
