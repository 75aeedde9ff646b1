"""A traced step as a flat list of operations, and what each of them depends on.

``jax.make_jaxpr`` gives the step as equations; nested ``jit`` calls are flattened into their callers, everything else
(``cond``, inner scans, custom derivatives …) stays one operation. The plans in this folder split such a program in
parts and evaluate each where it costs least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

Ref = int | Literal  # a value of the program by its number, or a constant


class Op(NamedTuple):
    """``outputs = run(*inputs)``."""

    name: str
    run: Callable[..., Sequence[Any]]
    inputs: tuple[Ref, ...]
    outputs: tuple[int, ...]
    kind: Any = None  # the type (shape, dtype, sharding) of the first output

    @property
    def needs(self) -> list[int]:
        return [ref for ref in self.inputs if isinstance(ref, int)]


class Program(NamedTuple):
    ops: list[Op]
    consts: dict[int, Any]  # what the traced function closed over, by number
    inputs: list[int]
    outputs: list[Ref]
    effects: bool  # prints, callbacks …: it must not be taken apart

    def fresh(self) -> int:
        """A number that no value has yet."""
        used = [*self.consts, *self.inputs, *(number for op in self.ops for number in op.outputs)]
        return 1 + max(used, default=0)


def trace(function: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """The program of ``function(*args)`` (flat lists in and out), and its output's shapes as a tree."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    numbers = _Numbers()
    ops: list[Op] = []
    inputs = [numbers.new() for _ in closed.jaxpr.invars]
    constants = [numbers.new() for _ in closed.consts]
    outputs = _flatten(closed.jaxpr, constants, inputs, numbers, ops)
    return Program(ops, dict(zip(constants, closed.consts, strict=True)), inputs, outputs, bool(closed.effects)), shapes


class _Numbers:
    def __init__(self) -> None:
        self.count = 0

    def new(self) -> int:
        self.count += 1
        return self.count


def _flatten(jaxpr: Any, consts: Iterable[Ref], args: Iterable[Ref], numbers: _Numbers, ops: list[Op]) -> list[Ref]:
    number_of: dict[Any, Ref] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Ref:
        return atom if isinstance(atom, Literal) else number_of[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if _is_plain_call(eqn):
            inner = eqn.params["jaxpr"]
            inner_consts = [numbers.new() for _ in inner.consts]
            for number, value in zip(inner_consts, inner.consts, strict=True):
                ops.append(Op("const", lambda value=value: [value], (), (number,)))
            outputs = _flatten(inner.jaxpr, inner_consts, inputs, numbers, ops)
            number_of.update(zip(eqn.outvars, outputs, strict=True))
        else:
            made = [numbers.new() for _ in eqn.outvars]
            number_of.update(zip(eqn.outvars, made, strict=True))
            kind = eqn.outvars[0].aval if eqn.outvars else None
            ops.append(Op(eqn.primitive.name, _runner(eqn), tuple(inputs), tuple(made), kind))
    return [read(atom) for atom in jaxpr.outvars]


def _is_plain_call(eqn: Any) -> bool:
    """A nested ``jit`` that asks for nothing but to be compiled."""
    if eqn.primitive.name not in ("jit", "pjit"):
        return False
    shardings = (*eqn.params["in_shardings"], *eqn.params["out_shardings"])
    return all(type(sharding).__name__ == "UnspecifiedValue" for sharding in shardings)


def _runner(eqn: Any) -> Callable[..., Sequence[Any]]:
    def run(*values):
        with eqn.ctx.manager:
            made = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
        return made if eqn.primitive.multiple_results else [made]

    return run


def evaluate(ops: Iterable[Op], known: dict[int, Any], wanted: Sequence[Ref]) -> list[Any]:
    """The wanted values, from the known ones."""
    values = dict(known)

    def read(ref: Ref) -> Any:
        return ref.val if isinstance(ref, Literal) else values[ref]

    for op in ops:
        values.update(zip(op.outputs, op.run(*map(read, op.inputs)), strict=True))
    return [read(ref) for ref in wanted]


def reached_from(ops: Iterable[Op], sources: Iterable[int]) -> set[int]:
    """All values that depend on the sources, these included."""
    reached = set(sources)
    for op in ops:
        if any(number in reached for number in op.needs):
            reached.update(op.outputs)
    return reached


def needed_for(ops: Sequence[Op], wanted: Iterable[Ref]) -> list[Op]:
    """The operations without which the wanted values cannot be computed, in order."""
    needed = {ref for ref in wanted if isinstance(ref, int)}
    kept = []
    for op in reversed(ops):
        if any(number in needed for number in op.outputs):
            needed.update(op.needs)
            kept.append(op)
    return kept[::-1]
