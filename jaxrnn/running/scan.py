"""A cell run over time: ``jr.scan``.

Everything that the semantics of a sequence need stands here once, for every cell: lengths and masks, resets, reversed
runs, noise, dtypes, placement on a mesh.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, Layer, check_model, expect_cell, name_of, select
from jaxrnn._checks import (
    check_array,
    check_carry,
    check_features,
    check_flags,
    check_has_number,
    check_key,
    check_leads_with_batch,
    check_params,
    sequence_shape,
)
from jaxrnn._narrowing import as_lengths, as_start, check_held
from jaxrnn._spec import specified
from jaxrnn.devices.placement import axes_over_time, on_auto_axes
from jaxrnn.instruments import carry_without_marks
from jaxrnn.planning.plan import Plan, check_plan
from jaxrnn.running._loop import Run, WayOf, params_at_start, run_over_time
from jaxrnn.running.packed import run_packed, why_not_packed
from jaxrnn.running.segments import Budget, check_checkpoint


@specified
def scan(
    cell: Cell,
    *,
    reverse: bool = False,
    unroll: int = 1,
    plan: str | Plan = "auto",
    checkpoint: bool | int | Budget = False,
) -> Layer:
    """Run a cell over time with ``jax.lax.scan``.

        carry_t, y_t = step(params, carry_{t-1}, x_t)        t = 0 … T-1, or T-1 … 0 with ``reverse``

    Back-propagation through time is ``jax.grad`` of this run. Outputs stand in input order, also when reversed.
    Time axis 0, no ``batch_first``; the layer does not jit, its caller does.

    Args:
        cell: a Cell, built in or your own.
        reverse: run from the last step to the first.
        unroll: steps per loop iteration, as in ``jax.lax.scan``.
        plan: how the run is executed; every plan computes the same, up to the order of sums. "auto" multiplies once
            where products share an operand, saves less for the backward pass, and where that pays contracts the
            gradients of the weights once, outside the loop, instead of adding to them at every step. :class:`Plan` says
            when and takes each choice by hand; ``jr.explain`` says what was chosen. "plain" is ``lax.scan`` of ``step``
            and its autodiff; a step with effects, callbacks or ``custom_vjp`` functions runs so under every plan. In
            forward mode (``jax.jvp``) "auto" holds what the tangent needs of all T steps, "plain" that of one.
        checkpoint: True keeps for the backward pass the carry at the start of each of about √T segments, and runs each
            segment forward again before going back through it; a number sets the steps of a segment; :class:`Budget`
            nests segments. On a mesh with Auto or Explicit axes, weight gradients are then summed over devices once a
            segment.

    Returns:
        A Layer, whose ``apply(params, xs, carry=None, *, lengths=None, mask=None, resets=None, key=None, start=0)``
        takes

        xs: (T, *B, I), or a pytree of arrays that all lead with (T, *B).
        carry: where to start; None means ``initial_carry(params, batch_shape)``. A forward run may be cut into
            chunks that hand the carry on; a reversed one too, last chunk first.
        lengths: (*B) integers, in absolute time: step t of a sequence is valid while ``t < length``. Lengths above
            the end of ``xs`` mean its end, however large, negative ones mean 0. (An argument of a jitted function is
            narrowed by JAX before it is seen here, to int32 unless its 64 bits are on: clamp there before you call.)
        mask: (T, *B) booleans, any pattern, True where a step is valid. With ``lengths`` both must hold.
            A step that is not valid leaves the carry as it is and outputs 0; what stands in ``xs`` there, NaN
            included, reaches neither values nor gradients. (The cell sees zeros in its place, so its derivatives
            must be finite at zero input.)
        resets: (T, *B) booleans, True where a new episode begins: ``initial_carry(params, batch_shape)``, never the
            ``carry`` argument, is put in place before ``xs[t]`` is read. On an invalid step: reset, then hold. A
            reversed run resets where it enters an episode from its end. A reversed chunk of a longer run may be given
            (T + 1, *B): the last row then is that of the step after the chunk (a forward run ignores it).
        key: a key for the cell's noise (dropout …); None means evaluation: no noise, deterministic.
        start: the absolute time of ``xs[0]``, for chunks: ``lengths`` and noise count from time 0 of the whole. Times
            are int32; a start beyond is refused where its value is known.

        and returns ``(carry, ys)``, the carry after the last valid step of each sequence and ys (T, *B, O).

    Raises:
        ValueError, TypeError: while tracing, for anything that does not fit, with the fix.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.gru(3, 5))
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = layer.apply(params, jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4]))
        >>> bool(jnp.allclose(carry[1], ys[3, 1])), bool((ys[4:, 1] == 0).all())
        (True, True)

    Differs from: Keras (repeats the last output on masked steps, returns reversed outputs in reversed order), Flax
    and Equinox (no masks with gaps, no resets).

    Reference:
        Werbos, "Backpropagation through time: what it does and how to do it", Proceedings of the IEEE 78, 1990.
    """
    expect_cell("scan", cell, if_layer="it already runs over time, use it as it is")
    check_plan("scan", plan)
    check_checkpoint("scan", checkpoint)
    return layer_of(f"scan({name_of(cell)})", cell, reverse, unroll, plan, checkpoint)


def layer_of(
    who: str,
    cell: Cell,
    reverse: bool,
    unroll: int = 1,
    plan: str | Plan = "auto",
    checkpoint: bool | int | Budget = False,
    way_of: WayOf | None = None,
) -> Layer:
    """What ``scan`` returns, under the name that error messages are to use; ``way_of`` as in ``Run``."""

    def apply(params, xs, carry=None, *, lengths=None, mask=None, resets=None, key=None, start=0):
        if key is not None:
            check_key(who, key)
        T, batch_shape, (lengths, mask, resets) = check_inputs(who, cell, xs, lengths, mask, resets)
        start = as_start(who, start, T)
        given = params, xs, carry, lengths, mask, resets, key, start
        axes = axes_over_time(xs)
        if way_of is not None:
            way = functools.partial(way_of, devices=math.prod(axes.values()))
            return on_auto_axes(lambda given: run_as_checked(batch_shape, way, *given), given, xs, len(batch_shape))
        if axes:
            raise ValueError(
                f"{who}: time, axis 0 of xs, is divided by the mesh's axis {', '.join(map(repr, axes))}, and a scan "
                f"runs its steps one after the other; use jr.parallel, or divide the batch."
            )
        return run_as_checked(batch_shape, None, *given)

    def run_as_checked(batch_shape, way_of, params, xs, carry, lengths, mask, resets, key, start):
        T = jax.tree.leaves(xs)[0].shape[0]
        if unroll > 1:
            check_has_number(who, f"unroll={unroll}", T)
        now = params_at_start(params, reverse)
        check_params(who, now, shapes_of_params(cell))
        expected = jax.eval_shape(lambda: cell.initial_carry(now, batch_shape))
        check_leads_with_batch(who, "initial_carry()", expected, batch_shape)
        if (start_carry := carry_without_marks(carry)) is not None:
            check_held(who, "carry", start_carry)
            check_carry(who, start_carry, expected, batch_shape)

        times = start + jnp.arange(T, dtype=jnp.int32)
        valid = valid_steps(times, lengths, mask)
        if valid is not None:
            xs = select(valid, xs, jax.tree.map(jnp.zeros_like, xs))
        noise = None
        if cell.noise is not None and key is not None:
            x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
            noise = cell.noise(now, key, times, x)
        run = Run(
            who=who,
            cell=cell,
            params=params,
            xs=xs,
            carry=carry,
            batch_shape=batch_shape,
            valid=valid,
            resets=resets_before_reading(resets, T, reverse),
            noise=noise,
            reverse=reverse,
            unroll=unroll,
            plan=plan,
            checkpoint=checkpoint,
            way_of=way_of,
        )
        not_packed = why_not_packed(run) if isinstance(plan, Plan) and plan.pack else None
        if isinstance(plan, Plan) and plan.pack and not_packed is None:
            return run_packed(run)
        return run_over_time(run, not_packed)

    return Layer(cell.init, cell.initial_carry, apply, cell.x_ndim, cell.input_size, cell.output_size)


def as_layer(who: str, model: Cell | Layer) -> Layer:
    """A Cell lifted by ``scan``; a Layer as it is."""
    check_model(who, model)
    return scan(model) if isinstance(model, Cell) else model


def shapes_of_params(cell):
    """What ``init`` gives, as shapes; None where a user's ``init`` cannot be traced (NumPy, functions in params)."""
    try:
        return jax.eval_shape(cell.init, jax.random.key(0))
    except Exception:  # whatever a user's own init raises on an abstract key
        return None


