"""Several devices for one batch: CPU cores, GPUs, processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import PyTree
from jaxrnn._checks import check_batch_axis, check_divides, check_sizes, nearest
from jaxrnn._narrowing import check_held


@checks_arguments
def use_cpu_devices(n: int) -> None:
    """Let JAX see n CPU devices; to be called before anything else uses JAX.

    XLA runs the small operations of a recurrence on one thread, and two of them on two halves of a batch run at the
    same time: one device for each core is what suits a CPU. A machine with a GPU goes on using that by default.

    Before 0.12 jaxlib can hang where n devices share a batch and have fewer than 2n threads, for good, within minutes
    of training. There this call asks for so many, by the environment variable ``PJRT_NPROC``, unless that or ``NPROC``
    is set. A program that gets its devices by ``JAX_NUM_CPU_DEVICES`` has to set it as well.

    Args:
        n: the number of CPU devices, at most the number of cores to be of use.

    Raises:
        ValueError, TypeError: n that is not a positive int. RuntimeError: JAX has already started, with another number.

    Example:
        >>> import jaxrnn as jr
        >>> jr.devices.use_cpu_devices(2)
    """
    try:
        jax.config.update("jax_num_cpu_devices", int(n))
    except RuntimeError:
        came = jax.local_device_count("cpu")
        if came != n:
            raise RuntimeError(
                f"use_cpu_devices: expected to be called before JAX starts, but it has started with {came} CPU "
                f"device{'s' if came > 1 else ''} and cannot have {n} any more; call it right after the imports, "
                f"before any array, key or jax.devices() is made, or set the environment variable "
                f"JAX_NUM_CPU_DEVICES={n}."
            ) from None
    _ask_for_threads(int(n))


def _ask_for_threads(n: int) -> None:
    """Leave to XLA, when it starts, how many threads n devices need, unless the user has said how many."""
    if os.environ.get("PJRT_NPROC") == _asked.pop("threads", None):
        os.environ.pop("PJRT_NPROC", None)
    threads = _threads_for(n)
    if threads and not {"PJRT_NPROC", "NPROC"} & os.environ.keys():
        os.environ["PJRT_NPROC"] = _asked["threads"] = str(threads)


_asked: dict[str, str] = {}  # what PJRT_NPROC was set to by a call before


def _threads_for(n: int) -> int | None:
    """The threads that n CPU devices need to never wait for each other in vain; None where XLA's own number will do.

    XLA makes one for each core, and one that has come to a collective is lost to the others until all devices have.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 * n if n > 1 and cores < 2 * n and hangs_with_few_threads(jaxlib.__version__) else None


def hangs_with_few_threads(release: str) -> bool:
    """Whether with this jaxlib CPU devices can hang in a collective where there are fewer than 2 threads for each.

    Measured with 0.10.1 on two cores, an LSTM (64, 12, 64, 192) trained on two devices: with 2 threads, and with 3, it
    hung within a minute (a few thousand steps), under either plan, where steps were dispatched without waiting for
    them (waiting after each, or each 28th, it did not in 6,500); with 4 not in 22,000 steps, each taking 0 to 20 %
    longer. With 0.12.0.1 it did not hang in 14,000 steps with 2 threads. Releases between them were not tried.
    """
    return tuple(int(part) for part in release.split(".")[:2]) < (0, 12)


