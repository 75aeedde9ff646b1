"""Two CPU devices share a batch: the numbers of one device, compiled once, no collective inside a time loop."""

import functools
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jaxrnn as jr
from tests.cases import draw, randomised
from tests.programs import collectives_in_loops

pytestmark = pytest.mark.multidevice

T, B, I, H = 5, 4, 3, 4
LENGTHS = np.array([5, 3, 0, 4])


def test_a_training_step_on_two_devices():
    """Loss, parameters and optimiser state after two steps, the jitted step itself unchanged."""
    layer = jr.stack(jr.bidirectional(jr.lstm(I, H), jr.gru(I, H)), jr.readout(2 * H, 2))
    optimiser = optax.adam(0.01)
    traces = []

    @jax.jit
    def step(params, opt_state, xs, lengths):
        traces.append(1)
        loss = lambda params: (layer.apply(params, xs, lengths=lengths)[1] ** 2).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimiser.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params = randomised(layer.init(jax.random.key(0)))
    alone = (params, optimiser.init(params))
    xs, lengths = draw((T, B, I), 1), jnp.array(LENGTHS)
    mesh = jr.batch_mesh()
    shared = jr.replicate(alone, mesh)
    own_xs, own_lengths = jr.shard_batch((xs, lengths), mesh, batch_axis=(1, 0))
    assert [shard.data.shape for shard in own_xs.addressable_shards] == [(T, B // 2, I)] * 2
    program = step.lower(*shared, own_xs, own_lengths).compile().as_text()
    assert collectives_in_loops(program) == [] and "all-reduce" in program
    for _ in range(2):
        *alone, value = step(*alone, xs, lengths)
        *shared, shared_value = step(*shared, own_xs, own_lengths)
    assert len(traces) == 2  # one for each placement
    # float32: the two halves of the batch are added up in another order; Adam divides by small second moments.
    np.testing.assert_allclose(shared_value, value, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), shared, alone)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["Auto", "Explicit"])
def test_values_and_places(kind):
    mesh = jax.make_mesh((2,), ("anything",), axis_types=(kind,), devices=jax.devices()[:2])
    batch = {"xs": draw((T, B, I)), "ys": [draw((T, B)), draw((T, B, 1, 2))], "lengths": LENGTHS, "none": None}
    sharded = jr.shard_batch(batch, mesh, batch_axis={"xs": 1, "ys": 1, "lengths": 0, "none": 1})
    jax.tree.map(np.testing.assert_array_equal, sharded, batch)
    halves = jax.tree.map(lambda a: [shard.data.shape for shard in a.addressable_shards], sharded)
    assert halves == {"xs": [(T, 2, I)] * 2, "ys": [[(T, 2)] * 2, [(T, 2, 1, 2)] * 2], "lengths": [(2,)] * 2} | {
        "none": None
    }
    whole = jr.replicate({"w": draw((3,)), "key": jax.random.key(1)}, mesh)
    assert all(a.sharding.is_fully_replicated and len(a.devices()) == 2 for a in whole.values())
    np.testing.assert_array_equal(whole["w"], draw((3,)))
    halves_in_jit = jax.jit(lambda a: jr.shard_batch(a, mesh) * 2)(batch["xs"])
    np.testing.assert_array_equal(halves_in_jit, batch["xs"] * 2)


def test_mesh_of_some_devices():
    assert jr.batch_mesh(1).size == 1 and jr.batch_mesh().size == jr.batch_mesh(2).size == 2
    assert jr.batch_mesh(2, axis="seed").axis_names == ("seed",)
    assert jr.batch_mesh().axis_types == (AxisType.Auto,)


def test_cpu_devices_are_set_before_jax_starts():
    """And it does not start JAX by itself: a second call may still change its mind."""
    code = "import jaxrnn as jr, jax; jr.use_cpu_devices(2); jr.use_cpu_devices(3); print(len(jax.devices()))"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout == "3\n"


def test_cpu_devices_that_are_there_already():
    assert len(jax.devices()) == 2  # JAX has started now
    jr.use_cpu_devices(2)
    assert len(jax.devices()) == 2


PROCESS = """
import sys, jax, numpy as np, jaxrnn as jr
rank = int(sys.argv[2])
jr.use_cpu_devices(1)
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=rank)
layer = jr.scan(jr.elman(3, 4))
gradient = jax.jit(jax.grad(lambda params, xs: (layer.apply(params, xs)[1] ** 2).mean()))
params, xs = layer.init(jax.random.key(0)), np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
mesh = jr.batch_mesh()
mine = jr.shard_batch(xs[:, 2 * rank : 2 * rank + 2], mesh)
assert mesh.size == 2 and mine.shape == xs.shape
got, want = gradient(jr.replicate(params, mesh), mine), gradient(params, xs)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)
members = jr.stack_members([params, jax.tree.map(lambda a: 2 * a, params)])
(own,) = jr.ensemble(gradient, mesh=mesh)(members, xs).W_hh.addressable_shards
want = gradient(jax.tree.map(lambda a: a[rank], members), xs).W_hh
np.testing.assert_allclose(own.data[0], want, rtol=1e-5, atol=1e-7)
"""


def test_two_processes():
    """Each passes its half of the batch, and gets the gradient of the whole; members are divided among them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, "-c", PROCESS, address]
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*run, str(rank)], **options) for rank in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


MESH = functools.partial(jr.batch_mesh, 2)
ERRORS = {
    "too late": (
        lambda: jax.devices() and jr.use_cpu_devices(3),
        RuntimeError,
        ["use_cpu_devices: expected to be called before JAX starts", "with 2 CPU devices and cannot have 3"]
        + ["right after the imports", "JAX_NUM_CPU_DEVICES=3"],
    ),
    "no device": (lambda: jr.use_cpu_devices(0), ValueError, ["use_cpu_devices: n must be a positive int, got 0"]),
    "half a device": (lambda: jr.use_cpu_devices(1.5), TypeError, ["n must be a positive int, got 1.5"]),
    "mesh of more": (
        lambda: jr.batch_mesh(3),
        ValueError,
        ["batch_mesh: asked for 3 devices, but JAX has 2 (cpu)", "jr.use_cpu_devices(3) before"],
    ),
    "mesh of -1": (lambda: jr.batch_mesh(-1), ValueError, ["batch_mesh: n must be a positive int, got -1"]),
    "batch": (
        lambda: jr.shard_batch({"xs": jnp.ones((T, 5, I))}, MESH()),
        ValueError,
        ["shard_batch: the batch axis 1 of tree['xs'], 5, cannot be divided among 2 devices"]
        + ["give a multiple of 2, such as 6, or a mesh of 1 device"],
    ),
    "axis": (
        lambda: jr.shard_batch((jnp.ones((T, B)), jnp.ones(B)), MESH()),
        ValueError,
        ["expected batch_axis to name an axis of tree[1], which has shape (4,), got 1", "such as (1, 0)"],
    ),
    "axis -1": (lambda: jr.shard_batch(jnp.ones((T, B)), MESH(), batch_axis=-1), ValueError, ["got -1"]),
    "axes of another tree": (
        lambda: jr.shard_batch((jnp.ones((T, B)), jnp.ones(B)), MESH(), batch_axis=(1, 0, 0)),
        ValueError,
        ["shard_batch: batch_axis must be", "the upper part of the tree", "got (1, 0, 0)"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, error, words = ERRORS[name]
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words))):
        call()
