"""How the new carry of a traced step depends on the old: number by number, or not; linearly, or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.programs.primitives import CHEAP, has
from jaxrnn.programs.program import Op, Program, needed_for, reached_from
from jaxrnn.programs.tracing import flat_program, inner_programs, is_call

Arrays = list[Any]


class Depends(NamedTuple):
    """What of the old carry a value depends on."""

    leaves: frozenset[int]
    axes: tuple[int, ...] | None  # where it has the axes of those leaves, number by number; None: numbers meet


class CarryStep(NamedTuple):
    """The carry's part of a step, (carry, x) -> carry, as a program: custom derivative rules are left behind.

    A rule may say what it likes, such as a surrogate's slope or a clipped cotangent; what is asked here is how the step
    answers to its carry.
    """

    program: Program
    n_carry: int
    has_rules: bool  # whether derivative rules, or operations without derivatives, are left in what it holds

    @property
    def eps(self) -> float:
        """The ε of the coarsest dtype that numbers on their way from the old carry to the new one pass."""
        program = self.program
        passed = reached_from(program.ops, program.inputs[: self.n_carry])
        dtypes = {program.kinds[n].dtype for n in (*passed, *program.outputs)}
        return max(float(jnp.finfo(dtype).eps) for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact))

    def __call__(self, carry: Sequence[Any], x: Sequence[Any], cut: bool = False) -> Arrays:
        """The new carry; ``cut``: where numbers of the carry meet, they are taken for constants of its derivative."""
        ops, inputs, outputs = self.program.ops, self.program.inputs, self.program.outputs
        constants = _meeting(self) if cut else frozenset()
        values = self.program.consts | dict(zip(inputs, [*carry, *x], strict=True))
        for op in ops:
            given = [values[n] for n in op.inputs]
            # of a value that a rule holds constant, the derivative is what it is without that rule
            made = given if op.name == "stop_gradient" else op.run(*given)
            if constants.intersection(op.outputs):
                made = [jax.lax.stop_gradient(a) for a in made]
            values.update(zip(op.outputs, made, strict=True))
        return [values[n] for n in outputs]


def carry_step(step: Callable[..., Any], carry: Sequence[Any], x: Sequence[Any]) -> CarryStep:
    """Of ``step(carry, x) -> (carry, y)``, flat lists."""

    def opened(eqn: Any) -> bool:
        return is_call(eqn) or eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call")

    program, _, _ = flat_program(lambda carry, x: list(step(carry, x)[0]), list(carry), list(x), flattens=opened)
    program = program._replace(ops=needed_for(program.ops, program.outputs))
    moving = reached_from(program.ops, program.inputs[: len(carry)])
    opaque = any(_is_opaque(op) for op in program.ops if moving.intersection(op.inputs))
    return CarryStep(program, len(carry), opaque)


def _is_opaque(op: Op) -> bool:
    """Whether a rule stands inside of it, or it is a callback or a kernel."""
    names, todo = {op.name}, inner_programs(op.params)
    while todo:
        for eqn in todo.pop().eqns:
            names.add(eqn.primitive.name)
            todo += inner_programs(eqn.params)
    return any(word in name for name in names for word in ("custom_", "callback", "pallas_call"))


def is_affine(step: CarryStep) -> bool:
    """Whether every number of the new carry is an affine function of the old: by the operations, without fail."""
    moving = set(step.program.inputs[: step.n_carry])
    for op in step.program.ops:
        of_carry = [i for i, n in enumerate(op.inputs) if n in moving]
        if of_carry:
            rule = AFFINE.get(op.name)
            kinds = [step.program.kinds[n] for n in (*op.inputs, *op.outputs)]
            if rule is None or not rule(of_carry, kinds):
                return False
            moving.update(op.outputs)
    return True


Rule = Callable[[Sequence[int], Sequence[Any]], bool]


def _keeps_digits(of_carry: Sequence[int], kinds: Sequence[Any]) -> bool:
    """A cast that rounds is no linear function where the others round less."""
    old, new = kinds[0].dtype, kinds[-1].dtype
    inexact = jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact)
    return bool(inexact and jnp.finfo(new).eps <= jnp.finfo(old).eps)


AFFINE: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("add", "add_any", "sub", "neg", "reduce_sum", "cumsum", "real", "imag", "conj", "complex"),
            *("broadcast_in_dim", "reshape", "transpose", "squeeze", "slice", "split", "concatenate", "pad", "rev"),
            *("copy", "stack", "unstack", "stop_gradient"),
        ),
        lambda of_carry, kinds: True,
    ),
    **dict.fromkeys(("mul", "dot_general", "conv_general_dilated"), lambda of_carry, kinds: len(of_carry) == 1),
    **dict.fromkeys(("div", "gather", "dynamic_slice"), lambda of_carry, kinds: list(of_carry) == [0]),
    "dynamic_update_slice": lambda of_carry, kinds: max(of_carry) < 2,
    "scatter-add": lambda of_carry, kinds: 1 not in of_carry,
    "select_n": lambda of_carry, kinds: 0 not in of_carry,
    "convert_element_type": _keeps_digits,
}


def connected(step: CarryStep, cut: bool = False) -> list[tuple[list[int], bool]]:
    """The leaves of the carry in groups that do not depend on each other, and whether within number by number.

    Number by number: each number of a new leaf depends on those at the same place of the group's old leaves, all of one
    shape. With ``cut``, what depends on the carry by numbers that meet does not count.
    """
    depends, n = _depends(step, cut), step.n_carry
    whole = [
        Depends(frozenset({i}), tuple(range(len(step.program.kinds[k].shape))))
        for i, k in enumerate(step.program.inputs[:n])
    ]
    of_outputs = [depends.get(k) or own for k, own in zip(step.program.outputs, whole, strict=True)]
    group = list(range(n))
    for i, of in enumerate(of_outputs):
        for j in of.leaves:
            old, new = group[j], group[i]
            group = [new if g == old else g for g in group]
    made = []
    for g in dict.fromkeys(group):
        leaves = [i for i in range(n) if group[i] == g]
        made.append((leaves, all(of_outputs[i].axes == whole[i].axes for i in leaves)))
    return made


def _depends(step: CarryStep, cut: bool) -> dict[int, Depends]:
    """Of all values; those that are not there depend on no carry, or, with ``cut``, by numbers that meet."""
    program, n = step.program, step.n_carry
    depends = {
        k: Depends(frozenset({i}), tuple(range(len(program.kinds[k].shape)))) for i, k in enumerate(program.inputs[:n])
    }
    for op in program.ops:
        of = [depends.get(k) for k in op.inputs]
        known = [d for d in of if d is not None]
        if not known:
            continue
        for k, axes in zip(op.outputs, _axes(op, program, of), strict=True):
            if axes is not None or not cut:
                depends[k] = Depends(frozenset().union(*(d.leaves for d in known)), axes)
    if cut:  # what is left of an output has to stand where its leaf stands
        for i, k in enumerate(program.outputs):
            own = tuple(range(len(program.kinds[program.inputs[i]].shape)))
            if k in depends and depends[k].axes != own:
                del depends[k]
    return depends


def _meeting(step: CarryStep) -> frozenset[int]:
    """The values at which numbers of the carry meet."""
    alone = _depends(step, cut=True)
    meeting = {k for op in step.program.ops if any(n in alone for n in op.inputs) for k in op.outputs if k not in alone}
    return frozenset(meeting)


def _axes(op: Op, program: Program, of: Sequence[Depends | None]) -> list[tuple[int, ...] | None]:
    """Where the outputs have the axes of the carry; None where numbers meet."""
    nowhere: list[tuple[int, ...] | None] = [None] * len(op.outputs)
    axes = {d.axes for d in of if d is not None}
    if len(axes) != 1 or (own := axes.pop()) is None:
        return nowhere
    shapes = [program.kinds[n].shape for n in op.inputs]
    made = [program.kinds[n].shape for n in op.outputs]
    if (along := ALONG.get(op.name)) is not None:
        touched = along(op.params, shapes[0], made[0])
        alike = {s for s, d in zip(shapes, of, strict=True) if d is not None}
        return nowhere if touched.intersection(own) or len({len(s) for s in alike}) != 1 else [own] * len(made)
    if (moved := MOVED.get(op.name)) is not None:
        to = moved(op.params, shapes[0], made[0], own)
        return [to] * len(made)
    if has(op.name, CHEAP) and all(s == made[0] for s, d in zip(shapes, of, strict=True) if d is not None):
        return [own] * len(made)
    return nowhere


def _broadcast(params: Any, shape: Any, made: Any, own: tuple[int, ...]) -> tuple[int, ...] | None:
    to = params["broadcast_dimensions"]
    return None if any(shape[a] != made[to[a]] for a in own) else tuple(to[a] for a in own)


def _reshape(params: Any, shape: Any, made: Any, own: tuple[int, ...]) -> tuple[int, ...] | None:
    found = []
    for a in own:
        before = math.prod(shape[:a])
        same = [b for b in range(len(made)) if made[b] == shape[a] and math.prod(made[:b]) == before]
        found += [b for b in same if b not in found][:1]
    return tuple(found) if len(found) == len(own) and params["dimensions"] is None else None


def _fewer(gone: Sequence[int], own: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if set(gone).intersection(own) else tuple(a - sum(g < a for g in gone) for a in own)


# Operations that move axes: (params, shape, made, own axes) -> the axes of the output.
MOVED: dict[str, Callable[..., tuple[int, ...] | None]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": lambda p, shape, made, own: tuple(list(p["permutation"]).index(a) for a in own),
    "squeeze": lambda p, shape, made, own: _fewer(p["dimensions"], own),
    "stack": lambda p, shape, made, own: tuple(a + (a >= p["axis"]) for a in own),
    "unstack": lambda p, shape, made, own: _fewer([p["axis"]], own),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_prod", "argmax", "argmin"),
        lambda p, shape, made, own: _fewer(p["axes"], own),
    ),
}

# Operations along some axes, which leave the others as they are: (params, shape, made) -> the axes along which.
ALONG: dict[str, Callable[..., set[int]]] = {
    "cumsum": lambda p, shape, made: {p["axis"]},
    "rev": lambda p, shape, made: set(p["dimensions"]),
    "concatenate": lambda p, shape, made: {p["dimension"]},
    "split": lambda p, shape, made: {p["axis"]},
    "slice": lambda p, shape, made: {a for a, (s, m) in enumerate(zip(shape, made, strict=True)) if s != m},
    "pad": lambda p, shape, made: {a for a, c in enumerate(p["padding_config"]) if any(c)},
}
