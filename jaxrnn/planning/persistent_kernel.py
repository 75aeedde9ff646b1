"""A persistent kernel: the loop as one kernel of a GPU, where the plan asks for it and the step is one it can hold.

``jaxrnn/kernels`` cuts the step of each loop and writes the kernel; docs/persistent_kernels.md has the design.
"""

from __future__ import annotations

import jax

from jaxrnn.kernels.persistent import missing_for_kernels
from jaxrnn.kernels.recurrence import NoKernelError, Recurrence, cut, cut_transposed
from jaxrnn.kernels.split import fit
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.planned_step import PlannedStep
from jaxrnn.programs.program import reached_from


def plan_for_kernels(plan: Plan) -> Plan:
    """The plan, where it asks for a persistent kernel, with as much outside the loop as on any accelerator."""
    if not plan.persistent_kernel:
        return plan
    choices = {name: True if value is None else value for name, value in plan._asdict().items()}
    return Plan(**choices | {"one_kernel": False})


def persistent_kernel(step: PlannedStep) -> PlannedStep:
    """The step with the kernels of its loops: of the primal the loop itself, of the tangent its transpose."""
    if not step.plan.persistent_kernel:
        return step
    primal, tangent = step.primal, step.tangent
    interpreted = step.plan.persistent_kernel == "interpret"
    made: list[str] = []
    missed: list[str] = []
    if missing := missing_for_kernels(interpreted=interpreted):
        return step.noting(not_persistent=[f"both, because {missing}"])
    if step.steps is None:
        return step.noting(not_persistent=["both, because the number of steps is open"])
    if not jax.sharding.get_abstract_mesh().empty:
        return step.noting(not_persistent=["both, because the run is on a mesh"])
    try:
        forward = fit(cut(primal.step(primal.parts()), primal.n_carry))
        primal = primal._replace(forward_kernel=forward, interpreted=interpreted)
        made.append(_named("forward", forward))
    except NoKernelError as reason:
        missed.append(f"forward, because of {reason}")
    if tangent is not None:
        try:
            linear = reached_from(tangent.program.ops, [*_tangents(step), *tangent.d_consts])
            backward = cut_transposed(tangent.step(tangent.parts()), tangent.n_carry, linear)
            backward = backward._replace(recurrence=fit(backward.recurrence))
            tangent = tangent._replace(backward_kernel=backward, interpreted=interpreted)
            made.append(_named("backward", backward.recurrence))
        except NoKernelError as reason:
            missed.append(f"backward, because of {reason}")
    return step._replace(primal=primal, tangent=tangent).noting(persistent=made, not_persistent=missed)


def _named(loop: str, recurrence: Recurrence) -> str:
    return loop if recurrence.blocks == 1 else f"{loop} by {recurrence.blocks} blocks"


def _tangents(step: PlannedStep) -> list[int]:
    """The inputs of the tangent's program that are tangents: its carry, then those of x."""
    assert step.tangent is not None and step.active is not None
    return step.tangent.program.inputs[: step.tangent.n_carry + len(step.active.x)]
