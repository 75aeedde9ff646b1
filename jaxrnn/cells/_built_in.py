"""The decorator of the factories of built-in cells: registered, with a spec, their arguments checked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from jaxrnn._affine import AffineStep
from jaxrnn._base import Cell, PyTree
from jaxrnn._checks import (
    check_batch_shape,
    check_carry,
    check_features,
    check_key,
    check_one_array,
    check_params,
    check_real,
)
from jaxrnn._narrowing import check_held
from jaxrnn._spec import specified

P = ParamSpec("P")


def built_in(factory: Callable[P, Cell]) -> Callable[P, Cell]:
    """Register a factory, give its cell the spec, and let the cell's functions check what they are given.

    The checks compare shapes in Python while tracing; nothing of them is left in the compiled program.
    """
    who = factory.__name__

    @functools.wraps(factory)
    def checked_factory(*args: P.args, **kwargs: P.kwargs) -> Cell:
        return _checked(who, factory(*args, **kwargs), kwargs.get("dtype"))

    return specified(checked_factory)


def _checked(who: str, cell: Cell, dtype: Any) -> Cell:
    expected: list[PyTree] = []  # what init gives, traced once, when it is first needed

    def params_expected() -> PyTree:
        if not expected:
            expected.append(jax.eval_shape(cell.init, jax.random.key(0)))
        return expected[0]

    def check(params: PyTree, carry: PyTree, x: Any) -> None:
        check_inputs(params, x)
        check_held(who, "carry", carry)
        batch_shape = jnp.shape(x)[: jnp.ndim(x) - cell.x_ndim]
        check_carry(who, carry, jax.eval_shape(lambda p: cell.initial_carry(p, batch_shape), params), batch_shape)

    def check_inputs(params: PyTree, x: Any) -> None:
        check_params(who, params, params_expected())
        check_one_array(who, "x", x)
        check_held(who, "x", x)
        if cell.input_size is not None and cell.x_ndim == 1:
            check_features(who, x, cell.input_size)
            weights = jax.tree.leaves(params)[0].dtype
            check_real(who, x, weights if dtype is None else dtype, declared=dtype is not None)

    def init(key):
        check_key(who, key)
        return cell.init(key)

    def initial_carry(params, batch_shape=()):
        check_params(who, params, params_expected())
        check_batch_shape(who, batch_shape)
        return cell.initial_carry(params, tuple(batch_shape))

    def step(params, carry, x, *noise):
        check(params, carry, x)
        return cell.step(params, carry, x, *noise)

    def gates(params, carry, x):
        check(params, carry, x)
        return cell.gates(params, carry, x)  # type: ignore[misc]

    def noise(params, key, times, x):
        check_one_array(who, "x", x)
        return cell.noise(params, key, times, x)  # type: ignore[misc]

    def affine(params, x):
        check_inputs(params, x)
        return cell.affine(params, x)  # type: ignore[misc]

    def read(params, carry, x):
        check(params, carry, x)
        return cell.output(params, carry, x)  # type: ignore[misc]

    checked = cell._replace(
        init=init,
        initial_carry=initial_carry,
        step=step,
        gates=gates if cell.gates else None,
        noise=noise if cell.noise else None,
    )
    if cell.affine is None:
        return checked
    made = AffineStep(affine, read if cell.output else None, who, check)
    return checked._replace(step=made, affine=made.affine, output=made.output)
