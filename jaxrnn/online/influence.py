"""RTRL, and SnAp-n: the influence of the params on the carry, as much of it as a pattern holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import PyTree
from jaxrnn.online.cuts import Differentiation, Entries, by_cuts
from jaxrnn.online.derivatives import (
    FEW,
    Direct,
    Linearised,
    Patterns,
    by_colour,
    differentiation,
    linearise,
    patterns_of,
)
from jaxrnn.online.pattern import SMALL, Block, Scattered, blocks_of, coloured, reach
from jaxrnn.online.places import Numbers
from jaxrnn.online.problem import Problem, cut_step
from jaxrnn.online.rows import Rows, coefficients, in_groups, row, rows_of
from jaxrnn.online.rules import OnlineRule, Start, Step


class Storage(NamedTuple):
    """A block of the influence with all that its update needs; static."""

    block: Block | Scattered
    direct: Callable[[Direct], list[Any]]  # its part of I_t, from the derivatives by its array of params
    first: Callable[[Any], list[Any]]  # the same of the initial carry's, by colour
    carried: Entries | Rows  # its part of D_t
    by_products: bool  # whether I_t of it is all outer products


class Parts(NamedTuple):
    """What a step of one sequence is to a block."""

    carried: Any  # the entries of D_t
    direct: Direct


class Influence(NamedTuple):
    """How the influence of a cell's params on its carry is kept and updated; static."""

    storages: list[Storage]
    way: Differentiation
    first_colours: np.ndarray
    has_first: bool  # whether the initial carry depends on params

    @property
    def entries(self) -> int:
        """How many numbers are kept for each sequence."""
        return sum(s.block.entries for s in self.storages)


def influence_of(problem: Problem, steps: int | None, masks: PyTree = None) -> Influence:
    """Of the params that reach a carried number within so many steps; None: however many. ``masks``: params."""
    patterns: Patterns = patterns_of(problem, masks)
    shapes, S = [a.shape for a in problem.theta], problem.carry.size
    found = reach(patterns.direct, patterns.carried, patterns.first, steps)
    blocks = blocks_of(found, shapes)
    way = differentiation(problem, patterns, [_pairs(b) for b in blocks])
    if masks is None and all(map(_is_small, blocks)):
        staged = by_cuts(problem, staged=True)
        if staged is not None and staged.stages is not None and staged.passes <= way.passes:
            way = staged
            found = reach(patterns.direct, patterns.carried, patterns.first, steps, staged.stages.direct)
            blocks = blocks_of(found, shapes)
    carried = np.zeros((S + 1, S + 1), bool)
    carried[:S, :S] = patterns.carried.toarray()
    products = cut_step(problem, of_carry=way.is_cut, of_new=way.stages is not None).weights
    axes = [[w.axis for w in products if w.leaf == leaf] for leaf in range(len(shapes))]
    first = coloured(patterns.first)
    storages = []
    for block in blocks:
        spread, is_uniform = _spread(block, way.colours[:S], found.direct)
        dtype = problem.theta[block.leaf].dtype
        direct = lambda of, spread=spread, axes=axes[block.leaf], dtype=dtype: spread(by_colour(of, axes, dtype))
        rows = rows_of(block.R, way, carried) if _is_small(block) else way.at(*_pairs(block))
        storages.append(
            Storage(block, direct, _spread(block, first, found.first)[0], rows, bool(axes[block.leaf]) and is_uniform)
        )
    return Influence(storages, way, first, bool(patterns.first.nnz))


def _pairs(block: Block | Scattered) -> tuple[np.ndarray, np.ndarray]:
    """The entries (a, b) of D_t by which a block is multiplied: (r, r, *axes), or (G, r, r)."""
    R = block.R
    pair = (R[:, None], R[None]) if isinstance(block, Block) else (R[:, :, None], R[:, None])
    a, b = np.broadcast_arrays(*pair)
    return a, b