@checks_arguments
def batch_mesh(n: int | None = None, *, members: int | str | None = None, axis: str = "batch") -> Mesh:
    """A mesh of devices that share a batch; or of groups of them, one group for each part of an ensemble's members.

    Args:
        n: how many devices share a batch; None means all the rest, those of other processes too.
        members: how many such groups of n devices there are, for ``jr.devices.ensemble(…, axes="member")``; "rest"
            means as many as there are devices for. None means one, and a mesh without that axis.
        axis: the name of the mesh's axis along which a batch is shared.

    Returns:
        A ``jax.sharding.Mesh`` of the axis ``("batch",)``, or ``("member", "batch")`` where ``members`` is given, the
        devices of a group next to one another. Its axes are Auto: ``jax.jit`` follows the sharding of its arguments by
        itself.

    Raises:
        ValueError, TypeError: more devices than there are, or groups into which they cannot be divided; n or members
            that is not a positive int.

    Example, a training step on two cores (the step itself is any jitted function, unchanged):
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> jr.devices.use_cpu_devices(2)
        >>> layer = jr.scan(jr.lstm(3, 4))
        >>> params, xs, lengths = layer.init(jax.random.key(0)), jnp.ones((7, 6, 3)), jnp.arange(6)
        >>> step = jax.jit(jax.grad(lambda params, xs, lengths: layer.apply(params, xs, lengths=lengths)[1].sum()))
        >>> mesh = jr.devices.batch_mesh(2)
        >>> params = jr.devices.replicate(params, mesh)
        >>> xs, lengths = jr.devices.shard_batch((xs, lengths), mesh, batch_axis=(1, 0))
        >>> len(step(params, xs, lengths).b.devices())
        2
        >>> dict(jr.devices.batch_mesh(1, members="rest").shape)
        {'member': 2, 'batch': 1}
    """
    if members not in (None, "rest"):
        check_sizes("batch_mesh", members=members)
    if members == "rest" and n is None:
        raise ValueError(
            "batch_mesh: n and members cannot both be all the rest; give n=1 for groups of one device, or members=1 "
            "for one group of all devices."
        )
    devices = jax.devices()
    total, platform = len(devices), devices[0].platform
    groups = 1 if members is None else None if members == "rest" else int(members)
    known = (n or 1) * (groups or 1)
    if known > total:
        what = "" if members is None else f", {groups or 1} groups of {n or 1}"
        more = f"jr.devices.use_cpu_devices({known}) before anything else uses JAX, or " if platform == "cpu" else ""
        raise ValueError(
            f"batch_mesh: asked for {known} devices{what}, but JAX has {total} ({platform}); call {more}batch_mesh() "
            f"for all that there are."
        )
    if (n is None or groups is None) and total % known:
        what = f"{groups} groups" if n is None else f"groups of {n}"
        raise ValueError(
            f"batch_mesh: the {total} devices that JAX has ({platform}) cannot be divided into {what}; give a divisor "
            f"of {total}, or both n and members as numbers and leave some devices unused."
        )
    n, groups = n or total // known, groups or total // known
    devices = devices[: n * groups]
    if idle := set(range(jax.process_count())) - {device.process_index for device in devices}:
        raise ValueError(
            f"batch_mesh: a mesh of {len(devices)} devices leaves out all those of process {min(idle)}, which then "
            f"could not take part; use all {jax.device_count()} devices, or start fewer processes."
        )
    shape, names = ((n,), (axis,)) if members is None else ((groups, n), ("member", axis))
    # jax.make_mesh's own default is Explicit, where code has to name the sharding of every reshape and product.
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


