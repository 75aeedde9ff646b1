"""Newton's method on all steps of a run at once (DEER), and when to believe what it gives.

The equations h_t = f(h_{t-1}, x_t) of all steps are one system. From carries h of all steps, an iteration computes f
and the Jacobians A_t = ∂f/∂h_{t-1} side by side, and the correction δ as a linear recurrence (``affine_scan``):

    r_t = f(h_{t-1}, x_t) - h_t        δ_t = A_t δ_{t-1} + r_t        h_t ← h_t + δ_t

**Jacobians** are those of the step's operations, whatever rules a user gave them; ``carry_structure`` finds where they
are diagonal, or blocks of each unit's few numbers, which is then exact and takes that many tangents. Dense ones take a
tangent a number of a row's carry. Beyond FULL_UP_TO numbers A holds only what does not pass a product ("quasi"): of a
GRU diag(z), of an LSTM f and what o makes of it. That takes a tangent or two. The diagonal of a dense Jacobian itself
would take as many tangents as the whole of it, and holds little more: one recurrent weight of each unit. 256 steps of
64 units, weights as drawn and twice as large, take an LSTM 17 and 82 iterations and a GRU 10 and 21; with all of a
unit's own Jacobian, 2 × 2 and 1 × 1, it is 17 and 83, 10 and 21. Convergence is linear then, by the size of what was
left out; of an Elman network that is all, and Newton does not pay.

**Damping.** Whatever A is, after m iterations the first m steps are exact, so A may be scaled: with (1 - k) A the
method lies between Newton's (k = 0) and h_t ← f(h_{t-1}) (k = 1), which goes nowhere that f does not lead. The Kalman
filter by which ELK keeps to a trust region has such a gain k, with covariances, and on r too, which here stays whole.
k is 0 until somewhere in a row of the batch |r_t| is more than twice the largest before, or not finite. What came
before that step is kept. It and all that follow go on from f of the carries before the correction, with k = 3/4, which
is halved at each iteration and dropped below 1/10. A correction that is not finite is not made: f stands there. So
h - 0.3 h³ + x, from 0, whose full steps overflow, takes 10 iterations; an Elman network of gain 1.6 takes 29 for 34.

**When to believe it.** A small residual r says that each step follows from the one before, not that the run is right:
errors grow or shrink by the products of the A_t. So what is looked at is propagated:

- The correction δ. It is the distance to the solution, to first order, where A is exact, and was added on top.
- Rounding. Every step rounds by about ε |h_t|, in this program otherwise than in another. e_t = A_t e_{t-1} ± ε |h_t|,
  with signs by chance, is how far two such runs part; in a chaotic run it reaches 1 however small δ is. Signs by chance
  rather than |A_t|: the product of the |A_t| of orthogonal matrices explodes, that of the A_t does not. |h_t| is the
  largest of the leaf so far, which products add up; of numbers that stand alone it is at most their own largest.

Both have to be at most ``tol`` times the largest number that the leaf has had so far in its row, at all steps and rows,
without damping. So ``tol`` must leave room for rounding: some 10 ε for a cell that forgets in few steps, √n times that
where it takes n. ε is that of the coarsest dtype that numbers pass on their way from carry to carry. Once δ is small
and e is not, there is nothing more to wait for.

Where A is not known to be the step's own Jacobian ("quasi", or with rules inside of a loop or a branch) more is asked.
What A leaves out is added to e from one iteration to the next, by a finite difference of f, and e must have come to
rest: changes of it that shrink, and all to come less than half of it. Corrections have shrunk by ρ < 1 an iteration,
observed while they were above ``tol``, and δ ρ / (1 - ρ), the sum of those to come, is at most ``tol``. Where that was
not observed, as from a guess that was right, δ (e / ε)² is: a residual of one sign at all steps grows to the square of
what one of any signs does.

A step that jumps (rounds, compares) has no Jacobian where it does: there two correct runs may part by the jump.

**Affine steps**, by their operations (``carry_structure.is_affine``), take one iteration, from 0, and are exact. e is
looked at all the same.

References:
    Lim, Zhu, Selfridge & Kasim, "Parallelizing non-linear sequential models over the sequence length", ICLR 2024.
    Gonzalez, Warrington, Smith & Linderman, "Towards scalable and stable parallelization of nonlinear RNNs",
    NeurIPS 2024.
    Gonzalez, Kozachkov, Zoltowski, Clarkson & Linderman, "Predictability enables parallelization of nonlinear state
    space models", NeurIPS 2025.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.loops.affine_scan import before
from jaxrnn.loops.all_steps import AllSteps

Arrays = list[Any]
ROUNDINGS = 64  # what the default tol leaves for them, in ε
DAMPING = 0.75  # where a correction went wrong
GROWTH = 2.0  # by how much residuals may grow in an iteration
BROKEN = 3  # iterations in a row in which a step leads from finite numbers to others, before the run is given up
NEAR = 1e-3  # corrections so small leave Jacobians what they are, to an order of magnitude
RESTING = 0.5  # by how much of itself e may still change


class Report(NamedTuple):
    """What became of a run."""

    iterations: jax.Array  # () int32
    converged: jax.Array  # () bool
    residuals: jax.Array  # (max_iterations,) the largest correction over the carry's scale; NaN where none was made


class State(NamedTuple):
    """Between iterations; of all steps (parts, (T, *B, …)), of rows (*B), or of all."""

    h: Arrays
    fallback: Arrays  # f of the carries before, where they were sound
    e: Arrays  # how rounding grows
    damping: jax.Array  # (T, *B)
    best: jax.Array  # (*B) the residual that this one is held to
    size: jax.Array  # (*B) of the last correction
    rate: jax.Array  # (*B) by which corrections shrank, last observed
    change: jax.Array  # (*B) of e
    broken: jax.Array  # () iterations in a row that met what is not finite
    iteration: jax.Array
    ended: jax.Array  # () bool
    converged: jax.Array
    residuals: jax.Array


def newton_carries(
    step: Callable[[Arrays, Arrays], tuple[Arrays, Any]],
    start: Sequence[Any],
    xs: Sequence[Any],
    *,
    guess: Sequence[Any],
    reverse: bool = False,
    tol: float | None = None,
    max_iterations: int,
    jacobian: str = "auto",
    batch_ndim: int = 0,
) -> tuple[Arrays, Arrays, Report]:
    """The carries of a run.

    Args:
        step: ``(carry, x) -> (carry, y)``, flat lists.
        start: the carry before the first step of the run (the last in time where ``reverse``), leaves (*B, …), real or
            complex floats.
        xs: (T, …) each, at least one.
        guess: carries after all steps, (T, *B, …), or one carry, for all steps.
        tol: see above; relative to the carry. None: ROUNDINGS·ε, at most √ε.
        max_iterations: at least 1.
        jacobian: "auto", "full" or "quasi".
        batch_ndim: how many leading axes of the carry are rows that do not depend on each other; 0: the whole carry is
            one row.

    Returns:
        The carries before each step, (T, *B, …); the carry after the last; the Report. Where ``converged`` is False
        they are not to be used. Under ``shard_map`` it is the same on all devices.
    """
    start, xs = [jnp.asarray(a) for a in start], [jnp.asarray(a) for a in xs]
    nothing = Report(jnp.int32(0), jnp.asarray(True), jnp.full(max_iterations, jnp.nan, jnp.float32))
    T = xs[0].shape[0]
    if not start or T == 0:
        return [jnp.zeros((T, *a.shape), a.dtype) for a in start], start, nothing
    run = AllSteps(step, start, xs, reverse=reverse, jacobian=jacobian, batch_ndim=batch_ndim)
    tol = min(ROUNDINGS * run.eps, run.eps**0.5) if tol is None else tol
    if run.is_affine:
        h, report = _in_one_go(run, tol, max_iterations)
    else:
        wide = [jnp.broadcast_to(jnp.asarray(a), (T, *s.shape)) for a, s in zip(guess, start, strict=True)]
        h, report = _iterate(run, run.placed(run.parts(wide)), tol, max_iterations)
    after, first = run.leaves(h), run.leaves(run.start)
    ends = [a[0] if reverse else a[-1] for a in after]
    return [before(s, a, reverse=reverse) for s, a in zip(first, after, strict=True)], ends, report


def _in_one_go(run: AllSteps, tol: float, max_iterations: int) -> tuple[Arrays, Report]:
    """f(h) = A h + f(0)."""
    b, A = run.linearised_at_zero()
    (h,) = run.solve(A, [b], run.start)
    scales = run.scales(h)
    (e,) = run.solve(A, [run.noise(h, scales)])
    largest = [_largest(run.relative(parts, scales)) for parts in (h, e)]
    size, grown = run.agreed(jnp.stack(largest))
    residuals = jnp.full(max_iterations, jnp.nan, run.dtype).at[0].set(size)
    return h, Report(jnp.int32(1), (size < jnp.inf) & (grown <= tol), residuals)


def _iterate(run: AllSteps, guess: Arrays, tol: float, max_iterations: int) -> tuple[Arrays, Report]:
    def of_rows(value: float) -> jax.Array:
        return run.placed(jnp.full(run.rows, value, run.dtype))

    no = jnp.asarray(False)
    state = State(
        h=guess,
        fallback=guess,
        e=[jnp.zeros_like(a) for a in guess],
        damping=run.placed(jnp.zeros((run.T, *run.rows), run.dtype)),
        best=of_rows(jnp.inf),
        size=of_rows(jnp.inf),
        rate=of_rows(jnp.inf),
        change=of_rows(jnp.inf),
        broken=jnp.int32(0),
        iteration=jnp.int32(0),
        ended=no,
        converged=no,
        residuals=jnp.full(max_iterations, jnp.nan, run.dtype),
    )

    def goes_on(state):
        return ~state.ended & (state.iteration < max_iterations)

    state = jax.lax.while_loop(goes_on, functools.partial(_iteration, run, tol), state)
    return state.h, Report(state.iteration, state.converged, state.residuals)


def _iteration(run: AllSteps, tol: float, state: State) -> State:
    h = state.h
    f, A = run.linearised(h)
    safe = [jnp.where(jnp.isfinite(a), a, b) for a, b in zip(f, h, strict=True)]
    scales = run.scales(safe)
    r = _minus(f, h)
    residual = functools.reduce(jnp.maximum, run.sizes(r))
    # Below tol it is rounding that moves. What follows a step that went wrong did so as well.
    held = (residual <= GROWTH * state.best[None]) | (run.relative(r, scales) <= tol)
    sound = jax.lax.cummin(held.astype(jnp.int32), reverse=run.reverse) > 0
    all_sound = sound.all(axis=0)

    noise = run.noise(safe, scales)
    if not run.proven:
        noise = _plus(noise, _left_out(run, A, h, f, state.e, scales))
    δ, e = run.solve(run.damped(A, 1 - state.damping), [r, noise])
    new = [jnp.where(jnp.isfinite(a), a, b) for a, b in zip(_plus(h, δ), safe, strict=True)]

    size, grown = (jnp.max(run.relative(parts, scales), axis=0) for parts in (δ, e))
    undamped = all_sound & (state.damping == 0).all(axis=0)
    settled = undamped & (size <= tol) & (grown <= tol)
    hopeless = undamped & (size <= NEAR) & ~(grown <= tol)
    rate, change = state.rate, state.change
    if not run.proven:
        observed = (state.size < jnp.inf) & ((state.size > tol) | (rate == jnp.inf))
        rate = jnp.where(observed, size / state.size, rate)
        slowest = jnp.maximum(rate, state.rate)
        small = size * slowest <= tol * (1 - slowest)
        change = jnp.max(run.relative(_minus(e, state.e), scales), axis=0)
        resting = _rests(change, state.change, grown, run.eps)
        settled &= resting & (small | (size * (grown / run.eps) ** 2 <= tol))
        hopeless &= resting
        e = [jnp.where(jnp.isfinite(a), a, 0) for a in e]

    finite = functools.reduce(jnp.logical_and, [jnp.isfinite(a).all() for a in f])
    flags = [jnp.any(~settled), jnp.any(hopeless), ~finite]
    largest, going, lost, broken = run.agreed(jnp.stack([_largest(size), *(a.astype(run.dtype) for a in flags)]))
    converged, broken = going == 0, jnp.where(broken > 0, state.broken + 1, 0)

    def of_sound(a, otherwise):
        return jnp.where(run.beside(sound, a), a, otherwise)

    damping = state.damping / 2
    return State(
        h=list(map(of_sound, new, state.fallback)),
        fallback=list(map(of_sound, safe, state.fallback)),
        e=e,
        damping=jnp.where(sound, jnp.where(damping < 0.1, 0, damping), DAMPING),
        best=jnp.where(all_sound, jnp.max(residual, axis=0), jnp.inf),
        size=size,
        rate=rate,
        change=change,
        broken=broken,
        iteration=state.iteration + 1,
        ended=converged | (lost > 0) | (broken >= BROKEN),
        converged=converged,
        residuals=state.residuals.at[state.iteration].set(largest),
    )


def _left_out(run: AllSteps, A: list[Any], h: Arrays, f: Arrays, e: Arrays, scales: Arrays) -> Arrays:
    """What the Jacobians leave out of the change of f that e makes."""
    size = run.relative(e, scales)
    moves = size > 0
    shrink = jnp.where(moves, run.eps**0.5 / jnp.where(moves, size, 1), 0)  # of each step's e, since f takes one step
    shifted = run.f([a + run.beside(shrink, a) * b for a, b in zip(h, e, strict=True)])
    of_step = before(jnp.zeros_like(shrink[0]), shrink, reverse=run.reverse)
    grow = jnp.where(of_step > 0, 1 / jnp.where(of_step > 0, of_step, 1), 0)
    change = [run.beside(grow, a) * a for a in _minus(shifted, f)]
    return _minus(change, run.times(A, e))


def _rests(change: jax.Array, last: jax.Array, grown: jax.Array, eps: float) -> jax.Array:
    """Whether all changes of e to come, as they shrink, are small beside it; or this one is a finite difference's."""
    shrinks = jnp.where(last < jnp.inf, change / last, jnp.inf)
    return ((shrinks < 1) & (change * shrinks <= RESTING * grown * (1 - shrinks))) | (change <= 8 * eps**0.5 * grown)


def _largest(of_rows: jax.Array) -> jax.Array:
    return jnp.max(of_rows, initial=0)


def _plus(a: Arrays, b: Arrays) -> Arrays:
    return [x + y for x, y in zip(a, b, strict=True)]


def _minus(a: Arrays, b: Arrays) -> Arrays:
    return [x - y for x, y in zip(a, b, strict=True)]
