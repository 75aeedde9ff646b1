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
from jaxrnn.online.places import Numbers
from jaxrnn.online.problem import CutStep, Problem, Weights, check_forward_mode, cut_step
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
    """Entries of D_t, each of them once, and where they are found."""

    value: np.ndarray  # (N,) places among the numbers that were differentiated; behind the last: 0
    paths: tuple[np.ndarray, ...]  # (L, N) each: B, W and S of a product of three; of a step that is not cut none
    of: np.ndarray  # which of them stands where


def _distinct(value: np.ndarray, *paths: np.ndarray) -> Entries:
    """Of entries in any shape, and paths (…, L)."""
    table = np.concatenate([value.reshape(1, -1), *(a.reshape(value.size, -1).T for a in paths)])
    _, first, of = np.unique(table, axis=1, return_index=True, return_inverse=True)
    if 2 * len(first) > value.size:  # few occur twice
        first, of = np.arange(value.size), np.arange(value.size)
    order = np.argsort(first)  # as they come, so that their places run evenly
    rows = table[:, first[order]]
    parts = np.split(rows[1:], len(paths)) if paths else []
    return Entries(rows[0], tuple(parts), np.argsort(order)[of.ravel()].reshape(value.shape))


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
            return _distinct(np.where(is_there[a, b], np.append(both, 0)[a] * S + b, nowhere))

        way = Differentiation(both, None, by_cotangents, False)
    else:
        nowhere = _count(columns) * S

        def by_tangents(a, b):
            return _distinct(np.where(is_there[a, b], np.append(columns, 0)[b] * S + a, nowhere))

        way = Differentiation(rows, columns, by_tangents, False)
    if way.passes > 2 * FEW:
        cut = _by_cuts(problem, needed)
        if cut is not None and cut.passes < way.passes:
            return cut
    return way


def _by_cuts(problem: Problem, needed: Sequence[tuple[np.ndarray, np.ndarray]]) -> Differentiation | None:
    """With the step cut at its products; None where it has none, or more is needed than passes would cost."""
    step = cut_step(problem)
    if not step.operands:
        return None
    n, S = len(problem.theta), problem.carry.size
    fixed, tree = flatten((problem.others, problem.x, problem.noise))
    moving = [*problem.theta, problem.h, *step.made]

    def flat(*arrays):
        theta, h, deltas = arrays[:n], arrays[n], arrays[n + 1 : len(moving)]
        return step.run(theta, h, deltas, None, *tree.unflatten(arrays[len(moving) :]))[0]

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
        return _distinct(value, B, np.where(w < 0, no_weight, w), inner)

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
    step = cut_step(problem, of_carry=way.is_cut)
    zeros = lambda kinds: [jnp.zeros(a.shape, a.dtype) for a in kinds]
    deltas, of_weights = zeros(step.made), zeros([w.made for w in step.weights])

    def cut(theta, h, deltas, of_weights):
        return step.run(theta, h, deltas, of_weights, *rest)

    made, pull, (coefficients, vectors) = jax.vjp(cut, theta, h, deltas, of_weights, has_aux=True)
    rows = np.arange(_count(way.colours))[:, None] == way.colours
    parts = np.split(rows, np.cumsum([a.size for a in made])[:-1], axis=1)
    cotangents = [p.reshape(-1, *a.shape).astype(a.dtype) for p, a in zip(parts, made, strict=True)]
    by_theta, by_h, by_deltas, by_weights = _each(pull, cotangents)
    if way.columns is None and isinstance(by_h, list):
        numbers = [a[c] for c in range(len(rows)) for a in (by_h, *by_deltas)]
    elif way.columns is None:
        numbers = [jnp.concatenate([a.reshape(len(rows), -1).astype(h.dtype) for a in (by_h, *by_deltas)], 1)]
    else:
        tangents = (np.arange(_count(way.columns))[:, None] == way.columns).astype(h.dtype)
        _, push = jax.linearize(lambda h: problem.step(theta, h, *rest)[0], h)
        numbers = [jax.vmap(push)(jnp.asarray(tangents))]
    by_place, by_weight = Numbers(numbers, h.dtype), Numbers(coefficients, h.dtype)

    def entries(of):
        value = by_place.take(of.value)
        for B, W, inner in zip(*of.paths, strict=True):
            value += by_place.take(B) * by_weight.take(W) * by_place.take(inner)
        return Numbers([value], h.dtype).take(of.of)

    return Linearised(_with_outer_products(by_theta, step.weights, vectors, by_weights), entries)


def _each(pull: Callable[..., Any], cotangents: Any) -> tuple[Any, ...]:
    """The cotangents pulled back, each array by colour."""
    count = len(jax.tree.leaves(cotangents)[0])
    cotangents = jax.tree.map(jnp.asarray, cotangents)
    if count > FEW:
        return jax.vmap(pull)(cotangents)
    pulled = [pull(jax.tree.map(lambda a, c=c: a[c], cotangents)) for c in range(count)]
    return jax.tree.map(lambda *of_colour: list(of_colour), *pulled)


def _with_outer_products(by_theta: Any, weights: Sequence[Weights], vectors: Sequence[Any], by_made: Any) -> list[Any]:
    """With the derivatives by matrices, which the loop over their influence makes on the way: elementwise."""
    by_theta = list(by_theta)
    products: dict[int, list[Any]] = {}
    for w, v, by_colour in zip(weights, vectors, by_made, strict=True):
        dtype = by_theta[w.leaf][0].dtype
        wide = jnp.expand_dims(v, 1 - w.axis).astype(dtype)

        def outer(d, wide=wide, axis=w.axis - 2, dtype=dtype):
            return wide * jnp.expand_dims(d.astype(dtype), axis)

        of_colours = [outer(d) for d in by_colour] if isinstance(by_colour, list) else jax.vmap(outer)(by_colour)
        products.setdefault(w.leaf, []).append(of_colours)
    for leaf, terms in products.items():
        by_theta[leaf] = terms[0] if len(terms) == 1 else jax.tree.map(lambda *of: sum(of[1:], of[0]), *terms)
    return by_theta
