"""Many parameter sets of one model in one program: seeds, learning rates, initial scales."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import PyTree
from jaxrnn._checks import check_choice, check_context_mesh, check_divides, check_members, count_members
from jaxrnn._narrowing import check_held
from jaxrnn.devices.meshes import mesh_axes, put_whole


class EnsembleLayout(NamedTuple):
    """How an ensemble's members are divided; ``str`` says it in words."""

    members: int
    mesh: Mesh
    how: str  # "map" or "vmap", within each device, or each group of them
    why: str
    axes: tuple[str, ...]  # of the mesh: those that divide the members; the others are the function's

    @property
    def groups(self) -> int:
        """Into how many parts the members are divided."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    def __str__(self) -> str:
        groups, platform = self.groups, self.mesh.devices.flat[0].platform
        each = {"map": "one after the other (lax.map)", "vmap": "batched (vmap)"}[self.how]
        on = f"{groups} {platform} device{'s' if groups > 1 else ''}"
        if (size := self.mesh.size // groups) > 1:
            rest = ", ".join(repr(axis) for axis in self.mesh.axis_names if axis not in self.axes)
            on = f"{groups} group{'s' if groups > 1 else ''} of {size} {platform} devices"
            each += f", the devices of a group sharing what the function divides over {rest}"
        return f"{self.members} members on {on}, {self.members // groups} on each, {each}: {self.why}"


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:  # no NamedTuple: jax.jit and its kin want a function that they can refer to weakly
    """What ``jr.devices.ensemble`` makes: ``ensemble(members, *shared)`` runs it, ``describe(members)`` says how."""

    run: Callable[..., PyTree]
    describe: Callable[[PyTree], EnsembleLayout]

    def __call__(self, members: PyTree, *shared: PyTree) -> PyTree:
        return self.run(members, *shared)


@checks_arguments
def ensemble(
    function: Callable[..., PyTree],
    *,
    mesh: Mesh | None = None,
    how: str = "auto",
    axes: str | Sequence[str] | None = None,
) -> Ensemble:
    """One compiled program that runs a function for N members: seeds, learning rates, initial scales.

        out_n = function(member_n, *shared)        n = 0 … N-1

    The members are divided among devices, and those of one device run one after the other on a CPU, batched on a GPU
    or TPU: batched over parameters, each recurrent product becomes one that XLA runs badly on a CPU. No device waits
    for another and nothing is sent between them. The program is compiled once for each shape of its arguments.

    Where some axes of the mesh divide the members, the others are left to ``function``, within which they are Auto: a
    member's batch may be sharded over them, and then its devices add up their parts of a gradient, after the time loop.

    Args:
        function: ``function(member, *shared)`` -> any pytree of arrays; a gradient, a training step, a whole run.
        mesh: the devices, N a multiple of their number along ``axes``. None means as many local devices as divide N.
            On a mesh of several processes each passes the same members, and holds its own part of the outputs.
        how: within a device, "map" (``lax.map``), "vmap" or "auto": "map" on CPUs, else "vmap".
        axes: the axes of the mesh that divide the members; None means all.

    Returns:
        An Ensemble: called as ``ensemble(members, *shared)``, where every array of ``members`` leads with N and
        ``shared`` goes to all members as it is (what :func:`shard_batch` has divided over the mesh's other axes stays
        so); it returns the outputs stacked, sharded as the members are, so they can be passed in again as they come.
        ``describe(members)`` says how the members are divided, and why.

    Raises:
        ValueError: members whose arrays lead with different N, or with none; a mesh that does not divide them, or has
            no such axes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer, xs = jr.scan(jr.gru(3, 4)), jnp.ones((7, 2, 3))
        >>> def train(member, xs):
        ...     loss = lambda params: (layer.apply(params, xs)[1] ** 2).mean()
        ...     params = layer.init(member["key"])
        ...     for _ in range(2):
        ...         params = jax.tree.map(lambda p, g: p - member["rate"] * g, params, jax.grad(loss)(params))
        ...     return loss(params)
        >>> members = {"key": jax.random.split(jax.random.key(0), 4), "rate": jnp.array([0.01, 0.1, 1.0, 10.0])}
        >>> run = jr.devices.ensemble(train)
        >>> run(members, xs).shape, run.describe(members).members
        ((4,), 4)

    Two groups of devices divide the members, the devices of a group the batch of each (here, groups of one):
        >>> mesh = jr.devices.batch_mesh(1, members=2)
        >>> def scaled(member, xs):
        ...     return member["rate"] * jax.lax.with_sharding_constraint(xs, jax.P(None, "batch")).mean()
        >>> run = jr.devices.ensemble(scaled, mesh=mesh, axes="member")
        >>> [shard.data.shape for shard in run(members, xs).addressable_shards], str(run.describe(members))[:39]
        ([(2,), (2,)], '4 members on 2 cpu devices, 2 on each, ')
    """
    check_choice("ensemble", "how", how, ("auto", "map", "vmap"))
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"ensemble: mesh must be a jax.sharding.Mesh, got {mesh!r}; jr.devices.batch_mesh makes one.")
    if mesh is None and axes is not None:
        raise ValueError(
            f"ensemble: axes={axes!r} needs the mesh whose axes they are; give "
            f"mesh=jr.devices.batch_mesh(members=…), say."
        )
    chosen = None if mesh is None else mesh_axes("ensemble", mesh, axes)

    def layout_of(members: PyTree) -> EnsembleLayout:
        N = count_members("ensemble", members)
        on = _largest_mesh(N) if mesh is None else mesh
        over = on.axis_names if chosen is None else chosen
        check_divides("ensemble", "the members", N, math.prod(on.shape[axis] for axis in over))
        check_context_mesh("ensemble", on)
        cpu = on.devices.flat[0].platform == "cpu"
        if how != "auto":
            why = f"how={how!r} asks for it"
        else:
            why = "a CPU runs batched recurrent products badly" if cpu else "batched products fill the device"
        if mesh is None and on.size < jax.local_device_count():
            why += f"; {N} members cannot be divided among all {jax.local_device_count()} devices"
        return EnsembleLayout(N, on, ("map" if cpu else "vmap") if how == "auto" else how, why, over)

    @functools.partial(jax.jit, static_argnums=0)
    def program(layout: EnsembleLayout, members: PyTree, *shared: PyTree) -> PyTree:
        def run_mine(members, *shared):
            def one(member):
                return function(member, *shared)

            return jax.lax.map(one, members) if layout.how == "map" else jax.vmap(one)(members)

        over = PartitionSpec(layout.axes)
        # Unchecked: within a device everything is its own, so functions may start loops from plain zeros.
        return jax.shard_map(
            run_mine,
            mesh=layout.mesh,
            in_specs=(over, *[PartitionSpec()] * len(shared)),
            out_specs=over,
            axis_names=set(layout.axes),
            check_vma=False,
        )(members, *shared)

    def run(members: PyTree, *shared: PyTree) -> PyTree:
        for what, tree in (("members", members), ("what all members share", shared)):
            check_held("ensemble", what, tree)
        layout = layout_of(members)
        apart = NamedSharding(layout.mesh, PartitionSpec(layout.axes))
        shared = jax.tree.map(functools.partial(_for_all, layout), shared)
        members = jax.tree.map(functools.partial(put_whole, sharding=apart), members)
        return program(layout, members, *shared)

    return Ensemble(run, layout_of)


def _for_all(layout: EnsembleLayout, a: jax.Array) -> jax.Array:
    """An array that all members share, on all groups of devices; within them, divided as it comes."""
    if not isinstance(a, jax.core.Tracer) and isinstance(own := getattr(a, "sharding", None), NamedSharding):
        used = {axis for entry in own.spec for axis in ((entry,) if isinstance(entry, str) else entry or ())}
        if own.mesh == layout.mesh and used.isdisjoint(layout.axes):
            return a
    return put_whole(a, NamedSharding(layout.mesh, PartitionSpec()))


@checks_arguments
def stack_members(members: Sequence[PyTree]) -> PyTree:
    """Put the trees of N members into one, as ``jr.devices.ensemble`` takes them.

    Args:
        members: N pytrees of arrays or numbers, all of one structure, shapes and dtypes.

    Returns:
        One tree of that structure, each leaf (N, …).

    Raises:
        ValueError: no members, or a member whose structure, shapes or dtypes differ from those of the first.

    Example:
        >>> import jax, jaxrnn as jr
        >>> cell = jr.elman(3, 4)
        >>> members = [{"params": cell.init(jax.random.key(seed)), "rate": 0.1 * seed} for seed in (1, 2, 3)]
        >>> stacked = jr.devices.stack_members(members)
        >>> stacked["params"].W_hh.shape, stacked["rate"].shape
        ((3, 4, 4), (3,))
    """
    members = list(members)
    check_members("stack_members", members)
    for n, member in enumerate(members):
        check_held("stack_members", f"member {n}", member)
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(a) for a in leaves]), *members)


def _largest_mesh(N: int) -> Mesh:
    """As many local devices as divide N."""
    devices = jax.local_devices()
    count = max(d for d in range(1, len(devices) + 1) if N % d == 0)
    return jax.make_mesh((count,), ("member",), axis_types=(AxisType.Auto,), devices=devices[:count])