def sparse_rule(steps: int | None, influence: Callable[[Problem], Influence]) -> OnlineRule:
    """J_t = M ⊙ (D_t J_{t-1} + I_t), of which the entries that M holds are kept."""

    def init(start: Start) -> list[Any]:
        kept = influence(start.problem)
        dtype = start.problem.carry.dtype
        if not (start.fresh and kept.has_first):
            return [[jnp.zeros(shape, dtype) for shape in _shapes(s.block)] for s in kept.storages]
        colours = np.arange(kept.first_colours.max() + 1)[:, None] == kept.first_colours
        pulled = [start.pull(jnp.asarray(u, dtype)) for u in colours]
        return [
            [
                jnp.broadcast_to(part, shape).astype(dtype)
                for part, shape in zip(s.first([of[s.block.leaf] for of in pulled]), _shapes(s.block), strict=True)
            ]
            for s in kept.storages
        ]

    def update(step: Step, trace: list[Any]) -> list[Any]:
        kept = influence(step.problem)
        return [_updated(*of) for of in zip(kept.storages, parts_of(kept, step), trace, strict=True)]

    def gradient(step: Step, trace: list[Any], u: Any) -> list[Any]:
        storages = influence(step.problem).storages
        parts = [_pulled(s.block, u, J) for s, J in zip(storages, trace, strict=True)]
        return _by_leaf([s.block for s in storages], parts, step.theta)

    return OnlineRule(init, update, gradient)


def parts_of(kept: Influence, step: Step) -> list[Parts]:
    """What a step of one sequence is to each block."""
    if not kept.storages:
        return []
    at = linearise(step.problem, kept.way, step.arguments)
    return [Parts(_carried(s, at), at.by_theta[s.block.leaf]) for s in kept.storages]


def _carried(s: Storage, at: Linearised) -> Any:
    return coefficients(s.carried, at.entries) if isinstance(s.carried, Rows) else at.entries(s.carried)


def _updated(s: Storage, parts: Parts, arrays: list[Any]) -> list[Any]:
    """The block of J_t, of one sequence."""
    direct = s.direct(parts.direct)
    if not isinstance(s.carried, Rows):
        carried = _times(s.block, parts.carried, arrays)
        return [(a + b).astype(J.dtype) for a, b, J in zip(carried, direct, arrays, strict=True)]
    before: dict[int, Any] = dict(enumerate(arrays))
    after: dict[int, Any] = {}
    for k in s.carried.order:
        after[k] = row(k, parts.carried, direct[k], before, after)
    return [after[k] for k in before]


def updated_and_weighed(
    kept: Influence, theta: Sequence[Any], parts: list[Parts], trace: list[Any], u: Any, mask: Any, moved: np.ndarray
) -> tuple[list[Any], list[Any]]:
    """``(traces, Σ uᵀ J_t)`` of a batch: of sequences that arrays lead with.

    Args:
        parts: of each block those of ``parts_of``.
        mask: (n,) or None; where it is False the trace is held.
        moved: (S,) booleans: of which carried numbers u may be other than 0.
    """
    traces: list[Any] = []
    sums: list[Any] = []
    for s, of, J in zip(kept.storages, parts, trace, strict=True):
        R = s.block.R
        if isinstance(s.carried, Rows):
            weights = {k: _taken(u, R[k]) for k in range(len(R)) if moved[R[k]].any()}
            J, total = in_groups(s.carried, s.direct, tuple(of), J, weights, mask, by_products=s.by_products)
            if len(weights) == 1 and len(u) == 1:  # of one sequence: multiplied once side by side with others
                ((k, w),) = weights.items()
                total = (w[0], J[k][0])
        else:
            new = jax.vmap(lambda of, J, s=s: _updated(s, of, J))(of, J)
            J = new if mask is None else jax.tree.map(lambda a, b: jnp.where(_as(mask, a), a, b), new, J)
            total = jax.vmap(lambda u, J, block=s.block: _pulled(block, u, J))(u, J).sum(0)
        traces.append(J)
        sums.append(total)
    return traces, _by_leaf([s.block for s in kept.storages], sums, theta)


def weighed(kept: Influence, theta: Sequence[Any], trace: list[Any], u: Any) -> list[Any]:
    """Σ uᵀ J over sequences: the first axis of u and of the arrays of the trace."""
    parts = []
    for s, J in zip(kept.storages, trace, strict=True):
        if _is_small(s.block):
            parts.append(sum((_taken(u, R) * a).sum(0) for R, a in zip(s.block.R, J, strict=True)))
        else:
            parts.append(jax.vmap(lambda u, J, block=s.block: _pulled(block, u, J))(u, J).sum(0))
    return _by_leaf([s.block for s in kept.storages], parts, theta)


