"""One product for all that share an operand: ``h @ W_i``, ``h @ W_f`` … become ``h @ [W_i, W_f, …]``, then a split.

The textbook form of a gated cell has a small product for each gate and operand. A single wide one keeps the processor
busier, and its gradient is a single contraction. Sums move through the split: where every gate adds the same
piece of another product, or a bias, the whole is added before it is split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import PlannedStep
from jaxrnn.programs.primitives import SUM, has
from jaxrnn.programs.program import Op, Program, Rewriting


def fuse(step: PlannedStep) -> PlannedStep:
    """The primal with shared operands multiplied once, and sums done before the splits of their terms."""
    if step.plan.fuse is False:
        return step
    program, fused = _fuse_products(step)
    while fused and (lifted := _sum_before_split(program)) is not None:
        program = lifted
    return step._replace(primal=step.primal._replace(program=program)).noting(fused=fused)


def _fuse_products(step: PlannedStep) -> tuple[Program, list[str]]:
    """The program with shared operands multiplied once, if it pays; by shape, which weights were put together."""
    program = step.primal.program
    fixed = program.fixed()
    constant_ops = [op for op in program.ops if fixed.issuperset(op.outputs)]
    varying_ops = [op for op in program.ops if not fixed.issuperset(op.outputs)]

    groups: dict[Any, dict[int, Op]] = {}  # of the products that may be one, by their weights
    for op in varying_ops:
        if key := _sharing(op, program, fixed):
            groups.setdefault(key, {}).setdefault(op.inputs[key[0]], op)
    groups = {key: members for key, members in groups.items() if len(members) > 1}
    products = [(key[0], op) for key, members in groups.items() for op in members.values()]
    weights = sum(program.size(op.inputs[side]) for side, op in products)
    outputs = sum(program.size(op.outputs[0]) for _, op in products)
    gradient = step.active is not None
    if not groups or not _rules.fuses(step.plan, weights, outputs, steps=step.steps, gradient=gradient):
        return program, []

    group_of = {op.outputs[0]: key for key, members in groups.items() for op in members.values()}
    fused = Rewriting(program._replace(ops=[]))
    fused.ops = list(constant_ops)
    for op in varying_ops:
        key = group_of.get(op.outputs[0]) if op.outputs else None
        if key is None:
            fused.ops.append(op)
        elif op is next(iter(groups[key].values())):
            _multiply_once(fused, list(groups[key].values()), side=key[0])
    program = fused.done()
    return program, [f"{len(members)} of {program.kinds[key[1]].shape}" for key, members in groups.items()]


def _sharing(op: Op, program: Program, fixed: set[int]) -> tuple[int, Any, Any] | None:
    """What products must have in common to be one: the side of the weight, the other operand, the axes and dtypes."""
    if op.name != "dot_general":
        return None
    contracting, batch = op.params["dimension_numbers"]
    for side in (0, 1):
        W = program.kinds[op.inputs[side]]
        if (
            op.inputs[side] in fixed
            and op.inputs[1 - side] not in fixed
            and W.ndim == 2
            and len(contracting[side]) == 1
        ):
            if any(batch) or any(W.sharding.spec):
                return None
            options = tuple((name, str(value)) for name, value in sorted(op.params.items()))
            return side, op.inputs[1 - side], (W.dtype, *options)
    return None


def _multiply_once(fused: Rewriting, members: Sequence[Op], side: int) -> None:
    """All products of a group, where the first of them stood."""
    kinds, first = fused.kinds, members[0]
    free = 1 - first.params["dimension_numbers"][0][side][0]  # the axis of the weights that is not contracted
    weights = [op.inputs[side] for op in members]
    sizes = [kinds[W].shape[free] for W in weights]
    wide = list(kinds[weights[0]].shape)
    wide[free] = sum(sizes)
    kind = kinds[weights[0]].update(shape=tuple(wide))
    (W,) = fused.add("concatenate", lambda *Ws: [jnp.concatenate(Ws, free)], weights, [kind])

    out = kinds[first.outputs[0]]
    axis = out.ndim - 1 if side == 1 else 0
    shape = list(out.shape)
    shape[axis] = sum(sizes)
    inputs = list(first.inputs)
    inputs[side] = W
    (total,) = fused.add(first.name, first.run, inputs, [out.update(shape=tuple(shape))], first.params)
    fused.ops.append(_split(total, tuple(op.outputs[0] for op in members), sizes, axis))


def _split(total: int, pieces: tuple[int, ...], sizes: Sequence[int], axis: int) -> Op:
    sizes = tuple(sizes)
    return Op("split", lambda a: jax.lax.split(a, sizes, axis), (total,), pieces, {"sizes": sizes, "axis": axis})


def _sum_before_split(program: Program) -> Program | None:
    """The program with one more sum done before the split of its terms, or None where there is none."""
    uses = Counter(ref for op in program.ops for ref in op.inputs)
    uses.update(program.outputs)
    fixed = program.fixed()
    makers = {n: op for op in program.ops for n in op.outputs}
    adds = {ref: op for op in program.ops if has(op.name, SUM) and len(op.inputs) == 2 for ref in op.inputs}

    for split in program.ops:
        if split.name != "split" or not all(uses[p] == 1 and p in adds for p in split.outputs):
            continue
        sums = [adds[p] for p in split.outputs]
        others = [
            op.inputs[0] if op.inputs[1] == p else op.inputs[1] for op, p in zip(sums, split.outputs, strict=True)
        ]
        if len({op.outputs[0] for op in sums}) < len(sums):
            continue
        twin = makers.get(others[0])
        if twin is not None and twin.outputs == tuple(others) and twin.name == "split" and twin is not split:
            same = twin.params == split.params and program.kinds[twin.inputs[0]] == program.kinds[split.inputs[0]]
            if not same or any(uses[ref] != 1 for ref in others):
                continue
        elif not (fixed.issuperset(others) and _line_up(program, split, others)):
            continue
        return _lift(program, split, sums, others, twin if others[0] not in fixed else None)
    return None


def _line_up(program: Program, split: Op, others: Sequence[int]) -> bool:
    """Whether constants added to the pieces can be put together as the pieces are."""
    axis, sizes = split.params["axis"], split.params["sizes"]
    kinds = [program.kinds[ref] for ref in others]
    ndim = program.kinds[split.inputs[0]].ndim
    if any(kind.ndim != ndim or kind.dtype != program.kinds[split.inputs[0]].dtype for kind in kinds):
        return False
    rest = {kind.shape[:axis] + kind.shape[axis + 1 :] for kind in kinds}
    return len(rest) == 1 and all(kind.shape[axis] == size for kind, size in zip(kinds, sizes, strict=True))


def _lift(program: Program, split: Op, sums: Sequence[Op], others: Sequence[int], twin: Op | None) -> Program:
    total_kind, axis = program.kinds[split.inputs[0]], split.params["axis"]
    gone = {id(op) for op in (split, twin, *sums)}
    first = min(sums, key=program.ops.index)
    lifted = Rewriting(program._replace(ops=[]))
    for op in program.ops:
        if op is first:
            if twin is None:
                shape = list(program.kinds[others[0]].shape)
                shape[axis] = sum(split.params["sizes"])
                kind = program.kinds[others[0]].update(shape=tuple(shape))
                (other,) = lifted.add("concatenate", lambda *terms: [jnp.concatenate(terms, axis)], others, [kind])
            else:
                (other,) = twin.inputs
            (total,) = lifted.add("add", lambda a, b: [jnp.add(a, b)], (split.inputs[0], other), [total_kind])
            lifted.ops.append(_split(total, tuple(op.outputs[0] for op in sums), split.params["sizes"], axis))
        elif id(op) not in gone:
            lifted.ops.append(op)
    return lifted.done()
