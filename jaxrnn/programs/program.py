"""A traced step as a flat list of operations, and what each of them depends on.

``jax.make_jaxpr`` gives the step as equations; nested ``jit`` calls are flattened into their callers, everything else
(``cond``, inner scans, custom derivatives …) stays one operation. The plans in this folder split such a program in
parts and evaluate each where it costs least.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

SUMS = ("add", "add_any")  # the primitives that are sums of two


class Op(NamedTuple):
    """``outputs = run(*inputs)``, values by their numbers."""

    name: str
    run: Callable[..., Sequence[Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: Mapping[str, Any] = MappingProxyType({})  # those of the primitive


class Program(NamedTuple):
    ops: list[Op]
    consts: dict[int, Any]  # what the traced function closed over, by number
    inputs: list[int]
    outputs: list[int]
    kinds: dict[int, Any]  # the type (shape, dtype, sharding) of each value

    def size(self, number: int) -> int:
        """The elements of a value."""
        return math.prod(self.kinds[number].shape)

    def fixed(self) -> set[int]:
        """The values that depend on no input: the constants and what is made of them alone."""
        return self.kinds.keys() - reached_from(self.ops, self.inputs)


class Rewriting:
    """A program being rewritten: operations are added one after the other, new values get numbers of their own."""

    def __init__(self, program: Program):
        self.program = program
        self.ops: list[Op] = []
        self.kinds = dict(program.kinds)
        self._numbers = itertools.count(1 + max(self.kinds, default=0))

    def add(
        self,
        name: str,
        run: Callable[..., Sequence[Any]],
        inputs: Iterable[int],
        kinds: Sequence[Any],
        params: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        """An operation whose outputs are of the given kinds; their numbers."""
        outputs = tuple(next(self._numbers) for _ in kinds)
        self.kinds.update(zip(outputs, kinds, strict=True))
        self.ops.append(Op(name, run, tuple(inputs), outputs, params))
        return list(outputs)

    def done(self) -> Program:
        return self.program._replace(ops=self.ops, kinds=self.kinds)


# What only the plain scan may run: the user's own backward rules, which autodiff must meet where they stand, and
# callbacks, whose number and order are the user's.
INDIVISIBLE = ("custom_vjp_call", "pure_callback", "io_callback", "debug_callback")


def indivisible(closed: Any) -> str | None:
    """What keeps a traced step in one piece, its ``cond``, scans and other inner programs looked through."""
    if closed.effects:
        return "an effect: " + ", ".join(sorted(map(str, closed.effects)))
    todo = [closed.jaxpr]
    while todo:
        for eqn in todo.pop().eqns:
            if eqn.primitive.name.startswith(INDIVISIBLE):
                return eqn.primitive.name
            todo += inner_programs(eqn.params)
    return None


def inner_programs(params: Mapping[str, Any]) -> list[Any]:
    """The jaxprs that a primitive holds: the branches of a ``cond``, the body of a scan …"""
    values = jax.tree.leaves(list(params.values()), is_leaf=lambda v: hasattr(v, "eqns"))
    return [getattr(v, "jaxpr", v) for v in values if hasattr(v, "jaxpr") or hasattr(v, "eqns")]


def trace(function: Callable[..., Any], *args: Any) -> tuple[Program | None, Any]:
    """The program of ``function(*args)`` (flat lists in and out) and its output's shapes as a tree.

    Where it must not be taken apart, None and the reason.
    """
    program, shapes, closed = flat_program(function, *args)
    reason = indivisible(closed)
    return (None, reason) if reason else (program, shapes)


def flat_program(
    function: Callable[..., Any], *args: Any, flattens: Callable[[Any], bool] | None = None
) -> tuple[Program, Any, Any]:
    """The program of ``function(*args)``, its output's shapes as a tree, and the jaxpr that it was made of.

    ``flattens(equation)`` says which calls are flattened; None means nested ``jit`` alone.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    numbers = itertools.count(1)
    ops: list[Op] = []
    inputs = [next(numbers) for _ in closed.jaxpr.invars]
    constants = [next(numbers) for _ in closed.consts]
    kinds = {
        n: v.aval for n, v in zip([*inputs, *constants], [*closed.jaxpr.invars, *closed.jaxpr.constvars], strict=True)
    }
    outputs = _flatten(closed.jaxpr, constants, inputs, numbers, ops, kinds, flattens or is_plain_call)
    return Program(ops, dict(zip(constants, closed.consts, strict=True)), inputs, outputs, kinds), shapes, closed


def _flatten(
    jaxpr: Any,
    consts: Iterable[int],
    args: Iterable[int],
    numbers: Iterator[int],
    ops: list[Op],
    kinds: dict[int, Any],
    flattens: Callable[[Any], bool],
) -> list[int]:
    number_of: dict[Any, int] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def constant(value: Any, kind: Any) -> int:
        number = next(numbers)
        kinds[number] = kind
        ops.append(Op("constant", lambda: [value], (), (number,)))
        return number

    def read(atom: Any) -> int:
        return constant(atom.val, atom.aval) if isinstance(atom, Literal) else number_of[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if flattens(eqn):
            inner = eqn.params["jaxpr"]
            inner_consts = [constant(value, jax.typeof(value)) for value in getattr(inner, "consts", ())]
            outputs = _flatten(getattr(inner, "jaxpr", inner), inner_consts, inputs, numbers, ops, kinds, flattens)
            number_of.update(zip(eqn.outvars, outputs, strict=True))
        else:
            made = [next(numbers) for _ in eqn.outvars]
            number_of.update(zip(eqn.outvars, made, strict=True))
            kinds.update((number, var.aval) for number, var in zip(made, eqn.outvars, strict=True))
            ops.append(Op(eqn.primitive.name, _runner(eqn), tuple(inputs), tuple(made), eqn.params))
    return [read(atom) for atom in jaxpr.outvars]


def is_call(eqn: Any) -> bool:
    """What computes no more than the program that it holds: a plain nested ``jit``, a ``jax.checkpoint``."""
    return is_plain_call(eqn) or eqn.primitive.name in ("checkpoint", "remat", "remat2")


def is_plain_call(eqn: Any) -> bool:
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


def evaluate(ops: Iterable[Op], known: Mapping[int, Any], wanted: Sequence[int]) -> list[Any]:
    """The wanted values, from the known ones."""
    values = dict(known)
    for op in ops:
        values.update(zip(op.outputs, op.run(*(values[number] for number in op.inputs)), strict=True))
    return [values[number] for number in wanted]


def reached_from(ops: Iterable[Op], sources: Iterable[int]) -> set[int]:
    """All values that depend on the sources, these included."""
    reached = set(sources)
    for op in ops:
        if any(number in reached for number in op.inputs):
            reached.update(op.outputs)
    return reached


def needed_for(ops: Sequence[Op], wanted: Iterable[int], given: Container[int] = ()) -> list[Op]:
    """The operations, in order, without which the wanted values cannot be computed from the given ones."""
    needed = {number for number in wanted if number not in given}
    kept = []
    for op in reversed(ops):
        if any(number in needed for number in op.outputs):
            needed.update(number for number in op.inputs if number not in given)
            kept.append(op)
    return kept[::-1]