def _taken(u: Any, R: np.ndarray) -> Any:
    return jax.vmap(lambda u: Numbers([u], u.dtype).take(R))(u)


def _as(mask: Any, a: Any) -> Any:
    return mask.reshape(-1, *[1] * (a.ndim - 1))


def _is_small(block: Block | Scattered) -> bool:
    return isinstance(block, Block) and len(block.R) <= SMALL


def _shapes(block: Block | Scattered) -> list[tuple[int, ...]]:
    """Of the arrays that hold a block: one, or where few numbers are reached, one for each of them."""
    if isinstance(block, Scattered):
        return [(*block.R.shape, block.at.shape[1])]
    return [block.shape] * len(block.R) if _is_small(block) else [(len(block.R), *block.shape)]


def _times(block: Block | Scattered, D: Any, arrays: list[Any]) -> list[Any]:
    """D J, class by class, of a block that is not small."""
    (J,) = arrays
    if isinstance(block, Scattered):
        return [jnp.einsum("gkl,gln->gkn", D, J)]
    r = len(block.R)
    if D.size == r * r:
        return [jnp.tensordot(D.reshape(r, r), J, 1)]
    varied = [axis for axis in range(J.ndim - 1) if D.shape[axis + 2] > 1]
    same = [axis for axis in range(J.ndim - 1) if axis not in varied]
    order = (*(axis + 1 for axis in varied), 0, *(axis + 1 for axis in same))
    sizes = [J.shape[axis] for axis in order]
    n = len(varied)
    columns = J.transpose(order).reshape(-1, r, int(np.prod(sizes[n + 1 :])))
    product = jnp.einsum("kls,sln->skn", D.reshape(r, r, -1), columns)
    return [product.reshape(sizes).transpose(np.argsort(order))]


def _pulled(block: Block | Scattered, u: Any, arrays: list[Any]) -> Any:
    """uᵀ J, for the params of the block."""
    if _is_small(block):
        of = Numbers([u], u.dtype).take(block.R)
        return sum(of[k] * J for k, J in enumerate(arrays))
    (J,) = arrays
    if isinstance(block, Scattered):
        return jnp.einsum("gk,gkn->gn", _with_none(u)[block.R], J)
    of = _with_none(u)[block.R]
    if of.size == len(block.R):
        return jnp.tensordot(of.reshape(-1), J, 1)
    return (of * J).sum(0)


def _with_none(u: Any) -> Any:
    """u, and 0 at the place S, which stands for no number."""
    return jnp.concatenate([u, jnp.zeros_like(u[:1])])


def _by_leaf(blocks: Sequence[Block | Scattered], parts: Sequence[Any], theta: Sequence[Any]) -> list[Any]:
    """The gradient by each array of params, from those by the params of the blocks."""
    sums = []
    for leaf, like in enumerate(theta):
        own = [(b, p) for b, p in zip(blocks, parts, strict=True) if b.leaf == leaf and p is not None]
        sums.append(_side_by_side(own, like.shape))
        if sums[-1] is None:
            whole = jnp.zeros_like(like)
            for block, part in own:
                whole = _add(whole, block, _multiplied(part).astype(like.dtype))
            sums[-1] = whole
        sums[-1] = sums[-1].astype(like.dtype)
    return sums


def _multiplied(part: Any) -> Any:
    """A part that is there, or the two factors of one."""
    return part[0] * part[1] if isinstance(part, tuple) else part


