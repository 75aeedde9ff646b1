"""Blocks of few rows, one for each number of the carry that their params reach: J_t row by row, each over its old one.

        J_t[k] = Σ_l N[k, l] J_t[l] + Σ_l A[k, l] J_{t-1}[l] + I_t[k]

N and A are of units, so all is elementwise. The order is such that a row reads new rows that are there and, where that
can be, no old one that has been written over: the compiler then needs no copy of J.

A CPU runs this in groups of sequences, as one kernel: of each group first the rows, then what it adds to the gradient,
while they are in the cache. Measured beside other work, float32, the least of 25 rounds, µs a step, by the compiler's
own loops and in groups: GRU-64, 16 sequences, 94 and 79; LSTM-64, 16, 249 and 160; GRU-32, 64, 259 and 111; LSTM-128,
64, 20,200 and 8,600, on two cores 22,200 and 10,400. Groups of 2 and of 8 are as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import flatten
from jaxrnn.online.cuts import Differentiation, Entries
from jaxrnn.programs.calls import as_one_kernel, on_one_cpu

Pair = tuple[int, int]
SEQUENCES = 4  # of a group
LARGEST = 2**26  # bytes of a block of a batch up to which one core was seen to be faster than two


class Rows(NamedTuple):
    """How the rows of a block follow from each other; static."""

    order: tuple[int, ...]
    old: Mapping[Pair, Entries]  # of A, by (k, l), those that may be other than 0
    new: Mapping[Pair, Entries]  # of N

    def read_by(self, k: int) -> set[int]:
        return {l for row, l in (*self.old, *self.new) if row == k}

    @property
    def is_in_place(self) -> bool:
        """Whether no row reads an old one that has been written over."""
        place = {k: i for i, k in enumerate(self.order)}
        return all(place[l] >= place[k] for k, l in self.old)


def rows_of(R: np.ndarray, way: Differentiation, carried: np.ndarray) -> Rows:
    """Of a block whose params reach the carried numbers R (r, *axes).

    Args:
        carried: (S + 1, S + 1) booleans, where D_t may be other than 0.
    """
    r = range(len(R))
    stages = way.stages
    new = (
        {}
        if stages is None
        else {(k, l): stages.at(R[k], R[l]) for k in r for l in r if stages.there[R[k], R[l]].any()}
    )
    kept = () if stages is None else (R,)  # what goes through these is in N
    old = {(k, l): way.at(R[k], R[l], *kept) for k in r for l in r if carried[R[k], R[l]].any()}
    old = {pair: at for pair, at in old.items() if at.is_there}
    order: list[int] = []
    while len(order) < len(R):
        order.append(next(k for k in r if k not in order and all(l in order for row, l in new if row == k)))
    return Rows(tuple(order), old, new)


def coefficients(rows: Rows, entries: Callable[[Entries], Any]) -> tuple[dict[Pair, Any], dict[Pair, Any]]:
    """A and N, of one sequence."""
    return {pair: entries(of) for pair, of in rows.old.items()}, {pair: entries(of) for pair, of in rows.new.items()}


def row(
    k: int,
    carried: tuple[Mapping[Pair, Any], Mapping[Pair, Any]],
    direct: Any,
    before: Mapping[int, Any],
    after: Mapping[int, Any],
) -> Any:
    """J_t[k], from the rows of J_{t-1} and those of J_t that are there."""
    old, new = carried
    terms = [A * before[l] for (of, l), A in old.items() if of == k]
    terms += [N * after[l] for (of, l), N in new.items() if of == k]
    J = before[k]
    return (sum([*terms[1:], direct], terms[0]) if terms else jnp.broadcast_to(direct, J.shape)).astype(J.dtype)


def in_groups(
    rows: Rows,
    direct: Callable[[Any], Sequence[Any]],
    parts: Any,
    arrays: Sequence[Any],
    weights: Mapping[int, Any],
    mask: Any,
    *,
    by_products: bool,
) -> tuple[list[Any], Any]:
    """``(J_t, Σ u J_t)`` of a batch of sequences, which all arrays lead with; None where the loss moves by no row.

    Args:
        direct: of one sequence, from its part of ``parts``, I_t by row.
        parts: ``(carried, what direct takes)``.
        arrays: J_{t-1}, by row.
        weights: u, by row, of those rows by which the loss moves.
        mask: (n,) or None; where it is False, J_t is J_{t-1}.
        by_products: whether the parts are few numbers, I_t being made of outer products.
    """
    leaves, tree = flatten((parts, list(arrays), dict(weights), mask))
    n = arrays[0].shape[0]

    def new_row(k, parts, before, after, mask):
        def of_one(parts, before, after):
            carried, given = parts
            return row(k, carried, direct(given)[k], before, after)

        made = jax.vmap(of_one)(parts, before, after)
        return made if mask is None else jnp.where(mask.reshape(-1, *[1] * (made.ndim - 1)), made, before[k])

    def together(*leaves):
        parts, arrays, weights, mask = tree.unflatten(leaves)
        before: dict[int, Any] = dict(enumerate(arrays))
        after: dict[int, Any] = {}
        for k in rows.order:
            after[k] = new_row(k, parts, before, after, mask)
        sums = [(u * after[k]).sum(0) for k, u in weights.items()]
        made = [after[k] for k in before]
        return [*made, sum(sums[1:], sums[0])] if sums else made

    def one_kernel(*leaves):
        parts, arrays, weights, mask = tree.unflatten(leaves)
        size = next(size for size in range(SEQUENCES, 0, -1) if n % size == 0)

        def of_group(g, held):
            arrays, total = list(held[: len(held) - 1]), held[-1]
            at = lambda a: jax.lax.dynamic_slice_in_dim(a, g * size, size, allow_negative_indices=False)
            own, on = jax.tree.map(at, parts), None if mask is None else at(mask)
            for k in rows.order:
                read = {l: at(arrays[l]) for l in {k, *rows.read_by(k)}}  # in place: what is old is old, and new new
                made = new_row(k, own, read, read, on)
                arrays[k] = jax.lax.dynamic_update_slice_in_dim(
                    arrays[k], made, g * size, 0, allow_negative_indices=False
                )
            for k, u in weights.items():
                u, J = at(u), at(arrays[k])
                total = total + sum((u[i] * J[i] for i in range(1, size)), u[0] * J[0])
            return [*arrays, total]

        made = jax.lax.fori_loop(0, n // size, of_group, [*arrays, jnp.zeros(arrays[0].shape[1:], arrays[0].dtype)])
        return made if weights else made[:-1]

    fits = (
        by_products
        and isinstance(n, int)  # not open, in a program that is exported for any
        and n > 1
        and rows.is_in_place
        and sum(a.nbytes for a in arrays) <= LARGEST
        and all(a.dtype.name in ("float32", "float64", "bool") for a in leaves)
        and isinstance(arrays[0], jax.core.Tracer)  # else each call would compile
    )
    made = on_one_cpu(lambda *a: as_one_kernel(one_kernel, *a), together, *leaves) if fits else together(*leaves)
    return made[: len(arrays)], made[len(arrays)] if weights else None
