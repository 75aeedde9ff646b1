"""One device of several: the rules choose for as many devices as there are, or for one of them.

A process that has several CPU devices may run a step over all of them, its batch divided, or on one. Which, is known
where the program is lowered; so such a step is planned for both, and ``programs/calls.py`` takes one of the two. Inside
``jax.shard_map`` over all axes of a mesh, as in ``jr.devices.ensemble``, each device runs a step of its own, by the
rules for one, but for kernels: XLA's pass that divides programs takes the arguments of a kernel apart, and the compiler
then stops at some of them.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

from jaxrnn.planning.plan import Plan
from jaxrnn.programs.program import Program

_devices: contextvars.ContextVar[int | None] = contextvars.ContextVar("devices", default=None)


def devices() -> int:
    """For how many devices rules choose now."""
    return _devices.get() or (1 if _each_by_itself() else jax.device_count())


@contextlib.contextmanager
def for_one_device() -> Iterator[None]:
    """Within, rules choose for a program that runs on one device, however many there are."""
    token = _devices.set(1)
    try:
        yield
    finally:
        _devices.reset(token)


def may_be_on_one_cpu(program: Program, plan: Plan) -> bool:
    """Whether the step may come to run in a program for one CPU device: over a mesh that is in sight it does not."""
    in_sight = not all(kind.sharding.mesh.empty for kind in outer_kinds(program))
    on_mesh = in_sight or not jax.sharding.get_abstract_mesh().empty
    return jax.default_backend() == "cpu" and not plan.persistent_kernel and not on_mesh


def _each_by_itself() -> bool:
    """Whether what is traced runs on each device of a mesh, all of whose axes ``jax.shard_map`` has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and set(mesh.manual_axes) == set(mesh.axis_names)


def outer_kinds(program: Program) -> list[Any]:
    """Of what enters the step and leaves it."""
    return [program.kinds[n] for n in (*program.consts, *program.inputs, *program.outputs)]
