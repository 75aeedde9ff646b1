"""Pieces that are added to pieces, joined: one array of them enters the loop in place of several.

The tangent of a GRU adds pieces of ``∂x @ W + x @ ∂W``, for two of its gates, to pieces of ``∂h @ U + h @ ∂U``. What
does not need ∂h leaves the loop, and would enter it as the whole ``h @ ∂U`` and as each piece of the other. Added to
the whole before it is split, the pieces enter with it. Transposed, the backward loop stacks each cotangent once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import is_narrow
from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.programs.primitives import CHEAP, MOVABLE, SUM, has
from jaxrnn.programs.program import Op, Program, Rewriting, reached_from


def join_pieces(step: PlannedStep) -> PlannedStep:
    """The tangent with pieces that leave the loop added to the whole that meets them there.

    On one CPU device: elsewhere ``split_sums`` takes sums apart. Measured on two cores (AMD EPYC), idle, training step
    / that of a plain scan, contracted for all steps, joined and not: GRU (B, T, I, H) = (256, 64, 64, 64) 0.89, 1.03;
    (512, 20, 32, 32) 0.89, 0.96; (32, 128, 128, 128) 0.73, 0.72; with reset="after" 0.95, 1.01; 0.86, 0.92; 0.77, 0.77.
    Temporaries there 0.91, 1.10; with reset="after" 1.01, 1.19.

    Loops that are one kernel, joined and taken apart, time, temporaries and seconds to compile: GRU (1, 1000, 64, 64)
    0.17, 0.17, 0.91, 1.00, 0.44, 0.58; (8, 1000, 2, 16) 0.36, 0.37, 1.09, 0.91, 0.62, 0.70; (4, 500, 16, 16) 0.26,
    0.22, 1.09, 0.92, 0.53, 0.51; with reset="after" 0.45, 0.47, 0.93, 1.20, 0.34, 0.52; 0.39, 0.37, 1.00, 0.92, 0.52,
    0.71; 0.27, 0.27, 1.00, 1.01, 0.46, 0.63.
    """
    if step.tangent is None or _rules.splits_sums():
        return step
    loop = step.tangent
    while (meeting := _meeting(loop)) is not None:
        loop = loop._replace(program=_joined(loop, meeting))
    return step._replace(tangent=loop)


class Meeting(NamedTuple):
    """Neighbouring pieces of a whole in the loop, to each of which one of as many neighbours from outside is added."""

    total: Op  # the whole, a sum of what needs the carry and what may leave
    split: Op  # of the whole
    outer: Op  # the split of what comes from outside
    sums: list[Op]  # of one piece each
    at: tuple[int, int]  # the place of the first of them, among the pieces of either split


def _meeting(loop: LoopProgram) -> Meeting | None:
    """One of the program's, of as many pieces as there are; None where there is none."""
    program = loop.program
    carried = reached_from(program.ops, loop.carry)
    able = _may_leave(program, loop.x)
    makers = {n: op for op in program.ops for n in op.outputs}
    users = {n: op for op in program.ops for n in op.inputs}
    uses = Counter(n for op in program.ops for n in op.inputs)
    uses.update(program.outputs)

    def from_outside(piece: int, axis: int) -> tuple[Op, Op, int] | None:
        """The sum that this piece enters, and the split, along the same axis, of what is added to it, and the place of
        that among its pieces."""
        op = users.get(piece)
        if uses[piece] != 1 or op is None or not has(op.name, SUM) or len(op.inputs) != 2:
            return None
        (added,) = [n for n in op.inputs if n != piece] or [piece]
        outer = makers.get(added)
        if outer is None or outer.name != "split" or outer.params["axis"] != axis:
            return None
        fits = added in able and uses[added] == 1 and program.kinds[added] == program.kinds[piece]
        return (op, outer, outer.outputs.index(added)) if fits else None

    for split in program.ops:
        total = makers.get(split.inputs[0]) if split.name == "split" else None
        if total is None or not has(total.name, SUM) or len(total.inputs) != 2 or uses[total.outputs[0]] != 1:
            continue
        kind = program.kinds[total.outputs[0]]
        if is_narrow(kind) or any(program.kinds[n] != kind for n in total.inputs):
            continue
        if len(carried.intersection(total.inputs)) != 1 or len(able.intersection(total.inputs)) != 1:
            continue
        found = [from_outside(piece, split.params["axis"]) for piece in split.outputs]
        for first, start in enumerate(found):
            if start is not None:
                _, outer, at = start
                sums = []
                for i, met in enumerate(found[first:]):
                    if met is None or met[1:] != (outer, at + i):
                        break
                    sums.append(met[0])
                return Meeting(total, split, outer, sums, (first, at))
    return None


def _may_leave(program: Program, given: Sequence[int]) -> set[int]:
    """The values that are made of what is given at each step, but of no carry, by what may be done for all steps."""
    varying, able = reached_from(program.ops, program.inputs), set(given)
    for op in program.ops:
        needs = varying.intersection(op.inputs)
        if needs and needs <= able and has(op.name, CHEAP | MOVABLE):
            able.update(op.outputs)
    return able


def _joined(loop: LoopProgram, meeting: Meeting) -> Program:
    """The program with what the pieces are joined to split after it; what needs no carry comes first."""
    program, n = loop.program, len(meeting.sums)
    total, split, outer, (first, at) = meeting.total, meeting.split, meeting.outer, meeting.at
    carried = reached_from(program.ops, loop.carry)
    kind = program.kinds[total.outputs[0]]
    axis, sizes, of_outer = split.params["axis"], split.params["sizes"], outer.params["sizes"]
    wider = (*of_outer[:at], sum(of_outer[at : at + n]), *of_outer[at + n :])
    around = [(sum(sizes[:first]), sum(sizes[first + n :]), 0) if i == axis else (0, 0, 0) for i in range(kind.ndim)]

    def add(whole: Any, pieces: Any) -> list[Any]:
        return [whole + jax.lax.pad(pieces, jnp.zeros((), pieces.dtype), around)]

    rewriting = Rewriting(program)
    renumbered: dict[int, int] = {}
    for op in sorted(program.ops, key=lambda op: not carried.isdisjoint(op.outputs)):
        if op is outer:
            kinds = [_resized(program.kinds[outer.inputs[0]], axis, size) for size in wider]
            run = lambda a: jax.lax.split(a, wider, axis)
            made = rewriting.add("split", run, outer.inputs, kinds, {"axis": axis, "sizes": wider})
            pieces = made.pop(at)
            renumbered = dict(zip((*outer.outputs[:at], *outer.outputs[at + n :]), made, strict=True))
        elif op is total:
            (whole,), (inside,) = ([n for n in op.inputs if (n in carried) == within] for within in (False, True))
            (entering,) = rewriting.add("add_pieces", add, (renumbered.get(whole, whole), pieces), [kind])
            rewriting.ops.append(op._replace(inputs=(inside, entering)))
        elif op is split:
            outputs = list(op.outputs)
            outputs[first : first + n] = [made.outputs[0] for made in meeting.sums]
            rewriting.ops.append(op._replace(outputs=tuple(outputs)))
        elif not any(op is of_piece for of_piece in meeting.sums):
            rewriting.ops.append(op._replace(inputs=tuple(renumbered.get(n, n) for n in op.inputs)))
    return rewriting.done()._replace(outputs=[renumbered.get(n, n) for n in program.outputs])


def _resized(kind: Any, axis: int, size: int) -> Any:
    return kind.update(shape=(*kind.shape[:axis], size, *kind.shape[axis + 1 :]))
