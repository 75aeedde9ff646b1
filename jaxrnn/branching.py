"""Cells and layers side by side: ``jr.branch``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, Layer, PyTree, name_of
from jaxrnn._checks import check_choice, check_leads_with_batch
from jaxrnn._spec import specified
from jaxrnn.combine import check_entries, check_kinds, check_outputs_for_merge, init_each, zeroed_padding
from jaxrnn.running.scan import as_layer

MERGES: dict[str, Callable[..., PyTree]] = {
    "tuple": lambda *ys: ys,
    "concat": lambda *ys: jnp.concatenate(ys, axis=-1),
}


@specified
def branch(*members: Cell | Layer, merge: str | Callable[..., PyTree] = "tuple") -> Any:
    """Members side by side: all of them read the same input, as an actor and a critic do.

        y_t = merge(y1_t, y2_t, …)        y1, y2 …: the outputs of the members

    Args:
        members: Cells and Layers that read inputs of one size.
        merge: "tuple" gives the members' outputs as they are, "concat" joins their last axes, and a function gets them
            as its arguments, (*B, O) each, or (T, *B, O) each in a Layer: write it for the last axis.

    Returns:
        Of Cells alone a Cell; else a Layer, the Cells lifted by ``jr.scan``. Params and carry are tuples with an entry
        for each member. ``lengths``, ``mask``, ``resets`` and ``start`` go to every member, ``key`` is folded with the
        member's place. On steps that are not valid every output is 0, whatever ``merge`` makes of zeros. As with
        ``jr.chain``, gates are those of the members: ask ``jr.gates`` of one of them.

    Raises:
        ValueError, TypeError: members that read different inputs, an unknown merge, no members.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> heads = jr.branch(jr.readout(8, 4), jr.chain(jr.dense(8, 8, activation="tanh"), jr.readout(8, 1)))
        >>> policy = jr.chain(jr.gru(3, 8), heads)
        >>> carry, (logits, value) = jr.scan(policy).apply(policy.init(jax.random.key(0)), jnp.ones((7, 2, 3)))
        >>> logits.shape, value.shape
        ((7, 2, 4), (7, 2, 1))

    Reference:
        Szegedy et al., "Going deeper with convolutions", CVPR 2015, for branches that are concatenated.
    """
    check_kinds("branch", members)
    check_choice("branch", "merge", merge, MERGES, or_function=True)
    input_size = _agreed("input_size", [member.input_size for member in members], members)
    x_ndim = _agreed("x_ndim", [member.x_ndim for member in members], members)
    sizes = [member.output_size for member in members]
    output_size = sum(sizes) if merge == "concat" and None not in sizes else None  # type: ignore[arg-type]

    def merge_outputs(*outputs):
        if callable(merge):
            return merge(*outputs)
        if merge != "tuple":
            check_outputs_for_merge("branch", merge, outputs)
        return MERGES[merge](*outputs)

    def init(key):
        return init_each(members, key)

    if all(isinstance(member, Cell) for member in members):
        return _branch_of_cells(members, init, merge_outputs)._replace(
            x_ndim=x_ndim, input_size=input_size, output_size=output_size
        )
    layers = [as_layer("branch", member) for member in members]

    def initial_carry(params, batch_shape=()):
        check_entries("branch", "params", params, members)
        return tuple(layer.initial_carry(p, batch_shape) for layer, p in zip(layers, params, strict=True))

    def apply(params, xs, carry=None, *, key=None, **options):
        check_entries("branch", "params", params, members)
        if carry is not None:
            check_entries("branch", "carry", carry, members)
        ends, outputs = [], []
        for index, layer in enumerate(layers):
            own_key = None if key is None else jax.random.fold_in(key, index)
            own_carry = None if carry is None else carry[index]
            end, ys = layer.apply(params[index], xs, own_carry, key=own_key, **options)
            ends.append(end)
            outputs.append(ys)
        merged = merge_outputs(*outputs)
        if callable(merge):  # which may make anything of the members' zeros
            merged = zeroed_padding("branch", merged, xs, **options)
        return tuple(ends), merged

    return Layer(init, initial_carry, apply, x_ndim, input_size, output_size)


def _branch_of_cells(cells: tuple[Any, ...], init: Any, merge: Callable[..., PyTree]) -> Cell:
    def initial_carry(params, batch_shape=()):
        check_entries("branch", "params", params, cells)
        return tuple(cell.initial_carry(p, batch_shape) for cell, p in zip(cells, params, strict=True))

    def step(params, carry, x, noise=None):
        check_entries("branch", "params", params, cells)
        check_entries("branch", "carry", carry, cells)
        ends, outputs = [], []
        for index, cell in enumerate(cells):
            drawn = () if noise is None or cell.noise is None else (noise[index],)
            end, y = cell.step(params[index], carry[index], x, *drawn)
            ends.append(end)
            outputs.append(y)
        merged, first = merge(*outputs), jnp.shape(jax.tree.leaves(x)[0])
        batch_shape = first[: len(first) - jax.tree.leaves(cells[0].x_ndim)[0]]
        check_leads_with_batch("branch", "what merge returned", merged, batch_shape)
        return tuple(ends), merged

    def noise(params, key, times, x):
        return tuple(
            None if cell.noise is None else cell.noise(p, jax.random.fold_in(key, index), times, x)
            for index, (cell, p) in enumerate(zip(cells, params, strict=True))
        )

    noisy = any(cell.noise is not None for cell in cells)
    return Cell(init, initial_carry, step, noise=noise if noisy else None)


def _agreed(field: str, values: list[Any], members: tuple[Any, ...]) -> Any:
    """What the members say of the input that they all read; None where none of them says it."""
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    for index, value in known[1:]:
        first, expected = known[0]
        if value != expected:
            raise ValueError(
                f"branch: member {first} ({name_of(members[first])}) has {field}={expected} but member {index} "
                f"({name_of(members[index])}) has {field}={value}; all members read the same input, give them one."
            )
    return known[0][1] if known else None