def check_inputs(who, cell, xs, lengths, mask, resets):
    """``(T, batch_shape, (lengths, mask, resets))``, the flags as arrays that fit the sequence, as it fits the cell."""
    T, batch_shape = sequence_shape(who, xs, cell.x_ndim)
    if cell.input_size is not None and cell.x_ndim == 1:
        check_features(who, xs, cell.input_size, "(T, *B, {size})")
    check_held(who, "xs", xs)
    lengths = None if lengths is None else as_lengths(who, lengths, batch_shape)
    for name, flags in (("mask", mask), ("resets", resets)):
        if flags is not None:
            check_array(who, name, flags)
    mask, resets = (None if a is None else jnp.asarray(a) for a in (mask, resets))
    if mask is not None:
        check_flags(who, "mask", mask, ((T, *batch_shape),), "True where a step is valid")
    if resets is not None:
        shapes = ((T, *batch_shape), (T + 1, *batch_shape))
        check_flags(who, "resets", resets, shapes, "True where a new episode begins")
    return T, batch_shape, (lengths, mask, resets)


def valid_steps(times, lengths, mask):
    """(T, *B) booleans, from times (T,) and lengths (*B), both int32; None where every step is valid."""
    if lengths is None:
        return mask
    within = times.reshape(-1, *(1,) * lengths.ndim) < lengths[None]
    return within if mask is None else within & mask


def resets_before_reading(resets, T, reverse):
    """(T, *B): where the carry is reset before ``x[t]`` is read, in the order of the run.

    An episode that begins at t + 1 ends at t, which is where a reversed run enters the episode before it.
    """
    if resets is None or not reverse:
        return None if resets is None else resets[:T]
    if resets.shape[0] == T:
        return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    return resets[1:]
