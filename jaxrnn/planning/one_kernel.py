"""One kernel: the loop of a step of few rows, which a CPU runs without handing over between operations.

A step of one row, or of a few short ones, does little at each operation, and XLA's hand-over from one to the next
costs more than the work. As one kernel the loop is compiled like a loop of C (``programs/calls.py``). A step of one
row, B = 1, also reads all weights to multiply that row; done for all steps at once, before the loop or after it, a
product reads them once. So steps of few rows have a plan of their own, ``plan_for_few_rows``, on a single CPU device. A
batch over devices runs by the rules for many rows, and so does a step that meets ``vmap``: it has more after all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxrnn.planning import _rules
from jaxrnn.planning.one_device import may_be_on_one_cpu, outer_kinds
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.planning.row_by_row import row_by_row
from jaxrnn.programs.calls import Function, as_one_kernel
from jaxrnn.programs.primitives import CHEAP, PRODUCT, has
from jaxrnn.programs.program import Op, Program, needed_for, reached_from
from jaxrnn.programs.tracing import flat_program

DTYPES = ("float32", "float64", "int32", "bool")  # XLA may give products of others to a library
SMALL = 1024  # elements; larger reductions XLA may give to a library, larger literals a kernel cannot hold
MOST_ROWS = 16


def one_kernel(step: PlannedStep) -> PlannedStep:
    """The step with the loops told that are to be one kernel, and their products such as it can hold."""
    if not step.plan.one_kernel:
        return step
    primal, tangent, made = step.primal, step.tangent, []
    if _fits(primal):
        primal = _row_by_row(primal)
        made.append("forward")
    if tangent is not None and _fits(tangent):
        tangent = _row_by_row(tangent)
        made.append("backward")
    return step._replace(primal=primal, tangent=tangent).noting(one_kernel=made)


def plan_for_few_rows(program: Program, plan: Plan) -> Plan | None:
    """The plan of a step of few rows on one CPU device; None where the step has more, or where it would be the same."""
    if not may_be_on_one_cpu(program, plan) or 0 in (axis for kind in outer_kinds(program) for axis in kind.shape):
        return None
    fixed = program.fixed()
    products = [op for op in program.ops if has(op.name, PRODUCT) and not fixed.issuperset(op.outputs)]
    found = [_rows_by_weight(program, op, fixed) for op in products]
    rows = max((R or MOST_ROWS + 1 for R in found), default=1)
    weights = [max(map(program.size, op.inputs)) for op in products]
    kernel = plan.one_kernel
    if kernel is None:
        varying = [op for op in program.ops if not fixed.issuperset(op.outputs)]
        kernel = _all_fit(program, varying, fixed) and _rules.makes_one_kernel(sum(weights), rows)
    own = plan._replace(one_kernel=kernel)
    if plan.hoist is None and rows == 1 and _rules.hoists_of_one_row(max(weights, default=0)):
        own = own._replace(hoist=True)
    if plan.contract is None and (rows == 1 or kernel):
        own = own._replace(contract=True)
    return own if own != plan._replace(one_kernel=False) else None


def plan_for_chunks(program: Program, plan: Plan) -> Plan:
    """The plan of a step whose run is cut into chunks side by side: there are many rows, and one kernel only where all
    steps are run one by one after all, for which the step must have one."""
    few = plan_for_few_rows(program, plan)
    fixed = program.fixed()
    rows = [_rows_by_weight(program, op, fixed) for op in program.ops if has(op.name, PRODUCT)]
    is_kernel = few is not None and bool(few.one_kernel) and set(rows) <= {None, 1}
    return plan._replace(one_kernel=is_kernel, contract=True if plan.contract is None else plan.contract)


def run_step(function: Function, params: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """``function(params, arrays)``, a single step; where it is one of one row on a CPU, as one kernel."""
    compiled = any(isinstance(a, jax.core.Tracer) for a in (*params, *arrays))  # or each call would compile
    if not compiled or jax.default_backend() != "cpu":
        return list(function(params, arrays))
    program, _, _ = flat_program(lambda *arrays: function(params, arrays), *arrays)
    enter_and_leave = [*program.consts, *program.inputs, *program.outputs]
    weights = _weights_multiplied(program, program.fixed()) if _have_dtypes(program, enter_and_leave) else None
    if weights is None or not _rules.makes_step_one_kernel(weights):
        return list(function(params, arrays))
    n = len(params)
    return as_one_kernel(lambda *leaves: function(leaves[:n], leaves[n:]), *params, *arrays)


def _weights_multiplied(program: Program, weights: set[int]) -> int | None:
    """How many numbers of the weights a step multiplies a row by; None where a kernel cannot hold the step."""
    total = 0
    for op in needed_for(program.ops, program.outputs):
        if op.name == "scan" and op.params["length"] == 1:
            closed = op.params["jaxpr"]
            inner, _, _ = flat_program(jaxpr_as_fun(closed), *closed.in_avals)
            others = [n for n, outer in zip(inner.inputs, op.inputs, strict=True) if outer not in weights]
            multiplied = _weights_multiplied(inner, inner.kinds.keys() - reached_from(inner.ops, others))
            if multiplied is None:
                return None
            total += multiplied
        elif not _have_dtypes(program, [*op.inputs, *op.outputs]):
            return None
        elif _rows_by_weight(program, op, weights) == 1:
            total += max(map(program.size, op.inputs))
        elif op.name == "constant" or op.name.startswith("reduce"):
            if not is_small(program, op):
                return None
        elif not has(op.name, CHEAP):
            return None
    return total


def _fits(loop: LoopProgram) -> bool:
    """Whether a kernel can hold the loop, and the backward loop that JAX makes of it."""
    program, each_step = loop.program, loop.parts().each_step
    weights = program.fixed() - reached_from(program.ops, loop.d_consts)
    return _all_fit(program, each_step, weights)


def _all_fit(program: Program, ops: Sequence[Op], weights: set[int]) -> bool:
    """Whether a kernel can hold the operations, and what enters and leaves."""

    def fits(op: Op) -> bool:
        if has(op.name, PRODUCT):
            rows = _rows_by_weight(program, op, weights)
            return rows is not None and 1 <= rows <= MOST_ROWS
        return is_small(program, op)

    return _have_dtypes(program, [*program.inputs, *program.outputs]) and all(
        fits(op) and _have_dtypes(program, [*op.inputs, *op.outputs]) for op in ops
    )


def _row_by_row(loop: LoopProgram) -> LoopProgram:
    """The loop as one kernel, its products done row by row: those of several rows XLA may give to a library."""
    program, weights = loop.program, loop.program.fixed()
    in_loop = {n for op in loop.parts().each_step for n in op.outputs}
    sides = {}
    for op in program.ops:
        rows = _rows_by_weight(program, op, weights) if in_loop.issuperset(op.outputs) else None
        if rows is not None and rows > 1:
            sides[op.outputs[0]] = 0 if op.inputs[1] in weights else 1
    return loop._replace(program=row_by_row(program, sides) if sides else program, one_kernel=True)


def _rows_by_weight(program: Program, op: Op, weights: set[int]) -> int | None:
    """How many rows, or columns, the operation multiplies by a matrix among the weights; None where it does not."""
    if op.name != "dot_general":
        return None
    contracting, batch = op.params["dimension_numbers"]
    for side in (0, 1):
        x, W = (program.kinds[n].shape for n in (op.inputs[side], op.inputs[1 - side]))
        if any(batch) or op.inputs[1 - side] not in weights or len(W) != 2 or len(contracting[side]) != 1:
            continue
        if not all(isinstance(size, int) for size in (*x, *W)):  # open, in a program that is exported for any
            continue
        rows = math.prod(size for axis, size in enumerate(x) if axis not in contracting[side])
        is_one_sum = math.prod(W) == x[contracting[side][0]] > SMALL  # a long one, which is a reduction to XLA
        if (rows == 1 or len(x) == 2) and not is_one_sum:
            return rows
    return None


def _have_dtypes(program: Program, values: Sequence[int]) -> bool:
    return all(program.kinds[n].dtype.name in DTYPES for n in values)


def is_small(program: Program, op: Op) -> bool:
    """Whether a kernel can hold the operation, which is none of the products."""
    if op.name == "constant":
        return bool(np.size(op.params["value"]) <= SMALL)
    return has(op.name, CHEAP) and all(program.size(n) <= SMALL for n in (*op.inputs, *op.outputs))
