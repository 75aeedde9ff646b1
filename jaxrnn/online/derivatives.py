"""The two Jacobians of a step, as many of their entries as a rule needs: D_t by the carry, I_t by the params.

By the params: cotangents in colours. Carried numbers that no param reaches both of share a cotangent, so an LSTM takes
two and a GRU one, whatever the number of units. By the carry, whichever takes fewer passes through the step:

    the same cotangents             where D_t is sparse too: diagonal recurrences
    tangents in colours             dense ones take one for each carried number
    the step cut at its products    D_t = A + B W S: the Jacobians A, B, S between the products are sparse, and take few
                                    cotangents; W is the product's other operand. Only the entries needed are computed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import PyTree, flatten
from jaxrnn.online.pattern import coloured
from jaxrnn.online.problem import CutStep, Problem, check_forward_mode, cut_step
from jaxrnn.online.reach import TooLargeError, jacobian_pattern, product_entries

FEW = 4  # passes that are written one after the other, so that the compiler sees which numbers are 0
PATHS = 64  # products of three by which an entry of D_t may be made, at most


class Patterns(NamedTuple):
    """Where the Jacobians of a step may be other than 0: sparse boolean matrices."""

    direct: Any  # (S, P): I_t
    carried: Any  # (S, S): D_t
    first: Any  # (S, P): that of the initial carry


def patterns_of(problem: Problem, masks: PyTree = None) -> Patterns:
    """By the traced step; all ones where that has too many entries.

    ``masks`` are params: the values of those arrays that reach nothing, masks among them, are taken for constants.
    """
    from scipy import sparse

    ends = np.cumsum([0, *(math.prod(a.shape) for a in problem.theta)])
    n, P = len(problem.theta), int(ends[-1])
    fixed, tree = flatten((problem.others, problem.x, problem.noise))

    def step(*arrays):
        return [problem.step(arrays[:n], arrays[n], *tree.unflatten(arrays[n + 1 :]))[0]]

    def initial(*arrays):
        return [problem.initial(arrays[:n], arrays[n:])]

    check_forward_mode(problem)
    try:
        found = jacobian_pattern(step, [*problem.theta, problem.h], fixed)
        first = jacobian_pattern(initial, problem.theta, problem.others)
        if masks is not None:
            reach = found[:, :P] + first
            with jax.ensure_compile_time_eval():
                theta, others = problem.params.split(masks)
            known = [None if reach[:, a:b].nnz else v for v, a, b in zip(theta, ends, ends[1:], strict=False)]
            rest = [None] * (len(fixed) - len(others))
            found = jacobian_pattern(step, [*problem.theta, problem.h], fixed, [*known, None, *others, *rest])
    except TooLargeError:
        found = sparse.csr_matrix(np.ones((problem.carry.size, P + problem.carry.size), bool))
        first = found[:, :P]
    return Patterns(found[:, :P], found[:, P:], first)


class Entries(NamedTuple):
    """Entries of D_t, and where they are found."""

    value: np.ndarray  # places among the numbers that were differentiated; behind the last: 0
    paths: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # (…, L) each: B, W and S of a product of three; cut steps


class Differentiation(NamedTuple):
    """How the entries are computed. All in it is static; ``run`` takes one sequence."""

    colours: np.ndarray  # (rows,): of each number that is differentiated, by which cotangent
    columns: np.ndarray | None  # (S,): of each carried number, by which tangent; None: no tangents
    at: Callable[[np.ndarray, np.ndarray], Entries]  # (a, b) -> where D_t[a, b] is found
    is_cut: bool

    @property
    def passes(self) -> int:
        """How many cotangents and tangents go through the step."""
        return _count(self.colours) + (0 if self.columns is None else _count(self.columns))


def _count(colours: np.ndarray) -> int:
    return int(colours.max(initial=-1)) + 1


def differentiation(
    problem: Problem, patterns: Patterns, needed: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Differentiation:
    """The way that takes the fewest passes for these entries of D_t."""
    from scipy import sparse

    S = problem.carry.size
    direct, carried = patterns.direct, patterns.carried
    is_there = np.zeros((S + 1, S + 1), bool)
    is_there[:S, :S] = carried.toarray()
    both, rows, columns = (coloured(m) for m in (sparse.hstack([direct, carried]), direct, carried.T.tocsr()))
    if _count(both) <= _count(rows) + _count(columns):
        nowhere = _count(both) * S

        def by_cotangents(a, b):
            return Entries(np.where(is_there[a, b], np.append(both, 0)[a] * S + b, nowhere), None)

        way = Differentiation(both, None, by_cotangents, False)
    else:
        nowhere = _count(columns) * S

        def by_tangents(a, b):
            return Entries(np.where(is_there[a, b], np.append(columns, 0)[b] * S + a, nowhere), None)

        way = Differentiation(rows, columns, by_tangents, False)
    if way.passes > 2 * FEW:
        cut = _by_cuts(problem, needed)
        if cut is not None and cut.passes < way.passes:
            return cut
    return way


def _by_cuts(problem: Problem, needed: Sequence[tuple[np.ndarray, np.ndarray]]) -> Differentiation | None:
    """With the step cut at its products; None where it has none, or more is needed than passes would cost."""
    step = cut_step(problem)
    if step is None:
        return None
    n, S = len(problem.theta), problem.carry.size
    fixed, tree = flatten((problem.others, problem.x, problem.noise))
    moving = [*problem.theta, problem.h, *step.made]

    def flat(*arrays):
        theta, h, deltas = arrays[:n], arrays[n], arrays[n + 1 : len(moving)]
        return step.run(theta, h, deltas, *tree.unflatten(arrays[len(moving) :]))[0]

    P = sum(math.prod(a.shape) for a in problem.theta)
    try:
        found = jacobian_pattern(flat, moving, fixed)
        weights = _weights(step)
    except TooLargeError:
        return None
    colours = coloured(found)
    between = found[:, P:].tocsr()  # the new carry and the operands, by the carry and what the products give
    by_delta = _padded(between[:S, S:])  # B, by its rows
    of_carry = _padded(between[S:, :S].T.tocsr())  # S, by its columns
    if by_delta.shape[1] * of_carry.shape[1] > PATHS:
        return None
    width, there = between.shape[1], np.zeros((S + 1, S + 1), bool)
    there[:S, :S] = between[:S, :S].toarray()
    nowhere, no_weight = _count(colours) * width, sum(math.prod(k[1 - m].shape) for k, m in _operands(step))

    def at(a, b):
        value = np.where(there[a, b], np.append(colours[:S], 0)[a] * width + b, nowhere)
        e, i = np.broadcast_arrays(by_delta[a][..., :, None], of_carry[b][..., None, :])
        e, i = (k.reshape(*k.shape[:-2], -1) for k in (e, i))
        w = np.where((e >= 0) & (i >= 0), weights[e, i], -1)
        order = np.argsort(w < 0, axis=-1, kind="stable")[..., : max(int((w >= 0).sum(-1).max(initial=0)), 1)]
        e, i, w = (np.take_along_axis(k, order, -1) for k in (e, i, w))
        B = np.where(w < 0, nowhere, np.append(colours[:S], 0)[a][..., None] * width + S + e)
        inner = np.where(w < 0, nowhere, colours[S + i] * width + np.broadcast_to(b[..., None], i.shape))
        return Entries(value, (B, np.where(w < 0, no_weight, w), inner))

    count = sum(np.broadcast(a, b).size for a, b in needed)
    if count * by_delta.shape[1] * of_carry.shape[1] * 3 > S * max(P, 1):
        return None
    return Differentiation(colours, None, at, True)


def _operands(step: CutStep) -> list[tuple[Any, int]]:
    return list(zip(step.kinds, step.operands, strict=True))


def _weights(step: CutStep) -> np.ndarray:
    """(E, I): which number of the products' other operands, all side by side, stands between two; -1: none."""
    given = [math.prod(kind.shape) for kind in step.made]
    read = [math.prod(kinds[mine].shape) for kinds, mine in _operands(step)]
    if sum(given) * sum(read) > 2**26:
        raise TooLargeError
    table = np.full((sum(given), sum(read)), -1)
    e = i = w = 0
    for params, kinds, mine, made, size in zip(step.params, step.kinds, step.operands, given, read, strict=True):
        out, of, by = product_entries(params, kinds, mine)
        table[e + out, i + of] = w + by
        e, i, w = e + made, i + size, w + math.prod(kinds[1 - mine].shape)
    return table


