"""Sums of the tangent that are split into pieces: split first, then added, piece by piece.

The GRU adds pieces of ``h @ W`` to pieces of ``x @ W``. Split first, the terms that leave the loop meet in one sum for
each piece, and only these sums enter it. Products that leave are split by their weights, which are copied; what comes
of them is split where that is less.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.programs.primitives import SUM, has
from jaxrnn.programs.program import Op, Program, Rewriting, reached_from


def split_sums(step: PlannedStep) -> PlannedStep:
    """The tangent with its splits done before the sums that are split, where the pieces enter sums of their own.

    Not on one CPU device (``_rules.splits_sums``), where ``join_pieces`` puts out less.
    """
    if step.tangent is None or not _rules.splits_sums():
        return step
    return step._replace(tangent=step.tangent._replace(program=_split_first(step.tangent, step.steps)))


def _split_first(loop: LoopProgram, steps: int | None) -> Program:
    """Products that leave are split by their weights where these are fewer than the outputs of so many steps."""
    program = loop.program
    carried = reached_from(program.ops, loop.carry)
    varying, fixed = reached_from(program.ops, program.inputs), program.fixed()
    makers = {n: op for op in program.ops for n in op.outputs}
    uses = Counter(n for op in program.ops for n in op.inputs)
    uses.update(program.outputs)
    meeting = _added_to_products(program, carried, varying, makers)
    done = Rewriting(program)
    renumbered: dict[int, int] = {}  # the pieces, by the numbers that they had before

    def pieces(n: int, split: Op) -> list[int]:
        """The numbers of the pieces of a value, made by new operations."""
        maker, kind = makers.get(n), program.kinds[n]
        axis, sizes = split.params["axis"], split.params["sizes"]
        kinds = [kind.update(shape=(*kind.shape[:axis], size, *kind.shape[axis + 1 :])) for size in sizes]
        shapes = {program.kinds[term].shape for term in maker.inputs} if maker else set()
        if maker and has(maker.name, SUM) and len(maker.inputs) == 2 and uses[n] == 1 and shapes == {kind.shape}:
            a, b = (pieces(term, split) for term in maker.inputs)
            return [done.add("add", lambda a, b: [a + b], pair, [k])[0] for *pair, k in zip(a, b, kinds, strict=True)]
        if maker is not None and maker.name == "dot_general" and n not in carried and axis == kind.ndim - 1:
            x, W = (renumbered.get(n, n) for n in maker.inputs)
            (contracting, batch), of_weight = maker.params["dimension_numbers"], done.kinds[W]
            is_matrix = of_weight.ndim == 2 and len(contracting[1]) == 1 and not any(batch)
            few = steps is None or program.size(maker.inputs[1]) <= steps * program.size(n)
            if maker.inputs[1] in fixed and is_matrix and few:
                free = 1 - contracting[1][0]
                K = of_weight.shape[1 - free]
                parts_of = [of_weight.update(shape=(K, size) if free else (size, K)) for size in sizes]
                parts = done.add("split", _splitter(sizes, free), (W,), parts_of, {"axis": free, "sizes": sizes})
                return [
                    done.add(maker.name, maker.run, (x, w), [k], maker.params)[0]
                    for w, k in zip(parts, kinds, strict=True)
                ]
        return done.add("split", split.run, (renumbered.get(n, n),), kinds, split.params)

    for op in program.ops:
        if op.name == "split" and op.inputs[0] in varying and meeting.intersection(op.outputs):
            renumbered |= zip(op.outputs, pieces(op.inputs[0], op), strict=True)
        else:
            done.ops.append(op._replace(inputs=tuple(renumbered.get(n, n) for n in op.inputs)))
    return done.done()._replace(outputs=[renumbered.get(n, n) for n in program.outputs])


def _added_to_products(program: Program, carried: set[int], varying: set[int], makers: dict[int, Op]) -> set[int]:
    """The values that are added to products which may leave the loop, or to sums or pieces of these."""

    @functools.cache
    def holds_product(n: int) -> bool:
        maker = makers.get(n)
        if n not in varying or maker is None:
            return False
        if has(maker.name, SUM) or maker.name == "split":
            return any(map(holds_product, maker.inputs))
        return maker.name == "dot_general" and n not in carried

    found: set[int] = set()
    for op in program.ops:
        if has(op.name, SUM) and len(op.inputs) == 2:
            found.update(a for a, b in (op.inputs, op.inputs[::-1]) if holds_product(b))
    return found


def _splitter(sizes: Sequence[int], axis: int) -> Callable[[Any], Sequence[Any]]:
    return lambda a: jax.lax.split(a, tuple(sizes), axis)
