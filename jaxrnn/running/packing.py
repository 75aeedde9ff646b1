"""Ragged batches, packed: several sequences run one after the other in one lane, so that few steps are padding.

A batch of B sequences, each active from its first valid step to its last, takes T steps of B rows, however short most
of them are. Packed, B / 2 lanes run two sequences each, the longest before the shortest, and the loop ends with the
last of them: of lengths spread evenly it takes about T steps of half the rows. Nothing depends on the lengths but where
each step stands, so that one compiled program serves all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn._base import PyTree

MEMBERS = 2  # sequences in a lane
BLOCK = 16  # steps of a lane, of which its capacity is a multiple


class Packing(NamedTuple):
    """Where each step of a batch stands among the lanes, and which sequences share one."""

    source: jax.Array  # (S, L): the step, t * B + b, that a lane takes; T * B where it takes none
    place: jax.Array  # (T, B): where each step is taken, s * L + lane; S * L where it is not
    member: jax.Array  # (S, L): which of its sequences a lane is in
    rows: jax.Array  # (M, L): the sequences of each lane, in order; B where there is none
    where: jax.Array  # (B,): the place of each sequence in these, m * L + lane
    count: jax.Array  # (): steps that the longest lane takes

    @property
    def lanes(self) -> int:
        return self.rows.shape[1]

    def pack(self, tree: PyTree) -> PyTree:
        """(T, B, …) → (S, L, …), 0 where no step stands."""
        return jax.tree.map(lambda a: _moved(a, self.source, self.place), tree)

    def unpack(self, tree: PyTree) -> PyTree:
        """(S, L, …) → (T, B, …), 0 at steps that were not taken."""
        return jax.tree.map(lambda a: _moved(a, self.place, self.source), tree)

    def split(self, carry: PyTree) -> list[PyTree]:
        """(B, …) → the carries (L, …) of the first sequence of each lane, of the second …

        Where there is none, another sequence's: it must be a carry that a step can take.
        """
        rows = jnp.minimum(self.rows, self.where.size - 1)
        members = jax.tree.map(lambda a: _moved(a, rows, self.where), carry)
        return [jax.tree.map(lambda a, m=m: a[m], members) for m in range(MEMBERS)]

    def join(self, carries: list[PyTree]) -> PyTree:
        """The carries of the sequences of each lane → (B, …)."""
        return jax.tree.map(lambda *a: _moved(jnp.stack(a), self.where, self.rows), *carries)


def pack(active: jax.Array, reverse: bool) -> Packing:
    """The packing of a batch by its active steps, (T, B); a reversed run enters each sequence from its end."""
    T, B = active.shape
    L = -(-B // MEMBERS)
    S = -(-MEMBERS * T // BLOCK) * BLOCK
    times = jnp.arange(T, dtype=jnp.int32)[:, None]
    first = jnp.argmax(active, axis=0).astype(jnp.int32)
    end = jnp.max(jnp.where(active, times + 1, 0), axis=0)
    length = jnp.maximum(end - first, 1)  # a sequence without active steps holds its carry at one

    order = jnp.argsort(-length, stable=True).astype(jnp.int32)
    order = jnp.concatenate([order, jnp.full(MEMBERS * L - B, B, jnp.int32)])
    rows = order.reshape(MEMBERS, L)
    rows = rows.at[1::2].set(rows[1::2, ::-1])  # the longest of the long with the shortest of the short
    where = jnp.zeros(B, jnp.int32).at[rows.reshape(-1)].set(jnp.arange(MEMBERS * L, dtype=jnp.int32), mode="drop")

    lengths = jnp.append(length, 1)[rows]
    ends = jnp.cumsum(lengths, axis=0, dtype=jnp.int32)
    begins = ends - lengths
    steps = jnp.arange(S, dtype=jnp.int32)[:, None]
    member = sum((steps >= begins[m]).astype(jnp.int32) for m in range(1, MEMBERS))

    def of_member(a: jax.Array) -> jax.Array:
        """(M, L) → (S, L), the value of the sequence that a lane is in."""
        chosen = a[0]
        for m in range(1, MEMBERS):
            chosen = jnp.where(member == m, a[m], chosen)
        return chosen

    firsts, lasts = (jnp.append(a, 0)[rows] for a in (first, first + length - 1))
    within = steps - of_member(begins)
    t = of_member(lasts) - within if reverse else of_member(firsts) + within
    row = of_member(rows)
    source = jnp.where((within < of_member(lengths)) & (row < B), t * B + row, T * B)

    lane, begin = where % L, begins.reshape(-1)[where]
    within = (first + length - 1) - times if reverse else times - first
    place = jnp.where((within >= 0) & (within < length), (begin + within) * L + lane, S * L)
    return Packing(source, place, member, rows, where, ends[-1].max())


def _moved(a: Any, to: jax.Array, back: jax.Array) -> Any:
    """``a``, whose first axes are those of ``back``, with what stands at each place that ``to`` names; 0 for none.

    ``back`` names the places the other way: the gradient is a gather as well, where that of ``jnp.take`` scatters.
    """
    return moved_p.bind(a, to, back)


def _take(a: Any, to: Any, back: Any) -> Any:
    rest = a.shape[back.ndim :]
    a = a.reshape(back.size, *rest)
    none = (to >= back.size).reshape(*to.shape, *(1,) * len(rest))
    found = a.at[jnp.minimum(to, back.size - 1)].get(mode="promise_in_bounds")
    return jnp.where(none, jnp.zeros((), a.dtype), found)


def _jvp(primals, tangents):
    (a, to, back), d_a = primals, tangents[0]
    made = moved_p.bind(a, to, back)
    return made, ad.Zero.from_primal_value(made) if isinstance(d_a, ad.Zero) else moved_p.bind(d_a, to, back)


def _transpose(cotangent, a, to, back):
    return moved_p.bind(ad.instantiate_zeros(cotangent), back, to), None, None


def _batch(arrays, axes):
    return jax.vmap(_take, axes)(*arrays), 0


moved_p = Primitive("moved")
moved_p.def_impl(jax.jit(_take))
moved_p.def_abstract_eval(lambda a, to, back: jax.make_jaxpr(_take)(a, to, back).out_avals[0])
mlir.register_lowering(moved_p, mlir.lower_fun(_take, multiple_results=False))
ad.primitive_jvps[moved_p] = _jvp
ad.primitive_transposes[moved_p] = _transpose
batching.primitive_batchers[moved_p] = _batch
