"""Sweeps: how a scan in chunks finds the carry with which each chunk starts, and when it is believed.

A sweep runs all chunks at once, each from the start that it has, and hands each end on as the start of the next chunk:

    guess      what is asked for, and of each number a little more, so that it is nowhere right by chance
    probe      a few chunks from two carries, until both runs agree: so long does the recurrence remember
    warm-up    every chunk, from the guess, for its last so many steps: a first start for the next
    sweeps     every chunk from its start, outputs written; again where what is handed on has moved, a few times
    the rest   where that did not end, or the probe did not see it end: all steps one by one

**What is believed.** By how much a start moves, r, is not yet an error: a chaotic run of the same cell may move by
nothing and be wrong. The error is what becomes of r in the chunks that follow. So each sweep also measures how a
difference at a chunk's start or middle, d, comes out at its own end, o; of a chunk with o > d / 2 nothing is believed.
All others halve what they are handed, and the error of every start is at most twice the largest r: a run is accepted
where all halve, and r and o are within the tolerance. The first sweep compares two runs whose difference was that of a
guess to the truth; each further one, those before and after the starts moved. Where d is nothing and o is something, or
the start has moved since, nothing is known, and there is one more sweep; nor is it where d is of integers, or not
finite. The first says something of every part of a carry because the guess is wrong in every part: a unit that waits at
0, where the guess is, and grows from what is too small to be seen, would agree with it for many chunks.

No start follows the last chunk that is not all held, so it may grow what it is handed, but then all starts of its row
have to be at rest: what it makes of half the tolerance is not bounded by it. A chunk that is all held hands on what it
was handed and is not asked; the one before it is.

What is compared are the ends of chunks. A cell that expands early in a chunk, contracts later in it, and did not do so
where the probe looked, may hold errors in between that are larger by that expansion. So may any two programs that
compute such a run: what stands at its start is rounding there and a few times that here.

Differences are relative to the largest number of the same row and the same part of the carry, over all chunks. After m
sweeps the first m chunks are exact, so a carry of integers, which agrees or does not, comes to rest as well.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.devices.placement import vary_alike, varying_axes
from jaxrnn.loops.steps import Arrays, Found, Outcome, Steps, Way, run_all, run_rest

LOOK = 16  # steps of the probe between two looks
ROUNDING = 4  # times the dtype's epsilon: what is no difference
TOLERANCE = 32  # times the dtype's epsilon: the default
PROBES = 4  # chunks that are looked at first
GROUPS = 8  # of chunks, each of which adds up for itself: so many devices, or fewer, do not meet at each step
NEAR = 0.25  # of the tolerance: where two runs of the probe agree
GOLDEN = (math.sqrt(5) - 1) / 2  # whose multiples, without their whole parts, fill the unit interval evenly
ASIDE = 1 / 64  # of the largest number of a carry: by how much a guess is moved, at most


class Sweeping(NamedTuple):
    """Where the sweeps stand."""

    number: Any  # () int32: of the sweep that comes; 0 is the warm-up
    starts: Arrays  # (K, …)
    moved: Any  # (K, *rows): by how much each start moved when it was set last
    ends: Arrays  # (K, …)
    sums: Arrays
    ys: Arrays
    accepted: Any  # () bool
    residuals: Any  # (sweeps,): the largest r of each sweep


def run_in_chunks(steps: Steps, start: Arrays, guess: Arrays, held: Any, way: Way, linear: bool = False) -> Outcome:
    """The scan, by sweeps, exactly where it is linear, or step by step where the probe sees no end of sweeps."""
    chunks = Chunks(steps, start, guess, held, way)
    if way.method == "associative":
        return chunks.run_linear()
    forgets, warm_up, aside = chunks.probe()
    if linear and all(jnp.issubdtype(a.dtype, jnp.inexact) for a in start):
        sweeps = lambda: chunks.run_in_sweeps(warm_up, chunks.halves(warm_up, aside))
    else:
        sweeps = lambda: Chunks(steps, start, aside, held, way).run_in_sweeps(warm_up)
    return jax.lax.cond(forgets, sweeps, lambda: chunks.not_run_in_sweeps(warm_up))


class Chunks:
    """The chunks of a scan, in the order of time; a run goes through them in its own direction."""

    def __init__(self, steps: Steps, start: Arrays, guess: Arrays, held: Any, way: Way):
        self.steps, self.start, self.guess, self.way = steps, start, guess, way
        self.held = held  # (T, *rows) or None
        K = self.K = way.chunks
        L = self.L = steps.length // K
        self.groups = math.gcd(K, GROUPS) if steps.pieces else 1
        self.xs = [a.reshape(K, L, *a.shape[1:]) for a in steps.xs]
        self.order = jnp.arange(K)[::-1] if steps.reverse else jnp.arange(K)  # of each chunk, in the run
        # (K, *rows): where no step of a chunk changes the carry
        self.all_held = None if held is None else held.reshape(K, L, *held.shape[1:]).all(1)

    def begin(self) -> Sweeping:
        """All chunks start from the guess; the first, and those before which all is held, from the start."""
        known = self._known()
        guessed = [jnp.broadcast_to(a, (self.K, *a.shape)) for a in self.guess]
        starts = [jnp.where(_like(known, a), b[None], a) for a, b in zip(guessed, self.start, strict=True)]
        moved = self._difference(starts, starts, [jnp.ones(()) for _ in starts])
        sums, ys = self.steps.nothing_yet()
        sums = [jnp.broadcast_to(a, (self.groups, *a.shape)) for a in sums]
        ys = [a.reshape(self.K, self.L, *a.shape[1:]) for a in ys]
        residuals = jnp.full(self.way.sweeps, jnp.nan, jnp.float32)
        return Sweeping(jnp.int32(0), starts, moved, starts, sums, ys, jnp.bool_(False), residuals)

    def run_in_sweeps(self, warm_up: Any, trusted: Any = True) -> Outcome:
        """By sweeps, or where they do not end, or not all chunks are trusted, step by step."""

        def goes_on(state: Sweeping) -> Any:
            return ~state.accepted & (state.number <= self.way.sweeps) & trusted

        state = jax.lax.while_loop(goes_on, lambda state: self.sweep(state, warm_up), self.begin())
        found = run_rest(self.steps, self.start, self.found(state), ~state.accepted)
        return Outcome(found, state.accepted, jnp.maximum(state.number - 1, 0), warm_up, state.residuals)

    def not_run_in_sweeps(self, warm_up: Any) -> Outcome:
        """The same, of a run that sweeps would not pay for."""
        state = self.begin()
        found = run_all(self.steps, self.start)
        return Outcome(found, state.accepted, state.number, warm_up, state.residuals)

    def found(self, state: Sweeping) -> Found:
        end = [a[0 if self.steps.reverse else -1] for a in self.handed_on(state.ends)]
        return end, [a.sum(0) for a in state.sums], [a.reshape(self.steps.length, *a.shape[2:]) for a in state.ys]

    def sweep(self, state: Sweeping, warm_up: Any) -> Sweeping:
        """One sweep, and whether it was the last. It has two parts, the second as long as the warm-up."""
        middle, is_warm_up = self.L - warm_up, state.number == 0
        sums = jax.tree.map(jnp.zeros_like, state.sums)

        def part(number, state):
            running, _ = state
            first = jnp.where(number == 0, jnp.where(is_warm_up, middle, 0), middle)
            last = jnp.where(number == 0, middle, self.L)
            return jax.lax.fori_loop(first, last, self._advance, running), running[0]

        begun = (state.starts, sums, state.ys)
        (ends, sums, ys), at_middle = jax.lax.fori_loop(0, 2, part, (begun, state.starts))
        hands, before = self.handed_on(ends), self.handed_on(state.ends)
        handed = self._entering(hands, self.start)
        scales = [_scale(a, b, self.way.row_axes) for a, b in zip(handed, ends, strict=True)]
        moved = self._difference(handed, state.starts, scales)
        if self.all_held is not None:
            moved = jnp.where(self.all_held, 0, moved)  # nobody sees it
        of_guess = self._difference(at_middle, [a[None] for a in self.guess], scales)
        d = jnp.where(state.number == 1, of_guess, state.moved)
        accepted = self._accepts(moved, d, self._difference(hands, before, scales))
        at_this = jnp.arange(self.way.sweeps) == state.number - 1
        return Sweeping(
            number=state.number + 1,
            starts=handed,
            moved=moved,
            ends=ends,
            sums=sums,
            ys=ys,
            accepted=accepted & ~is_warm_up,
            residuals=jnp.where(at_this, self._agreed(moved), state.residuals),
        )

    def run_linear(self) -> Outcome:
        """The run of a carry <- a * carry + b.

        What a chunk makes of its start is the product of its a. Where that is not finite, all is run step by step: only
        there is NaN what the scan makes of it.
        """
        zeros = [jnp.zeros((self.K, *a.shape), a.dtype) for a in self.start]

        def turn(i, state):
            run = lambda *carry: self._step_all(i, list(carry))[0]
            return jax.jvp(run, *state)

        ones = [jnp.ones_like(a) for a in zeros]
        ends, factors = jax.lax.fori_loop(0, self.L, turn, vary_alike(zeros, ones, self.xs)[:2])

        def link(start, chunk):
            end, factor = chunk
            return [f * s + e for f, s, e in zip(factor, start, end, strict=True)], start

        _, starts = jax.lax.scan(link, self.start, (ends, factors), reverse=self.steps.reverse)
        wrong = functools.reduce(jnp.logical_or, ((~jnp.isfinite(a)).any() for a in starts))
        begun = self.begin()
        ends, sums, ys = jax.lax.fori_loop(0, self.L, self._advance, (starts, begun.sums, begun.ys))
        accepted = self._agreed(wrong.astype(jnp.float32)) == 0
        found = self.found(begun._replace(ends=ends, sums=sums, ys=ys))
        found = run_rest(self.steps, self.start, found, ~accepted)
        residuals = jnp.full(self.way.sweeps, jnp.nan, jnp.float32)
        return Outcome(found, accepted, jnp.int32(1), jnp.int32(self.L), residuals)

    def halves(self, warm_up: Any, aside: Arrays) -> Any:
        """Whether all chunks of a linear run make less than half of what enters where their warm-up begins.

        What is 0 stays 0 in such a run, so that its guess is not moved aside: this run, of nothing else, is.
        """
        begun = [jnp.broadcast_to(a, (self.K, *a.shape)) for a in aside]
        zeros = [jnp.zeros_like(a) for a in begun]
        middle = self.L - warm_up

        def turn(i, d):
            return jax.jvp(lambda *carry: self._step_all(i, list(carry))[0], zeros, d)[1]

        begun, zeros, _ = vary_alike(begun, zeros, self.xs)
        ends = jax.lax.fori_loop(middle, self.L, turn, begun)
        scales = [_scale(a, a, self.way.row_axes) for a in begun]
        out, d = (self._difference(a, zeros, scales) for a in (ends, begun))
        bad = (out > d / 2) & _like(self.order < self.K - 1, out) & ~_like(self._known(), out)
        if self.held is not None:
            held = self.held.reshape(self.K, self.L, *self.held.shape[1:])
            order = jnp.arange(self.L)[::-1] if self.steps.reverse else jnp.arange(self.L)
            before = (order < middle).reshape(1, self.L, *(1,) * (held.ndim - 2))
            bad = bad & ~(held | before).all(1)
        return self._agreed(bad.astype(jnp.float32)) == 0

    def handed_on(self, ends: Arrays) -> Arrays:
        """(K, …): the carry after each chunk; where all of a chunk is held, that before it."""
        if self.all_held is None:
            return ends
        last = self._last_not_held()

        def leaf(end, start):
            from_last = jnp.take_along_axis(end, _like(jnp.maximum(last, 0), end), axis=0)
            return jnp.where(_like(last, end) < 0, start[None], from_last)

        return list(map(leaf, ends, self.start))

    def probe(self) -> tuple[Any, Any, Arrays]:
        """Whether the recurrence forgets fast enough for sweeps to pay, how many steps a warm-up needs, and the guess.

        Two runs of a few chunks, one from that guess and one from where another run has come in a few steps: how long
        do they differ?
        """
        K, L = self.K, self.L
        chunks = sorted({round(i * (K - 2) / (PROBES - 1)) for i in range(PROBES)})
        # The chunks and those after them, side by side in the order of time: (chunks, 2 L, …).
        pairs = [(K - 2 - n, K - 1 - n) if self.steps.reverse else (n, n + 1) for n in chunks]
        near = lambda a: a[np.array(pairs)].reshape(len(chunks), 2 * L, *a.shape[2:])
        xs = list(map(near, self.xs))
        all_held = None if self.held is None else near(self.held.reshape(K, L, *self.held.shape[1:]))
        lag = min(LOOK, L)
        step = jax.vmap(jax.vmap(self.steps.step), in_axes=(*(0 for _ in self.start), *(None for _ in self.xs)))
        guess = [jnp.broadcast_to(a, (2, len(chunks), *a.shape)) for a in self.guess]
        is_first = jnp.arange(2) == 0

        def advance(i, state):
            carry, held = state
            t = 2 * L - 1 - i if self.steps.reverse else i
            at = lambda a: jax.lax.dynamic_index_in_dim(a, t, 1, keepdims=False)
            made = step(*carry, *map(at, xs))
            return list(made[: len(carry)]), held if held is None else held | at(all_held)

        def differs(carry, held):
            scales = [jnp.maximum(_scale(a[0], a[1], self.way.row_axes), b) for a, b in zip(carry, sizes, strict=True)]
            d = self._difference([a[0] for a in carry], [a[1] for a in carry], scales)
            return self._agreed(d if held is None else jnp.where(held, 0, d))

        held = None if all_held is None else jnp.zeros_like(all_held[:, 0])
        carry, held = jax.lax.fori_loop(0, lag, advance, (guess, held))
        seen = [(a[0], jnp.broadcast_to(b, a[0].shape)) for a, b in zip(carry, self.start, strict=True)]
        sizes = [_scale(a, b, self.way.row_axes) for a, b in seen]
        sizes = [jnp.where(size > 0, size, 1) for size in sizes]  # where there was nothing, of a carry of any size
        aside = [self._aside(i, *a) for i, a in enumerate(zip(self.guess, sizes, strict=True))]
        carry = [jnp.where(_like(is_first, a), b[None, None], a) for a, b in zip(carry, aside, strict=True)]
        at_first = differs(carry, held)

        def goes_on(state):
            i, _, _, difference = state
            return (i < lag + L) & (difference > NEAR)

        def look(state):
            i, carry, held, _ = state
            until = jnp.minimum(i + LOOK, lag + L)
            carry, held = jax.lax.fori_loop(i, until, advance, (carry, held))
            return until, carry, held, differs(carry, held)

        i, _, _, at_last = jax.lax.while_loop(goes_on, look, (jnp.int32(lag), carry, held, at_first))
        taken = (i - lag).astype(jnp.float32)
        agreed = at_last <= NEAR
        shrinking = jnp.log(at_last / at_first)  # not a number where nothing differed, or no longer does
        needed = jnp.where(agreed, taken, taken * jnp.log(NEAR / at_first) / shrinking)
        needed = jnp.where(agreed | (shrinking < 0), needed, jnp.inf)
        ends_anyway = self.way.sweeps >= K
        forgets = ends_anyway | (needed <= L * (self.way.sweeps - 1))
        warm_up = jnp.minimum(L, 1.5 * needed + LOOK).astype(jnp.int32)
        return forgets, warm_up, aside

    def _aside(self, number: int, guess: Any, size: Any) -> Any:
        """A guess for the leaf of that number, each of its numbers a little larger, none as much as the next."""
        if not jnp.issubdtype(guess.dtype, jnp.inexact):
            return guess
        features = guess.shape[self.way.row_axes :]
        indices = jnp.arange(number, number + math.prod(features), dtype=jnp.float32).reshape(features)
        parts = 0.5 + (indices * GOLDEN) % 1 / 2
        little = max(ASIDE, 4 * self._tolerance(guess.dtype)) * jax.lax.broadcast_to_rank(parts, guess.ndim)
        return guess + _like(size, guess).astype(guess.dtype) * little.astype(guess.dtype)

    def _tolerance(self, dtype: Any) -> float:
        return TOLERANCE * float(jnp.finfo(dtype).eps) if self.way.tol is None else self.way.tol

    def _advance(self, i: Any, running: tuple[Arrays, Arrays, Arrays]) -> tuple[Arrays, Arrays, Arrays]:
        """All chunks by one step."""
        carry, sums, ys = running
        carry, more, y = self._step_all(i, carry)
        of_groups = (a.reshape(self.groups, -1, *a.shape[1:]).sum(1) for a in more)
        sums = [a + b for a, b in zip(sums, of_groups, strict=True)]
        write = lambda a, y: jax.lax.dynamic_update_index_in_dim(a, y, self._at(i), 1)
        return carry, sums, list(map(write, ys, y))

    def _step_all(self, i: Any, carry: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Step i of each chunk, in the direction of the run: carries, what is added up, what is put out."""
        at = lambda a: jax.lax.dynamic_index_in_dim(a, self._at(i), 1, keepdims=False)
        return self.steps.split(jax.vmap(self.steps.step)(*carry, *map(at, self.xs)))

    def _at(self, i: Any) -> Any:
        return self.L - 1 - i if self.steps.reverse else i

    def _entering(self, handed: Arrays, start: Arrays) -> Arrays:
        """(K, …): what each chunk starts with, given what each hands on."""
        rolled = [jnp.roll(a, -1 if self.steps.reverse else 1, axis=0) for a in handed]
        return [jnp.where(_like(self.order == 0, a), b, a) for a, b in zip(rolled, start, strict=True)]

    def _known(self) -> Any:
        """(K, *rows), or (K,): which chunks start with what the run starts with, as all before them is held."""
        known = self.order == 0
        if self.all_held is not None:
            known = self._last_not_held() < 0
            known = self._entering([known], [jnp.ones_like(known[0])])[0]
        return known

    def _last_not_held(self) -> Any:
        """(K, *rows): the last chunk up to each, in the order of the run, that is not all held; -1: none."""
        assert self.all_held is not None
        numbers = _like(jnp.arange(self.K), self.all_held)
        if not self.steps.reverse:
            return jax.lax.cummax(jnp.where(self.all_held, -1, numbers), axis=0)
        found = jax.lax.cummin(jnp.where(self.all_held, self.K, numbers), axis=0, reverse=True)
        return jnp.where(found == self.K, -1, found)

    def _is_last(self) -> Any:
        """(K, *rows), or (K,): which chunk is the last of its row, as all after it is held."""
        if self.all_held is None:
            return self.order == self.K - 1
        return _like(jnp.arange(self.K), self.all_held) == self._last_not_held()[0 if self.steps.reverse else -1][None]

    def _accepts(self, moved: Any, d: Any, out: Any) -> Any:
        """Whether starts that moved so much are believed, where the last two runs of each chunk differed by d when
        they began and by out when they ended."""
        d = jnp.where(jnp.isinf(d), 0, d)
        bad = (out > 1) | (out > d / 2) | ((moved > 0) & (d == 0))
        bad = bad & ~(_like(self._is_last(), bad) & (moved == 0).all(0, keepdims=True))
        if self.all_held is not None:
            bad = bad & ~self.all_held
        return self._agreed(bad.astype(jnp.float32)) == 0

    def _agreed(self, found: Any) -> Any:
        """The largest number, on all devices that take the decision together."""
        found = found.max(initial=0)
        axes = tuple(sorted(varying_axes(found)))
        return jax.lax.pmax(found, axes) if axes else found

    def _difference(self, a: Arrays, b: Arrays, scales: Arrays) -> Any:
        """(K, *rows): how far apart, in units of the tolerance; 0 where it is rounding alone."""
        if not a:
            return jnp.zeros((self.K,), jnp.float32)
        return functools.reduce(jnp.maximum, map(self._leaf_difference, a, b, scales))

    def _leaf_difference(self, a: Any, b: Any, scale: Any) -> Any:
        features = tuple(range(1 + self.way.row_axes, a.ndim))
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return jnp.where(a == b, 0, jnp.inf).astype(jnp.float32).max(features, initial=0)
        eps = float(jnp.finfo(a.dtype).eps)
        tol = self._tolerance(a.dtype)
        scale = jnp.expand_dims(scale, (0, *range(1 + scale.ndim, a.ndim)))
        gap = jnp.where((a == b) | (jnp.isnan(a) & jnp.isnan(b)), 0, jnp.abs(a - b))
        gap = jnp.where(gap <= ROUNDING * eps * scale, 0, gap / (tol * scale))
        return jnp.where(jnp.isnan(gap), jnp.inf, gap).astype(jnp.float32).max(features, initial=0)


def _scale(a: Any, b: Any, row_axes: int) -> Any:
    """(*rows): the largest number of each row over all chunks."""
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return jnp.ones(a.shape[1 : 1 + row_axes])
    both = jnp.maximum(jnp.abs(a), jnp.abs(b))
    axes = (0, *range(1 + row_axes, a.ndim))
    return jnp.where(jnp.isfinite(both), both, 0).max(axes, initial=0)


def _like(a: Any, b: Any) -> Any:
    """``a`` with as many axes as ``b``."""
    return jnp.expand_dims(a, tuple(range(a.ndim, b.ndim)))
