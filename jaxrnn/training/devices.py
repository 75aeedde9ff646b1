"""Several devices for one batch: CPU cores, GPUs, processes."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrnn._base import PyTree
from jaxrnn._checks import check_batch_axis, check_divides, check_sizes


def use_cpu_devices(n: int) -> None:
    """Let JAX see n CPU devices; to be called before anything else uses JAX.

    XLA runs the small operations of a recurrence on one thread, and two of them on two halves of a batch run at the
    same time: one device for each core is what suits a CPU. A machine with a GPU goes on using that by default.

    Args:
        n: the number of CPU devices, at most the number of cores to be of use.

    Raises:
        ValueError, TypeError: n that is not a positive int. RuntimeError: JAX has already started, with another number.

    Example:
        >>> import jaxrnn as jr
        >>> jr.use_cpu_devices(2)
    """
    check_sizes("use_cpu_devices", n=n)
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


def batch_mesh(n: int | None = None, *, axis: str = "batch") -> Mesh:
    """A mesh of devices that share a batch.

    Args:
        n: how many devices; None means all, those of other processes too.
        axis: the name of the mesh's one axis.

    Returns:
        A ``jax.sharding.Mesh`` whose axis is Auto: ``jax.jit`` follows the sharding of its arguments by itself.

    Raises:
        ValueError, TypeError: more devices than there are; n that is not a positive int.

    Example, a training step on two cores (the step itself is any jitted function, unchanged):
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> jr.use_cpu_devices(2)
        >>> layer = jr.scan(jr.lstm(3, 4))
        >>> params, xs, lengths = layer.init(jax.random.key(0)), jnp.ones((7, 6, 3)), jnp.arange(6)
        >>> step = jax.jit(jax.grad(lambda params, xs, lengths: layer.apply(params, xs, lengths=lengths)[1].sum()))
        >>> mesh = jr.batch_mesh(2)
        >>> params = jr.replicate(params, mesh)
        >>> xs, lengths = jr.shard_batch((xs, lengths), mesh, batch_axis=(1, 0))
        >>> len(step(params, xs, lengths).b.devices())
        2
    """
    devices = jax.devices()
    if n is not None:
        check_sizes("batch_mesh", n=n)
        if n > len(devices):
            platform = devices[0].platform
            more = f"jr.use_cpu_devices({n}) before anything else uses JAX, or " if platform == "cpu" else ""
            raise ValueError(
                f"batch_mesh: asked for {n} devices, but JAX has {len(devices)} ({platform}); call {more}batch_mesh() "
                f"for all that there are."
            )
        devices = devices[:n]
    # jax.make_mesh's own default is Explicit, where code has to name the sharding of every reshape and product.
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(tree: PyTree, mesh: Mesh, *, batch_axis: PyTree = 1) -> PyTree:
    """Divide a batch among the devices of a mesh.

    Args:
        tree: arrays with a batch axis: xs (T, B, …), lengths (B,) …
        mesh: the devices; all axes of the mesh divide the batch. If it spans several processes, each passes
            its own part of the batch, and the result is one global array (``jax.distributed.initialize`` is yours).
        batch_axis: which axis is B: 1, time first, as in xs; 0, as in lengths; or a tree of such numbers, or the upper
            part of one, as in ``jax.vmap``'s ``in_axes``.

    Returns:
        The tree, each array sharded along its batch axis. What a jitted function computes of it is sharded too; only
        sums over the batch, such as a weight's gradient, are added up between devices, once, after the time loop.

    Raises:
        ValueError: a batch that the mesh does not divide; arrays without such an axis.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.use_cpu_devices(2)
        >>> batch = {"xs": jnp.ones((7, 6, 3)), "lengths": jnp.arange(6)}
        >>> batch = jr.shard_batch(batch, jr.batch_mesh(2), batch_axis={"xs": 1, "lengths": 0})
        >>> [shard.data.shape for shard in batch["xs"].addressable_shards]
        [(7, 3, 3), (7, 3, 3)]
    """

    def put(path, a, axis):
        name = f"tree{jax.tree_util.keystr(path)}"
        check_batch_axis("shard_batch", name, np.shape(a), axis)
        sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, mesh.axis_names))
        check_divides(
            "shard_batch", f"the batch axis {axis} of {name}", np.shape(a)[axis], len(sharding.addressable_devices)
        )
        return _put(a, sharding)

    try:
        axes = jax.tree.broadcast(batch_axis, tree)
    except ValueError:
        raise ValueError(
            f"shard_batch: batch_axis must be a number, or the upper part of the tree with a number for each of its "
            f"branches, got {batch_axis!r} for {jax.tree.structure(tree)}; give (1, 0) for (xs, lengths), say."
        ) from None
    return jax.tree_util.tree_map_with_path(put, tree, axes)


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
        >>> params = jr.replicate(jr.lstm(3, 4).init(jax.random.key(0)), jr.batch_mesh(1))
        >>> params.b.sharding.is_fully_replicated
        True
    """
    return jax.tree.map(functools.partial(_put, sharding=NamedSharding(mesh, PartitionSpec())), tree)


def _put(a, sharding):
    if sharding.is_fully_addressable:
        return jax.device_put(a, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(a))