def _padded(matrix: Any) -> np.ndarray:
    """The columns of each row's entries, -1 where there are fewer; one row more, of none."""
    counts = np.diff(matrix.indptr)
    table = np.full((matrix.shape[0] + 1, max(int(counts.max(initial=0)), 1)), -1)
    for row, count in enumerate(counts):
        table[row, :count] = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
    return table


class Linearised(NamedTuple):
    """The Jacobians of one step of one sequence."""

    by_theta: list[Any]  # for each array of params, by colour: the cotangents pulled back
    entries: Callable[[Entries], Any]  # of D_t


def linearise(problem: Problem, way: Differentiation, arguments: tuple[Any, ...]) -> Linearised:
    """At ``arguments`` (theta, h, others, x, noise)."""
    theta, h, *rest = arguments
    coefficients = jnp.zeros(0, problem.carry.dtype)
    rows = np.arange(_count(way.colours))[:, None] == way.colours
    if way.is_cut:
        step = cut_step(problem)
        assert step is not None
        deltas = [jnp.zeros(kind.shape, kind.dtype) for kind in step.made]

        def cut(theta, h, deltas):
            return step.run(theta, h, deltas, *rest)

        made, pull, others = jax.vjp(cut, theta, h, deltas, has_aux=True)
        ends = np.cumsum([a.size for a in made])[:-1]
        parts = np.split(rows, ends, axis=1)
        cotangents = [p.reshape(-1, *a.shape).astype(a.dtype) for p, a in zip(parts, made, strict=True)]
        by_theta, by_h, by_deltas = _each(pull, cotangents)
        count = len(rows)
        numbers = jnp.concatenate([a.reshape(count, -1).astype(h.dtype) for a in (by_h, *by_deltas)], axis=1)
        coefficients = jnp.concatenate([a.ravel().astype(h.dtype) for a in others])
    else:
        stepping = lambda theta, h: problem.step(theta, h, *rest)[0]
        _, pull = jax.vjp(stepping, theta, h)
        by_theta, numbers = _each(pull, rows.astype(h.dtype))
        if way.columns is not None:
            tangents = (np.arange(_count(way.columns))[:, None] == way.columns).astype(h.dtype)
            _, push = jax.linearize(lambda h: stepping(theta, h), h)
            numbers = jax.vmap(push)(jnp.asarray(tangents))
    zero = jnp.zeros(1, h.dtype)
    flat = jnp.concatenate([numbers.reshape(-1), zero])
    weights = jnp.concatenate([coefficients, zero])

    def entries(of):
        value = flat[of.value]
        if of.paths is None:
            return value
        B, W, inner = of.paths
        return value + (flat[B] * weights[W] * flat[inner]).sum(-1)

    return Linearised(by_theta, entries)


def _each(pull: Callable[..., Any], cotangents: Any) -> tuple[Any, ...]:
    """The cotangents pulled back, the first argument's by array and colour, the others' by colour."""
    count = len(jax.tree.leaves(cotangents)[0])
    cotangents = jax.tree.map(jnp.asarray, cotangents)
    if count > FEW:
        by_theta, *others = jax.vmap(pull)(cotangents)
        return by_theta, *others
    pulled = [pull(jax.tree.map(lambda a, c=c: a[c], cotangents)) for c in range(count)]
    by_theta, *rest = zip(*pulled, strict=True)
    return [list(of_leaf) for of_leaf in zip(*by_theta, strict=True)], *(
        jax.tree.map(lambda *of: jnp.stack(of), *part) for part in rest
    )
