"""What may leave the loop over time, and what it is worth: the choices of the plan in ``planned_scan.py``."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax

from jaxrnn._base import is_narrow
from jaxrnn.instruments.norms import by_rows, norm_of_product_p
from jaxrnn.programs.primitives import CHEAP, MOVABLE, PRODUCT, STRETCHES, SUM, has
from jaxrnn.programs.program import Op, Program, Rewriting, reached_from


def spread_constants(tangent: Program, d_consts: Sequence[int]) -> Program:
    """The tangent with each constant's tangent spread to the full shape of the sum or product that it enters.

    The spreading leaves the loop, being constant, and with it its transpose, the sum over the batch: the backward loop
    then adds up in the shape of the batch, each device its own part.
    """
    from_consts = reached_from(tangent.ops, d_consts) - reached_from(tangent.ops, tangent.inputs)
    kinds = tangent.kinds
    spread = Rewriting(tangent)
    for op in tangent.ops:
        inputs = list(op.inputs)
        if has(op.name, STRETCHES) and op.outputs[0] not in from_consts:
            kind = kinds[op.outputs[0]]
            for place, ref in enumerate(op.inputs):
                if ref in from_consts and kinds[ref].shape != kind.shape and kinds[ref].ndim == kind.ndim:
                    (inputs[place],) = spread.add("broadcast_in_dim", _spreader(kind), (ref,), [kind])
        spread.ops.append(op._replace(inputs=tuple(inputs)))
    return spread.done()


def _spreader(kind: Any) -> Callable[[Any], list[Any]]:
    sharding = kind.sharding if any(kind.sharding.spec) else None

    def spread(a):
        return [jax.lax.broadcast_in_dim(a, kind.shape, range(a.ndim), out_sharding=sharding)]

    return spread


def narrow_values(tangent: Program, d_consts: Sequence[int]) -> frozenset[int]:
    """The tangents of constants in floats of less than 32 bits.

    What is constant to the tangent loop is added up over the steps by the backward one, and in bfloat16 a sum of ones
    stops at 256. Cast inside the loop, the sum is kept in the dtype that they were cast from.
    """
    of_consts = reached_from(tangent.ops, d_consts)
    return frozenset(n for op in tangent.ops for n in op.outputs if n in of_consts and is_narrow(tangent.kinds[n]))


def split_first(program: Program, n_carry: int) -> Program:
    """The program with its splits done before the sums that are split, where the pieces enter sums of their own.

    The GRU adds pieces of ``h @ W`` to pieces of ``x @ W``. Split first, the terms that leave the loop meet in one sum
    for each piece, and only these sums enter it; products that leave are split by their weights.
    """
    carried = reached_from(program.ops, program.inputs[:n_carry])
    varying, fixed = reached_from(program.ops, program.inputs), program.fixed()
    makers = {n: op for op in program.ops for n in op.outputs}
    uses = Counter(ref for op in program.ops for ref in op.inputs)
    uses.update(program.outputs)
    done = Rewriting(program)

    @functools.cache
    def holds_product(ref: int) -> bool:
        """Whether a term of the sum that the value is, or is a piece of, may leave the loop as a product."""
        maker = makers.get(ref)
        if ref not in varying:
            return False
        if maker is None or not (has(maker.name, SUM) or maker.name == "split"):
            return maker is not None and maker.name == "dot_general" and ref not in carried
        return any(map(holds_product, maker.inputs))

    meeting: set[int] = set()  # values that are added to products that may leave
    for op in program.ops:
        if has(op.name, SUM) and len(op.inputs) == 2:
            meeting.update(a for a, b in (op.inputs, op.inputs[::-1]) if holds_product(b))

    now: dict[int, int] = {}  # the numbers of the pieces that were made anew

    def pieces(ref: int, split: Op) -> list[int]:
        """The numbers of the pieces of a value, made by new operations."""
        maker, kind = makers.get(ref), program.kinds[ref]
        axis, sizes = split.params["axis"], split.params["sizes"]
        kinds = [kind.update(shape=(*kind.shape[:axis], size, *kind.shape[axis + 1 :])) for size in sizes]
        shapes = {program.kinds[term].shape for term in maker.inputs} if maker else set()
        if maker and has(maker.name, SUM) and len(maker.inputs) == 2 and uses[ref] == 1 and shapes == {kind.shape}:
            a, b = (pieces(term, split) for term in maker.inputs)
            return [done.add("add", _add, pair, [k])[0] for *pair, k in zip(a, b, kinds, strict=True)]
        if maker is not None and maker.name == "dot_general" and ref not in carried and axis == kind.ndim - 1:
            x, W = (now.get(n, n) for n in maker.inputs)
            (contracting, batch), of_weight = maker.params["dimension_numbers"], done.kinds[W]
            if maker.inputs[1] in fixed and of_weight.ndim == 2 and len(contracting[1]) == 1 and not any(batch):
                free = 1 - contracting[1][0]
                K = of_weight.shape[1 - free]
                parts_of = [of_weight.update(shape=(K, size) if free else (size, K)) for size in sizes]
                parts = done.add("split", _splitter(sizes, free), (W,), parts_of)
                return [
                    done.add(maker.name, maker.run, (x, w), [k], maker.params)[0]
                    for w, k in zip(parts, kinds, strict=True)
                ]
        return done.add("split", split.run, (now.get(ref, ref),), kinds, split.params)

    for op in program.ops:
        if op.name == "split" and op.inputs[0] in varying and meeting.intersection(op.outputs):
            now |= zip(op.outputs, pieces(op.inputs[0], op), strict=True)
        else:
            done.ops.append(op._replace(inputs=tuple(now.get(n, n) for n in op.inputs)))
    return done.done()._replace(outputs=[now.get(n, n) for n in program.outputs])


def _splitter(sizes: Sequence[int], axis: int) -> Callable[[Any], Sequence[Any]]:
    return lambda a: jax.lax.split(a, tuple(sizes), axis)


def leave_the_loop(
    program: Program,
    n_carry: int,
    pays: Callable[[int, int], bool],
    narrow: Collection[int] = (),
) -> tuple[Program, set[int], list[str], list[str]]:
    """The program with its sums regrouped, and the values in it that are computed for all steps at once.

    A value leaves the loop where it does not depend on the carry (the first ``n_carry`` inputs) and holds a product
    that pays, by ``pays(weights, outputs)``, both in elements. The other terms of the sum that it enters leave with it,
    so that one array per sum enters the loop. Last come, for the
    record, the products that leave and those that could but stay.
    """
    carried = reached_from(program.ops, program.inputs[:n_carry])
    varying = reached_from(program.ops, program.inputs)
    able = set(program.inputs[n_carry:])  # may leave
    heavy: set[int] = set()  # and holds a product
    left: list[str] = []
    stayed: list[str] = []
    for op in program.ops:
        needs = [ref for ref in op.inputs if ref in varying]
        if not needs or not able.issuperset(needs):
            continue
        # The sum over time of a narrow constant's gradient is kept wide in the loop alone, but for a product's own sum.
        stalls = not has(op.name, PRODUCT) and not set(op.inputs).isdisjoint(narrow)
        if has(op.name, CHEAP | MOVABLE) and not stalls and not _outgrows(program, op, needs):
            able.update(op.outputs)
            if has(op.name, PRODUCT):
                weights = sum(program.size(ref) for ref in op.inputs if ref not in varying)
                if pays(weights, program.size(op.outputs[0])):
                    left.append(_name(program, op))
                    heavy.update(op.outputs)
                else:
                    stayed.append(_name(program, op))
            elif op.name == norm_of_product_p.name:
                (R, K), O = program.kinds[op.inputs[0]].shape, op.params["units"]
                if pays(K * O, R * O) or by_rows(R, K, O):
                    heavy.update(op.outputs)
            if heavy.intersection(needs):
                heavy.update(op.outputs)
    if not heavy:
        return program, set(), left, stayed

    makers = {n: op for op in program.ops for n in op.outputs}
    uses = Counter(ref for op in program.ops for ref in op.inputs)
    uses.update(program.outputs)

    def is_inner_sum(ref: int) -> bool:
        """A sum that serves only the sum above it."""
        maker = makers.get(ref)
        return maker is not None and has(maker.name, SUM) and ref in carried and uses[ref] == 1

    regrouped = Rewriting(program)
    for op in program.ops:
        kind = program.kinds[op.outputs[0]] if op.outputs else None
        if has(op.name, SUM) and op.outputs[0] in carried and not is_narrow(kind):
            terms, todo = [], list(op.inputs)
            while todo:
                ref = todo.pop()
                if is_inner_sum(ref):
                    todo.extend(makers[ref].inputs)
                else:
                    terms.append(ref)
            leaves = [ref for ref in terms if ref in able or ref not in varying]
            if len(leaves) > 1 and heavy.intersection(leaves):
                bound = [ref for ref in terms if ref not in leaves]
                (total,) = regrouped.add("sum", _add, leaves, [kind])
                regrouped.ops.append(op._replace(run=_add, inputs=(*bound, total)))
                heavy.add(total)
                continue
        regrouped.ops.append(op)
    return regrouped.done(), heavy, left, stayed


def _name(program: Program, op: Op) -> str:
    return " @ ".join(str(program.kinds[ref].shape) for ref in op.inputs)


def _outgrows(program: Program, op: Op, needs: Sequence[int]) -> bool:
    """Whether the operation makes an array larger than what it is made of; stacked over time it would fill memory.

    A product with a weight may: its output is of the size of the sums that the loop keeps anyway. So may its norm's.
    """
    if op.name == norm_of_product_p.name or (has(op.name, PRODUCT) and len(needs) == 1):
        return False
    return program.size(op.outputs[0]) > sum(map(program.size, needs))


def _add(*terms: Any) -> list[Any]:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return [total]
