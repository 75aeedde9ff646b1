"""Hoisting: what does not depend on the carry is done for all steps at once, where that pays.

Of the primal these are products such as ``x @ W``, done before the loop. Of the tangent they are products such as
``h_{t-1} @ ∂W`` with saved values: done before the tangent loop they are, transposed, the contractions after the
backward loop that give the gradients of the weights.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence

from jaxrnn._base import is_narrow
from jaxrnn.instruments.norms import by_rows, norm_of_product_p
from jaxrnn.planning import _rules
from jaxrnn.planning.one_kernel import is_small
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.planning.save import smallest_to_save
from jaxrnn.programs.primitives import CHEAP, MOVABLE, PRODUCT, SUM, VIEW, has
from jaxrnn.programs.program import Op, Program, Rewriting, add_up, needed_for, reached_from

NORM = norm_of_product_p.name


def hoist(step: PlannedStep) -> PlannedStep:
    """The step with products outside the loops of both programs, where the plan or its rules say so."""
    pays = functools.partial(_rules.hoists, step.plan)
    primal, hoisted, _ = _hoist(step.primal, pays, in_kernel=bool(step.plan.one_kernel))
    step = step._replace(primal=primal).noting(hoisted=hoisted)
    if step.tangent is None:
        return step
    of_tangent = functools.partial(_hoist, step.tangent, products_alone=_rules.keeps_elementwise_in_loop())
    tangent, contracted, added = of_tangent(lambda weights, outputs: True)
    carried = sum(map(step.primal.program.size, step.primal.carry))
    size = _rules.steps_of_a_contraction(step.plan, _cotangents(tangent), steps=step.steps, carried=carried)
    if size == 0:
        tangent, contracted, added = of_tangent(lambda weights, outputs: False)
    if size:
        tangent = tangent._replace(segment=size)
        contracted, in_parts = [], [f"{name}, {size} steps at once" for name in contracted]
        step = step.noting(contracted_in_parts=in_parts)
    return step._replace(tangent=tangent).noting(contracted=contracted, added_in_loop=added)


def _cotangents(loop: LoopProgram) -> list[tuple[int, int]]:
    """The cotangents that products outside the tangent loop wait for: the most weights of one, and its own size.

    Products that meet in a sum, or in sums of their pieces, share one, as large as the largest of them.
    """
    program = loop.program
    of: dict[int, int] = {}  # a value that shares its cotangent, towards the one that stands for all

    def first(n: int) -> int:
        while n in of:
            n = of[n]
        return n

    linear = reached_from(program.ops, [*loop.d_consts, *program.inputs])
    for op in program.ops:
        if has(op.name, SUM | VIEW) or op.name == "sum":
            sharing = [*dict.fromkeys(first(n) for n in (*op.inputs, *op.outputs) if n in linear)]
            of.update(dict.fromkeys(sharing[1:], sharing[0]) if sharing else {})
    found: dict[int, tuple[int, int]] = {}
    for op in program.ops:
        if has(op.name, PRODUCT) and loop.outside.issuperset(op.outputs):
            weights, size = found.get(first(op.outputs[0]), (0, 0))
            of_op = sum(program.size(n) for n in op.inputs) - program.size(op.inputs[0])
            found[first(op.outputs[0])] = max(weights, of_op), max(size, program.size(op.outputs[0]))
    return [*found.values()]


def in_blocks(step: PlannedStep) -> PlannedStep:
    """The step, where no gradient is asked for, with what leaves the loop of few rows computed block by block.

    For all steps at once it would be all that the run holds, and more than its outputs.
    """
    loop = step.primal
    made = {n for op in loop.program.ops for n in op.outputs if n in loop.outside}
    if step.active is not None or not made.isdisjoint(loop.program.outputs):
        return step
    ready = sum(map(loop.program.size, loop.parts().ready))
    return step._replace(primal=loop._replace(block=_rules.steps_of_a_block(ready) if ready else 0))


def _hoist(
    loop: LoopProgram,
    pays: Callable[[int, int], bool],
    *,
    in_kernel: bool = False,
    products_alone: bool = False,
) -> tuple[LoopProgram, list[str], list[str]]:
    """The loop with its sums regrouped and what leaves it told; by name, the products that leave, those that stay.

    A value leaves the loop where it does not depend on the carry and holds a product that pays, by ``pays(weights,
    outputs)``, both in elements. The other terms of the sum that it enters leave with it, so that one array per sum
    enters the loop; but in a kernel a sum costs nothing, while outside it is an array more and a hand-over more.
    With ``products_alone`` what is neither product, sum nor view leaves only where less enters the loop with it.
    """
    program, narrow = loop.program, loop.narrow()
    varying = reached_from(program.ops, program.inputs)
    able = set(loop.x)  # may leave
    outside: set[int] = set()  # may leave, and holds a product that pays
    left: list[str] = []
    stayed: list[str] = []
    for op in program.ops:
        needs = [n for n in op.inputs if n in varying]
        if not needs or not able.issuperset(needs):
            continue
        # The sum over time of a narrow constant's gradient is kept wide in the loop alone, but for a product's own sum.
        stalls = not has(op.name, PRODUCT) and not narrow.isdisjoint(op.inputs)
        if not has(op.name, CHEAP | MOVABLE) or stalls or _outgrows(program, op, needs):
            continue
        able.update(op.outputs)
        if has(op.name, PRODUCT):
            weights = sum(program.size(n) for n in op.inputs if n not in varying)
            if pays(weights, program.size(op.outputs[0])):
                left.append(program.product(op))
                outside.update(op.outputs)
            else:
                stayed.append(program.product(op))
        elif op.name == NORM:
            (R, K), O = program.kinds[op.inputs[0]].shape, op.params["units"]
            if pays(K * O, R * O) or by_rows(R, K, O):
                outside.update(op.outputs)
        if outside.intersection(needs):
            outside.update(op.outputs)
    if products_alone and outside:
        outside = _without_elementwise(program, outside, loop.x)
    if in_kernel:
        outside = _without_last_sums(program, outside)
        able = outside
    else:
        able |= program.fixed()
    if outside:
        program, sums = _regrouped(loop, able, outside)
        outside |= sums
    return loop._replace(program=program, outside=frozenset(outside)), left, stayed


def _without_elementwise(program: Program, outside: set[int], given: Sequence[int]) -> set[int]:
    """What leaves the loop, where operations that are cheap follow products inside it, as long as no more enters.

    What enters is the smallest set from which the loop can compute what it needs, the nearest to the products; sums and
    views of it leave as well.
    """
    ops = [op for op in program.ops if not outside.isdisjoint(op.outputs)]
    used = {n for op in program.ops if outside.isdisjoint(op.outputs) for n in op.inputs}.union(program.outputs)
    wanted = [n for op in ops for n in op.outputs if n in used]

    def stays(program: Program, op: Op) -> bool:
        return has(op.name, CHEAP) or outside.isdisjoint(op.outputs)

    entering = smallest_to_save(program, (), given, wanted, cheap=stays, first=True)
    products = [n for op in ops if not has(op.name, CHEAP) for n in op.outputs]
    left = {n for op in needed_for(ops, [*entering, *products]) for n in op.outputs}
    for op in ops:
        if has(op.name, SUM | VIEW) and not left.isdisjoint(op.inputs):
            left.update(op.outputs)
    return left


def _without_last_sums(program: Program, outside: set[int]) -> set[int]:
    """What leaves a loop that is one kernel: not the sums and views at its end, where no more enters without them."""
    varying, used, left = reached_from(program.ops, program.inputs), set(program.outputs), set(outside)
    for op in reversed(program.ops):
        if outside.isdisjoint(op.outputs):
            continue
        entering = varying.intersection(op.inputs)
        more = sum(map(program.size, entering)) > sum(map(program.size, op.outputs))
        may_stay = has(op.name, SUM | VIEW) and is_small(program, op) and entering <= outside and not more
        if may_stay and used.isdisjoint(op.outputs):
            left.difference_update(op.outputs)
        else:
            used.update(op.inputs)
    return left


def _regrouped(loop: LoopProgram, able: set[int], outside: set[int]) -> tuple[Program, set[int]]:
    """The program with the terms of each sum that may leave the loop added up first; these sums."""
    program = loop.program
    carried = reached_from(program.ops, loop.carry)
    makers = {n: op for op in program.ops for n in op.outputs}
    uses = Counter(n for op in program.ops for n in op.inputs)
    uses.update(program.outputs)

    def is_inner_sum(n: int) -> bool:
        """A sum that serves only the sum above it."""
        maker = makers.get(n)
        return maker is not None and has(maker.name, SUM) and n in carried and uses[n] == 1

    regrouped, sums = Rewriting(program), set()
    for op in program.ops:
        kind = program.kinds[op.outputs[0]] if op.outputs else None
        if has(op.name, SUM) and op.outputs[0] in carried and not is_narrow(kind):
            terms, todo = [], list(op.inputs)
            while todo:
                n = todo.pop()
                if is_inner_sum(n):
                    todo.extend(makers[n].inputs)
                else:
                    terms.append(n)
            leaving = [n for n in terms if n in able]
            if len(leaving) > 1 and not outside.isdisjoint(leaving):
                bound = [n for n in terms if n not in leaving]
                (total,) = regrouped.add("sum", add_up, leaving, [kind])
                regrouped.ops.append(op._replace(run=add_up, inputs=(*bound, total)))
                sums.add(total)
                continue
        regrouped.ops.append(op)
    return regrouped.done(), sums


def _outgrows(program: Program, op: Op, needs: Sequence[int]) -> bool:
    """Whether the operation makes an array larger than what it is made of; stacked over time it would fill memory.

    A product with a weight may: its output is of the size of the sums that the loop keeps anyway. So may its norm's.
    """
    if op.name == NORM or (has(op.name, PRODUCT) and len(needs) == 1):
        return False
    return program.size(op.outputs[0]) > sum(map(program.size, needs))
