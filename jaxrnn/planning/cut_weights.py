"""Weights that a step cuts into pieces, as in ``h @ W[:, :2H]``, are cut once, before the loop, where they are small.

XLA leaves the cut, a copy of the weights, in the loop. Under a plan with something to do all that depends on constants
alone is done once anyway; this pass is for a forward run that has nothing else to do, which is that of ``lax.scan``.
"""

from __future__ import annotations

from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import PlannedStep
from jaxrnn.programs.primitives import PRODUCT, has


def cut_weights(step: PlannedStep) -> PlannedStep:
    """The step with the weights noted that are cut once: where a derivative was asked for, all."""
    program, fixed = step.primal.program, step.primal.program.fixed()
    pieces = {
        n for op in program.ops if op.name in ("slice", "split") and fixed.issuperset(op.outputs) for n in op.outputs
    }
    products = [op for op in program.ops if has(op.name, PRODUCT) and not fixed.issuperset(op.outputs)]
    multiplied = sorted({n for op in products for n in op.inputs if n in pieces})
    if step.active is None and not _rules.cuts_once(sum(map(program.size, multiplied))):
        multiplied = []
    return step.noting(cut=[str(program.kinds[n].shape) for n in multiplied])
