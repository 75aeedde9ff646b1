"""Where arrays live: the manual mesh axes over which they vary, and their sharding.

A scan needs its carry to have one type from the first step to the last, and on a mesh the type includes the
placement. A fresh initial carry is replicated and unvarying, so it takes the placement of what it will meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

PyTree = Any


def varying_axes(tree: PyTree) -> frozenset[str]:
    """The axes of an enclosing ``shard_map`` over which any leaf varies from device to device."""
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(tree):
        if not hasattr(leaf, "dtype"):  # a number or a function among a user's parameters
            continue
        kind = leaf if isinstance(leaf, jax.core.ShapedArray) else jax.typeof(leaf)
        manual = getattr(kind, "manual_axis_type", None)
        axes |= frozenset(manual.varying if manual is not None else getattr(kind, "vma", ()))
    return axes


def vary_alike(*trees: PyTree) -> tuple[PyTree, ...]:
    """Let every leaf vary over the axes over which any of them does.

    Done once, before a loop: the transpose of this cast is a sum over devices, and what is cast inside a loop would
    be summed over devices at every step of the backward pass.
    """
    axes = varying_axes(trees)
    if not axes:
        return trees

    def leaf(a):
        if not hasattr(a, "dtype"):
            return a
        missing = tuple(sorted(axes - varying_axes(a)))
        return jax.lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(leaf, trees)


def shard_like_batch(tree: PyTree, xs: PyTree, batch_axes: int) -> PyTree:
    """Give each leaf (*B, …) that is not sharded yet the sharding of the batch axes of ``xs`` (T, *B, …).

    Only meshes with Explicit axes show shardings in types; elsewhere this changes nothing.
    """
    batch_spec = _spec_of(xs)[1 : 1 + batch_axes]
    if not any(batch_spec):
        return tree

    def leaf(a):
        sharding = jax.typeof(a).sharding
        if tuple(sharding.spec[:batch_axes]) == batch_spec:
            return a
        rest = tuple(sharding.spec[batch_axes:])
        return jax.sharding.reshard(a, NamedSharding(sharding.mesh, PartitionSpec(*batch_spec, *rest)))

    return jax.tree.map(leaf, tree)


def placed_like(a: jax.Array, like: jax.Array) -> jax.Array:
    """``a`` with the sharding of ``like``, an array of the same shape, where types show one."""
    sharding = jax.typeof(like).sharding
    return jax.sharding.reshard(a, sharding) if any(sharding.spec) else a


def axes_over_time(xs: PyTree) -> dict[str, int]:
    """The axes of the mesh that divide the time of ``xs`` (T, …), and their sizes, where types show them."""
    axes = next(iter(_spec_of(xs)), None)
    names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
    return {name: jax.typeof(jax.tree.leaves(xs)[0]).sharding.mesh.shape[name] for name in names}


def on_auto_axes(run: Callable[[PyTree], tuple[PyTree, PyTree]], given: PyTree, xs: PyTree, batch_axes: int) -> Any:
    """``run(given)``, a carry (*B, …) and what is put out (T, *B, …), in types that show no sharding.

    The compiler then divides what is inside, as on a mesh of Auto axes. What comes out is sharded as ``xs`` is.
    """
    spec = _spec_of(xs)[: 1 + batch_axes]
    if not any(spec):
        return run(given)
    of_outputs = (PartitionSpec(*spec[1:]), PartitionSpec(*spec))
    return jax.sharding.auto_axes(run, out_sharding=of_outputs)(given)


def _spec_of(xs: PyTree) -> tuple[Any, ...]:
    return tuple(getattr(jax.typeof(jax.tree.leaves(xs)[0]).sharding, "spec", ()))
