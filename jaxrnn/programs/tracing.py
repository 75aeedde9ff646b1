"""How a function becomes a program.

``jax.make_jaxpr`` gives its equations. Nested ``jit`` calls are flattened into their callers; everything else
(``cond``, inner scans, custom derivatives …) stays one operation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Literal
from jax.sharding import AxisType

from jaxrnn.programs.primitives import INDIVISIBLE, has
from jaxrnn.programs.program import Op, Program


def trace(function: Callable[..., Any], *args: Any) -> tuple[Program | None, Any]:
    """The program of ``function(*args)`` (flat lists in and out) and its output's shapes as a tree.

    Where it must not be taken apart, None and the reason.
    """
    program, shapes, closed = flat_program(function, *args)
    reason = _indivisible(closed)
    return (None, reason) if reason else (program, shapes)


def _indivisible(closed: Any) -> str | None:
    """What keeps a traced step in one piece, its ``cond``, scans and other inner programs looked through."""
    if closed.effects:
        return "an effect: " + ", ".join(sorted(map(str, closed.effects)))
    todo = [closed.jaxpr]
    while todo:
        for eqn in todo.pop().eqns:
            if has(eqn.primitive.name, INDIVISIBLE):
                return eqn.primitive.name
            if eqn.primitive.name == "reshard" and _leaves_explicit_axes(eqn):
                return "a part on Auto axes of an Explicit mesh"  # as a gather there is, in a mesh of its own
            todo += inner_programs(eqn.params)
    return None


def _leaves_explicit_axes(eqn: Any) -> bool:
    before, after = (v.aval.sharding.mesh.axis_types or () for v in (*eqn.invars, *eqn.outvars))
    return AxisType.Explicit in before and AxisType.Explicit not in after


def inner_programs(params: Mapping[str, Any]) -> list[Any]:
    """The jaxprs that a primitive holds: the branches of a ``cond``, the body of a scan …"""
    values = jax.tree.leaves(list(params.values()), is_leaf=lambda v: hasattr(v, "eqns"))
    return [getattr(v, "jaxpr", v) for v in values if hasattr(v, "jaxpr") or hasattr(v, "eqns")]


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
        ops.append(Op("constant", lambda: [value], (), (number,), {"value": value}))
        return number

    def read(atom: Any) -> int:
        return constant(atom.val, atom.aval) if isinstance(atom, Literal) else number_of[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if flattens(eqn):
            inner = eqn.params["call_jaxpr" if "call_jaxpr" in eqn.params else "jaxpr"]
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
