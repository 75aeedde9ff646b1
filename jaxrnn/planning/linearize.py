"""The tangent of a step: the program that is linear in the tangents of the carry, the inputs and the constants."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.planning.planned_step import LoopProgram, PlannedStep
from jaxrnn.programs.program import evaluate, needed_for, reached_from
from jaxrnn.programs.tracing import trace


def linearize(step: PlannedStep) -> PlannedStep:
    """The step with its tangent, which computes all that it needs again, from the carry and the inputs.

    Both programs come of one trace, so a value has the same number in both: the primal keeps what only the tangent
    wants, for :mod:`~jaxrnn.planning.save` to choose from.
    """
    if step.active is None:
        return step
    primal, active = step.primal, step.active
    program = primal.program
    arguments = [*primal.consts, *primal.carry, *primal.x]
    types = [program.kinds[n] for n in arguments]
    n_consts, n_carry = len(primal.consts), primal.n_carry
    places = [
        *active.consts,
        *(n_consts + i for i in active.carry),
        *(n_consts + n_carry + i for i in active.x),
    ]

    def run(values):
        return evaluate(program.ops, program.consts | dict(zip(arguments, values, strict=True)), program.outputs)

    def step_and_tangent(values, tangents):
        def floats(*own):
            changed = list(values)
            for place, value in zip(places, own, strict=True):
                changed[place] = value
            return [a for a in run(changed) if is_inexact(a)]

        return run(values), *jax.jvp(floats, [values[i] for i in places], tangents)

    joint, (shapes, _, _) = trace(step_and_tangent, types, [types[i] for i in places])
    assert joint is not None, "the tangent of a divisible step is divisible"
    numbers = iter(joint.inputs)

    def take(count: int) -> list[int]:
        return [next(numbers) for _ in range(count)]

    consts, carry, x = take(n_consts), take(n_carry), take(len(primal.x))
    d_consts, d_carry, d_x = take(len(active.consts)), take(len(active.carry)), take(len(active.x))

    n_floats = sum(map(is_inexact, shapes))
    first_tangent = len(joint.outputs) - n_floats
    of_floats, d_outputs = joint.outputs[len(shapes) : first_tangent], joint.outputs[first_tangent:]

    linear = reached_from(joint.ops, [*d_consts, *d_carry, *d_x])
    # The tangent's own copy of each output, where that is one: an inner cond or scan gives both at once.
    copies = iter(of_floats)
    outputs = [
        copy if is_inexact(shape) and (copy := next(copies)) not in linear else number
        for number, shape in zip(joint.outputs[: len(shapes)], shapes, strict=True)
    ]
    of_tangent = needed_for(joint.ops, d_outputs)
    read = {n for op in of_tangent for n in op.inputs}.union(d_outputs)
    saved = [n for n in carry if n in read]

    known = joint.consts | dict.fromkeys(consts)
    of_primal = needed_for(joint.ops, [*outputs, *d_outputs])
    return step._replace(
        primal=LoopProgram(
            joint._replace(
                ops=[op for op in of_primal if not linear.intersection(op.outputs)],
                consts=known,
                inputs=[*carry, *x],
                outputs=[*outputs, *saved],
            ),
            n_carry,
            tuple(consts),
        ),
        tangent=LoopProgram(
            joint._replace(
                ops=of_tangent,
                consts=known | dict.fromkeys(d_consts),
                inputs=[*d_carry, *d_x, *x, *saved],
                outputs=d_outputs,
            ),
            len(d_carry),
            tuple(consts),
            tuple(d_consts),
        ),
        saved=tuple(saved),
    )


def is_inexact(a: Any) -> bool:
    """Whether a value has a tangent of its own type."""
    return jnp.issubdtype(a.dtype, jnp.inexact)
