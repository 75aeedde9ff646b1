"""Sweeps: how a scan in chunks finds the carry with which each chunk starts, and when it is believed.

A sweep runs all chunks at once, each from the start that it has, and hands each end on as the start of the next chunk:

    probe      a few chunks from two carries, until both runs agree: so long does the recurrence remember
    warm-up    every chunk, from the guess, for its last so many steps: a first start for the next
    sweeps     every chunk from its start, outputs written; again where what is handed on has moved, a few times
    the rest   where that did not end, or the probe did not see it end: all steps one by one

**What is believed.** By how much a start moves, r, is not yet an error: a chaotic run of the same cell may move by
nothing and be wrong. The error is what becomes of r in the chunks that follow. So each sweep also measures how a
difference at a chunk's start or middle, d, comes out at its end, r; of a chunk with r > d / 2 nothing is believed. All
others halve what they are handed, and the error of every start is at most twice the largest r: a run is accepted where
that is within the tolerance. The first sweep compares two runs whose difference was that of a guess to the truth; each
further one, those before and after the starts moved. Where d is nothing and r is something, nothing is known, and there
is one more sweep.

Differences are relative to the largest number of the same row and the same part of the carry, over all chunks. After m
sweeps the first m chunks are exact, so a carry of integers, which agrees or does not, comes to rest as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import flatten
from jaxrnn.devices.placement import vary_alike, varying_axes
from jaxrnn.programs.calls import as_one_kernel

Arrays = list[Any]
LOOK = 16  # steps of the probe between two looks
ROUNDING = 4  # times the dtype's epsilon: what is no difference
TOLERANCE = 32  # times the dtype's epsilon: the default
PROBES = 4  # chunks that are looked at first
NEAR = 0.25  # of the tolerance: where two runs of the probe agree


class Way(NamedTuple):
    """How a scan is run in chunks."""

    chunks: int
    sweeps: int  # after so many the rest is run step by step
    tol: float | None = None  # relative to the carry; None: by its dtype
    row_axes: int = 0  # the leading axes of a carry's leaves whose rows are apart
    method: str = "chunks"  # "associative": the carry after a step is a * carry + b, leaf by leaf; "newton"
    who: str = "parallel"  # for reports

    def kind_of_report(self) -> Any:
        return jax.core.ShapedArray((3 + self.sweeps,), jnp.dtype(jnp.float32))


class Steps(NamedTuple):
    """What is run: a step, and all that it reads."""

    step: Callable[..., Sequence[Any]]  # (carry…, x…) -> carry…, what is added up over all steps…, y…
    n_carry: int
    n_added: int
    kinds: Sequence[Any]  # of what the step gives
    xs: Arrays  # (T, …) each
    length: int
    reverse: bool
    one_kernel: bool = False  # run one by one, they can be one kernel of a CPU

    def nothing_yet(self) -> tuple[Arrays, Arrays]:
        """What is added up and what is stacked, before the first step."""
        kinds, n = self.kinds[self.n_carry :], self.n_added
        sums = [jnp.zeros(kind.shape, kind.dtype) for kind in kinds[:n]]
        ys = [jnp.zeros((self.length, *kind.shape), kind.dtype) for kind in kinds[n:]]
        sums, ys, _ = vary_alike(sums, ys, self.xs)
        return sums, ys

    def split(self, made: Sequence[Any]) -> tuple[Arrays, Arrays, Arrays]:
        end = self.n_carry + self.n_added
        return list(made[: self.n_carry]), list(made[self.n_carry : end]), list(made[end:])


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


def solve(steps: Steps, start: Arrays, guess: Arrays, held: Any, way: Way) -> Arrays:
    """``[*end, *sums, *ys, report]`` of the scan."""
    start, guess, xs, held = vary_alike(start, guess, steps.xs, held)
    chunks = Chunks(steps._replace(xs=xs), start, guess, held, way)
    if way.method == "associative":
        found, numbers = chunks.run_linear()
        residuals = jnp.full(way.sweeps, jnp.nan, jnp.float32)
    else:
        forgets, warm_up = chunks.probe()
        found, numbers, residuals = jax.lax.cond(
            forgets, lambda: chunks.run_in_sweeps(warm_up), lambda: chunks.not_run_in_sweeps(warm_up)
        )
    numbers = jnp.stack([a.astype(jnp.float32) for a in numbers])
    return [*(a for part in found for a in part), jnp.concatenate([numbers, residuals])]


Found = tuple[Arrays, Arrays, Arrays]  # of a run: its end, what was added up, what was put out


def run_all(steps: Steps, start: Arrays) -> Found:
    """All steps, one by one."""

    def one(state, x):
        carry, sums = state
        carry, more, y = steps.split(steps.step(*carry, *x))
        return (carry, [a + b for a, b in zip(sums, more, strict=True)]), y

    def run(start, sums, xs):
        (end, sums), ys = jax.lax.scan(one, (start, sums), xs, reverse=steps.reverse)
        return [*end, *sums, *ys]

    arrays, tree = flatten((start, steps.nothing_yet()[0], steps.xs))
    flat = lambda *arrays: run(*tree.unflatten(arrays))
    return steps.split(as_one_kernel(flat, *arrays) if steps.one_kernel else flat(*arrays))


def run_rest(steps: Steps, start: Arrays, found: Found, wanted: Any) -> Found:
    """All steps, one by one, written over what was found; none where that is not wanted.

    A loop that takes no turn, and not a conditional, which would copy what was found.
    """

    def one(i, running):
        carry, sums, ys = running
        t = steps.length - 1 - i if steps.reverse else i
        at = lambda a: jax.lax.dynamic_index_in_dim(a, t, keepdims=False)
        carry, more, y = steps.split(steps.step(*carry, *map(at, steps.xs)))
        write = lambda a, y: jax.lax.dynamic_update_index_in_dim(a, y, t, 0)
        return carry, [a + b for a, b in zip(sums, more, strict=True)], list(map(write, ys, y))

    end, sums, ys = found
    begins = [jnp.where(wanted, a, b) for a, b in zip(start, end, strict=True)]
    sums = [jnp.where(wanted, jnp.zeros_like(a), a) for a in sums]
    return jax.lax.fori_loop(0, jnp.where(wanted, steps.length, 0), one, (begins, sums, ys))


class Chunks:
    """The chunks of a scan, in the order of time; a run goes through them in its own direction."""

    def __init__(self, steps: Steps, start: Arrays, guess: Arrays, held: Any, way: Way):
        self.steps, self.start, self.guess, self.way = steps, start, guess, way
        self.held = held  # (T, *rows) or None
        K = self.K = way.chunks
        L = self.L = steps.length // K
        self.xs = [a.reshape(K, L, *a.shape[1:]) for a in steps.xs]
        self.order = jnp.arange(K)[::-1] if steps.reverse else jnp.arange(K)  # of each chunk, in the run
        # (K, *rows): where no step of a chunk changes the carry
        self.all_held = None if held is None else held.reshape(K, L, *held.shape[1:]).all(1)

    def begin(self) -> Sweeping:
        """All chunks start from the guess; the first, and those before which all is held, from the start."""
        known = self.order == 0
        if self.all_held is not None:
            known = self._last_not_held() < 0
            known = self._entering([known], [jnp.ones_like(known[0])])[0]
        guessed = [jnp.broadcast_to(a, (self.K, *a.shape)) for a in self.guess]
        starts = [jnp.where(_like(known, a), b, a) for a, b in zip(guessed, self.start, strict=True)]
        moved = self._difference(starts, starts, [jnp.ones(()) for _ in starts])
        sums, ys = self.steps.nothing_yet()
        ys = [a.reshape(self.K, self.L, *a.shape[1:]) for a in ys]
        residuals = jnp.full(self.way.sweeps, jnp.nan, jnp.float32)
        return Sweeping(jnp.int32(0), starts, moved, starts, sums, ys, jnp.bool_(False), residuals)

    def run_in_sweeps(self, warm_up: Any) -> tuple[Found, tuple[Any, ...], Any]:
        """What is found, numbers for the report, and the residuals: by sweeps, or where they do not end step by step."""

        def goes_on(state: Sweeping) -> Any:
            return ~state.accepted & (state.number <= self.way.sweeps)

        state = jax.lax.while_loop(goes_on, lambda state: self.sweep(state, warm_up), self.begin())
        found = run_rest(self.steps, self.start, self.found(state), ~state.accepted)
        return found, (state.accepted, state.number - 1, warm_up), state.residuals

    def not_run_in_sweeps(self, warm_up: Any) -> tuple[Found, tuple[Any, ...], Any]:
        """The same, of a run that sweeps would not pay for."""
        state = self.begin()
        found = run_all(self.steps, self.start)
        return found, (state.accepted, state.number, warm_up), state.residuals

    def found(self, state: Sweeping) -> Found:
        end = [a[0 if self.steps.reverse else -1] for a in self.handed_on(state.ends)]
        return end, state.sums, [a.reshape(self.steps.length, *a.shape[2:]) for a in state.ys]

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
        handed = self._entering(self.handed_on(ends), self.start)
        scales = [_scale(a, b, self.way.row_axes) for a, b in zip(handed, ends, strict=True)]
        moved = self._difference(handed, state.starts, scales)
        of_guess = self._difference(at_middle, [a[None] for a in self.guess], scales)
        accepted, largest = self._accepts(moved, jnp.where(state.number == 1, of_guess, state.moved))
        at_this = jnp.arange(self.way.sweeps) == state.number - 1
        return Sweeping(
            number=state.number + 1,
            starts=handed,
            moved=moved,
            ends=ends,
            sums=sums,
            ys=ys,
            accepted=accepted & ~is_warm_up,
            residuals=jnp.where(at_this, largest, state.residuals),
        )

    def run_linear(self) -> tuple[Found, tuple[Any, ...]]:
        """What is found of a carry <- a * carry + b, and numbers for the report.

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
        return found, (accepted, jnp.int32(1), jnp.int32(self.L))

    def handed_on(self, ends: Arrays) -> Arrays:
        """(K, …): the carry after each chunk; where all of a chunk is held, that before it."""
        if self.all_held is None:
            return ends
        last = self._last_not_held()

        def leaf(end, start):
            from_last = jnp.take_along_axis(end, _like(jnp.maximum(last, 0), end), axis=0)
            return jnp.where(_like(last, end) < 0, start, from_last)

        return list(map(leaf, ends, self.start))

    def probe(self) -> tuple[Any, Any]:
        """Whether the recurrence forgets fast enough for sweeps to pay, and how many steps a warm-up needs.

        Two runs of a few chunks, one from the guess and one from where another run from the guess has come in a few
        steps: how long do they differ?
        """
        K, L, T = self.K, self.L, self.steps.length
        chunks = sorted({round(i * (K - 2) / (PROBES - 1)) for i in range(PROBES)})
        begins = jnp.array([number * L for number in chunks], jnp.int32)
        lag = min(LOOK, L)
        step = jax.vmap(jax.vmap(self.steps.step), in_axes=(*(0 for _ in self.start), *(None for _ in self.xs)))
        guess = [jnp.broadcast_to(a, (2, len(chunks), *a.shape)) for a in self.guess]
        is_first = jnp.arange(2) == 0

        def advance(i, state):
            carry, held = state
            at = T - 1 - (begins + i) if self.steps.reverse else begins + i
            made = step(*carry, *(a[at] for a in self.steps.xs))
            return list(made[: len(carry)]), held if held is None else held | self.held[at]

        def differs(carry, held):
            scales = [_scale(a[0], a[1], self.way.row_axes) for a in carry]
            d = self._difference([a[0] for a in carry], [a[1] for a in carry], scales, of_chunks=False)
            return self._agreed(d if held is None else jnp.where(held, 0, d))

        held = None if self.held is None else jnp.zeros_like(self.held[begins])
        carry, held = jax.lax.fori_loop(0, lag, advance, (guess, held))
        carry = [jnp.where(_like(is_first, a), b, a) for a, b in zip(carry, guess, strict=True)]
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
        return forgets, warm_up

    def _advance(self, i: Any, running: tuple[Arrays, Arrays, Arrays]) -> tuple[Arrays, Arrays, Arrays]:
        """All chunks by one step."""
        carry, sums, ys = running
        carry, more, y = self._step_all(i, carry)
        sums = [a + b.sum(0) for a, b in zip(sums, more, strict=True)]
        write = lambda a, y: jax.lax.dynamic_update_index_in_dim(a, y, self._at(i), 1)
        return carry, sums, list(map(write, ys, y))

    def _step_all(self, i: Any, carry: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Step i of each chunk, in the direction of the run: the carries after it, what is added up, what is put out."""
        at = lambda a: jax.lax.dynamic_index_in_dim(a, self._at(i), 1, keepdims=False)
        return self.steps.split(jax.vmap(self.steps.step)(*carry, *map(at, self.xs)))

    def _at(self, i: Any) -> Any:
        return self.L - 1 - i if self.steps.reverse else i

    def _entering(self, handed: Arrays, start: Arrays) -> Arrays:
        """(K, …): what each chunk starts with, given what each hands on."""
        if self.steps.reverse:
            return [jnp.concatenate([a[1:], b[None]]) for a, b in zip(handed, start, strict=True)]
        return [jnp.concatenate([b[None], a[:-1]]) for a, b in zip(handed, start, strict=True)]

    def _last_not_held(self) -> Any:
        """(K, *rows): the last chunk up to each, in the order of the run, that is not all held; -1: none."""
        assert self.all_held is not None
        numbers = _like(jnp.arange(self.K), self.all_held)
        if not self.steps.reverse:
            return jax.lax.cummax(jnp.where(self.all_held, -1, numbers), axis=0)
        found = jax.lax.cummin(jnp.where(self.all_held, self.K, numbers), axis=0, reverse=True)
        return jnp.where(found == self.K, -1, found)

    def _accepts(self, moved: Any, d: Any) -> tuple[Any, Any]:
        """Whether starts that moved so much are believed, and the largest movement. d: what each chunk was seen to
        halve, or not."""
        if self.all_held is not None:
            moved = jnp.where(self.all_held, 0, moved)  # nobody sees it
        (out,) = self._leaving([moved])
        bad = (out > 1) | (out > d / 2) | ((moved > 0) & (d == 0))
        if self.all_held is not None:
            bad = jnp.where(self.all_held, out > 1, bad)
        bad = bad & _like(self.order < self.K - 1, bad)
        return self._agreed(bad.astype(jnp.float32)) == 0, self._agreed(moved)

    def _leaving(self, entering: Arrays) -> Arrays:
        """(K, …): of what enters each chunk, what enters the next; after the last zeros."""
        if self.steps.reverse:
            return [jnp.concatenate([jnp.zeros_like(a[:1]), a[:-1]]) for a in entering]
        return [jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]) for a in entering]

    def _agreed(self, found: Any) -> Any:
        """The largest number, on all devices that take the decision together."""
        found = found.max(initial=0)
        axes = tuple(sorted(varying_axes(found)))
        return jax.lax.pmax(found, axes) if axes else found

    def _difference(self, a: Arrays, b: Arrays, scales: Arrays, of_chunks: bool = True) -> Any:
        """(K, *rows): how far apart, in units of the tolerance; 0 where it is rounding alone."""
        if not a:
            return jnp.zeros((self.K,), jnp.float32)
        return functools.reduce(jnp.maximum, map(self._leaf_difference, a, b, scales))

    def _leaf_difference(self, a: Any, b: Any, scale: Any) -> Any:
        features = tuple(range(1 + self.way.row_axes, a.ndim))
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return jnp.where(a == b, 0, jnp.inf).astype(jnp.float32).max(features, initial=0)
        eps = float(jnp.finfo(a.dtype).eps)
        tol = TOLERANCE * eps if self.way.tol is None else self.way.tol
        scale = jnp.expand_dims(scale, tuple(range(scale.ndim, a.ndim - 1)))
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
