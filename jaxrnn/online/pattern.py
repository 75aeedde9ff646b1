"""Which params reach which carried numbers within n steps, and how the influence between them is stored.

Params that reach the same carried numbers are a class. Of each array of params the influence is one block, or a few:
``Block`` where the classes go along its axes, as units do in the columns of a matrix, ``Scattered`` where they do not,
as where a mask takes weights out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SMALL = 4  # numbers reached up to which products of the blocks are written out
FULL = 10**8  # entries up to which a pattern is multiplied as a dense matrix


class Reach(NamedTuple):
    """The pattern of the influence, by classes of params."""

    direct: np.ndarray  # (S + 1, U) booleans: which carried numbers params of a class reach in one step; the last: none
    first: np.ndarray  # (S + 1, U): which of them they reach in the initial carry
    direct_class: np.ndarray  # (P,): the class of each param, of those U
    reached: list[np.ndarray]  # of each class of the influence, the carried numbers, ascending
    reached_class: np.ndarray  # (P,): the class of each param, of those; a class may reach nothing

    @property
    def entries(self) -> int:
        """How many numbers of the influence may be other than 0."""
        sizes = np.array([len(r) for r in self.reached])
        return int(sizes[self.reached_class].sum()) if len(sizes) else 0


def reach(direct: Any, carried: Any, first: Any, steps: int | None, staged: Any = None) -> Reach:
    """M_n = ∪ MD^k (MI ∪ M0), k < n, as sparse boolean matrices; ``steps`` None: all k.

    ``staged``: what stands in ``Reach.direct`` in place of ``direct``, where a step is cut in stages.
    """
    from scipy import sparse

    S, P = direct.shape
    own = direct if staged is None else staged
    classes, one = _alike(sparse.vstack([direct, first, own], format="csc"))
    direct_of, first_of, own_of = (m.tocsc()[:, one].toarray() for m in (direct, first, own))
    within = direct_of | first_of
    if S * (S + within.shape[1]) <= FULL:
        step = carried.toarray().astype(np.float32)
        times = lambda a: step @ a.astype(np.float32) > 0
    else:
        times = lambda a: (carried @ sparse.csr_matrix(a)).toarray() > 0
    done = 1
    while steps is None or done < steps:
        more = within | times(within)
        if (more == within).all():
            break
        within, done = more, done + 1
    alike, sample = _alike(sparse.csc_matrix(within))
    nothing = np.zeros((1, within.shape[1]), bool)
    reached = [np.flatnonzero(within[:, k]) for k in sample]
    of_params = alike[classes] if P else np.zeros(0, int)
    return Reach(np.vstack([own_of, nothing]), np.vstack([first_of, nothing]), classes, reached, of_params)


def _alike(columns: Any) -> tuple[np.ndarray, np.ndarray]:
    """The class of each column of a sparse matrix, and a column of each class: by two sums of 64 random bits each."""
    bits = np.random.default_rng(0).integers(1, 2**63, (2, columns.shape[0]), np.uint64)
    sums = []
    for of_row in bits:
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(of_row[columns.indices], dtype=np.uint64)])
        sums.append(total[columns.indptr[1:]] - total[columns.indptr[:-1]])
    keys = np.ascontiguousarray(np.stack(sums, 1)).view([("a", np.uint64), ("b", np.uint64)]).ravel()
    _, sample, classes = np.unique(keys, return_index=True, return_inverse=True)
    return classes.ravel(), sample


def coloured(matrix: Any) -> np.ndarray:
    """A colour for each row of a sparse boolean matrix: rows of one colour have no column in common."""
    from scipy import sparse

    _, one = _alike(matrix.tocsc())
    short = sparse.csr_matrix(matrix.tocsc()[:, one])
    meets = (short @ short.T).tocsr()
    colours = np.full(matrix.shape[0], -1)
    for row in range(matrix.shape[0]):
        taken = colours[meets.indices[meets.indptr[row] : meets.indptr[row + 1]]]
        free = np.ones(len(taken) + 1, bool)
        free[taken[(taken >= 0) & (taken < len(free))]] = False
        colours[row] = np.flatnonzero(free)[0]
    return colours


class Block(NamedTuple):
    """The influence of an array of params, or some places along one axis of it: an array (r, *its shape)."""

    leaf: int
    places: tuple[int, np.ndarray] | None  # the axis and the places along it; None: all of the array
    shape: tuple[int, ...]
    R: np.ndarray  # (r, *axes): what each param reaches, S where it is less; axes of size 1 where it is the same
    kinds: np.ndarray  # (*axes): the class of each param by what it reaches directly, as in ``Reach.direct_class``

    @property
    def entries(self) -> int:
        return len(self.R) * math.prod(self.shape)


class Scattered(NamedTuple):
    """The influence of some params of an array, a class a row: an array (G, r, n), padded."""

    leaf: int
    size: int  # of that array
    R: np.ndarray  # (G, r): the carried numbers; S where there are fewer
    at: np.ndarray  # (G, n): the places in the flat array of params; its size where there are fewer
    kinds: np.ndarray  # (G, n): as above

    @property
    def entries(self) -> int:
        return self.R.size * self.at.shape[1]


def blocks_of(found: Reach, shapes: Sequence[tuple[int, ...]]) -> list[Block | Scattered]:
    """Blocks for all arrays of params; those that reach nothing have none."""
    blocks: list[Block | Scattered] = []
    start, S = 0, len(found.direct) - 1
    sizes = np.array([len(r) for r in found.reached])
    for leaf, shape in enumerate(shapes):
        part = slice(start, start + math.prod(shape))
        start = part.stop
        kinds, classes = (a[part].reshape(shape) for a in (found.direct_class, found.reached_class))
        if classes.size and sizes[classes].any():
            blocks += _of_leaf(leaf, _thin(kinds), _thin(classes), shape, found, sizes, S)
    return blocks


def _thin(a: np.ndarray) -> np.ndarray:
    """The array with size 1 for each axis along which nothing changes."""
    for axis in range(a.ndim):
        if (a == a.take([0], axis)).all():
            a = a.take([0], axis)
    return a


def _of_leaf(leaf, kinds, classes, shape, found, sizes, S) -> list[Block | Scattered]:
    blocks: list[Block | Scattered] = []
    varied = [axis for axis in range(classes.ndim) if classes.shape[axis] > 1]
    counts = sizes[classes]
    if classes.size <= 8 * len(np.unique(classes)) or classes.size <= 64:
        if len(np.unique(counts)) == 1:
            R = np.stack([found.reached[k] for k in classes.ravel()], -1).reshape(-1, *classes.shape)
            return [Block(leaf, None, shape, R, kinds)]
        if len(varied) == 1:
            (axis,) = varied
            along = counts.ravel()
            reaching = np.unique(along[along > 0])
            small = [[r] for r in reaching.tolist() if r <= SMALL]
            for group in [*small, *_of_about_the_same_size(reaching[len(small) :])]:
                places = np.flatnonzero(np.isin(along, group))
                some = classes.take(places, axis)
                R = np.full((max(group), some.size), S)
                for n, k in enumerate(some.ravel()):
                    R[: sizes[k], n] = found.reached[k]
                own = kinds.take(places, axis) if kinds.shape[axis] > 1 else kinds
                short = tuple(len(places) if a == axis else n for a, n in enumerate(shape))
                where = None if len(places) == shape[axis] else (axis, places)
                blocks.append(Block(leaf, where, short, R.reshape(-1, *some.shape), _thin(own)))
            return blocks
    kinds, classes = (np.broadcast_to(a, shape).ravel() for a in (kinds, classes))
    own = [k for k in np.unique(classes) if sizes[k]]
    for sized in _of_about_the_same_size(np.unique(sizes[own])):
        group = [k for k in own if sizes[k] in sized]
        members = [np.flatnonzero(classes == k) for k in group]
        R = np.full((len(group), max(sizes[k] for k in group)), S)
        at = np.full((len(group), max(map(len, members))), len(classes))
        for g, (k, own_places) in enumerate(zip(group, members, strict=True)):
            R[g, : sizes[k]] = found.reached[k]
            at[g, : len(own_places)] = own_places
        blocks.append(Scattered(leaf, len(classes), R, at, np.append(kinds, 0)[at]))
    return blocks


def _of_about_the_same_size(sizes: np.ndarray) -> list[list[int]]:
    """Ascending numbers in groups that share an array: few arrays, of which little is padding."""
    groups: list[list[int]] = []
    for size in sizes.tolist():
        if groups and size <= 1.5 * groups[-1][0]:
            groups[-1].append(size)
        else:
            groups.append([size])
    return groups
