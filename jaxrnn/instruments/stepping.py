"""A step run with something changed on its way: its traced program is evaluated, with other values in some places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import PyTree, flatten
from jaxrnn._checks import check_pair
from jaxrnn.programs.primitives import CAST, PRODUCT, has
from jaxrnn.programs.program import Program, evaluate, needed_for
from jaxrnn.programs.tracing import flat_program, inner_programs, is_call


def step_with_leaves_changed(
    who: str, step: Callable[..., Any], change: Callable[[int, jax.Array], jax.Array], *args: PyTree
) -> tuple[PyTree, PyTree]:
    """``step(*args) -> (carry, y)``, each leaf of the new carry changed where the step computes it.

    Whatever the step computes from a leaf, other leaves and the output among them, sees the changed one: an LSTM's
    h_t = o_t * tanh(c_t) that of c_t. So ∂L/∂c_t is what textbooks write, along every path from c_t to L.

    Args:
        who: for error messages.
        step: of arrays alone; it may close over anything.
        change: ``(index of the leaf, leaf) -> leaf``.
        args: those of ``step``.
    """
    program, new, ys, join, values = _traced(who, step, args)
    sources = _sources(program, new)
    for op in program.ops:
        if inner_programs(op.params) and len(set(op.outputs) & set(sources)) > 1:
            raise ValueError(
                f"{who}: the step computes several arrays of its new carry inside one {op.name!r}, so what one of them "
                f"owes to another cannot be told; let {op.name!r} compute what they share, and each of them after it."
            )
    index_of = {sources[index]: index for index in _narrow_first(program, new)}
    done = set()
    for op in program.ops:
        values.update(zip(op.outputs, op.run(*(values[number] for number in op.inputs)), strict=True))
        for number in index_of.keys() & set(op.outputs):
            index, a = index_of[number], values[number]
            values[number] = _cast(change(index, _cast(a, program.kinds[new[index]].dtype)), a.dtype)
            done.add(index)
    leaves = [values[n] if i in done else change(i, values[n]) for i, n in enumerate(new)]
    return join(leaves, [values[number] for number in ys])


def step_with_carry_changed(
    who: str, step: Callable[..., Any], change: Callable[[PyTree], PyTree], *args: PyTree
) -> tuple[PyTree, PyTree]:
    """``step(*args) -> (carry, y)``, the new carry replaced by ``change(carry)`` once it is complete.

    The output is computed from the changed carry, as far as it is computed from it at all: y_t = h_t stays the state.
    """
    program, new, ys, join, values = _traced(who, step, args)
    carry, _ = join(evaluate(program.ops, values, new), ys)
    carry = change(carry)
    given: dict[int, Any] = {}
    sources, leaves = _sources(program, new), jax.tree.leaves(carry)
    for index in _narrow_first(program, new):
        given[new[index]] = leaves[index]
        given[sources[index]] = _cast(leaves[index], program.kinds[sources[index]].dtype)
    values = {**given, **values}  # what passes through the step is no state that it computes
    return carry, join(new, evaluate(needed_for(program.ops, ys, given=values), values, ys))[1]


def step_with_products_reading(who: str, step: Callable[..., Any], read: PyTree, given: PyTree, *args: PyTree) -> Any:
    """``step(*given, *args)``, whose products (of matrices, convolutions) see ``read`` in place of ``given``.

    What is computed between a given value and a product, such as the r * h of a GRU, is computed twice, from ``given``
    and from ``read``. The new state is what the products give, and is read as it is.

    Raises:
        ValueError: where no product reads a value that differs, and where an inner program reads it whose products
            cannot be told from the rest.
    """
    program, new, ys, join, values = _traced(who, step, (*given, *args))
    states = set(_sources(program, new))
    into_state = _elementwise_before(program, states.union(new))
    pairs = zip(program.inputs, jax.tree.leaves(given), jax.tree.leaves(read), strict=False)
    seen = {number: b for number, a, b in pairs if a is not b}
    origins = {number: {number} for number in seen}  # from which of them a value is computed
    unread, after = set(seen), set()  # after: what is computed from their products
    for op in program.ops:
        of = set().union(*(origins[n] for n in op.inputs if n in seen))
        by_products = [seen.get(number, values[number]) for number in op.inputs]
        if has(op.name, PRODUCT) and of:
            made = op.run(*by_products)
            unread -= of
            after.update(op.outputs)
        else:
            if of and (op.name.startswith("custom_vjp") or any(map(_multiplies, inner_programs(op.params)))):
                raise ValueError(
                    f"{who}: the step reads its state or input inside {op.name!r}, where products cannot be told from "
                    f"the rest; compute the product outside of it (and wrap jr.cotangent_clip around this, not inside)."
                )
            made = op.run(*(values[number] for number in op.inputs))
            if after & set(op.inputs):
                after.update(op.outputs)
            of_state = set(op.outputs) & (states | (into_state & after))
            if of and not of_state:
                seen.update(zip(op.outputs, op.run(*by_products), strict=True))
                origins.update(dict.fromkeys(op.outputs, of))
        values.update(zip(op.outputs, made, strict=True))
    if unread:
        raise ValueError(
            f"{who}: no product of the step (of matrices, a convolution) reads the state or the input that is to be "
            f"dropped, so nothing would be; drop it in a step of your own."
        )
    return join([values[number] for number in new], [values[number] for number in ys])


def _elementwise_before(program: Program, numbers: set[int]) -> set[int]:
    """The values from which the given ones are computed without a product in between."""
    found = set(numbers)
    for op in reversed(program.ops):
        if not has(op.name, PRODUCT) and found & set(op.outputs):
            found.update(op.inputs)
    return found


def _multiplies(jaxpr: Any) -> bool:
    """Whether a product stands anywhere in it."""
    return any(
        has(eqn.primitive.name, PRODUCT) or any(map(_multiplies, inner_programs(eqn.params))) for eqn in jaxpr.eqns
    )


def _traced(who, step, args):
    """The step's program, the numbers of the new carry's leaves and of the output's, what makes trees of such lists,
    and the values of its inputs and constants."""
    leaves, treedef = flatten(args)
    trees: list[Any] = []

    def flat(*leaves):
        (new, carry_tree), (y, y_tree) = map(flatten, check_pair(who, step(*treedef.unflatten(leaves))))
        trees[:] = carry_tree, y_tree
        return [jnp.asarray(a) for a in (*new, *y)]

    program, _, _ = flat_program(flat, *leaves, flattens=is_call)
    carry_tree, y_tree = trees
    new, ys = program.outputs[: carry_tree.num_leaves], program.outputs[carry_tree.num_leaves :]
    _check_apart(who, program, new, ys)
    values = {**program.consts, **dict(zip(program.inputs, leaves, strict=True))}
    return program, new, ys, lambda new, y: (carry_tree.unflatten(new), y_tree.unflatten(y)), values


def _sources(program: Program, numbers: Sequence[int]) -> list[int]:
    """What the given values are casts of, from floats to floats or complex to complex numbers: a step may put out its
    state in one dtype and carry it in another."""
    cast_of = {
        op.outputs[0]: op.inputs[0]
        for op in program.ops
        if has(op.name, CAST)
        and any(
            all(jnp.issubdtype(program.kinds[n].dtype, kind) for n in (*op.inputs, *op.outputs))
            for kind in (jnp.floating, jnp.complexfloating)
        )
    }
    found = []
    for number in numbers:
        while number in cast_of:
            number = cast_of[number]
        found.append(number)
    return found


def _cast(a: jax.Array, dtype: Any) -> jax.Array:
    """``a`` in that dtype; keys, which no cast takes, are never in another."""
    return a if a.dtype == dtype else a.astype(dtype)


def _narrow_first(program: Program, new: Sequence[int]) -> list[int]:
    """The places of the new carry's leaves; of several that are one value, the widest, then the first, stands last."""
    return sorted(range(len(new)), key=lambda index: (program.kinds[new[index]].dtype.itemsize, -index))


def _check_apart(who: str, program: Program, new: Sequence[int], ys: Sequence[int]) -> None:
    """What an inner program (a cond, a scan …) computes beside the new carry, it may have computed from it."""
    states = {*new, *_sources(program, new)}
    needed = {n for op in needed_for(program.ops, ys, given=states) for n in op.inputs} | set(ys)
    for op in program.ops:
        if inner_programs(op.params) and set(op.outputs) & states and (set(op.outputs) - states) & needed:
            raise ValueError(
                f"{who}: the step computes its new carry inside {op.name!r}, together with other results, so what "
                f"depends on the new carry cannot be told from what does not; let {op.name!r} return the carry "
                f"alone, and compute the output from it."
            )