@checks_arguments
def shard_batch(tree: PyTree, mesh: Mesh, *, batch_axis: PyTree = 1, axes: str | Sequence[str] | None = None) -> PyTree:
    """Divide a batch among the devices of a mesh.

    Args:
        tree: arrays with a batch axis: xs (T, B, …), lengths (B,) …
        mesh: the devices. If it spans several processes (``jr.devices.join_processes``), each passes its own part of
            the batch, that of its devices, and the result is one global array.
        batch_axis: which axis is B: 1, time first, as in xs; 0, as in lengths; or a tree of such numbers, or the upper
            part of one, as in ``jax.vmap``'s ``in_axes``.
        axes: the axes of the mesh that divide the batch; None means all. Along the others, each device has a copy:
            ``axes="batch"`` gives every group of ``batch_mesh(members=…)`` the whole batch.

    Returns:
        The tree, each array sharded along its batch axis. What a jitted function computes of it is sharded too; only
        sums over the batch, such as a weight's gradient, are added up between devices, once, after the time loop.

    Raises:
        ValueError: a batch that the mesh does not divide; arrays, or a mesh, without such an axis; NumPy's numbers of
            64 bits that do not fit into 32, where JAX's 64 bits are off.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.devices.use_cpu_devices(2)
        >>> batch = {"xs": jnp.ones((7, 6, 3)), "lengths": jnp.arange(6)}
        >>> batch = jr.devices.shard_batch(batch, jr.devices.batch_mesh(2), batch_axis={"xs": 1, "lengths": 0})
        >>> [shard.data.shape for shard in batch["xs"].addressable_shards]
        [(7, 3, 3), (7, 3, 3)]
    """
    over = mesh_axes("shard_batch", mesh, axes)
    # How many different parts this process holds: its devices may have copies of the same one.
    parts = NamedSharding(mesh, PartitionSpec(over)).addressable_devices_indices_map((mesh.size,))
    own_parts = len({str(part) for part in parts.values()})

    def put(path, a, axis):
        name = f"tree{jax.tree_util.keystr(path)}"
        check_batch_axis("shard_batch", name, np.shape(a), axis)
        check_held("shard_batch", name, a)
        check_divides("shard_batch", f"the batch axis {axis} of {name}", np.shape(a)[axis], own_parts)
        return _put(a, NamedSharding(mesh, PartitionSpec(*(None,) * axis, over)))

    try:
        batch_axes = jax.tree.broadcast(batch_axis, tree)
    except ValueError:
        raise ValueError(
            f"shard_batch: batch_axis must be a number, or the upper part of the tree with a number for each of its "
            f"branches, got {batch_axis!r} for {jax.tree.structure(tree)}; give (1, 0) for (xs, lengths), say."
        ) from None
    return jax.tree_util.tree_map_with_path(put, tree, batch_axes)


@checks_arguments
def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Give every device of a mesh a copy: of parameters, optimiser states, keys.

    JAX would copy them by itself, but compile a training step twice: for those first given, and for those that it
    returns.

    Args:
        tree: any arrays. If the mesh spans several processes, all pass the same values.
        mesh: the devices, as for :func:`shard_batch`.

    Returns:
        The tree, each array whole on every device.

    Example:
        >>> import jax, jaxrnn as jr
        >>> params = jr.devices.replicate(jr.lstm(3, 4).init(jax.random.key(0)), jr.devices.batch_mesh(1))
        >>> params.b.sharding.is_fully_replicated
        True
    """
    check_held("replicate", "tree", tree)
    return jax.tree.map(functools.partial(_put, sharding=NamedSharding(mesh, PartitionSpec())), tree)


def mesh_axes(who: str, mesh: Mesh, axes: str | Sequence[str] | None) -> tuple[str, ...]:
    """The axes of a mesh that divide something: those named, or all."""
    if axes is not None and not isinstance(axes, Iterable):
        raise TypeError(f"{who}: axes must be a name or several, got {axes!r} ({type(axes).__name__}).")
    names = mesh.axis_names if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    unknown = [name for name in names if name not in mesh.axis_names]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"{who}: axes must name one or more axes of the mesh, which has {', '.join(map(repr, mesh.axis_names))}, "
            f"got {axes!r}{nearest(unknown[0] if unknown else '', mesh.axis_names)}"
        )
    return names


def put_whole(a: Any, sharding: NamedSharding) -> jax.Array:
    """``jax.device_put``, of keys too where the devices are those of several processes, all of which have the whole."""
    return _through_key_data(lambda a: jax.device_put(a, sharding), a, sharding)


def _put(a, sharding):
    if sharding.is_fully_addressable:
        return jax.device_put(a, sharding)

    def local(a):
        return jax.make_array_from_process_local_data(sharding, np.asarray(a))

    return _through_key_data(local, a, sharding)


def _through_key_data(put, a, sharding):
    """JAX moves keys between processes as numbers only."""
    is_key = jnp.issubdtype(getattr(a, "dtype", np.float32), jax.dtypes.prng_key)
    if not is_key or sharding.is_fully_addressable or isinstance(a, jax.core.Tracer):
        return put(a)
    return jax.random.wrap_key_data(put(jax.random.key_data(a)), impl=jax.random.key_impl(a))
