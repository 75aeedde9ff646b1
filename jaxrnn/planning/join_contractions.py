"""One contraction for what meets in a sum: ``x @ ∂W + h @ ∂U + ∂b`` becomes ``[x, h, 1] @ [∂W; ∂U; ∂b]``.

Transposed, the gradients of the weights and of the bias are one product, ``[x, h, 1]ᵀ d``. The cotangents d are read
once, and none is summed over rows beside it, which takes XLA as long on a CPU as a product with few features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrnn._base import is_narrow
from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.programs.primitives import SUM, has
from jaxrnn.programs.program import Op, Rewriting, add_up, needed_for, reached_from


def join_contractions(step: PlannedStep) -> PlannedStep:
    """The tangent with tangents of weights and biases that meet in a sum as one matrix, where the rules say so."""
    if step.tangent is None or step.plan.fuse is False:
        return step
    program = step.tangent.program
    loop = step.tangent._replace(program=program._replace(ops=needed_for(program.ops, program.outputs)))
    sums, rewriting, outside, names = _Sums(loop), Rewriting(loop.program), set(loop.outside), {}
    for op in loop.program.ops:
        in_loop = outside.isdisjoint(op.outputs)
        meeting = None if in_loop and step.plan.one_kernel else sums.meeting(op, in_loop=in_loop)
        if meeting is None:
            rewriting.ops.append(op)
            continue
        made = _multiply_once(rewriting, op, meeting)
        names[made[-1]] = " + ".join(
            [*(loop.program.product(of) for of in meeting.products), *["bias"] * bool(meeting.rows)]
        )
        rewriting.ops.append(Op("sum", add_up, (*meeting.rest, made[-1]), op.outputs))
        outside.update(() if in_loop else made)
    program = rewriting.done()
    program = program._replace(ops=needed_for(program.ops, program.outputs))  # a sum within a sum was joined as well
    left = {n for op in program.ops for n in op.outputs}
    loop = loop._replace(program=program, outside=frozenset(outside))
    return step._replace(tangent=loop).noting(contracted_as_one=[name for n, name in names.items() if n in left])


class Meeting(NamedTuple):
    """What a sum adds up: products ``x @ ∂W``, tangents of biases as rows, and the rest."""

    products: list[Op]
    rows: list[int]
    rest: list[int]


class _Sums:
    """The sums of a tangent loop."""

    def __init__(self, loop: LoopProgram):
        self.program, self.kinds, self.outside = loop.program, loop.program.kinds, loop.outside
        self.in_parts = loop.segment > 0
        self.fixed = self.program.fixed()
        self.tangents = self.fixed & reached_from(self.program.ops, loop.d_consts)
        self.makers = {n: op for op in self.program.ops for n in op.outputs}
        self.uses = Counter([*self.program.outputs, *(n for op in self.program.ops for n in op.inputs)])

    def meeting(self, total: Op, *, in_loop: bool) -> Meeting | None:
        """What meets in a sum, and in sums that serve it alone, in the loop or outside; None: nothing to join."""
        if not self._adds_alike(total):
            return None

        def of_sum(n: int) -> Op | None:
            """What makes a value for this sum alone, on the same side."""
            return self.makers.get(n) if self.uses[n] == 1 and (n in self.outside) != in_loop else None

        def terms(op: Op) -> Iterator[int]:
            for n in op.inputs:
                inner = of_sum(n)
                yield from terms(inner) if inner and self._adds_alike(inner) else [n]

        found = [*terms(total)]
        makers = [maker for n in found if (maker := of_sum(n)) and self._is_by_tangent(maker)]
        able = sorted((op for op in makers if str(op.params) == str(makers[0].params)), key=self._features)
        products = able[: self._how_many(able, in_loop=in_loop)]
        rows = {n: row for n in found if n in self.tangents and (row := self._row(n)) is not None}
        if not products or len(products) + len(rows) < 2:
            return None
        joined = {*rows, *(op.outputs[0] for op in products)}
        return Meeting(products, [*rows.values()], [n for n in found if n not in joined])

    def _adds_alike(self, op: Op) -> bool:
        """Whether it is a sum of rows of one kind."""
        if not (op.name == "sum" or has(op.name, SUM)):
            return False
        kind, *others = (self.kinds[n] for n in (*op.outputs, *op.inputs))
        numbers = kind.ndim > 0 and isinstance(kind.shape[-1], int)
        return numbers and not is_narrow(kind) and not any(kind.sharding.spec) and all(k == kind for k in others)

    def _features(self, op: Op) -> int:
        return self.kinds[op.inputs[0]].shape[-1]

    def _how_many(self, products: list[Op], *, in_loop: bool) -> int:
        if not products:
            return 0
        features, outputs = [*map(self._features, products)], self.kinds[products[0].outputs[0]].shape[-1]
        return _rules.contracts_as_one(features, outputs, in_loop=in_loop, in_parts=self.in_parts)

    def _is_by_tangent(self, op: Op) -> bool:
        """Whether it is ``x @ ∂W``, of rows that no tangent enters and a matrix."""
        if op.name != "dot_general" or op.inputs[0] in self.fixed or op.inputs[1] not in self.tangents:
            return False
        x, W, out = (self.kinds[n] for n in (*op.inputs, *op.outputs))
        contracting, batch = op.params["dimension_numbers"]
        if tuple(contracting[0]) != (x.ndim - 1,) or W.ndim != 2 or any(batch) or not x.dtype == W.dtype == out.dtype:
            return False
        return isinstance(x.shape[-1], int) and not any(x.sharding.spec) and not any(W.sharding.spec)

    def _row(self, n: int) -> int | None:
        """The row of which all rows of a value are copies; None where it is not known to be such."""
        maker = self.makers.get(n)
        of_row = (*(1 for _ in self.kinds[n].shape[:-1]), self.kinds[n].shape[-1])
        for row in (n, *(maker.inputs if maker is not None and maker.name == "broadcast_in_dim" else ())):
            if self.kinds[row].shape == of_row:
                return row
        return None


def _multiply_once(rewriting: Rewriting, total: Op, meeting: Meeting) -> list[int]:
    """``[x, h, 1] @ [∂W; ∂U; ∂b]``: the numbers of what is made on the way, the product's last."""
    kinds, (first, *_) = rewriting.kinds, meeting.products
    kind, params, has_ones = kinds[total.outputs[0]], first.params, bool(meeting.rows)
    xs, Ws = ([op.inputs[side] for op in meeting.products] for side in (0, 1))
    features = sum(kinds[n].shape[-1] for n in xs) + has_ones
    (axis,) = params["dimension_numbers"][0][1]
    shape = [kind.shape[-1], kind.shape[-1]]
    shape[axis] = features

    def beside(*xs: Any) -> list[Any]:
        ones = [jnp.ones((*xs[0].shape[:-1], 1), xs[0].dtype)] * has_ones
        return [jnp.concatenate([*xs, *ones], -1)]

    def below(*arrays: Any) -> list[Any]:
        Ws, rows = arrays[: len(xs)], arrays[len(xs) :]
        row = [jnp.expand_dims(sum(row.reshape(-1) for row in rows), axis)] * has_ones
        return [jnp.concatenate([*Ws, *row], axis)]

    x = rewriting.add("concatenate", beside, xs, [kinds[xs[0]].update(shape=(*kind.shape[:-1], features))])
    W = rewriting.add("concatenate", below, [*Ws, *meeting.rows], [kinds[Ws[0]].update(shape=tuple(shape))])
    return [*x, *rewriting.add("dot_general", first.run, [*x, *W], [kind], params)]
