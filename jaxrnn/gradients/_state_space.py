"""A cell as a map of vectors, h_t = F(h_{t-1}, x_t): what Jacobians, Lyapunov exponents and fixed points look at."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import Cell, PyTree, expect_cell, flatten
from jaxrnn._checks import check_carry, check_inexact_carry, check_params, sequence_shape
from jaxrnn._dtypes import accumulator
from jaxrnn.devices.placement import vary_alike
from jaxrnn.running.scan import shapes_of_params


class StateSpace(NamedTuple):
    """The carry of a cell, all its leaves side by side, as one vector of N real numbers."""

    size: int  # N
    flat: Callable[[PyTree], jax.Array]  # carry -> (*B, N)
    tree: Callable[[jax.Array], PyTree]  # (*B, N) -> carry
    step: Callable[[jax.Array, PyTree], jax.Array]  # (h (*B, N), x) -> h (*B, N)
    bare: PyTree  # the carry of one sequence, as shapes

    def check(self, who: str, carry: PyTree) -> None:
        """A carry has the leaves of the cell's own, with any batch axes in front."""
        leaves, bare = jax.tree.leaves(carry), jax.tree.leaves(self.bare)
        lead = jnp.shape(leaves[0])[: max(jnp.ndim(leaves[0]) - bare[0].ndim, 0)] if leaves else ()
        expected = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype), self.bare)
        check_carry(who, carry, expected, lead)

    def linear(self, h: jax.Array, x: PyTree) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """F(h, x), and the map Q -> J Q of (*B, N, k) by J = ∂F/∂h, which no matrix N × N is made for."""
        new, push = jax.linearize(lambda h: self.step(h, x), h)
        return new, jax.vmap(push, in_axes=-1, out_axes=-1)

    def jacobian(self, h: jax.Array, x: PyTree) -> tuple[jax.Array, jax.Array]:
        """F(h, x) and J (*B, N, N)."""
        new, push = self.linear(h, x)
        return new, push(jnp.broadcast_to(jnp.eye(self.size, dtype=h.dtype), (*h.shape, self.size)))


def state_space(who: str, cell: Cell, params: PyTree) -> StateSpace:
    """Of a cell whose carry holds real and complex numbers alone; a complex leaf is its real, then its imaginary parts.

    The vector is float32 where the carry is narrower: there are no decompositions of narrower matrices.
    """
    bare = jax.eval_shape(functools.partial(cell.initial_carry, params))
    check_inexact_carry(who, bare)
    leaves, treedef = flatten(bare)
    sizes = [math.prod(a.shape) * (2 if jnp.iscomplexobj(a) else 1) for a in leaves]
    dtype = accumulator(*(jnp.finfo(a.dtype).dtype for a in leaves))

    def flat(carry):
        parts = []
        for a, like in zip(jax.tree.leaves(carry), leaves, strict=True):
            a = jnp.reshape(a, (*jnp.shape(a)[: jnp.ndim(a) - like.ndim], math.prod(like.shape)))
            parts += [part.astype(dtype) for part in ((a.real, a.imag) if jnp.iscomplexobj(like) else (a,))]
        return jnp.concatenate(parts, axis=-1)

    def tree(h):
        parts = []
        for part, like in zip(jnp.split(h, np.cumsum(sizes)[:-1], axis=-1), leaves, strict=True):
            if jnp.iscomplexobj(like):
                part = jax.lax.complex(*jnp.split(part.astype(jnp.finfo(like.dtype).dtype), 2, axis=-1))
            parts.append(part.reshape(*h.shape[:-1], *like.shape).astype(like.dtype))
        return treedef.unflatten(parts)

    return StateSpace(sum(sizes), flat, tree, lambda h, x: flat(cell.step(params, tree(h), x)[0]), bare)


def one_for_each(who: str, cell: Cell, x: PyTree, lead: tuple[int, ...], each: str) -> bool:
    """Whether the inputs of one step are one for each of the states, whose batch axes are ``lead``; else one for all.

    Raises:
        ValueError: they are neither; ``each`` says what they could be for each of.
    """
    arrays = jax.tree_util.tree_leaves_with_path(x)
    ndims = [cell.x_ndim] * len(arrays) if isinstance(cell.x_ndim, int) else jax.tree.leaves(cell.x_ndim)
    if len(ndims) != len(arrays):
        raise ValueError(f"{who}: x must have the structure of the cell's x_ndim, {cell.x_ndim!r}, got {x!r:.80}.")
    found = set()
    for (path, a), ndim in zip(arrays, ndims, strict=True):
        shape = jnp.shape(a)
        before, features = shape[: max(len(shape) - ndim, 0)], shape[max(len(shape) - ndim, 0) :]
        wanted: list[Any] = ["I", "I2", "I3"][:ndim] if len(features) < ndim else list(features)
        if ndim and len(arrays) == 1 and cell.input_size is not None:
            wanted[-1] = cell.input_size
        if list(features) != wanted or before not in ((), lead):
            one, for_each = (_shape(*axes, *wanted) for axes in ((), lead))
            raise ValueError(
                f"{who}: x{jax.tree_util.keystr(path)} must be {one}, one input for all"
                + (f", or {for_each}, one for each {each}" if lead else "")
                + f", got {shape}."
            )
        found.add(before)
    if len(found) > 1:
        raise ValueError(f"{who}: of x, all arrays must be one for all {each}s, or all one for each; broadcast them.")
    return bool(lead) and lead in found


def for_each_state(who: str, cell: Cell, x: PyTree, lead: tuple[int, ...]) -> PyTree:
    """The inputs of one step, given once or for each of the states, as one for each."""
    if one_for_each(who, cell, x, lead, "state"):
        return x
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*lead, *jnp.shape(a))), x)


def _shape(*axes: int | str) -> str:
    return f"({', '.join(map(str, axes))}{',' if len(axes) == 1 else ''})"


def run_of(who: str, cell: Cell, params: PyTree, xs: PyTree, carry: PyTree) -> tuple[StateSpace, jax.Array, int]:
    """The cell as a map, the state (*B, N) that a run over xs (T, *B, …) starts from, and T."""
    expect_cell(who, cell)
    T, batch_shape = sequence_shape(who, xs, cell.x_ndim)
    if T == 0:
        raise ValueError(f"{who}: xs has T = 0 steps; give at least 1.")
    check_params(who, params, shapes_of_params(cell))
    expected = jax.eval_shape(lambda p: cell.initial_carry(p, batch_shape), params)
    if carry is None:
        carry = cell.initial_carry(params, batch_shape)
    else:
        check_carry(who, carry, expected, batch_shape)
    check_not_explicit(who, xs, params)
    space = state_space(who, cell, params)
    return space, vary_alike(space.flat(carry), xs, params)[0], T


def check_not_explicit(who: str, *trees: PyTree) -> None:
    """Arrays are not sharded over a mesh with Explicit axes, where each operation in here would need a sharding."""
    for leaf in jax.tree.leaves(trees):
        if hasattr(leaf, "dtype") and any(getattr(jax.typeof(leaf).sharding, "spec", ())):
            raise ValueError(
                f"{who}: arrays sharded over Explicit mesh axes are not supported; run it on a mesh with Auto axes, "
                f"inside jax.shard_map, or on one device."
            )
