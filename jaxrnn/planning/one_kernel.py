"""One kernel: the loop of a step of one row, B = 1, which a CPU runs without handing over between operations.

Such a step does little at each operation, and XLA's hand-over from one to the next costs more than the work. As one
kernel the loop is compiled like a loop of C (``programs/calls.py``). Such a step also reads all weights to multiply one
row; done for all steps at once, before the loop or after it, a product reads them once. So a step of one row has a plan
of its own, ``plan_for_one_row``. Where it meets ``vmap`` it has more rows after all, and runs by the rules for many.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from jaxrnn.planning import _rules
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.programs.primitives import CHEAP, PRODUCT, has
from jaxrnn.programs.program import Op, Program, reached_from

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
    """The plan of a step of one row, on a CPU; None where the step has more rows, or would be planned in the same way."""
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


def _fits(loop: LoopProgram) -> bool:
    """Whether a kernel can hold the loop, and the backward loop that JAX makes of it."""
    program, each_step = loop.program, loop.parts().each_step
    weights = program.fixed() - reached_from(program.ops, loop.d_consts)
    values = {n for op in each_step for n in (*op.inputs, *op.outputs)}
    if not all(program.kinds[n].dtype.name in DTYPES for n in values):
        return False
    return all(
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


def _is_small(program: Program, op: Op) -> bool:
    if op.name == "constant":
        return bool(np.size(op.params["value"]) <= SMALL)
    return has(op.name, CHEAP) and all(program.size(n) <= SMALL for n in (*op.inputs, *op.outputs))
