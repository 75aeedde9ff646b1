"""Many parameter sets of one model in one program: seeds, learning rates, initial scales."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrnn._base import PyTree
from jaxrnn._checks import check_choice, check_context_mesh, check_divides, check_members, count_members


class Division(NamedTuple):
    """How an ensemble's members are divided; ``str`` says it in words."""

    members: int
    mesh: Mesh
    how: str  # "map" or "vmap", within each device
    why: str

    def __str__(self) -> str:
        devices, platform = self.mesh.size, self.mesh.devices.flat[0].platform
        each = {"map": "one after the other (lax.map)", "vmap": "batched (vmap)"}[self.how]
        on = f"{devices} {platform} device{'s' if devices > 1 else ''}"
        return f"{self.members} members on {on}, {self.members // devices} on each, {each}: {self.why}"


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:  # no NamedTuple: jax.jit and its kin want a function that they can refer to weakly
    """What ``jr.ensemble`` makes: ``ensemble(members, *shared)`` runs it, ``describe(members)`` says how."""

    run: Callable[..., PyTree]
    describe: Callable[[PyTree], Division]

    def __call__(self, members: PyTree, *shared: PyTree) -> PyTree:
        return self.run(members, *shared)


def ensemble(function: Callable[..., PyTree], *, mesh: Mesh | None = None, how: str = "auto") -> Ensemble:
    """One compiled program that runs a function for N members: seeds, learning rates, initial scales.

        out_n = function(member_n, *shared)        n = 0 … N-1

    The members are divided among devices, and those of one device run one after the other on a CPU, batched on a GPU
    or TPU: batched over parameters, each recurrent product becomes one that XLA runs badly on a CPU. No device waits
    for another and nothing is sent between them. The program is compiled once for each shape of its arguments.

    Args:
        function: ``function(member, *shared)`` -> any pytree of arrays; a gradient, a training step, a whole run.
        mesh: the devices, N a multiple of their number; all axes of the mesh divide the members. None means as many
            local devices as divide N. On a mesh of several processes each passes the same members, and holds its own
            part of the outputs.
        how: within a device, "map" (``lax.map``), "vmap" or "auto": "map" on CPUs, else "vmap".

    Returns:
        An Ensemble: called as ``ensemble(members, *shared)``, where every array of ``members`` leads with N and
        ``shared`` goes to all members as it is; it returns the outputs stacked, sharded as the members are, so they
        can be passed in again as they come. ``describe(members)`` says how the members are divided, and why.

    Raises:
        ValueError: members whose arrays lead with different N, or with none; a mesh that does not divide them.

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
        >>> run = jr.ensemble(train)
        >>> run(members, xs).shape, run.describe(members).members
        ((4,), 4)
    """
    check_choice("ensemble", "how", how, ("auto", "map", "vmap"))
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"ensemble: mesh must be a jax.sharding.Mesh, got {mesh!r}; jr.batch_mesh makes one.")

    def divide(members: PyTree) -> Division:
        N = count_members("ensemble", members)
        on = _largest_mesh(N) if mesh is None else mesh
        check_divides("ensemble", "the members", N, on.size)
        check_context_mesh("ensemble", on)
        cpu = on.devices.flat[0].platform == "cpu"
        if how != "auto":
            why = f"how={how!r} asks for it"
        else:
            why = "a CPU runs batched recurrent products badly" if cpu else "batched products fill the device"
        if mesh is None and on.size < jax.local_device_count():
            why += f"; {N} members cannot be divided among all {jax.local_device_count()} devices"
        return Division(N, on, ("map" if cpu else "vmap") if how == "auto" else how, why)

    @functools.partial(jax.jit, static_argnums=0)
    def program(division: Division, members: PyTree, *shared: PyTree) -> PyTree:
        def run_mine(members, *shared):
            one = lambda member: function(member, *shared)  # noqa: E731
            return jax.lax.map(one, members) if division.how == "map" else jax.vmap(one)(members)

        over = PartitionSpec(division.mesh.axis_names)
        # Unchecked: within a device everything is its own, so functions may start loops from plain zeros.
        return jax.shard_map(
            run_mine,
            mesh=division.mesh,
            in_specs=(over, *[PartitionSpec()] * len(shared)),
            out_specs=over,
            check_vma=False,
        )(members, *shared)

    def run(members: PyTree, *shared: PyTree) -> PyTree:
        division = divide(members)
        everywhere = NamedSharding(division.mesh, PartitionSpec())
        apart = NamedSharding(division.mesh, PartitionSpec(division.mesh.axis_names))
        return program(division, jax.device_put(members, apart), *jax.device_put(shared, everywhere))

    return Ensemble(run, divide)


def stack_members(members: Sequence[PyTree]) -> PyTree:
    """Put the trees of N members into one, as ``jr.ensemble`` takes them.

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
        >>> stacked = jr.stack_members(members)
        >>> stacked["params"].W_hh.shape, stacked["rate"].shape
        ((3, 4, 4), (3,))
    """
    members = list(members)
    check_members("stack_members", members)
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(a) for a in leaves]), *members)


def _largest_mesh(N: int) -> Mesh:
    """As many local devices as divide N."""
    devices = jax.local_devices()
    count = max(d for d in range(1, len(devices) + 1) if N % d == 0)
    return jax.make_mesh((count,), ("member",), axis_types=(AxisType.Auto,), devices=devices[:count])
