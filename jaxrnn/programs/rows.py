"""Whether a program treats each row of its batch by itself, so that rows may be regrouped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import jaxpr_as_fun

from jaxrnn.programs.primitives import CHEAP, has
from jaxrnn.programs.program import Op, Program
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


def _rows_of(program: Program, given: Sequence[Rows]) -> list[Rows]:
    """The rows of the program's outputs, from those of its inputs."""
    rows = dict(zip(program.inputs, given, strict=True)) | dict.fromkeys(program.consts, Rows(None))
    for op in program.ops:
        of_inputs = [rows[n] for n in op.inputs]
        rule = RULES.get(op.name, _elementwise if has(op.name, CHEAP) else None)
        if rule is not None:
            made = rule(_View(op.name, op.params, *_shapes(program, op)), of_inputs)
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
    shapes: list[tuple[int, ...]]  # of its inputs
    made: list[tuple[int, ...]]  # of its outputs

    def axis_of(self, rows: Sequence[Rows]) -> int | None:
        """The axis that all inputs with rows share."""
        axes = {of.axis for of in rows if of.axis is not None}
        if len(axes) > 1:
            raise MixedError(self.name)
        return axes.pop() if axes else None


def _shapes(program: Program, op: Op) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [program.kinds[n].shape for n in op.inputs], [program.kinds[n].shape for n in op.outputs]


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
    of, shape, made = rows[0], op.shapes[0], op.made[0]
    if op.axis_of(rows) is not None and (of.axis is None or shape[of.axis] != made[of.axis]):
        raise MixedError(f"{op.name} of the batch")
    cut = {axis for axis, (before, after) in enumerate(zip(shape, made, strict=True)) if before != after}
    return [of._replace(alike=of.alike - cut)]


def _unstack(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    return [_without(rows[0], (op.params["axis"],), op.name) for _ in op.made]


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


def _inner(op: _View, rows: Sequence[Rows]) -> list[Rows]:
    closed = op.params.get("call_jaxpr", op.params.get("jaxpr"))
    if not hasattr(closed, "consts"):
        raise MixedError(op.name)
    program, _, _ = flat_program(jaxpr_as_fun(closed), *closed.in_avals)
    return _rows_of(program, rows)


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
    "pad": _slice,
    "unstack": _unstack,
    "gather": _gather,
    "custom_jvp_call": _inner,
}
