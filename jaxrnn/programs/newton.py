"""Newton's method on all steps of a run at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.devices.placement import vary_alike, varying_axes
from jaxrnn.programs.affine_scan import MATRICES, UNITS, before, solve
from jaxrnn.programs.carry_structure import CarryStep, carry_step, connected, is_affine

Arrays = list[Any]
FULL_UP_TO = 16  # numbers of a row's carry for which whole Jacobians are made
GROWTH = 2.0  # by how much one-step residuals may grow in an iteration
BROKEN = 3  # iterations in a row that meet what is not finite, after which the run is given up
TINY = 1e-3  # once corrections are smaller than this, Jacobians are those of the run to an order of magnitude


class Report(NamedTuple):
    """What became of a run."""

    iterations: jax.Array  # () int32
    converged: jax.Array  # () bool
    residuals: jax.Array  # (max_iterations,) the size of each correction, relative to the carry; NaN where none was


class Group(NamedTuple):
    """Parts of the carry that no other part depends on, and the form of their Jacobian."""

    parts: list[int]
    by_number: bool  # each number depends on those at the same place alone


def newton_carries(
    step: Callable[..., Any],
    start: Sequence[Any],
    xs: Sequence[Any],
    *,
    guess: Sequence[Any],
    reverse: bool = False,
    tol: float,
    max_iterations: int,
    jacobian: str = "auto",
    batch_ndim: int = 0,
) -> tuple[Arrays, Arrays, Report]:
    run = Run(step, start, xs, reverse, jacobian, batch_ndim)
    h = [jnp.broadcast_to(a if a.ndim > s.ndim else a[None], (run.T, *s.shape)) for a, s in zip(guess, start, strict=True)]
    if run.T == 0:
        report = Report(jnp.int32(0), jnp.bool_(True), jnp.full(max_iterations, jnp.nan))
        return h, list(start), report
    parts, report = run.once(max_iterations, tol) if run.is_affine else run.iterate(run.parts(h), tol, max_iterations)
    after = run.leaves(parts)
    ends = [a[0] if reverse else a[-1] for a in after]
    return [before(s, a, reverse=reverse) for s, a in zip(start, after, strict=True)], ends, report


class Run:
    """The equations h_t = f(h_{t-1}, x_t), and their linear form."""

    def __init__(self, step, start, xs, reverse, jacobian, batch_ndim):
        self.kinds = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in start]
        self.T, self.reverse, self.batch_ndim = xs[0].shape[0], reverse, batch_ndim
        x = [jax.eval_shape(lambda a: a[0], a) for a in xs]
        self.step = carry_step(step, list(start), x)
        reals = [jnp.finfo(k.dtype) for k in self.kinds]
        self.eps = max((float(r.eps) for r in reals), default=0.0)
        self.dtype = functools.reduce(jnp.promote_types, (r.dtype for r in reals), jnp.float32)
        self.leaf_of = [i for i, k in enumerate(self.kinds) for _ in range(1 + jnp.iscomplexobj(k))]  # of each part
        whole = [self._group(*g) for g in connected(self.step)]
        size = max(map(self.numbers, whole))
        self.exact = jacobian == "full" or (jacobian == "auto" and size <= FULL_UP_TO) or all(g.by_number for g in whole)
        self.groups = whole if self.exact else [self._group(*g) for g in connected(self.step, cut=True)]
        self.is_affine = self.exact and is_affine(self.step)
        self.proven = self.exact and self.step.differentiable
        # One type for all that the loop carries, as to the devices over which it varies.
        axes = varying_axes((list(start), list(xs), [self.step.program.kinds[n] for n in self.step.program.outputs]))
        self.axes = tuple(sorted(axes))
        self.start, self.xs = self.placed((self.parts([a[None] for a in start]), list(xs)))
        self.start = [a[0] for a in self.start]

    def placed(self, tree):
        missing = lambda a: tuple(sorted(set(self.axes) - varying_axes(a)))
        return jax.tree.map(lambda a: jax.lax.pcast(a, m, to="varying") if (m := missing(a)) else a, tree)

    def _group(self, leaves, by_number):
        return Group([p for p, i in enumerate(self.leaf_of) if i in leaves], by_number)

    # A carry of all steps is a list of its real parts, (T, *B, …).

    def parts(self, leaves):
        made = []
        for a in leaves:
            made += [a.real, a.imag] if jnp.iscomplexobj(a) else [a]
        return [a.astype(self.dtype) for a in made]

    def leaves(self, parts):
        rest = iter(parts)
        made = [
            jax.lax.complex(next(rest), next(rest)) if jnp.iscomplexobj(k) else next(rest) for k in self.kinds
        ]
        return [a.astype(k.dtype) for a, k in zip(made, self.kinds, strict=True)]

    def row(self, part):
        """The numbers of a row in a part."""
        return math.prod(self.kinds[self.leaf_of[part]].shape[self.batch_ndim :])

    def numbers(self, group):
        """How many tangents the Jacobian of a group takes."""
        return len(group.parts) if group.by_number else sum(map(self.row, group.parts))

    def seeds(self):
        """The tangents that together show all Jacobians, as leaves (n, *B, …)."""
        n = max(map(self.numbers, self.groups), default=0)
        made = {}
        for group in self.groups:
            first = 0
            for p in group.parts:
                shape = self.kinds[self.leaf_of[p]].shape
                own = 1 if group.by_number else self.row(p)
                basis = np.zeros((n, own), self.dtype)
                basis[first : first + own] = np.eye(own)
                lead = (1,) * self.batch_ndim
                inner = (1,) * (len(shape) - self.batch_ndim) if group.by_number else shape[self.batch_ndim :]
                made[p] = jnp.broadcast_to(basis.reshape(n, *lead, *inner), (n, *shape))
                first += own
        return self.placed(self.leaves([made[p] for p in range(len(self.leaf_of))]))

    def linearised(self, h):
        """f at all steps, and the Jacobians, one for each group."""
        seeds = self.seeds()
        earlier = self.leaves([before(s, a, reverse=self.reverse) for s, a in zip(self.start, h, strict=True)])

        def at_step(carry, x):
            f, push = jax.linearize(lambda *c: self.step(c, x, cut=not self.exact), *carry)
            return f, jax.vmap(push)(*seeds)

        f, columns = jax.vmap(at_step, out_axes=(0, 1))(earlier, self.xs)
        return self.parts(f), self._jacobians(self.parts(columns))

    def f(self, h):
        """f of the carries before all steps, from those after them."""
        earlier = self.leaves([before(s, a, reverse=self.reverse) for s, a in zip(self.start, h, strict=True)])
        return self.parts(jax.vmap(self.step)(earlier, self.xs))

    def _jacobians(self, columns):
        made = []
        for group in self.groups:
            n = self.numbers(group)
            if group.by_number:
                made.append([[columns[p][j] for j in range(n)] for p in group.parts])
            else:
                made.append(jnp.moveaxis(self._vector(columns, group, 1)[:n], 0, -1))
        return made

    def _vector(self, parts, group, extra=0):
        lead = 1 + extra + self.batch_ndim
        return jnp.concatenate([parts[p].reshape(*parts[p].shape[:lead], -1) for p in group.parts], axis=-1)

    def solve(self, A, bs, starts=None):
        """δ_t = A_t δ_{t-1} + b_t of several b, from 0 or from the starts of each."""
        made = [[None] * len(self.leaf_of) for _ in bs]
        zeros = [[jnp.zeros_like(a[0]) for a in b] for b in bs]
        starts = zeros if starts is None else starts
        for group, J in zip(self.groups, A, strict=True):
            if group.by_number:
                own = [[b[p] for p in group.parts] for b in bs]
                first = [[s[p] for p in group.parts] for s in starts]
                for to, h in zip(made, solve(UNITS, J, own, first, reverse=self.reverse, block=None), strict=True):
                    for p, a in zip(group.parts, h, strict=True):
                        to[p] = a
            else:
                own = [self._vector(b, group) for b in bs]
                first = [self._vector([a[None] for a in s], group)[0] for s in starts]
                for to, h in zip(made, solve(MATRICES, J, own, first, reverse=self.reverse, block=None), strict=True):
                    ends = np.cumsum([self.row(p) for p in group.parts])[:-1]
                    for p, a in zip(group.parts, jnp.split(h, ends, axis=-1), strict=True):
                        to[p] = a.reshape(self.T, *self.kinds[self.leaf_of[p]].shape)
        return made

    # Sizes, (T, *B), of each leaf's largest number in a row.

    def sizes(self, parts):
        made = [None] * len(self.kinds)
        for i, a in zip(self.leaf_of, parts, strict=True):
            size = jnp.max(jnp.abs(a), axis=tuple(range(1 + self.batch_ndim, a.ndim)), initial=0.0)
            made[i] = size if made[i] is None else jnp.maximum(made[i], size)
        return made

    def scales(self, h):
        """The largest number so far."""
        first = self.sizes([a[None] for a in self.start])
        sizes = [jnp.maximum(a, b) for a, b in zip(first, self.sizes(h), strict=True)]
        return [jax.lax.cummax(a, reverse=self.reverse) for a in sizes]

    def ratio(self, parts, scales):
        """The largest size of each row relative to the scale, (*B); inf where anything is not finite."""
        made = []
        for size, scale in zip(self.sizes(parts), scales, strict=True):
            ratio = jnp.where(size == 0, 0.0, size / scale)
            made.append(jnp.max(jnp.where(jnp.isnan(ratio), jnp.inf, ratio), axis=0))
        return functools.reduce(jnp.maximum, made)

    def on_leaves(self, scales):
        """The scales, beside each part."""
        return [
            scales[i].reshape(*scales[i].shape, *(1,) * (len(self.kinds[i].shape) - self.batch_ndim))
            for i in self.leaf_of
        ]

    def rounding(self, h, scales):
        """Numbers ±ε·scale, signs that follow no pattern."""
        made = []
        for p, (a, scale) in enumerate(zip(h, self.on_leaves(scales), strict=True)):
            n = jax.lax.iota(jnp.uint32, a.size) + jnp.uint32(p * 7919 + 1)
            n = (n ^ (n >> 15)) * jnp.uint32(0x2C1B3C6D)
            n = (n ^ (n >> 12)) * jnp.uint32(0x297A2D39)
            signs = jnp.where((n >> 16) & 1, 1.0, -1.0).astype(self.dtype).reshape(a.shape)
            made.append(self.eps * scale * signs)
        return made

    def once(self, max_iterations, tol):
        """An affine step: exact in one go."""
        zeros = self.placed([jnp.zeros((self.T, *self.kinds[i].shape), self.dtype) for i in self.leaf_of])
        # The first step's f is at the start; as an affine function of zero it is told apart from A·start.
        start, self.start = self.start, [jnp.zeros_like(a) for a in self.start]
        b, A = self.linearised(zeros)
        self.start = start
        h, = self.solve(A, [b], [start])
        scales = self.scales(h)
        e, = self.solve(A, [self.rounding(h, scales)])
        size, grown = self.ratio(h, scales), self.ratio(e, scales)
        worst = self.agreed(jnp.stack([jnp.max(size, initial=0.0), jnp.max(grown, initial=0.0)]))
        residuals = jnp.full(max_iterations, jnp.nan, self.dtype).at[0].set(worst[0])
        return h, Report(jnp.int32(1), (worst[0] < jnp.inf) & (worst[1] <= tol), residuals)

    def agreed(self, values):
        return jax.lax.pmax(values, self.axes) if self.axes else values

    def iterate(self, guess, tol, max_iterations):
        rows = self.kinds[0].shape[: self.batch_ndim]
        full = functools.partial(jnp.full, rows, dtype=self.dtype)
        h = self.placed(guess)
        state = dict(
            h=h, fallback=h, e=[jnp.zeros_like(a) for a in h],
            **self.placed(dict(gain=full(0.0), best=full(jnp.inf), last=full(jnp.inf), rate=full(0.0))),
            broken=jnp.int32(0), i=jnp.int32(0), done=jnp.bool_(False), converged=jnp.bool_(False),
            residuals=jnp.full(max_iterations, jnp.nan, self.dtype),
        )
        state = jax.lax.while_loop(
            lambda s: ~s["done"] & (s["i"] < max_iterations), functools.partial(self._iteration, tol), state
        )
        return state["h"], Report(state["i"], state["converged"], state["residuals"])

    def _iteration(self, tol, s):
        beside = lambda of_rows, a: of_rows.reshape(*of_rows.shape, *(1,) * (a.ndim - 1 - self.batch_ndim))
        h = s["h"]
        f, A = self.linearised(h)
        scales = self.scales(f)
        r = [a - b for a, b in zip(f, h, strict=True)]
        residual = self.ratio(r, scales)
        bad = ~(residual <= GROWTH * s["best"])
        gain = jnp.where(bad, jnp.maximum(s["gain"], 0.5), s["gain"])
        damped = [self._times(1 - s["gain"], J, g) for J, g in zip(A, self.groups, strict=True)]
        noise = self.rounding(h, scales)
        if not self.proven:
            noise = [a + b for a, b in zip(noise, self._missing(s["e"], h, f, A, scales), strict=True)]
        δ, e = self.solve(damped, [r, noise])
        safe = [jnp.where(jnp.isfinite(a), a, b) for a, b in zip(f, h, strict=True)]
        new = [jnp.where(jnp.isfinite(a + d), a + d, b) for a, d, b in zip(h, δ, safe, strict=True)]
        size, grown = self.ratio(δ, scales), self.ratio(e, scales)

        settled = (size <= tol) & (grown <= tol) & (s["gain"] == 0) & ~bad
        rate = s["rate"]
        if not self.proven:
            seen = size / s["last"]
            rate = jnp.where(s["last"] > tol, seen, rate)
            rate_used = jnp.maximum(rate, s["rate"])
            change = self.ratio([a - b for a, b in zip(e, s["e"], strict=True)], scales)
            settled &= (rate_used < 1) & (size * rate_used <= tol * (1 - rate_used)) & (change <= 0.5 * grown)
            bound = [beside(jnp.ones(()), a) for a in e] if False else None
            e = [jnp.clip(jnp.nan_to_num(a, nan=0.0, posinf=jnp.inf, neginf=-jnp.inf), -sc, sc) for a, sc in zip(e, self.on_leaves(scales), strict=True)]
        hopeless = (size <= TINY) & (grown > tol) if self.proven else jnp.zeros_like(size, bool)
        finite = functools.reduce(jnp.logical_and, (jnp.isfinite(a).all() for a in f))
        flags = jnp.stack([
            jnp.max(size, initial=0.0), jnp.any(~settled).astype(size.dtype), jnp.any(hopeless).astype(size.dtype), (~finite).astype(size.dtype),
        ])
        flags = self.agreed(flags)
        converged = flags[1] == 0
        broken = jnp.where(flags[3] > 0, s["broken"] + 1, 0)
        keep = lambda b, a, c: jnp.where(beside(b, c), a, c)
        return dict(
            h=[keep(bad, a, b) for a, b in zip(s["fallback"], new, strict=True)],
            fallback=[keep(bad, a, b) for a, b in zip(s["fallback"], safe, strict=True)],
            e=e,
            gain=jnp.where(bad, (1 + gain) / 2, jnp.where(gain < 0.1, 0.0, gain / 2)),
            best=jnp.where(bad, jnp.inf, residual),
            last=size, rate=rate, broken=broken, i=s["i"] + 1,
            done=converged | (flags[2] > 0) | (broken >= BROKEN), converged=converged,
            residuals=s["residuals"].at[s["i"]].set(flags[0]),
        )

    def _times(self, factor, J, group):
        if group.by_number:
            return [[factor.reshape(*factor.shape, *(1,) * (a.ndim - 1 - self.batch_ndim)) * a for a in row] for row in J]
        return factor[..., None, None] * J

    def _apply(self, A, e):
        """A_t e_{t-1}"""
        earlier = [before(jnp.zeros_like(a[0]), a, reverse=self.reverse) for a in e]
        made = [None] * len(e)
        for group, J in zip(self.groups, A, strict=True):
            if group.by_number:
                for p, a in zip(group.parts, UNITS.times(J, [earlier[p] for p in group.parts]), strict=True):
                    made[p] = a
            else:
                v = MATRICES.times(J, self._vector(earlier, group))
                ends = np.cumsum([self.row(p) for p in group.parts])[:-1]
                for p, a in zip(group.parts, jnp.split(v, ends, axis=-1), strict=True):
                    made[p] = a.reshape(e[p].shape)
        return made

    def _missing(self, e, h, f, A, scales):
        """What the Jacobians leave out of the change that e makes: by finite difference."""
        largest = functools.reduce(jnp.maximum, [jnp.where(sc > 0, size / sc, 0.0) for size, sc in zip(self.sizes(e), scales, strict=True)])
        shrink = jnp.where(largest > 0, self.eps**0.5 / largest, 0.0)
        beside = lambda a: shrink.reshape(*shrink.shape, *(1,) * (a.ndim - 1 - self.batch_ndim))
        # the step sees carries before it: the scale of a step's perturbation is that of the step before
        moved = self.f([a + beside(a) * b for a, b in zip(h, e, strict=True)])
        own = before(jnp.zeros_like(shrink[0]), shrink, reverse=self.reverse)
        along = lambda a: own.reshape(*own.shape, *(1,) * (a.ndim - 1 - self.batch_ndim))
        change = [jnp.where(along(a) > 0, (a - b) / jnp.where(along(a) > 0, along(a), 1.0), 0.0) for a, b in zip(moved, f, strict=True)]
        return [a - b for a, b in zip(change, self._apply(A, e), strict=True)]
