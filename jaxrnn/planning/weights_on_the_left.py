"""Large weights of the forward loop, put on the left of their products."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.programs.primitives import SUM, has
from jaxrnn.programs.program import Op, Rewriting


def weights_on_the_left(step: PlannedStep) -> PlannedStep:
    """The primal with sums of products ``x @ W`` of large weights as ``(Σ Wᵀ xᵀ)ᵀ``."""
    if step.plan.persistent_kernel:
        return step
    pays = functools.partial(_rules.puts_weights_on_the_left, gradient=step.active is not None)
    loop = step.primal
    program, fixed = loop.program, loop.program.fixed()
    rewriting = Rewriting(program)
    transposes: dict[int, int] = {}  # of each value that also stands transposed, that one
    sums = []
    for op in program.ops:
        if has(op.name, SUM) and all(n in transposes for n in op.inputs):
            kind = program.kinds[op.outputs[0]]
            out = kind.update(shape=kind.shape[::-1])
            terms = [transposes[n] for n in op.inputs]
            (total,) = rewriting.add("add", lambda a, b: [jnp.add(a, b)], terms, [out])
            rewriting.ops.append(Op("transpose", lambda a: [a.T], (total,), op.outputs))
            transposes[op.outputs[0]] = total
            sums.append(str(kind.shape))
            continue
        rewriting.ops.append(op)
        if _has_large_weight(loop, op, fixed, pays):
            transposes[op.outputs[0]] = _transpose_of_product(rewriting, op)
    return step._replace(primal=loop._replace(program=rewriting.done())).noting(weights_on_the_left=sums)


def _has_large_weight(loop: LoopProgram, op: Op, fixed: set[int], pays: Callable[..., bool]) -> bool:
    """Whether the operation is ``x @ W`` of matrices, x not hoisted, W a constant that it pays to put on the left."""
    if op.name != "dot_general" or op.inputs[0] in loop.outside or op.inputs[1] not in fixed:
        return False
    program = loop.program
    kinds = [program.kinds[n] for n in (*op.inputs, *op.outputs)]
    contracting, batch = op.params["dimension_numbers"]
    return (
        [kind.ndim for kind in kinds] == [2, 2, 2]
        and tuple(contracting[0]) == (1,)
        and not any(batch)
        and op.params["precision"] is None
        and pays(*map(program.size, (op.inputs[1], op.outputs[0], op.inputs[0])))
        and not any(any(kind.sharding.spec) for kind in kinds)
    )


def _transpose_of_product(rewriting: Rewriting, op: Op) -> int:
    """``Wᵀ xᵀ`` of an operation ``x @ W``."""
    x, W = op.inputs
    of_W, out = rewriting.kinds[W], rewriting.kinds[op.outputs[0]]
    contracting, batch = op.params["dimension_numbers"]
    if tuple(contracting[1]) == (0,):
        (W,) = rewriting.add("transpose", lambda W: [W.T], (W,), [of_W.update(shape=of_W.shape[::-1])])
    params = {**op.params, "dimension_numbers": (((1,), (1,)), batch)}

    def run(W, x):
        return [jax.lax.dot_general_p.bind(W, x, **params)]

    (product,) = rewriting.add("dot_general", run, (W, x), [out.update(shape=out.shape[::-1])], params)
    return product