def _side_by_side(own: Sequence[tuple[Any, Any]], shape: tuple[int, ...]) -> Any:
    """The parts joined, where they are all of an array, one after the other along an axis; else None."""
    if any(isinstance(block, Scattered) for block, _ in own):
        return None
    if len(own) == 1 and own[0][0].places is None:
        return _multiplied(own[0][1])
    if len(own) < 2 or any(block.places is None for block, _ in own):
        return None
    own = sorted(own, key=lambda of: of[0].places[1][0])
    axis = own[0][0].places[0]
    places = np.concatenate([block.places[1] for block, _ in own])
    if any(block.places[0] != axis for block, _ in own) or list(places) != list(range(shape[axis])):
        return None
    parts = [part for _, part in own]
    if all(isinstance(part, tuple) and part[0].shape[axis] == part[1].shape[axis] for part in parts):
        us, arrays = zip(*parts, strict=True)
        if len({(*u.shape[:axis], *u.shape[axis + 1 :]) for u in us}) == 1:
            return jnp.concatenate(us, axis) * jnp.concatenate(arrays, axis)  # XLA joins a product with what follows
    return jnp.concatenate([_multiplied(part) for part in parts], axis)


def _add(whole: Any, block: Block | Scattered, part: Any) -> Any:
    """The gradient by an array, with that by the params of a block."""
    if isinstance(block, Scattered):
        return whole.reshape(-1).at[block.at].add(part, mode="drop").reshape(whole.shape)
    if block.places is None:
        return whole + part
    axis, places = block.places
    between = _slice(places)
    if isinstance(between, slice):  # a sum of padded parts is elementwise; a scatter would stand by itself
        around = [(0, 0, 0)] * whole.ndim
        around[axis] = (between.start, whole.shape[axis] - between.stop, 0)
        return whole + jax.lax.pad(part, jnp.zeros((), part.dtype), around)
    return whole.at[(slice(None),) * axis + (between,)].add(part)


def _slice(places: np.ndarray) -> Any:
    """Places in a row as a slice, which costs no gather."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == len(places) else places


def _spread(
    block: Block | Scattered, colours: np.ndarray, present: np.ndarray
) -> tuple[Callable[[Any], list[Any]], bool]:
    """The entries of a Jacobian that a block holds, in its arrays, from cotangents in colours pulled back.

    And whether of each array all or none are there, with one colour.

    Args:
        colours: (S,), of each carried number.
        present: (S + 1, U), which of them the params of each class reach.
    """
    if isinstance(block, Scattered):
        return _spread_scattered(block, colours, present), False
    r, colour = len(block.R), np.append(colours, 0)[block.R]
    there = present[block.R, block.kinds[None]]
    own = np.unique(np.broadcast_to(colour, there.shape)[there])
    by_slot = colour.reshape(r, -1)
    same = bool((by_slot == by_slot[:, :1]).all())

    def take(a: Any) -> Any:
        if block.places is None:
            return a
        axis, places = block.places
        return a[(slice(None),) * axis + (_slice(places),)]

    def where(flags: np.ndarray, a: Any) -> Any:
        return a if flags.all() else jnp.where(flags, a, 0)

    def spread(by_colour: Any) -> list[Any]:
        zero = jnp.zeros((), by_colour[0].dtype)
        if same and r <= SMALL:
            return [where(there[k], take(by_colour[by_slot[k, 0]])) if there[k].any() else zero for k in range(r)]
        if len(own) <= FEW:
            parts = [jnp.where(there & (colour == c), take(by_colour[c])[None], 0) for c in own]
            whole = sum(parts[1:], parts[0]) if parts else zero
        else:
            V = jnp.stack([take(by_colour[c]) for c in range(len(by_colour))])
            if not same:
                V = jnp.take_along_axis(V, np.broadcast_to(colour, (r, *block.shape)), 0)
            whole = where(there, V[by_slot[:, 0]] if same else V)
        if r > SMALL:
            return [whole]
        return [jnp.broadcast_to(whole, (r, *block.shape))[k] for k in range(r)]

    is_uniform = same and r <= SMALL and all(flags.all() or not flags.any() for flags in there)
    return spread, is_uniform


def _spread_scattered(block: Scattered, colours: np.ndarray, present: np.ndarray) -> Callable[[Any], list[Any]]:
    there = present[block.R[:, :, None], block.kinds[:, None]] & (block.at < block.size)[:, None]
    colour, at = np.append(colours, 0)[block.R][:, :, None], np.minimum(block.at, block.size - 1)[:, None]

    def spread(by_colour: Any) -> list[Any]:
        V = jnp.stack([by_colour[c].reshape(-1) for c in range(len(by_colour))])
        return [jnp.where(there, V[colour, at], 0)]

    return spread
