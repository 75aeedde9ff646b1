"""Weights that a step cuts into pieces, as in ``h @ W[:, :2H]``, are cut once, before the loop, where that pays.

XLA leaves the cut, a copy of the weights, in the loop. Under a plan with something to do all that depends on constants
alone is done once anyway; this pass is for a forward run that has nothing else to do, which is that of ``lax.scan``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax

from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import PlannedStep
from jaxrnn.programs.primitives import PRODUCT, has
from jaxrnn.programs.program import Op, Program, Rewriting, needed_for


def cut_weights(step: PlannedStep) -> PlannedStep:
    """The step with the weights noted that are cut once: where a derivative was asked for, all."""
    program, fixed = step.primal.program, step.primal.program.fixed()
    pieces = {
        n for op in program.ops if op.name in ("slice", "split") and fixed.issuperset(op.outputs) for n in op.outputs
    }
    varying = [op for op in program.ops if has(op.name, PRODUCT) and not fixed.issuperset(op.outputs)]
    products = [op for op in varying if pieces.intersection(op.inputs)]
    multiplied = sorted({n for op in products for n in op.inputs if n in pieces})
    outputs = sum(program.size(n) for op in products for n in op.outputs)
    if step.active is None and not _rules.cuts_once(sum(map(program.size, multiplied)), outputs):
        multiplied = []
    return step.noting(cut=[str(program.kinds[n].shape) for n in multiplied])


def by_pieces(program: Program) -> Program:
    """``(x @ W)[..., columns]`` as ``x @ W[:, columns]``: the weights are what can be cut once.

    Cells multiply one row by all columns where they want some (``project`` in ``cells/_products.py``).
    """
    makers, fixed = {n: op for op in program.ops for n in op.outputs}, program.fixed()
    uses = Counter([*program.outputs, *(n for op in program.ops for n in op.inputs)])
    rewriting, changed = Rewriting(program), False
    for op in program.ops:
        product = makers.get(op.inputs[0]) if op.name == "slice" else None
        if product is not None and uses[op.inputs[0]] == 1 and _takes_columns(program, op, product, fixed):
            _multiply_piece(rewriting, op, product)
            changed = True
        else:
            rewriting.ops.append(op)
    rewritten = rewriting.done()
    return rewritten._replace(ops=needed_for(rewritten.ops, rewritten.outputs)) if changed else program


def _takes_columns(program: Program, cut: Op, product: Op, fixed: set[int]) -> bool:
    """Whether the cut is of columns of a product ``x @ W`` with a matrix of weights."""
    if product.name != "dot_general" or product.inputs[0] in fixed or product.inputs[1] not in fixed:
        return False
    (_, of_W), batch = product.params["dimension_numbers"]
    before, after, W = (program.kinds[n] for n in (*cut.inputs, *cut.outputs, product.inputs[1]))
    return (
        W.ndim == 2
        and tuple(of_W) == (0,)
        and not any(batch)
        and cut.params["strides"] is None
        and before.shape[:-1] == after.shape[:-1]
        and not any(any(program.kinds[n].sharding.spec) for n in (*product.inputs, *product.outputs))
    )


def _multiply_piece(rewriting: Rewriting, cut: Op, product: Op) -> None:
    """``x @ W[:, columns]`` in place of the cut; the product itself serves nothing then."""
    x, W = product.inputs
    kind = rewriting.kinds[W]
    params: dict[str, Any] = {
        "start_indices": (0, cut.params["start_indices"][-1]),
        "limit_indices": (kind.shape[0], cut.params["limit_indices"][-1]),
        "strides": None,
    }
    columns = kind.update(shape=(kind.shape[0], rewriting.kinds[cut.outputs[0]].shape[-1]))
    (piece,) = rewriting.add("slice", lambda W: [jax.lax.slice(W, **params)], (W,), [columns], params)
    rewriting.ops.append(Op("dot_general", product.run, (x, piece), cut.outputs, product.params))
