"""Ragged batches, packed: several sequences run one after the other in one lane, so that few steps are padding.

A batch of B sequences, each active from its first valid step to its last, takes T steps of B rows, however short most
of them are. Packed, B / 2 lanes run two sequences each, the longest before the shortest, and the loop ends with the
last of them: of lengths spread evenly it takes about T steps of half the rows. Nothing depends on the lengths but where
each step stands, so that one compiled program serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn._base import PyTree, select
from jaxrnn.devices.placement import vary_alike

MEMBERS = 2  # sequences in a lane
BLOCK = 16  # steps of a lane, of which its capacity is a multiple


class Packing(NamedTuple):
    """Where each step of a batch stands among the lanes, and which sequences share one."""

    source: jax.Array  # (S, L): the step, t * B + b, that a lane takes; where it takes none, one that it has taken
    spare: jax.Array  # (S, L): whether a lane has no sequence there, where others have their last
    taken: jax.Array  # (S, L): whether it takes one
    place: jax.Array  # (T, B): where each step is taken, s * L + lane; where it is not, a place at which none is
    member: jax.Array  # (S, L): which of its sequences a lane is in
    begins: list[jax.Array]  # (S, L) each: whether it begins its second one there, its third …
    rows: jax.Array  # (M, L): the sequences of each lane, in order; its first again where it has one less
    where: jax.Array  # (B,): the place of each sequence in these, m * L + lane
    longest: jax.Array  # (): steps that the longest lane takes

    @property
    def members(self) -> int:
        return self.rows.shape[0]

    @property
    def lanes(self) -> int:
        return self.rows.shape[1]

    def pack(self, tree: PyTree) -> PyTree:
        """(T, B, …) → (S, L, …); where a lane takes no step, one that it has taken."""
        return jax.tree.map(lambda a: _moved(a, self.source, self.place), tree)

    def pack_inputs(self, tree: PyTree, valid: jax.Array) -> PyTree:
        """(T, B, …), 0 where no step is valid → (S, L, …), 0 where none is (S, L), as the batch has it.

        But a lane that has one sequence less reads, from its start, its first step again: zeros may be what no
        sequence has.
        """
        T, B = self.place.shape
        source = jnp.where(valid | self.spare, self.source, T * B)  # a row of zeros: nothing to select after
        place = jnp.append(self.place, jnp.int32(0))

        def of_leaf(a):
            rows = a.reshape(T * B, *a.shape[2:])
            return _moved(jnp.concatenate([rows, jnp.zeros_like(rows[:1])]), source, place)

        return jax.tree.map(of_leaf, tree)

    def pack_flags(self, flags: jax.Array) -> jax.Array:
        """(T, B) → (S, L) booleans, False where a lane takes no step."""
        return _moved(flags, self.source, self.place) & self.taken

    def unpack(self, tree: PyTree) -> PyTree:
        """(S, L, …), 0 where a lane takes no step → (T, B, …), 0 at steps that were not taken."""
        return jax.tree.map(lambda a: _moved(a, self.place, self.source), tree)

    def split(self, carry: PyTree) -> list[PyTree]:
        """(B, …) → the carries (L, …) of the first sequence of each lane, of the second …"""
        members = jax.tree.map(lambda a: _moved(a, self.rows, self.where), carry)
        return [jax.tree.map(lambda a, m=m: a[m], members) for m in range(self.members)]

    def join(self, carries: list[PyTree]) -> PyTree:
        """The carries of the sequences of each lane → (B, …)."""
        return jax.tree.map(lambda *a: _moved(jnp.stack(a), self.where, self.rows), *carries)


def lanes_of(B: int) -> int:
    """The lanes of a batch of B sequences."""
    return -(-B // MEMBERS)


def pack(active: jax.Array, reverse: bool) -> Packing:
    """The packing of a batch by its active steps, (T, B); a reversed run enters each sequence from its end."""
    T, B = active.shape
    L = lanes_of(B)
    times = jnp.arange(T, dtype=jnp.int32)[:, None]
    first = jnp.argmax(active, axis=0).astype(jnp.int32)
    end = jnp.max(jnp.where(active, times + 1, 0), axis=0)
    length = jnp.maximum(end - first, 1)  # a sequence without active steps holds its carry at one
    entered = first + length - 1 if reverse else first

    order = jnp.argsort(-length, stable=True).astype(jnp.int32)
    order = jnp.concatenate([order, jnp.full(MEMBERS * L - B, B, jnp.int32)])
    in_turn = order.reshape(MEMBERS, L)
    rows = jnp.stack([in_turn[m, :: -1 if m % 2 else 1] for m in range(MEMBERS)])  # the longest with the shortest
    own = jnp.where(rows < B, rows, rows[0])  # a lane that has one sequence less has its first again
    where = jnp.zeros(B, jnp.int32).at[rows.reshape(-1)].set(jnp.arange(MEMBERS * L, dtype=jnp.int32), mode="drop")
    ends = jnp.cumsum(jnp.append(length, 1)[rows], axis=0, dtype=jnp.int32)
    longest = ends[-1].max()

    def of_steps(length, entered, rows, own, where, ends):
        S = -(-MEMBERS * T // BLOCK) * BLOCK
        steps = jnp.arange(S, dtype=jnp.int32)[:, None]
        lengths = jnp.append(length, 1)[rows]
        starts = ends - lengths
        begins = [steps == starts[m] for m in range(1, MEMBERS)]
        member = jnp.zeros((S, L), jnp.int32)
        for m in range(1, MEMBERS):
            member += (steps >= starts[m]).astype(jnp.int32)
        row, start, steps_of_row, entry, there = (
            jnp.broadcast_to(of_member(a, member), (S, L)) for a in (own, starts, lengths, entered[own], rows < B)
        )
        within = steps - start
        taken = (within < steps_of_row) & there
        step = jnp.where(taken, within, 0)
        t = entry - step if reverse else entry + step
        source = t * B + row

        after = entered[None] - times if reverse else times - entered[None]
        begin = starts.reshape(-1)[where][None]
        none = jnp.argmin(taken.reshape(-1)).astype(jnp.int32)
        place = jnp.where((after >= 0) & (after < length[None]), (begin + after) * L + (where % L)[None], none)
        return source, ~there, taken, place, member, begins

    def nothing(*arrays):
        made = jax.tree.map(lambda kind: jnp.zeros(kind.shape, kind.dtype), jax.eval_shape(of_steps, *arrays))
        return vary_alike(made, arrays)[0]

    # A condition that always holds: XLA would compute what it sees again at each use, for each number that is moved.
    arrays = (length, entered, rows, own, where, ends)
    source, spare, taken, place, member, begins = jax.lax.cond(longest > 0, of_steps, nothing, *arrays)
    return Packing(source, spare, taken, place, member, begins, own, where, longest)


def of_member(values: Sequence[PyTree] | jax.Array, member: jax.Array) -> PyTree:
    """The value of the sequence that each lane is in, from the values of each lane's first, second …"""
    chosen = values[0]
    for m in range(1, len(values)):
        chosen = select(member == m, values[m], chosen)
    return chosen


def _moved(a: Any, to: jax.Array, back: jax.Array) -> Any:
    """``a``, whose first axes are those of ``back``, with what stands at each place that ``to`` names.

    ``back`` names the places the other way: the gradient is a gather as well, where that of ``jnp.take`` scatters.
    Where ``to`` names a place that does not name it back, nothing that is read depends on what comes.
    """
    return moved_p.bind(a, to, back)


def _take(a: Any, to: Any, back: Any) -> Any:
    return a.reshape(back.size, *a.shape[back.ndim :]).at[to].get(mode="promise_in_bounds")


def _jvp(primals, tangents):
    (a, to, back), d_a = primals, tangents[0]
    made = moved_p.bind(a, to, back)
    if isinstance(d_a, ad.Zero):
        return made, ad.Zero(jax.typeof(made).to_tangent_aval())
    return made, moved_p.bind(d_a, to, back)


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
