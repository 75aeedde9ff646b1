"""One kernel: the loop of a step of one row, B = 1, which a CPU runs without handing over between operations.

Such a step does little at each operation, and XLA's hand-over from one to the next costs more than the work. As one
kernel the loop is compiled like a loop of C (``programs/calls.py``). Such a step also reads all weights to multiply one
row; done for all steps at once, before the loop or after it, a product reads them once. So a step of one row has a plan
of its own, ``plan_for_one_row``. Where it meets ``vmap`` it has more rows after all, and runs by the rules for many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxrnn.planning import _rules
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.programs.calls import Function, as_one_kernel
from jaxrnn.programs.primitives import CHEAP, PRODUCT, has
from jaxrnn.programs.program import Op, Program, needed_for, reached_from
from jaxrnn.programs.tracing import flat_program

DTYPES = ("float32", "float64", "int32", "bool")  # XLA may give products of others to a library
SMALL = 1024  # elements; larger reductions XLA may give to a library, larger literals a kernel cannot hold


def one_kernel(step: PlannedStep) -> PlannedStep:
    """The step with the loops told that are to be one kernel."""
    if not step.plan.one_kernel:
        return step
    loops = {"forward": step.primal, "backward": step.tangent}
    fitting = [name for name, loop in loops.items() if loop is not None and _fits(loop)]
    step = step._replace(primal=step.primal._replace(one_kernel="forward" in fitting)).noting(one_kernel=fitting)
    return (
        step if step.tangent is None else step._replace(tangent=step.tangent._replace(one_kernel="backward" in fitting))
    )


def plan_for_one_row(program: Program, plan: Plan) -> Plan | None:
    """The plan of a step of one row, on a CPU; None where the step has more rows, or where it would be the same."""
    if jax.default_backend() != "cpu":
        return None
    fixed = program.fixed()
    products = [op for op in program.ops if has(op.name, PRODUCT) and not fixed.issuperset(op.outputs)]
    if not all(_is_row_by_weight(program, op, fixed) for op in products):
        return None
    weights = [program.size(n) for op in products for n in op.inputs if n in fixed]
    chosen = {
        "hoist": _rules.hoists_of_one_row(max(weights, default=0)),
        "contract": True,
        "one_kernel": _rules.makes_one_kernel(sum(weights)),
    }
    own = plan._replace(**{name: value for name, value in chosen.items() if getattr(plan, name) is None})
    return own if own != plan else None


def run_step(function: Function, params: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """``function(params, arrays)``, a single step; where it is one of one row on a CPU, as one kernel."""
    compiled = any(isinstance(a, jax.core.Tracer) for a in (*params, *arrays))  # or each call would compile
    if not compiled or jax.default_backend() != "cpu":
        return list(function(params, arrays))
    program, _, _ = flat_program(lambda *arrays: function(params, arrays), *arrays)
    weights = _weights_multiplied(program, program.fixed())
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
        elif not _has_dtypes(program, op):
            return None
        elif _is_row_by_weight(program, op, weights):
            total += max(map(program.size, op.inputs))
        elif not has(op.name, CHEAP) or (op.name.startswith("reduce") and not _is_small(program, op)):
            return None
    return total


def _fits(loop: LoopProgram) -> bool:
    """Whether a kernel can hold the loop, and the backward loop that JAX makes of it."""
    program, each_step = loop.program, loop.parts().each_step
    weights = program.fixed() - reached_from(program.ops, loop.d_consts)
    return all(_has_dtypes(program, op) for op in each_step) and all(
        _is_row_by_weight(program, op, weights) if has(op.name, PRODUCT) else _is_small(program, op) for op in each_step
    )


def _is_row_by_weight(program: Program, op: Op, weights: set[int]) -> bool:
    """Whether the operation multiplies one row, or column, by a matrix among the weights."""
    if op.name != "dot_general":
        return False
    contracting, batch = op.params["dimension_numbers"]
    if any(batch):
        return False

    def rows(side: int) -> int:
        shape = program.kinds[op.inputs[side]].shape
        return math.prod(size for axis, size in enumerate(shape) if axis not in contracting[side])

    return any(op.inputs[side] in weights and rows(1 - side) == 1 for side in (0, 1))


def _has_dtypes(program: Program, op: Op) -> bool:
    return all(program.kinds[n].dtype.name in DTYPES for n in (*op.inputs, *op.outputs))


def _is_small(program: Program, op: Op) -> bool:
    if op.name == "constant":
        return bool(np.size(op.params["value"]) <= SMALL)
    return has(op.name, CHEAP) and all(program.size(n) <= SMALL for n in (*op.inputs, *op.outputs))
