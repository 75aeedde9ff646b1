"""The tangents of constants, spread to the shape of the batch once, outside the tangent loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxrnn.planning.planned_step import PlannedStep
from jaxrnn.programs.primitives import STRETCHES, has
from jaxrnn.programs.program import Rewriting, reached_from


def spread(step: PlannedStep) -> PlannedStep:
    """The tangent with each constant's tangent spread to the full shape of the sum or product that it enters.

    The spreading depends on constants alone, so it is done once, and with it its transpose, the sum over the batch: the
    backward loop then adds up in the shape of the batch, each device its own part.
    """
    if step.tangent is None:
        return step
    program = step.tangent.program
    of_consts = reached_from(program.ops, step.tangent.d_consts) - reached_from(program.ops, program.inputs)
    kinds, spread = program.kinds, Rewriting(program)
    for op in program.ops:
        inputs = list(op.inputs)
        if has(op.name, STRETCHES) and op.outputs[0] not in of_consts:
            kind = kinds[op.outputs[0]]
            for place, n in enumerate(op.inputs):
                if n in of_consts and kinds[n].shape != kind.shape and kinds[n].ndim == kind.ndim:
                    (inputs[place],) = spread.add("broadcast_in_dim", _to(kind), (n,), [kind])
        spread.ops.append(op._replace(inputs=tuple(inputs)))
    return step._replace(tangent=step.tangent._replace(program=spread.done()))


def _to(kind: Any) -> Callable[[Any], list[Any]]:
    sharding = kind.sharding if any(kind.sharding.spec) else None
    return lambda a: [jax.lax.broadcast_in_dim(a, kind.shape, range(a.ndim), out_sharding=sharding)]
