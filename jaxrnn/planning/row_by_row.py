"""Products of a few rows, done row by row by a loop inside the kernel of a step.

XLA may give a product of several rows to a library, which a kernel cannot hold. Written out, the product of each row is
code of its own, and the compiler takes two to three times as long; a loop has it once. One loop does all products that
do not wait for one another, and the sums of them, so that a row's terms stay in registers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.programs.primitives import SUM, has
from jaxrnn.programs.program import Op, Program, evaluate


def row_by_row(program: Program, sides: Mapping[int, int]) -> Program:
    """The program with these products done row by row.

    Args:
        sides: of each product, by its output, which of its operands has the rows; the other is a matrix.
    """
    levels: dict[int, int] = {}  # of each value, how many of the products stand one behind the other before it

    def place(op: Op) -> tuple[int, ...]:
        """Where in the order the operation stands; products in one place share a loop."""
        level = max((levels.get(n, 0) for n in op.inputs), default=0)
        side = next((sides[n] for n in op.outputs if n in sides), None)
        levels.update(dict.fromkeys(op.outputs, level if side is None else level + 1))
        if side is None:
            return (level, 0)
        axis = 1 - op.params["dimension_numbers"][0][side][0]
        return (level, 1, side, axis, program.kinds[op.inputs[side]].shape[axis])

    loops: dict[tuple[int, ...], list[Op]] = {}
    for op in program.ops:
        loops.setdefault(place(op), []).append(op)
    fixed, done = program.fixed(), dict[int, Op]()  # by the identity of operations that a loop does
    ops: list[Op] = []
    for at in sorted(loops):
        if at[1] == 0:
            ops += [op for op in loops[at] if id(op) not in done]
            continue
        members, (side, axis, _) = loops[at], at[2:]
        for op in loops.get((at[0] + 1, 0), ()):
            if _is_sum_of(program, op, members, fixed, side):
                members.append(op)
        done |= {id(op): op for op in members}
        made = {n for op in members for n in op.outputs}
        used = {n for op in program.ops if id(op) not in done for n in op.inputs}.union(program.outputs)
        ops.append(_loop(members, sorted(made & used), side, axis))
    return program._replace(ops=ops)


def _is_sum_of(program: Program, op: Op, members: Sequence[Op], fixed: set[int], side: int) -> bool:
    """Whether the operation adds to what the members make more of it, or a constant that has one row."""

    def is_one_row(n: int) -> bool:
        shape = program.kinds[n].shape
        return n in fixed and len(shape) == 2 and shape[side] == 1

    made = {n for member in members for n in member.outputs}
    return has(op.name, SUM) and not made.isdisjoint(op.inputs) and all(n in made or is_one_row(n) for n in op.inputs)


def _loop(members: Sequence[Op], outputs: Sequence[int], side: int, axis: int) -> Op:
    """The members, in a loop over the ``axis`` of the products' operands on the ``side``: that axis of what is made."""
    made = {n for op in members for n in op.outputs}
    with_rows = list(dict.fromkeys(op.inputs[side] for op in members if op.name == "dot_general"))
    inputs = [*with_rows, *dict.fromkeys(n for op in members for n in op.inputs if n not in {*made, *with_rows})]

    def run(*operands: Any) -> list[Any]:
        rows = [jnp.moveaxis(a, axis, 0) for a in operands[: len(with_rows)]]
        whole = dict(zip(inputs[len(with_rows) :], operands[len(with_rows) :], strict=True))

        def of_row(rows: Sequence[Any]) -> list[Any]:
            known = whole | {n: jnp.expand_dims(a, axis) for n, a in zip(with_rows, rows, strict=True)}
            return [jnp.squeeze(a, side) for a in evaluate(members, known, outputs)]

        return [jnp.moveaxis(a, 0, side) for a in jax.lax.map(of_row, rows)]

    return Op("row_by_row", run, tuple(inputs), tuple(outputs))
