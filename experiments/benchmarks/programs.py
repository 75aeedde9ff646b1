"""From a model to a compiled program on one device, or on several with the batch sharded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxrnn as jr
from experiments.benchmarks.problems import NotOffered, Problem, check_weights, data, in_dtype

PyTree = Any


class Model(NamedTuple):
    """A JAX contestant on one problem."""

    params: PyTree  # of NumPy arrays
    apply: Callable[..., jax.Array]  # (params, xs, lengths) -> ys
    batch_axis: int = 1  # of xs and ys


class Stepper(NamedTuple):
    """A JAX contestant's single step, as when decoding."""

    params: PyTree
    carry: PyTree
    step: Callable[..., tuple[PyTree, jax.Array]]  # (params, carry, x (B, I), *flags) -> (carry, y (B, H))
    flags: tuple[np.ndarray, ...] = ()


class Traced(NamedTuple):
    """A function for ``jax.jit``, before it is placed and compiled."""

    function: Callable[..., Any]
    args: tuple[PyTree, ...]
    batch_axes: tuple[int | None, ...]  # the axis by which each argument is sharded; None: on every device


class Program(NamedTuple):
    """What is timed: ``call`` computes everything and returns when it is there."""

    call: Callable[[], Any]
    compile_seconds: float | None = None  # lower and compile
    temp_bytes: int | None = None  # memory_analysis().temp_size_in_bytes, of one device
    digest: str | None = None  # of the lowered text: two programs that share it are the same


Placed = dict[tuple[int, int | None, int], tuple[Any, Any]]  # arrays that contestants share on the devices


def forward(problem: Problem, model: Model) -> Traced:
    """``apply`` as it stands."""
    check_weights(problem, model.params)
    xs, _, lengths = data(problem, model.batch_axis)
    args = (in_dtype(problem, model.params), xs, lengths)
    return Traced(lambda *args: model.apply(*args), args, (None, model.batch_axis, 0))


def train(problem: Problem, model: Model) -> Traced:
    """``loss = sum(ys * cotangent)``, its value and its gradient by parameters and inputs."""

    def loss(params, xs, lengths, cotangent):
        return jnp.sum(model.apply(params, xs, lengths) * cotangent)

    check_weights(problem, model.params)
    xs, cotangent, lengths = data(problem, model.batch_axis)
    args = (in_dtype(problem, model.params), xs, lengths, cotangent)
    return Traced(jax.value_and_grad(loss, argnums=(0, 1)), args, (None, model.batch_axis, 0, model.batch_axis))


QUANTITIES: dict[str, Callable[[Problem, Model], Traced]] = {"forward": forward, "train": train}


def compiled(traced: Traced, devices: int, placed: Placed) -> Program:
    """Compile for the first ``devices`` devices, the arguments already there."""
    args = arguments(traced, devices, placed)
    start = time.perf_counter()
    lowered = jax.jit(traced.function).lower(*args)
    executable = lowered.compile()
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    return program(executable, args, seconds, devices)._replace(digest=digest)


def arguments(traced: Traced, devices: int, placed: Placed) -> list[PyTree]:
    """Its arguments, on the devices."""
    return [
        jax.tree.map(lambda a, axis=axis: place(a, axis, devices, placed), arg)
        for arg, axis in zip(traced.args, traced.batch_axes, strict=True)
    ]


def program(executable: jax.stages.Compiled, args: Sequence[PyTree], seconds: float, devices: int) -> Program:
    """What was compiled in so many seconds, to be called with these arguments.

    Raises:
        NotOffered: it needs more memory than is free.
    """
    memory = executable.memory_analysis()
    assert memory is not None  # CPU and GPU both tell
    needed, free = devices * (memory.temp_size_in_bytes + memory.output_size_in_bytes), free_bytes()
    if free is not None and needed > 0.7 * free:
        raise NotOffered(f"needs {needed / 1e9:.1f} GB, of which {free / 1e9:.1f} GB are free")
    return Program(lambda: jax.block_until_ready(executable(*args)), seconds, memory.temp_size_in_bytes)


def place(array: Any, axis: int | None, devices: int, placed: Placed) -> jax.Array:
    """On the first device, or over a mesh: sharded by ``axis``, replicated where it is None."""
    key = (id(array), axis, devices)
    if key not in placed:
        if devices == 1:
            placed[key] = array, jax.device_put(array, jax.devices()[0])
        else:
            spec = PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, "batch")
            placed[key] = array, jax.device_put(array, NamedSharding(jr.devices.batch_mesh(devices), spec))
    return placed[key][1]  # the source stands beside it: its id stays its own


def free_bytes() -> int | None:
    """What the machine can still give; None where it does not say, or where memory is an accelerator's."""
    meminfo = Path("/proc/meminfo")
    if jax.default_backend() != "cpu" or not meminfo.exists():
        return None
    lines = (line.split() for line in meminfo.read_text(encoding="ascii").splitlines())
    return next((1024 * int(line[1]) for line in lines if line[0] == "MemAvailable:"), None)
