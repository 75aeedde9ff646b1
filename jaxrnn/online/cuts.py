"""A step cut at its products, and where its new carry is computed in stages: few cotangents give its Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrnn._base import flatten
from jaxrnn.online.pattern import coloured
from jaxrnn.online.problem import CutStep, Problem, cut_step
from jaxrnn.online.reach import TooLargeError, jacobian_pattern, product_entries

PATHS = 64  # products of three by which an entry of D_t may be made, at most


class Entries(NamedTuple):
    """Entries of D_t, each of them once, and where they are found."""

    value: np.ndarray  # (N,) places among the numbers that were differentiated; behind the last: 0
    paths: tuple[np.ndarray, ...]  # (L, N) each: B, W and S of a product of three; of a step that is not cut none
    of: np.ndarray  # which of them stands where
    through: tuple[np.ndarray, Entries] | None = None  # (L, N) each: of N, and of D_t, whose products are added
    is_there: bool = True  # whether any of them may be other than 0


def distinct(value: np.ndarray, *paths: np.ndarray) -> Entries:
    """Of entries in any shape, and paths (…, L)."""
    table = np.concatenate([value.reshape(1, -1), *(a.reshape(value.size, -1).T for a in paths)])
    _, first, of = np.unique(table, axis=1, return_index=True, return_inverse=True)
    if 2 * len(first) > value.size:  # few occur twice
        first, of = np.arange(value.size), np.arange(value.size)
    order = np.argsort(first)  # as they come, so that their places run evenly
    rows = table[:, first[order]]
    parts = np.split(rows[1:], len(paths)) if paths else []
    return Entries(rows[0], tuple(parts), np.argsort(order)[of.ravel()].reshape(value.shape))


class Stages(NamedTuple):
    """Of a step whose new carry is computed in stages, what is left where each is cut off the next."""

    direct: Any  # (S, P): where I'_t may be other than 0
    there: np.ndarray  # (S, S) booleans: where N may be
    at: Callable[[np.ndarray, np.ndarray], Entries]  # (a, b) -> where N[a, b] is found


class Differentiation(NamedTuple):
    """How the entries are computed. All in it is static."""

    colours: np.ndarray  # (rows,): of each number that is differentiated, by which cotangent
    columns: np.ndarray | None  # (S,): of each carried number, by which tangent; None: no tangents
    at: Callable[..., Entries]  # (a, b) -> where D_t[a, b] is found; (a, b, kept), without what goes through these
    is_cut: bool
    stages: Stages | None = None

    @property
    def passes(self) -> int:
        """How many cotangents and tangents go through the step."""
        return count_of(self.colours) + (0 if self.columns is None else count_of(self.columns))


def count_of(colours: np.ndarray) -> int:
    return int(colours.max(initial=-1)) + 1


def by_cuts(
    problem: Problem, needed: Sequence[tuple[np.ndarray, np.ndarray]] = (), *, staged: bool = False
) -> Differentiation | None:
    """With the step cut at its products; None where it has none, or more is needed than passes would cost.

    ``staged``: at what is computed from the new carry too, of whose Jacobians few entries are needed; None where
    nothing is.
    """
    step = cut_step(problem, of_new=staged)
    if not (step.stages if staged else step.operands):
        return None
    n, S = len(problem.theta), problem.carry.size
    fixed, tree = flatten((problem.others, problem.x, problem.noise))
    moving = [*problem.theta, problem.h, *step.deltas]

    def flat(*arrays):
        theta, h, deltas = arrays[:n], arrays[n], arrays[n + 1 : len(moving)]
        return step.run(theta, h, deltas, None, *tree.unflatten(arrays[len(moving) :]))[0]

    P, E = (sum(math.prod(a.shape) for a in arrays) for arrays in (problem.theta, step.made))
    try:
        found = jacobian_pattern(flat, moving, fixed)
        weights = _weights(step)
    except TooLargeError:
        return None
    colours = coloured(found)
    between = found[:, P:].tocsr()  # the new carry and the operands, by the carry, what the products give, the stages
    by_delta = _padded(between[:S, S : S + E])  # B, by its rows
    of_carry = _padded(between[S:, :S].T.tocsr())  # S, by its columns
    by_stage = _padded(between[:S, S + E :])  # N, by its rows
    if by_delta.shape[1] * of_carry.shape[1] > PATHS or between[S:, S + E :].nnz:
        return None
    width, there = between.shape[1], np.zeros((S + 1, S + 1), bool)
    there[:S, :S] = between[:S, :S].toarray()
    nowhere, no_weight = count_of(colours) * width, sum(math.prod(k[1 - m].shape) for k, m in _operands(step))
    places = np.split(np.arange(S), np.cumsum(problem.carry.sizes)[:-1])
    number = np.concatenate([*(places[s.leaf] for s in step.stages), [S]]).astype(int)

    def at(a, b, kept=None):
        value = np.where(there[a, b], np.append(colours[:S], 0)[a] * width + b, nowhere)
        e, i = np.broadcast_arrays(by_delta[a][..., :, None], of_carry[b][..., None, :])
        e, i = (k.reshape(*k.shape[:-2], -1) for k in (e, i))
        w = np.where((e >= 0) & (i >= 0), weights[e, i], -1)
        e, i, w = _first(w >= 0, e, i, w)
        B = np.where(w < 0, nowhere, np.append(colours[:S], 0)[a][..., None] * width + S + e)
        inner = np.where(w < 0, nowhere, colours[S + i] * width + np.broadcast_to(b[..., None], i.shape))
        paths = B, np.where(w < 0, no_weight, w), inner
        stage = by_stage[a]
        through = (stage >= 0) & ~_among(number[stage], kept)
        is_there = bool(there[a, b].any() or (w >= 0).any())
        if not through.any():
            return distinct(value, *paths)._replace(is_there=is_there)
        through, stage = _first(through, through, stage)
        N = np.where(through, np.append(colours[:S], 0)[a][..., None] * width + S + E + stage, nowhere)
        rows = lambda k: np.moveaxis(k, -1, 0).reshape(k.shape[-1], -1)
        D = at(rows(np.where(through, number[stage], S)), rows(np.broadcast_to(b[..., None], stage.shape)))
        if not D.is_there:
            return distinct(value, *paths)._replace(is_there=is_there)
        of = np.arange(value.size).reshape(value.shape)
        return Entries(value.ravel(), tuple(rows(k) for k in paths), of, (rows(N), D))

    if not staged:
        count = sum(len(np.unique(a * (S + 1) + b)) for a, b in needed)  # each of them is computed once
        if count * by_delta.shape[1] * of_carry.shape[1] * 3 > S * max(P, 1):
            return None
        return Differentiation(colours, None, at, True)
    N = np.zeros((S + 1, S + 1), bool)
    N[:S, number[:-1]] = between[:S, S + E :].toarray()
    place = np.full(S + 1, -1)
    place[number[:-1]] = np.arange(len(number) - 1)

    def of_stages(a, b):
        return distinct(np.where(N[a, b], np.append(colours[:S], 0)[a] * width + S + E + place[b], nowhere))

    return Differentiation(colours, None, at, True, Stages(found[:S, :P], N[:S, :S], of_stages))


def _first(wanted: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """Of the last axis those that are wanted, as many as there are at most, in front of others."""
    order = np.argsort(~wanted, axis=-1, kind="stable")[..., : max(int(wanted.sum(-1).max(initial=0)), 1)]
    return [np.take_along_axis(k, order, -1) for k in arrays]


def _among(numbers: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """Which of the numbers (*axes, L) are kept (r, *axes)."""
    if kept is None:
        return np.zeros(numbers.shape, bool)
    return (kept[..., None] == numbers).any(0)


def _operands(step: CutStep) -> list[tuple[Any, int]]:
    return list(zip(step.kinds, step.operands, strict=True))


def _weights(step: CutStep) -> np.ndarray:
    """(E, I): which number of the products' other operands, all side by side, stands between two; -1: none."""
    given = [math.prod(kind.shape) for kind in step.made]
    read = [math.prod(kinds[mine].shape) for kinds, mine in _operands(step)]
    if sum(given) * sum(read) > 2**26:
        raise TooLargeError
    table = np.full((max(sum(given), 1), max(sum(read), 1)), -1)
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
