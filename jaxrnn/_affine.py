"""Cells that are linear recurrences: their step and initial carry, made from ``affine``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxrnn._checks import check_affine
from jaxrnn._dtypes import accumulator, aligned, promoted

PyTree = Any
Record = TypeVar("Record", bound=tuple[Any, ...])


@dataclass(unsafe_hash=True)
class AffineStep:
    """``step(params, carry, x)`` of a linear recurrence: carry = a * carry + b, y = output(carry).

    Equal where it is made from the same functions, and pickled by them.
    """

    affine: Callable[..., Any]
    output: Callable[..., Any] | None
    who: str = field(default="user cell", compare=False)  # for error messages
    check: Callable[[PyTree, PyTree, PyTree], None] | None = field(default=None, compare=False)  # of the arguments

    def __call__(self, params: PyTree, carry: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        if self.check is not None:
            self.check(params, carry, x)
        a, b = check_affine(self.who, self.affine(params, x), carry)
        carry = jax.tree.map(_advance, a, carry, b)
        return carry, carry if self.output is None else self.output(params, carry, x)


def _advance(a: Any, h: jax.Array, b: Any) -> jax.Array:
    """``a * h + b`` in the dtype of h; a may lack the leading axes, which are those of the batch."""
    h = jnp.asarray(h)
    return aligned(jnp.asarray(a, h.dtype), h) * h + jnp.asarray(b, h.dtype)


@dataclass(unsafe_hash=True)
class ZeroCarry:
    """``initial_carry(params, batch_shape=())`` of a linear recurrence: zeros in the shapes of b, at least float32."""

    affine: Callable[..., Any]
    input_size: int | None
    x_ndim: Any = field(hash=False)  # a dict of numbers has no hash

    def __call__(self, params: PyTree, batch_shape: tuple[int, ...] = ()) -> PyTree:
        if self.x_ndim == 0:
            x = jax.ShapeDtypeStruct(tuple(batch_shape), jnp.int32)
        elif self.x_ndim == 1 and self.input_size is not None:
            x = jax.ShapeDtypeStruct((*batch_shape, self.input_size), _real_dtype(params))
        else:
            raise ValueError(
                f"user cell: without initial_carry a cell with affine starts from zeros like b, for which it must know "
                f"x (*B, input_size), got input_size={self.input_size!r} and x_ndim={self.x_ndim!r}; give "
                f"input_size=…, or initial_carry."
            )
        made = jax.eval_shape(self.affine, params, x)
        _, b = check_affine("user cell", made, None)
        return jax.tree.map(lambda b: jnp.zeros(b.shape, accumulator(b.dtype)), b)


def _real_dtype(params: PyTree) -> Any:
    """The dtype of the inputs that parameters are made for; of complex ones that of their parts."""
    dtypes = [jnp.result_type(a) for a in jax.tree.leaves(params)]
    real = [jnp.finfo(dtype).dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    return promoted(*real) if real else jnp.dtype(jnp.float32)


def with_affine(record: type[Record]) -> type[Record]:
    """Cell: ``affine`` and ``output`` stand for ``step``, and never beside a step that is another's."""
    make: Any = record.__new__
    replace: Any = record._replace  # type: ignore[attr-defined]

    @functools.wraps(make)
    def __new__(cls: Any, *args: Any, **fields: Any) -> Any:
        return _completed(make(cls, *args, **fields))

    @functools.wraps(replace)
    def _replace(self: Any, /, **changes: Any) -> Any:
        return _completed(replace(self, **{name: None for name in _outdated(self, changes)} | changes))

    record.__new__ = __new__  # type: ignore[method-assign]
    record._replace = record.__replace__ = _replace  # type: ignore[attr-defined]
    return record


def _completed(cell: Any) -> Any:
    """The cell with the functions that ``affine`` makes; what does not go together is refused."""
    affine, output, step = cell.affine, cell.output, cell.step
    if affine is None:
        if output is not None:
            raise TypeError("Cell: output is that of a cell with affine; give affine too, or put y out of step.")
        for name, function in (("initial_carry", cell.initial_carry), ("step", step)):
            if function is None:
                raise TypeError(
                    f"Cell: {name} must be a function, got None; give init, initial_carry and step, or init and affine."
                )
        return cell
    if step is None:
        step = AffineStep(affine, output)
    elif not (isinstance(step, AffineStep) and (step.affine, step.output) == (affine, output)):
        raise TypeError(
            "Cell: step and affine were both given, and they may compute different things; give affine alone, from "
            "which the step is made, or step alone."
        )
    if cell.noise is not None:
        raise TypeError(
            "Cell: noise reaches step, and the step of a cell with affine has none; draw it before the cell, or give "
            "step in place of affine."
        )
    carry = cell.initial_carry
    carry = ZeroCarry(affine, cell.input_size, cell.x_ndim) if carry is None else carry
    return type(cell)._make({**cell._asdict(), "initial_carry": carry, "step": step}.values())


def _outdated(cell: Any, changes: dict[str, Any]) -> Iterator[str]:
    """The fields that stand for others than those that a cell is changed to."""
    stepped = changes.get("step") is not None
    affine = changes.get("affine", None if stepped else cell.affine)
    if stepped:
        yield from ("affine", "output")
    elif affine is None:
        yield "output"
    elif "affine" in changes or "output" in changes:
        yield "step"
    if isinstance(cell.initial_carry, ZeroCarry) and affine is not None:
        yield "initial_carry"
