"""A program: a flat list of operations on numbered values. It is printed, evaluated, cut and rewritten here."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

TYPICAL = 32  # what a plan takes the size of a batch for where it has no number


class Op(NamedTuple):
    """``outputs = run(*inputs)``, values by their numbers."""

    name: str  # of the primitive
    run: Callable[..., Sequence[Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: Mapping[str, Any] = MappingProxyType({})  # those of the primitive


class Program(NamedTuple):
    """A pure function: operations in the order in which they run, each value made once.

    Printed, a value is a letter, which passes that rewrite the program leave as it is:

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.programs.tracing import trace
        >>> program, _ = trace(lambda W, h, x: jnp.tanh(h @ W + x), *map(jnp.ones, [(5, 5), (2, 5), (2, 5)]))
        >>> print(program)
        in:  a:f32[5,5] b:f32[2,5] c:f32[2,5]
        d:f32[2,5] = dot_general[1,0] b a
        e:f32[2,5] = add d c
        f:f32[2,5] = tanh e
        out: f
    """

    ops: list[Op]
    consts: dict[int, Any]  # what the traced function closed over, by number
    inputs: list[int]
    outputs: list[int]
    kinds: dict[int, Any]  # the type (shape, dtype, sharding) of each value

    def size(self, number: int) -> int:
        """The elements of a value; an axis without a number, of a program that is exported for any, counts TYPICAL."""
        return math.prod(axis if isinstance(axis, int) else TYPICAL for axis in self.kinds[number].shape)

    def fixed(self) -> set[int]:
        """The values that depend on no input: the constants and what is made of them alone."""
        return self.kinds.keys() - reached_from(self.ops, self.inputs)

    def declared(self, numbers: Iterable[int]) -> str:
        """The values with their types, as ``a:f32[2,5] b:f32[5]``."""
        return " ".join(f"{letters(n)}:{self.kinds[n].str_short(short_dtypes=True)}" for n in numbers)

    def product(self, op: Op) -> str:
        """The operands of a product by their shapes, as ``(2, 5) @ (5, 5)``."""
        return " @ ".join(str(self.kinds[n].shape) for n in op.inputs)

    def line(self, op: Op) -> str:
        """The operation, printed."""
        details = _DETAILS.get(op.name, lambda params: "")(op.params) if op.params else ""
        return f"{self.declared(op.outputs)} = {op.name}{details} {names(op.inputs)}".rstrip()

    def __str__(self) -> str:
        lines = [f"in:  {self.declared(self.inputs)}", *map(self.line, self.ops)]
        if self.consts:
            lines.insert(0, f"consts: {self.declared(self.consts)}")
        return "\n".join([*lines, f"out: {names(self.outputs)}"])


def names(numbers: Iterable[int]) -> str:
    """The values' names, as they are printed."""
    return " ".join(map(letters, numbers))


def letters(number: int) -> str:
    """The name of a value where a program is printed: a … z, aa, ab …"""
    name = ""
    while number:
        number, digit = divmod(number - 1, 26)
        name = chr(ord("a") + digit) + name
    return name


def _contracted(params: Mapping[str, Any]) -> str:
    return "[" + ",".join(" ".join(map(str, axes)) for axes in params["dimension_numbers"][0]) + "]"


# What is printed of a primitive's parameters, beside what the types of its outputs tell.
_DETAILS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "constant": lambda params: "" if np.ndim(params["value"]) else f"[{params['value']}]",
    "dot_general": _contracted,  # the axes contracted, of either operand
    "split": lambda params: f"[axis={params['axis']}]",
}


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
        """The program with the operations that were added, in place of its own."""
        return self.program._replace(ops=self.ops, kinds=self.kinds)


def add_up(first: Any, *others: Any) -> list[Any]:
    """The sum of what an operation is given, in this order, to be its ``run``."""
    return [functools.reduce(operator.add, others, first)]


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
