"""Whether a program treats each row of its batch by itself, so that rows may be regrouped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxrnn.programs.primitives import CHEAP, has
from jaxrnn.programs.program import Program
from jaxrnn.programs.tracing import flat_program


class Rows(NamedTuple):
    """Where a value has the rows of the batch: along one axis, or nowhere."""

    axis: int | None
    alike: frozenset[int] = frozenset()  # of a value without rows, the axes along which it is the same


class MixedError(Exception):
    """An operation that lets rows of the batch meet, or of which that is not known."""


def mixes_rows(program: Program, of_batch: Sequence[int]) -> str | None:
    """The operation that lets rows of the batch meet, or may; None where each row is treated by itself, and alike.

    Args:
        program: what is looked at.
        of_batch: its inputs that lead with the batch; all its outputs must.
    """
    given = [Rows(0) if n in of_batch else Rows(None) for n in program.inputs]
    try:
        rows = _rows_of(program, given)
    except MixedError as mixed:
        return str(mixed)
    leads = all(of.axis == 0 or (of.axis is None and 0 in of.alike) for of in rows)
    return None if leads else "an output that does not lead with the batch"


def counts_rows(program: Program, fewer: Program) -> str | None:
    """What of a program depends on how many rows there are; None where nothing does.

    Args:
        program, fewer: the same function, traced for a batch and for one of fewer rows.
    """
    if [(op.name, op.inputs, op.outputs) for op in program.ops] != [
        (op.name, op.inputs, op.outputs) for op in fewer.ops
    ]:
        return "other operations"

    def axes(numbers: Sequence[int]) -> int:
        """Along how many axes one of these values has as many entries as there are rows."""
        shapes = ((program.kinds[n].shape, fewer.kinds[n].shape) for n in numbers)
        return max((sum(a != b for a, b in zip(*of, strict=True)) for of in shapes), default=0)

    for op, of_fewer in zip(program.ops, fewer.ops, strict=True):
        if op.name == "constant" and not _same(op.params["value"], of_fewer.params["value"]):
            return "a constant"
        if axes(op.inputs) > axes(op.outputs):  # a sum of so many ones
            return op.name
        if op.name not in RULES and has(op.name, CHEAP) and dict(op.params) != dict(of_fewer.params):
            return op.name
        if op.name == "custom_jvp_call":
            inner = [
                (jaxpr_as_fun(closed), closed.in_avals) for closed in (o.params["call_jaxpr"] for o in (op, of_fewer))
            ]
            if reason := counts_rows(*(flat_program(function, *kinds)[0] for function, kinds in inner)):
                return reason
    consts = zip(program.consts.values(), fewer.consts.values(), strict=True)
    return None if all(_same(a, b) for a, b in consts) else "a constant"


def _same(a: Any, b: Any) -> bool:
    """Whether two constants are the same, as far as their values are known."""
    if a is b:
        return True
    if any(isinstance(v, jax.core.Tracer) or jnp.issubdtype(jnp.result_type(v), jax.dtypes.extended) for v in (a, b)):
        return False
    return bool(np.array_equal(a, b, equal_nan=jnp.issubdtype(jnp.result_type(a), jnp.inexact)))


def _rows_of(program: Program, given: Sequence[Rows], differentiated: bool = True) -> list[Rows]:
    """The rows of the program's outputs, from those of its inputs."""
    rows = dict(zip(program.inputs, given, strict=True)) | dict.fromkeys(program.consts, Rows(None))
    for op in program.ops:
        of_inputs = [rows[n] for n in op.inputs]
        rule = RULES.get(op.name, _elementwise if has(op.name, CHEAP) else None)
        if rule is not None:
            kinds, shapes = [program.kinds[n] for n in op.inputs], [program.kinds[n].shape for n in op.outputs]
            made = rule(_View(op.name, op.params, op.run, kinds, shapes, differentiated), of_inputs)
        elif all(of.axis is None for of in of_inputs):
            made = [Rows(None)] * len(op.outputs)
        else:
            raise MixedError(op.name)
        rows.update(zip(op.outputs, made, strict=True))
    return [rows[n] for n in program.outputs]


