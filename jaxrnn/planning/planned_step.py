"""What the passes hand on to each other: a step of a run over time, as the programs of its two scans."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxrnn._base import is_narrow
from jaxrnn.kernels.recurrence import Recurrence, TransposedRecurrence
from jaxrnn.planning.plan import Plan
from jaxrnn.programs.program import Op, Program, names, needed_for, reached_from


class Parts(NamedTuple):
    """A loop's operations, by where they run, and the values that go from one part to the next."""

    once: list[Op]  # from the constants alone
    fixed: list[int]  # what comes of them
    all_steps: list[Op]  # for all steps at once, before the loop
    ready: list[int]  # what comes of them, stacked over time
    each_step: list[Op]  # in the loop
    stacked: list[int]  # what the loop stacks; what else is put out stands in ``ready``


class LoopProgram(NamedTuple):
    """The program of one scan, ``(carry, x) -> (carry, y)``, and which of its values the loop does not compute."""

    program: Program
    n_carry: int  # the leading inputs and outputs that are the carry
    consts: tuple[int, ...]  # the constants whose values are given where the loop is run
    d_consts: tuple[int, ...] = ()  # those that are tangents; the backward loop adds up their gradients
    outside: frozenset[int] = frozenset()  # values computed for all steps at once, before the loop
    one_kernel: bool = False  # the loop is to be one kernel of the CPU
    block: int = 0  # values outside are computed for so many steps at once; 0: for all
    segment: int = 0  # the loop is a loop of loops of so many steps, each after what it needs of outside; 0: one loop
    as_it_stands: bool = False  # nothing is done once: the loop is that of ``lax.scan``
    forward_kernel: Recurrence | None = None  # the loop as one kernel of a GPU
    backward_kernel: TransposedRecurrence | None = None  # its transpose as one
    interpreted: bool = False  # kernels of a GPU are run by Pallas' interpreter

    @property
    def carry(self) -> list[int]:
        return self.program.inputs[: self.n_carry]

    @property
    def x(self) -> list[int]:
        return self.program.inputs[self.n_carry :]

    def narrow(self) -> frozenset[int]:
        """What is computed of the tangents of constants in floats of less than 32 bits: at each step, not once.

        The gradient of what is constant to a loop is added up over the steps, and in bfloat16 a sum of ones stops at
        256. Cast inside the loop, the sum is kept in the dtype that the constant was cast from.
        """
        return narrow_values(self.program, self.d_consts)

    def parts(self) -> Parts:
        program = self.program
        if self.as_it_stands:
            return Parts([], [], [], [], program.ops, program.outputs[self.n_carry :])
        varying = reached_from(program.ops, {*program.inputs, *self.narrow()})
        of_consts = reached_from(program.ops, program.consts)
        fixed = [n for op in program.ops for n in op.outputs if n in of_consts and n not in varying]
        once = needed_for([op for op in program.ops if not varying.intersection(op.outputs)], fixed)

        known = {*program.consts, *fixed}
        rest = [op for op in program.ops if not known.intersection(op.outputs)]
        stacked = [n for n in program.outputs[self.n_carry :] if n not in self.outside]
        of_loop = [*program.outputs[: self.n_carry], *stacked]
        each_step = needed_for(rest, of_loop, given=self.outside)
        used = {n for op in each_step for n in op.inputs}.union(of_loop)
        ready = sorted(used.union(program.outputs).intersection(self.outside))
        return Parts(once, fixed, needed_for(rest, ready), ready, each_step, stacked)

    def step(self, parts: Parts) -> Program:
        """What runs in the loop, as a program of its own: of what is fixed, ``(carry, what enters) -> (carry, y)``."""
        program = self.program
        outputs = [*program.outputs[: self.n_carry], *parts.stacked]
        used = {n for op in parts.each_step for n in op.inputs}.union(outputs)
        entering = [n for n in dict.fromkeys([*parts.ready, *self.x]) if n in used]
        fixed = dict.fromkeys([*self.consts, *self.d_consts, *program.consts, *parts.fixed])
        return program._replace(
            ops=parts.each_step,
            consts={n: None for n in fixed if n in used},
            inputs=[*self.carry, *entering],
            outputs=outputs,
        )

    def __str__(self) -> str:
        program, parts = self.program, self.parts()
        lines = [
            f"consts: {program.declared(program.consts)}",
            f"carry:  {program.declared(self.carry)}",
            f"x:      {program.declared(self.x)}",
        ]
        for title, ops in (
            ("once", parts.once),
            ("for all steps at once", parts.all_steps),
            ("at each step", parts.each_step),
        ):
            if ops:
                lines += [f"{title}:", *(f"  {program.line(op)}" for op in ops)]
        return "\n".join([*lines, f"carry, y: {names(program.outputs)}"])


class Active(NamedTuple):
    """Which arguments of a run have tangents, by place."""

    consts: list[int]
    carry: list[int]
    x: list[int]


class PlannedStep(NamedTuple):
    """A step under a plan: what each pass takes and returns.

    As it was traced it has the primal alone. ``linearize`` adds the tangent, where a derivative was asked for; from
    there on both are rewritten, and values leave their loops.
    """

    plan: Plan
    primal: LoopProgram  # (carry, x) -> (carry, y and saved)
    active: Active | None = None  # None where no derivative was asked for
    tangent: LoopProgram | None = None  # linear: (∂carry; ∂x, x, saved) -> (∂carry, ∂y)
    saved: tuple[int, ...] = ()  # the values of the primal, beside x, that the tangent is computed from
    notes: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # for ``explain``: the entries of its fields
    steps: int | None = None  # of the run; None where that is open
    has_kernel: bool = False  # whether one of the step's forms is to be one kernel: all of them save the same

    @classmethod
    def of(
        cls, program: Program, n_carry: int, plan: Plan, active: Active | None = None, **options: Any
    ) -> PlannedStep:
        """A step as it was traced; the values of its constants come in where it is run."""
        step = cls(plan, LoopProgram(program, n_carry, tuple(program.consts)), active, **options)
        return step.without_values()

    def noting(self, **entries: Any) -> PlannedStep:
        return self._replace(notes={**self.notes, **{name: tuple(found) for name, found in entries.items()}})

    def without_values(self) -> PlannedStep:
        """The step without the values of constants, which may be tracers: to be looked at."""

        def bare(loop: LoopProgram) -> LoopProgram:
            return loop._replace(program=loop.program._replace(consts=dict.fromkeys(loop.program.consts)))

        return self._replace(primal=bare(self.primal), tangent=self.tangent and bare(self.tangent))

    def __str__(self) -> str:
        if self.tangent is None:
            return f"primal\n{self.primal}"
        saved = self.primal.program.declared(self.saved)
        return f"primal\n{self.primal}\nsaved: {saved}\ntangent\n{self.tangent}"


def narrow_values(program: Program, consts: tuple[int, ...]) -> frozenset[int]:
    """The values computed of the given constants that are floats of less than 32 bits."""
    of_consts = reached_from(program.ops, consts)
    return frozenset(n for op in program.ops for n in op.outputs if n in of_consts and is_narrow(program.kinds[n]))
