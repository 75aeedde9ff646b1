"""The two Jacobians of a step, as many of their entries as a rule needs: D_t by the carry, I_t by the params.

By the params: cotangents in colours. Carried numbers that no param reaches both of share a cotangent, so an LSTM takes
two and a GRU one, whatever the number of units. By the carry, whichever takes fewer passes through the step:

    the same cotangents             where D_t is sparse too: diagonal recurrences
    tangents in colours             dense ones take one for each carried number
    the step cut at its products    D_t = A + B W S: the Jacobians A, B, S between the products are sparse, and take few
                                    cotangents; W is the product's other operand. Only the entries needed are computed

The last also with what is computed from the new carry cut off it, N the Jacobian of the new carry by the new carry:

    D_t = N D_t + A + B W S,  I_t = N I_t + I'_t         of an LSTM N has ∂h_t/∂c_t

A rule that keeps J_t of both takes N J_t in place of N D_t J_{t-1} + N I_t: of the LSTM c_t's row first, then h_t's
from it, which reads of the old J that of h_{t-1} alone. So either is written over what it was, and both share one
cotangent, as i, f and g reach c_t, and o reaches h_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import PyTree, flatten
from jaxrnn.online.cuts import Differentiation, Entries, by_cuts, count_of, distinct
from jaxrnn.online.pattern import coloured
from jaxrnn.online.places import Numbers
from jaxrnn.online.problem import Problem, check_forward_mode, cut_step
from jaxrnn.online.reach import TooLargeError, jacobian_pattern

FEW = 4  # passes that are written one after the other, so that the compiler sees which numbers are 0


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
    if count_of(both) <= count_of(rows) + count_of(columns):
        nowhere = count_of(both) * S

        def by_cotangents(a, b):
            return distinct(np.where(is_there[a, b], np.append(both, 0)[a] * S + b, nowhere))

        way = Differentiation(both, None, by_cotangents, False)
    else:
        nowhere = count_of(columns) * S

        def by_tangents(a, b):
            return distinct(np.where(is_there[a, b], np.append(columns, 0)[b] * S + a, nowhere))

        way = Differentiation(rows, columns, by_tangents, False)
    if way.passes > 2 * FEW:
        cut = by_cuts(problem, needed)
        if cut is not None and cut.passes < way.passes:
            return cut
    return way


class Direct(NamedTuple):
    """The derivatives by an array of params, by colour; of a matrix as what its outer products are made of."""

    whole: Any  # a list of arrays, or one array stacked by colour; None: of products
    products: list[tuple[Any, Any]]  # the vector, and by colour the derivative by what the product gives


class Linearised(NamedTuple):
    """The Jacobians of one step of one sequence."""

    by_theta: list[Direct]  # for each array of params: the cotangents pulled back
    entries: Callable[[Entries], Any]  # of D_t, or of N


def linearise(problem: Problem, way: Differentiation, arguments: tuple[Any, ...]) -> Linearised:
    """At ``arguments`` (theta, h, others, x, noise)."""
    theta, h, *rest = arguments
    step = cut_step(problem, of_carry=way.is_cut, of_new=way.stages is not None)
    zeros = lambda kinds: [jnp.zeros(a.shape, a.dtype) for a in kinds]
    deltas, of_weights = zeros(step.deltas), zeros([w.made for w in step.weights])

    def cut(theta, h, deltas, of_weights):
        return step.run(theta, h, deltas, of_weights, *rest)

    made, pull, (coefficients, vectors) = jax.vjp(cut, theta, h, deltas, of_weights, has_aux=True)
    rows = np.arange(count_of(way.colours))[:, None] == way.colours
    parts = np.split(rows, np.cumsum([a.size for a in made])[:-1], axis=1)
    cotangents = [p.reshape(-1, *a.shape).astype(a.dtype) for p, a in zip(parts, made, strict=True)]
    by_theta, by_h, by_deltas, by_weights = _each(pull, cotangents)
    if way.columns is None and isinstance(by_h, list):
        numbers = [a[c] for c in range(len(rows)) for a in (by_h, *by_deltas)]
    elif way.columns is None:
        numbers = [jnp.concatenate([a.reshape(len(rows), -1).astype(h.dtype) for a in (by_h, *by_deltas)], 1)]
    else:
        tangents = (np.arange(count_of(way.columns))[:, None] == way.columns).astype(h.dtype)
        _, push = jax.linearize(lambda h: problem.step(theta, h, *rest)[0], h)
        numbers = [jax.vmap(push)(jnp.asarray(tangents))]
    by_place, by_weight = Numbers(numbers, h.dtype), Numbers(coefficients, h.dtype)

    def entries(of):
        value = by_place.take(of.value)
        for B, W, inner in zip(*of.paths, strict=True):
            value += by_place.take(B) * by_weight.take(W) * by_place.take(inner)
        if of.through is not None:
            N, D = of.through
            value += (by_place.take(N) * entries(D)).sum(0)
        return Numbers([value], h.dtype).take(of.of)

    direct = [Direct(whole, []) for whole in by_theta]
    for w, v, by_colour in zip(step.weights, vectors, by_weights, strict=True):
        direct[w.leaf] = Direct(None, [*direct[w.leaf].products, (v, by_colour)])
    return Linearised(direct, entries)


def _each(pull: Callable[..., Any], cotangents: Any) -> tuple[Any, ...]:
    """The cotangents pulled back, each array by colour."""
    count = len(jax.tree.leaves(cotangents)[0])
    cotangents = jax.tree.map(jnp.asarray, cotangents)
    if count > FEW:
        return jax.vmap(pull)(cotangents)
    pulled = [pull(jax.tree.map(lambda a, c=c: a[c], cotangents)) for c in range(count)]
    return jax.tree.map(lambda *of_colour: list(of_colour), *pulled)


def by_colour(direct: Direct, axes: Sequence[int], dtype: Any) -> Any:
    """The derivatives by the array, each colour's; of a matrix made here, on the way: elementwise.

    Args:
        axes: of each product, that of the matrix along which it is multiplied (``Weights.axis``).
    """
    if direct.whole is not None:
        return direct.whole
    terms = []
    for (v, by_made), axis in zip(direct.products, axes, strict=True):
        wide = jnp.expand_dims(v, 1 - axis).astype(dtype)

        def outer(d, wide=wide, axis=axis):
            return wide * jnp.expand_dims(d.astype(dtype), axis - 2)

        terms.append([outer(d) for d in by_made] if isinstance(by_made, list) else jax.vmap(outer)(by_made))
    return terms[0] if len(terms) == 1 else jax.tree.map(lambda *of: sum(of[1:], of[0]), *terms)
