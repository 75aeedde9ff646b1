"""One product for a sum of two: ``h @ W + x @ V`` becomes ``[h, x] @ [W; V]``, where that takes no more memory.

What is elementwise then reads one array in place of two. XLA gives an elementwise kernel that touches much to several
threads, where the hand-over costs more than is gained; and each operation of a loop's body is handed over to.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax.numpy as jnp

from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.programs.primitives import SUM, has
from jaxrnn.programs.program import Op, Rewriting


def join_products(step: PlannedStep) -> PlannedStep:
    """The primal with sums of two products as one product, where the rules say so."""
    if step.plan.one_kernel or step.plan.fuse is False:
        return step
    loop = step.primal
    program, makers = loop.program, {n: op for op in loop.program.ops for n in op.outputs}
    fixed, uses = program.fixed(), Counter(n for op in program.ops for n in op.inputs)
    uses.update(program.outputs)
    rewriting, joined = Rewriting(program), []
    for op in program.ops:
        terms = [makers[n] for n in op.inputs if n in makers and uses[n] == 1] if has(op.name, SUM) else []
        if len(terms) == 2 == len(op.inputs) and _may_be_one(loop, terms, fixed, gradient=step.active is not None):
            _multiply_once(rewriting, op, terms)
            joined.append(" + ".join(map(program.product, terms)))
        else:
            rewriting.ops.append(op)
    return step._replace(primal=loop._replace(program=rewriting.done())).noting(joined=joined)


def _may_be_one(loop: LoopProgram, terms: list[Op], fixed: set[int], *, gradient: bool) -> bool:
    """Whether both are ``x @ W`` alike, done at each step, and it pays to make them one."""
    program = loop.program
    for term in terms:
        if term.name != "dot_general" or term.outputs[0] in loop.outside:
            return False
        x, W = term.inputs
        contracting, batch = term.params["dimension_numbers"]
        kinds = [program.kinds[n] for n in (x, W)]
        if x in fixed or W not in fixed or any(kind.ndim != 2 or any(kind.sharding.spec) for kind in kinds):
            return False
        if any(batch) or tuple(contracting[0]) != (1,):
            return False
    first, second = terms
    alike = [{name: str(value) for name, value in term.params.items()} for term in terms]
    dtypes = {program.kinds[n].dtype for term in terms for n in (*term.inputs, *term.outputs)}
    rows, outputs = program.kinds[first.outputs[0]].shape
    inner = sum(program.kinds[term.inputs[0]].shape[1] for term in (first, second))
    numbers = all(isinstance(size, int) for size in (rows, inner, outputs))
    if alike[0] != alike[1] or len(dtypes) != 1 or not numbers:
        return False
    return _rules.joins_products(rows, inner, outputs, gradient=gradient)


def _multiply_once(rewriting: Rewriting, op: Op, terms: list[Op]) -> None:
    """``[x₁, x₂] @ [W₁; W₂]`` in place of the sum; the products of before serve nothing then."""
    params = terms[0].params
    along = (1, params["dimension_numbers"][0][1][0])  # the axes that are contracted
    operands = []
    for side, axis in enumerate(along):
        parts = [term.inputs[side] for term in terms]
        kinds = [rewriting.kinds[n] for n in parts]
        shape = list(kinds[0].shape)
        shape[axis] = sum(kind.shape[axis] for kind in kinds)
        kind = kinds[0].update(shape=tuple(shape))
        operands += rewriting.add("concatenate", _concatenate(axis), parts, [kind])
    rewriting.ops.append(Op("dot_general", terms[0].run, tuple(operands), op.outputs, params))


def _concatenate(axis: int) -> Any:
    return lambda *parts: [jnp.concatenate(parts, axis)]