class _View(NamedTuple):
    """An operation, as the rules look at it."""

    name: str
    params: Mapping[str, Any]
    run: Callable[..., Sequence[Any]]
    kinds: list[Any]  # of its inputs
    made: list[tuple[int, ...]]  # the shapes of its outputs
    differentiated: bool  # whether its derivative has to keep rows apart as well

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Those of its inputs."""
        return [kind.shape for kind in self.kinds]

    def axis_of(self, rows: Sequence[Rows]) -> int | None:
        """The axis that all inputs with rows share."""
        axes = {of.axis for of in rows if of.axis is not None}
        if len(axes) > 1:
            raise MixedError(self.name)
        return axes.pop() if axes else None


Rule = Callable[[_View, Sequence[Rows]], list[Rows]]


def _elementwise(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    axis = op.axis_of(rows)
    if axis is None:
        alike = [frozenset(range(len(op.made[0]))) if not shape else of.alike for of, shape in _pairs(op, rows)]
        return [Rows(None, frozenset.intersection(*alike)) for _ in op.made]
    for of, shape in _pairs(op, rows):
        if of.axis is None and shape and shape[axis] != 1 and axis not in of.alike:
            raise MixedError(f"{op.name} of the batch and what differs from row to row")
    return [Rows(axis) for _ in op.made]


def _pairs(op: _View, rows: Sequence[Rows]) -> list[tuple[Rows, tuple[int, ...]]]:
    return list(zip(rows, op.shapes, strict=True))


def _constant(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    return [Rows(None, frozenset(axis for axis, size in enumerate(op.made[0]) if size == 1))]


def _product(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    contracting, batch = op.params["dimension_numbers"]
    placed = []
    for side, of in enumerate(rows):
        if of.axis is None:
            continue
        free = [a for a in range(len(op.shapes[side])) if a not in (*contracting[side], *batch[side])]
        if of.axis in contracting[side]:
            raise MixedError(f"{op.name} over the batch")
        if of.axis in batch[side]:
            placed.append(tuple(batch[side]).index(of.axis))
        else:
            before = len(batch[0]) + (side and len(op.shapes[0]) - len(contracting[0]) - len(batch[0]))
            placed.append(before + free.index(of.axis))
    if len(set(placed)) > 1:
        raise MixedError(op.name)
    others = [of for of, side in zip(rows, (0, 1), strict=True) if of.axis is None and batch[side]]
    if placed and placed[0] < len(batch[0]) and others:
        raise MixedError(f"{op.name} of the batch and what differs from row to row")
    return [Rows(placed[0] if placed else None)]


def _broadcast(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    (of, *_), (shape, *_), (made,) = rows, op.shapes, op.made
    to = op.params["broadcast_dimensions"]
    if of.axis is not None:
        return [Rows(to[of.axis])]
    new = {axis for axis in range(len(made)) if axis not in to}
    stretched = {b for a, b in enumerate(to) if shape[a] == 1 or a in of.alike}
    return [Rows(None, frozenset(new | stretched))]


def _reshape(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    of, shape, made = rows[0], op.shapes[0], op.made[0]
    if of.axis is None:
        return [Rows(None)]
    if op.params["dimensions"] is not None:
        raise MixedError(f"{op.name} in another order")
    before, size = math.prod(shape[: of.axis]), shape[of.axis]
    for axis, new in enumerate(made):
        if math.prod(made[:axis]) == before and new == size:
            return [Rows(axis)]
    raise MixedError(f"{op.name} of the batch with another axis")


def _transpose(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    order = tuple(op.params["permutation"])
    of = rows[0]
    return [Rows(None, frozenset(order.index(a) for a in of.alike)) if of.axis is None else Rows(order.index(of.axis))]


def _squeeze(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    return [_without(rows[0], op.params["dimensions"], op.name)]


def _reduce(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    return [_without(rows[0], op.params["axes"], op.name) for _ in op.made]


def _without(of: Rows, gone: Sequence[int], name: str) -> Rows:
    if of.axis in gone:
        raise MixedError(f"{name} over the batch")

    def left(axis: int) -> int:
        return axis - sum(a < axis for a in gone)

    if of.axis is not None:
        return Rows(left(of.axis))
    return Rows(None, frozenset(left(axis) for axis in of.alike if axis not in gone))


def _along(name: str) -> Rule:
    """An operation along one axis, or several, all others apart from each other."""

    def rule(op: _View, rows: Sequence[Rows]) -> list[Rows]:
        along = op.params[name]
        gone = frozenset(along if isinstance(along, tuple | list) else (along,))
        if op.axis_of(rows) in gone:
            raise MixedError(f"{op.name} along the batch")
        return [of._replace(alike=of.alike - gone) for of in _elementwise(op, rows)]

    return rule


def _slice(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    sizes = enumerate(zip(op.shapes[0], op.made[0], strict=True))
    return [_changed(op, rows[0], {axis for axis, (before, after) in sizes if before != after})]


def _pad(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    """A pad may take as much from one end as it adds to the other: rows are moved then, their number is the same."""
    return [_changed(op, rows[0], {axis for axis, added in enumerate(op.params["padding_config"]) if any(added)})]


def _changed(op: _View, of: Rows, axes: set[int]) -> Rows:
    if of.axis in axes:
        raise MixedError(f"{op.name} of the batch")
    return of._replace(alike=of.alike - axes)


def _unstack(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    return [_without(rows[0], (op.params["axis"],), op.name) for _ in op.made]


def _stack(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    new = op.params["axis"]
    (of,) = _elementwise(op._replace(made=op.shapes[:1]), rows)
    moved = lambda axis: axis + (axis >= new)
    return [Rows(None if of.axis is None else moved(of.axis), frozenset(map(moved, of.alike)))]


def _convolution(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    numbers = op.params["dimension_numbers"]
    if rows[1].axis is not None or op.params["batch_group_count"] != 1:
        raise MixedError(op.name)
    if rows[0].axis is not None and rows[0].axis != numbers.lhs_spec[0]:
        raise MixedError(f"{op.name} over the batch")
    return [Rows(None if rows[0].axis is None else numbers.out_spec[0])]


def _gather(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    table, indices = rows[0], rows[1]
    numbers = op.params["dimension_numbers"]
    if indices.axis is None:
        if table.axis is None:
            return [Rows(None)]
        raise MixedError(op.name)
    batching = tuple(getattr(numbers, "start_indices_batching_dims", ()))
    if table.axis is not None or batching or indices.axis == len(op.shapes[1]) - 1:
        raise MixedError(op.name)
    leading = [axis for axis in range(len(op.made[0])) if axis not in numbers.offset_dims]
    return [Rows(leading[indices.axis])]


def _custom_jvp(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    """By the program that it holds, and by the one of its tangents, which a user wrote."""
    closed = op.params["call_jaxpr"]
    program, _, _ = flat_program(jaxpr_as_fun(closed), *closed.in_avals)
    made = _rows_of(program, rows, op.differentiated)
    if not op.differentiated:  # in a rule for tangents, which may call what it belongs to
        return made
    moving = [i for i, kind in enumerate(op.kinds) if jnp.issubdtype(kind.dtype, jnp.inexact)]

    def tangents(*values):
        primals = values[: len(op.kinds)]

        def of_moving(*floats):
            arrays = list(primals)
            for i, a in zip(moving, floats, strict=True):
                arrays[i] = a
            return [a for a in op.run(*arrays) if jnp.issubdtype(a.dtype, jnp.inexact)]

        return jax.jvp(of_moving, [primals[i] for i in moving], list(values[len(op.kinds) :]))[1]

    program, _, _ = flat_program(tangents, *op.kinds, *(op.kinds[i] for i in moving))
    of_tangents = _rows_of(program, [*rows, *(rows[i] for i in moving)], differentiated=False)
    of_floats = [of for of, kind in zip(made, closed.out_avals, strict=True) if jnp.issubdtype(kind.dtype, jnp.inexact)]
    for of, of_tangent in zip(of_floats, of_tangents, strict=True):
        if of_tangent.axis != of.axis and not (of_tangent.axis is None and of.axis in of_tangent.alike):
            raise MixedError(f"the derivative of {op.name}")
    return made


RULES: dict[str, Rule] = {
    "constant": _constant,
    "iota": lambda op, rows: [Rows(None)],
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_prod", "argmax", "argmin"),
        _reduce,
    ),
    "cumsum": _along("axis"),
    "rev": _along("dimensions"),
    "concatenate": _along("dimension"),
    "split": _along("axis"),
    "slice": _slice,
    "pad": _pad,
    "stack": _stack,
    "unstack": _unstack,
    "gather": _gather,
    "custom_jvp_call": _custom_jvp,
}
