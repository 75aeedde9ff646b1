"""What may leave the loop over time, and what it is worth: the choices of the plan in ``_deferred.py``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxrnn._base import is_narrow
from jaxrnn.running._program import Op, Program, reached_from

PRODUCTS = ("dot_general", "conv_general_dilated")  # what pays for leaving the loop
SUMS = ("add", "add_any")
ELEMENTWISE = (*SUMS, "sub", "mul", "div")  # where JAX stretches axes of size 1
# What may leave the loop: linear operations that batch and transpose as they are. Conditionals, inner loops and
# checkpoints stay where the user put them.
LEAVING = (
    *(*PRODUCTS, *ELEMENTWISE, "neg", "convert_element_type", "reshape", "broadcast_in_dim", "squeeze", "transpose"),
    *("concatenate", "slice", "split", "pad", "rev", "reduce_sum", "expand_dims", "copy", "spread"),
)


def spread_constants(tangent: Program, d_consts: Sequence[int]) -> Program:
    """The tangent with each constant's tangent spread to the full shape of the sum or product that it enters.

    The spreading leaves the loop, being constant, and with it its transpose, the sum over the batch: the backward loop
    then adds up in the shape of the batch, each device its own part.
    """
    from_consts = reached_from(tangent.ops, d_consts) - reached_from(tangent.ops, tangent.inputs)
    kinds = {op.outputs[0]: op.kind for op in tangent.ops if op.kind is not None}
    number = tangent.fresh()
    ops: list[Op] = []
    for op in tangent.ops:
        inputs = list(op.inputs)
        if op.name in ELEMENTWISE and op.outputs[0] not in from_consts:
            for place, ref in enumerate(op.inputs):
                shape = kinds[ref].shape if ref in from_consts and ref in kinds else op.kind.shape
                if shape != op.kind.shape and len(shape) == len(op.kind.shape):
                    ops.append(Op("spread", _spreader(op.kind), (ref,), (number,), op.kind))
                    inputs[place], number = number, number + 1
        ops.append(op._replace(inputs=tuple(inputs)))
    return tangent._replace(ops=ops)


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
    return frozenset(n for op in tangent.ops for n in op.outputs if n in of_consts and is_narrow(op.kind))


def leave_the_loop(program: Program, carry: Sequence[Any], x: Sequence[Any]) -> tuple[Program, set[int]]:
    """The program with its sums regrouped, and the values in it that are computed for all steps at once.

    A value leaves the loop where it does not depend on the carry and holds a product; the other terms of the sum that
    it enters leave with it, so that one array per sum enters the loop. ``carry`` and ``x`` describe a step.
    """
    n_carry = len(carry)
    carried = reached_from(program.ops, program.inputs[:n_carry])
    varying = reached_from(program.ops, program.inputs)
    kinds = {op.outputs[0]: op.kind for op in program.ops if op.outputs}
    kinds |= program.consts | dict(zip(program.inputs, [*carry, *x], strict=True))
    able = set(program.inputs[n_carry:])  # may leave
    heavy: set[int] = set()  # and holds a product
    for op in program.ops:
        needs = [ref for ref in op.inputs if ref in varying]
        if needs and op.name in LEAVING and able.issuperset(needs) and not _outgrows(op, needs, kinds):
            able.update(op.outputs)
            if heavy.intersection(needs) or (op.name in PRODUCTS and _pays(op, set(op.inputs) - varying, kinds)):
                heavy.update(op.outputs)
    if not heavy:
        return program, set()

    makers = {n: op for op in program.ops for n in op.outputs}
    uses = Counter(ref for op in program.ops for ref in op.inputs)
    uses.update(program.outputs)

    def is_inner_sum(ref: int) -> bool:
        """A sum that serves only the sum above it."""
        maker = makers.get(ref)
        return maker is not None and maker.name in SUMS and ref in carried and uses[ref] == 1

    number = program.fresh()
    regrouped: list[Op] = []
    for op in program.ops:
        if op.name in SUMS and op.outputs[0] in carried and not is_narrow(op.kind):
            terms, todo = [], list(op.inputs)
            while todo:
                ref = todo.pop()
                if is_inner_sum(ref):
                    todo.extend(makers[ref].inputs)
                else:
                    terms.append(ref)
            free = [ref for ref in terms if ref in able or (ref in kinds and ref not in varying)]
            if len(free) > 1 and heavy.intersection(free):
                bound = [ref for ref in terms if ref not in free]
                regrouped.append(Op("sum", _add, tuple(free), (number,), op.kind))
                regrouped.append(op._replace(run=_add, inputs=(*bound, number)))
                heavy.add(number)
                number += 1
                continue
        regrouped.append(op)
    return program._replace(ops=regrouped), heavy


def _outgrows(op: Op, needs: Sequence[int], kinds: dict[int, Any]) -> bool:
    """Whether the operation makes an array larger than what it is made of; stacked over time it would fill memory.

    A product with a weight may: its output is of the size of the sums that the loop keeps anyway.
    """
    if op.name in PRODUCTS and len(needs) == 1:
        return False
    size = sum(math.prod(kinds[ref].shape) for ref in needs if ref in kinds)
    return math.prod(op.kind.shape) > size


def _pays(op: Op, weights: set[int], kinds: dict[int, Any]) -> bool:
    """Whether a product's weight gradient is better contracted once than added up in the loop.

    With several devices always: a batch sharded over them would be summed over devices at every step. On a single CPU
    adding a weight costs its size, keeping the cotangents for later the size of the product's output. Measured on two
    AVX-512 cores (gradient of a training step, contracted / added; H² weights, batch B): H/B = 16 to 32: 0.4-0.95;
    H/B = 4: 0.7-1.4; H/B below 1: 1.0-1.5. So from 8 on.
    """
    if jax.device_count() > 1 or jax.default_backend() != "cpu":
        return True
    size = sum(math.prod(kinds[ref].shape) for ref in weights if ref in kinds)
    return size >= 8 * math.prod(op.kind.shape)


def _add(*terms: Any) -> list[Any]:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return [total]
