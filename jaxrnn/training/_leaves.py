"""The arrays of a state by their paths: what a checkpoint stores, describes and sums up."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import PyTree


def leaves_by_path(state: PyTree) -> dict[str, Any]:
    """By path; typed keys as the numbers that they hold."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "state"
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            raise TypeError(f"checkpoints: expected JAX arrays, got {type(leaf).__name__} at {name}; jnp.asarray it.")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            if isinstance(leaf, jax.Array):
                leaf = jax.random.key_data(leaf)
            else:
                data = jax.eval_shape(jax.random.key_data, leaf)
                leaf = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
        if name in leaves:
            raise ValueError(f"checkpoints: two arrays of the state have the same path {name}; rename one.")
        leaves[name] = leaf
    return leaves


def rebuilt(leaves: dict[str, Any], like: PyTree) -> PyTree:
    """The state again, keys typed."""
    flat, treedef = jax.tree.flatten(like)
    restored = []
    for (name, shape), expected in zip(leaves_by_path(like).items(), flat, strict=True):
        leaf = leaves[name] if shape.size else jnp.zeros(shape.shape, shape.dtype, device=shape.sharding)
        if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
            leaf = jax.random.wrap_key_data(leaf, impl=_impl(expected.dtype))
        restored.append(leaf)
    return jax.tree.unflatten(treedef, restored)


def nonempty(leaves: dict[str, Any]) -> dict[str, Any]:
    """Without arrays of no numbers, which orbax does not store."""
    return {name: a for name, a in leaves.items() if a.size}


def _impl(dtype: Any) -> str:
    """The generator of a key's dtype."""
    known = ("threefry2x32", "rbg", "unsafe_rbg")
    return next(
        name for name in known if jax.eval_shape(functools.partial(jax.random.key, 0, impl=name)).dtype == dtype
    )


def described(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{a.dtype}{list(a.shape)}" for name, a in leaves.items()}


def differences(saved: dict[str, str], expected: dict[str, str], shown: int = 3) -> str:
    lines = [
        f"{name} is {saved.get(name, 'missing')} there and {expected.get(name, 'not expected')} here"
        for name in dict.fromkeys([*expected, *saved])
        if saved.get(name) != expected.get(name)
    ]
    more = f" and {len(lines) - shown} more" if len(lines) > shown else ""
    return ", ".join(lines[:shown]) + more


@jax.jit
def checksum(leaves: dict[str, jax.Array]) -> jax.Array:
    """32 bits of all bits, the same for any sharding: whole numbers add up to the same in any order."""
    total = jnp.zeros((), jnp.uint32)
    for place, (_, a) in enumerate(sorted(nonempty(leaves).items())):
        if a.dtype == bool:
            a = a.astype(jnp.uint8)
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            a = jnp.stack([a.real, a.imag])
        width = a.dtype.itemsize
        bits = jax.lax.bitcast_convert_type(a, {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32)).astype(jnp.uint32)
        where, stride = jnp.full(bits.shape, place, jnp.uint32), 1
        for axis, size in enumerate(bits.shape):
            where = where + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
            stride *= size
        odd = (where * jnp.uint32(2654435761)) ^ (where >> 15) | 1  # so that any change of one entry changes the sum
        total = total * jnp.uint32(31) + (bits * odd).sum(dtype=jnp.uint32)
    return total
