"""Sums over features in the loops become products with ones: ``a.sum(-1)`` is ``a @ 1``.

XLA sums a long axis on a CPU by two kernels, parts of 32 numbers first; a product with a vector is one call of a
library and takes half as long. Means, variances, and norms are such sums.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.programs.program import Op, Program, Rewriting


def sum_by_product(step: PlannedStep) -> PlannedStep:
    """The step with long sums over the last axis, of what the loops compute, as products, where the rules say so."""
    if step.plan.one_kernel or step.plan.persistent_kernel:
        return step
    primal, found = _with_products(step.primal)
    tangent = step.tangent and _with_products(step.tangent)[0]
    return step._replace(primal=primal, tangent=tangent).noting(summed=found)


def _with_products(loop: LoopProgram) -> tuple[LoopProgram, list[str]]:
    program = loop.program
    stays = program.fixed() | loop.outside
    rewriting, found = Rewriting(program), []
    for op in program.ops:
        if op.name == "reduce_sum" and stays.isdisjoint(op.outputs) and _may_be_product(program, op):
            kind = program.kinds[op.inputs[0]]
            ones = np.ones(kind.shape[-1:], kind.dtype)
            (n,) = rewriting.add("constant", lambda ones=ones: [ones], (), [jax.typeof(ones)], {"value": ones})
            dims = (((kind.ndim - 1,), (0,)), ((), ()))
            op = Op("dot_general", _times(dims), (*op.inputs, n), op.outputs, {"dimension_numbers": dims})
            found.append(str(kind.shape))
        rewriting.ops.append(op)
    return loop._replace(program=rewriting.done()), found


def _may_be_product(program: Program, op: Op) -> bool:
    kind = program.kinds[op.inputs[0]]
    last_alone = kind.ndim >= 2 and tuple(op.params["axes"]) == (kind.ndim - 1,)
    if not last_alone or not isinstance(kind.shape[-1], int) or any(kind.sharding.spec):
        return False
    wide = kind.dtype.name in ("float32", "float64")
    return wide and _rules.sums_by_product(kind.shape[-1])


def _times(dims: Any) -> Any:
    return lambda a, ones: [jax.lax.dot_general(a, ones, dims, precision=jax.lax.Precision.HIGHEST)]
