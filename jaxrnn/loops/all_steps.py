"""All steps of a run at once: f(h_{t-1}, x_t), its Jacobians by h_{t-1}, and the linear recurrence that they make.

A carry of all steps is here a list of its real parts, (T, *B, …) each, in one dtype: a real leaf is one part, a complex
leaf two, since a step need not be holomorphic. Parts that do not depend on each other are separate groups. Where each
number of a group depends on those at the same place alone, as in a linear cell or a network of separate units, its
Jacobian has as many tangents as the group has parts; else as many as a row has numbers in the group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._dtypes import promoted
from jaxrnn.devices.placement import varying_axes
from jaxrnn.loops.affine_scan import MATRICES, UNITS, before, solve
from jaxrnn.loops.carry_structure import CarryStep, carry_step, connected, is_affine

Arrays = list[Any]
PyTree = Any
FULL_UP_TO = 32  # numbers of a row's carry for which whole Jacobians are made,
FULL_NUMBERS = 2**26  # and those of the Jacobians of all steps and rows


class Group(NamedTuple):
    """Parts of the carry that depend on no other part, and the form of their Jacobian."""

    parts: list[int]
    by_number: bool  # each number depends on those at the same place alone


class AllSteps:
    """The equations h_t = f(h_{t-1}, x_t) of a run.

    Args:
        step: ``(carry, x) -> (carry, y)``, flat lists.
        start: the carry before the first step of the run, leaves (*B, …) of floats.
        xs: (T, …) each, at least one.
        jacobian: "full", "quasi" (numbers at the same place alone, as far as they depend on each other without a
            product or any other operation in which numbers meet), "auto" (full where that is small).
        batch_ndim: leading axes of the leaves that are rows, which do not depend on each other.

    Attributes:
        eps: ε of the coarsest dtype on the carry's way.
        exact: whether the Jacobians are whole.
        proven: whether they are, besides, the step's own: without rules that a user wrote.
        is_affine: whether they are and depend on no carry.
    """

    def __init__(
        self,
        step: Callable[[Arrays, Arrays], tuple[Arrays, Any]],
        start: Sequence[Any],
        xs: Sequence[Any],
        *,
        reverse: bool,
        jacobian: str,
        batch_ndim: int,
    ):
        self.kinds = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in start]
        self.T, self.reverse, self.batch_ndim = xs[0].shape[0], reverse, batch_ndim
        self.rows = self.kinds[0].shape[:batch_ndim]
        real = [jnp.finfo(k.dtype) for k in self.kinds]
        self.dtype = promoted(jnp.dtype(jnp.float32), *(of.dtype for of in real))
        self.leaf_of = [i for i, k in enumerate(self.kinds) for _ in range(1 + _is_complex(k))]  # of each part

        self.axes: tuple[str, ...] = ()
        self.step = self._traced(step, start, xs)
        made = [self.step.program.kinds[n] for n in self.step.program.outputs]
        if axes := varying_axes([list(start), list(xs), made]):
            self.axes = tuple(sorted(axes))
            start, xs = self.placed((list(start), list(xs)))
            self.step = self._traced(step, start, xs)
        self.xs, self.start, self.eps = list(xs), self.parts(start), self.step.eps

        whole = [self._group(*of) for of in connected(self.step)]
        fits = all(of.by_number or self._fits(self._width(of)) for of in whole)
        wanted = jacobian == "full" or all(of.by_number for of in whole) or (jacobian == "auto" and fits)
        self.groups = whole
        self.exact = wanted and self._has_tangents()
        if not self.exact:
            self.groups = [self._group(*of) for of in connected(self.step, cut=True)]
        self.proven = self.exact and not self.step.has_rules
        self.is_affine = self.exact and is_affine(self.step)

    @staticmethod
    def _traced(step: Callable[..., Any], start: Sequence[Any], xs: Sequence[Any]) -> CarryStep:
        return carry_step(step, list(start), [jax.eval_shape(lambda a: a[0], a) for a in xs])

    def placed(self, tree: PyTree) -> PyTree:
        """Varying over the devices over which anything varies: what a loop carries has one type."""

        def leaf(a: Any) -> Any:
            missing = tuple(sorted(set(self.axes) - varying_axes(a)))
            return jax.lax.pcast(a, missing, to="varying") if missing else a

        return jax.tree.map(leaf, tree)

    def agreed(self, values: jax.Array) -> jax.Array:
        """The largest of any device."""
        return jax.lax.pmax(values, self.axes) if self.axes else values

    # ------------------------------------------------------------------ leaves, parts, and the vectors of groups

    def parts(self, leaves: Sequence[Any]) -> Arrays:
        """The real parts of leaves."""
        made: Arrays = []
        for a in leaves:
            made += [a.real, a.imag] if _is_complex(a) else [a]
        return [a.astype(self.dtype) for a in made]

    def leaves(self, parts: Sequence[Any]) -> Arrays:
        """The leaves, in their dtypes, of real parts."""
        rest = iter(parts)
        made = [jax.lax.complex(next(rest), next(rest)) if _is_complex(k) else next(rest) for k in self.kinds]
        return [a.astype(k.dtype) for a, k in zip(made, self.kinds, strict=True)]

    def _group(self, leaves: Sequence[int], by_number: bool) -> Group:
        return Group([p for p, i in enumerate(self.leaf_of) if i in leaves], by_number)

    def _shape(self, part: int) -> tuple[int, ...]:
        return self.kinds[self.leaf_of[part]].shape

    def _numbers(self, part: int) -> int:
        """Those of a row."""
        return math.prod(self._shape(part)[self.batch_ndim :])

    def _width(self, group: Group) -> int:
        """How many tangents its Jacobian takes."""
        return len(group.parts) if group.by_number else sum(map(self._numbers, group.parts))

    def _fits(self, size: int) -> bool:
        return size <= FULL_UP_TO and self.T * math.prod(self.rows) * size**2 <= FULL_NUMBERS

    def beside(self, of_rows: jax.Array, part: jax.Array) -> jax.Array:
        """(T, *B) or (*B), to stand beside a part (T, *B, …)."""
        return of_rows.reshape(*of_rows.shape, *(1,) * (part.ndim - 1 - self.batch_ndim))

    def _vector(self, parts: Sequence[Any], group: Group, lead: int) -> jax.Array:
        """(…, *B, S) of parts (…, *B, …) with so many leading axes."""
        keep = lead + self.batch_ndim
        return jnp.concatenate([parts[p].reshape(*parts[p].shape[:keep], -1) for p in group.parts], axis=-1)

    def _from_vector(self, vector: jax.Array, group: Group) -> Arrays:
        ends = np.cumsum([self._numbers(p) for p in group.parts])[:-1]
        made = jnp.split(vector, ends, axis=-1)
        return [a.reshape(self.T, *self._shape(p)) for a, p in zip(made, group.parts, strict=True)]

    # ------------------------------------------------------------------ f, its Jacobians, and what they make

    def earlier(self, h: Sequence[Any]) -> Arrays:
        """The leaves before each step, from the parts after it."""
        return self.leaves([before(s, a, reverse=self.reverse) for s, a in zip(self.start, h, strict=True)])

    def f(self, h: Sequence[Any]) -> Arrays:
        """Where all steps lead, from the carries after each."""
        return self.parts(jax.vmap(lambda carry, x: self.step(carry, x))(self.earlier(h), self.xs))

    def linearised(self, h: Sequence[Any]) -> tuple[Arrays, list[PyTree]]:
        """f, and the Jacobians of each group, as ``affine_scan.solve`` takes them."""
        return self._linearised(self.earlier(h))

    def linearised_at_zero(self) -> tuple[Arrays, list[PyTree]]:
        """f of zeros, at the first step as well, and the Jacobians."""
        zeros = [jnp.zeros((self.T, *a.shape), a.dtype) for a in self.start]
        return self._linearised(self.leaves(self.placed(zeros)))

    def _linearised(self, earlier: Arrays) -> tuple[Arrays, list[PyTree]]:
        f, columns = jax.vmap(self._at_step, out_axes=(0, 1))(earlier, self.xs)
        columns = self.parts(columns)
        return self.parts(f), [self._jacobian(columns, group) for group in self.groups]

    def _at_step(self, carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        f, push = jax.linearize(lambda *leaves: self.step(leaves, x, cut=not self.exact), *carry)
        return f, jax.vmap(push)(*self._tangents())

    def _has_tangents(self) -> bool:
        """Whether the step can be differentiated forward: a kernel, or what a rule hides, may not."""
        self.exact = True
        try:
            jax.eval_shape(self.linearised, [jnp.broadcast_to(a, (self.T, *a.shape)) for a in self.start])
        except (TypeError, ValueError, NotImplementedError):
            return False
        return True

    def _tangents(self) -> Arrays:
        """Leaves (n, *B, …), which show the Jacobians of all groups at once."""
        n = max(map(self._width, self.groups))
        made: Arrays = [None] * len(self.leaf_of)
        for group in self.groups:
            first = 0
            for p in group.parts:
                shape, own = self._shape(p), 1 if group.by_number else self._numbers(p)
                basis = np.zeros((n, own), self.dtype)
                basis[first : first + own] = np.eye(own)
                of_row = shape[self.batch_ndim :]
                of_row = (1,) * len(of_row) if group.by_number else of_row
                made[p] = jnp.broadcast_to(basis.reshape(n, *(1,) * self.batch_ndim, *of_row), (n, *shape))
                first += own
        return self.placed(self.leaves(made))

    def _jacobian(self, columns: Sequence[Any], group: Group) -> PyTree:
        """Of columns (n, T, *B, …)."""
        n = self._width(group)
        if group.by_number:
            return [[columns[p][j] for j in range(n)] for p in group.parts]
        return jnp.moveaxis(self._vector(columns, group, 2)[:n], 0, -1)

    def damped(self, A: Sequence[PyTree], factor: jax.Array) -> list[PyTree]:
        """Jacobians times factors (T, *B)."""
        return [
            jax.tree.map(lambda a: self.beside(factor, a) * a, J) if group.by_number else factor[..., None, None] * J
            for J, group in zip(A, self.groups, strict=True)
        ]

    def times(self, A: Sequence[PyTree], e: Sequence[Any]) -> Arrays:
        """A_t e_{t-1}, from 0."""
        old = [before(jnp.zeros_like(a[0]), a, reverse=self.reverse) for a in e]
        made: Arrays = [None] * len(e)
        for J, group in zip(A, self.groups, strict=True):
            if group.by_number:
                of_group = UNITS.times(J, [old[p] for p in group.parts])
            else:
                of_group = self._from_vector(MATRICES.times(J, self._vector(old, group, 1)), group)
            for p, a in zip(group.parts, of_group, strict=True):
                made[p] = a
        return made

    def solve(self, A: Sequence[PyTree], bs: Sequence[Arrays], start: Sequence[Any] | None = None) -> list[Arrays]:
        """h_t = A_t h_{t-1} + b_t, of each b, from 0 or from the start."""
        start = [jnp.zeros_like(a[0]) for a in bs[0]] if start is None else start
        made: list[Arrays] = [[None] * len(self.leaf_of) for _ in bs]
        for J, group in zip(A, self.groups, strict=True):
            if group.by_number:
                own, first = [[b[p] for p in group.parts] for b in bs], [start[p] for p in group.parts]
                solved = solve(UNITS, J, own, [first] * len(bs), reverse=self.reverse, block=None)
            else:
                vectors, of_start = [self._vector(b, group, 1) for b in bs], self._vector(start, group, 0)
                solved = solve(MATRICES, J, vectors, [of_start] * len(bs), reverse=self.reverse, block=None)
                solved = [self._from_vector(h, group) for h in solved]
            for to, h in zip(made, solved, strict=True):
                for p, a in zip(group.parts, h, strict=True):
                    to[p] = a
        return made

    # ------------------------------------------------------------------ sizes

    def sizes(self, parts: Sequence[Any]) -> Arrays:
        """The largest number of each leaf in a row, (T, *B)."""
        made: dict[int, jax.Array] = {}
        for i, a in zip(self.leaf_of, parts, strict=True):
            size = jnp.max(jnp.abs(a), axis=tuple(range(1 + self.batch_ndim, a.ndim)), initial=0)
            made[i] = jnp.maximum(made[i], size) if i in made else size
        return list(made.values())

    def scales(self, h: Sequence[Any]) -> Arrays:
        """The largest number that each leaf has had so far, (T, *B)."""
        first = self.sizes([a[None] for a in self.start])
        sizes = [jnp.maximum(a, b) for a, b in zip(first, self.sizes(h), strict=True)]
        return [jax.lax.cummax(a, reverse=self.reverse) for a in sizes]

    def relative(self, parts: Sequence[Any], scales: Sequence[Any]) -> jax.Array:
        """The largest number over the scale, (T, *B); inf where it is NaN."""
        ratios = [jnp.where(a == 0, 0, a / b) for a, b in zip(self.sizes(parts), scales, strict=True)]
        ratio = functools.reduce(jnp.maximum, ratios)
        return jnp.where(jnp.isnan(ratio), jnp.inf, ratio)

    def noise(self, h: Sequence[Any], scales: Sequence[Any]) -> Arrays:
        """How much each number may be rounded, with signs that follow no pattern: parts ±ε·scale.

        Where numbers stand alone, a small one is not rounded by what a large one is: by its own largest at most.
        """
        alone = {p for group in self.groups if group.by_number and self.exact for p in group.parts}
        made = []
        for p, a in enumerate(h):
            n = jax.lax.iota(jnp.uint32, a.size) + jnp.uint32(1 + 7919 * p)
            for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):  # a hash of the place
                n = (n ^ (n >> shift)) * jnp.uint32(factor)
            signs = jnp.where(n >> 31, 1, -1).astype(self.dtype).reshape(a.shape)
            size = self.beside(scales[self.leaf_of[p]], a)
            if p in alone:
                largest = jnp.maximum(jnp.max(jnp.abs(a), axis=0), jnp.abs(self.start[p]))
                size = jnp.minimum(size, largest[None])
            made.append(self.eps * size * signs)
        return made


def _is_complex(a: Any) -> bool:
    return bool(jnp.issubdtype(a.dtype, jnp.complexfloating))
