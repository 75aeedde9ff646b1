"""Two CPU devices share a batch: the numbers of one device, compiled once, no collective inside a time loop."""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jaxrnn as jr
from jaxrnn.devices import meshes
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
        loss = lambda params: (layer.apply(params, xs, lengths=lengths)[1] ** 2).mean()
        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimiser.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params = randomised(layer.init(jax.random.key(0)))
    alone = (params, optimiser.init(params))
    xs, lengths = draw((T, B, I), 1), jnp.array(LENGTHS)
    mesh = jr.devices.batch_mesh()
    shared = jr.devices.replicate(alone, mesh)
    own_xs, own_lengths = jr.devices.shard_batch((xs, lengths), mesh, batch_axis=(1, 0))
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
    sharded = jr.devices.shard_batch(batch, mesh, batch_axis={"xs": 1, "ys": 1, "lengths": 0, "none": 1})
    jax.tree.map(np.testing.assert_array_equal, sharded, batch)
    halves = jax.tree.map(lambda a: [shard.data.shape for shard in a.addressable_shards], sharded)
    assert halves == {"xs": [(T, 2, I)] * 2, "ys": [[(T, 2)] * 2, [(T, 2, 1, 2)] * 2], "lengths": [(2,)] * 2} | {
        "none": None
    }
    whole = jr.devices.replicate({"w": draw((3,)), "key": jax.random.key(1)}, mesh)
    assert all(a.sharding.is_fully_replicated and len(a.devices()) == 2 for a in whole.values())
    np.testing.assert_array_equal(whole["w"], draw((3,)))
    halves_in_jit = jax.jit(lambda a: jr.devices.shard_batch(a, mesh) * 2)(batch["xs"])
    np.testing.assert_array_equal(halves_in_jit, batch["xs"] * 2)


def test_mesh_of_some_devices():
    assert jr.devices.batch_mesh(1).size == 1 and jr.devices.batch_mesh().size == jr.devices.batch_mesh(2).size == 2
    assert jr.devices.batch_mesh(2, axis="seed").axis_names == ("seed",)
    assert jr.devices.batch_mesh().axis_types == (AxisType.Auto,)


def test_mesh_of_groups():
    shapes = [
        (jr.devices.batch_mesh(members=1), (1, 2)),
        (jr.devices.batch_mesh(members=2), (2, 1)),
        (jr.devices.batch_mesh(1, members="rest"), (2, 1)),
        (jr.devices.batch_mesh(2, members="rest"), (1, 2)),
        (jr.devices.batch_mesh(1, members=1), (1, 1)),
    ]
    assert [tuple(mesh.shape.items()) for mesh, _ in shapes] == [(("member", m), ("batch", n)) for _, (m, n) in shapes]
    assert jr.devices.batch_mesh(2, members=1, axis="rows").axis_names == ("member", "rows")
    assert jr.devices.batch_mesh(members=2).axis_types == (AxisType.Auto,) * 2
    assert jr.devices.batch_mesh(members=2).devices.ravel().tolist() == jax.devices()


def test_a_batch_over_one_axis_of_a_mesh():
    whole, halves = jr.devices.batch_mesh(members=2), jr.devices.batch_mesh(members=1)
    shapes = lambda B, mesh, axes=None: [
        shard.data.shape for shard in jr.devices.shard_batch(draw((T, B)), mesh, axes=axes).addressable_shards
    ]
    assert shapes(3, whole, "batch") == [(T, 3)] * 2
    assert shapes(4, halves, ("batch",)) == shapes(4, whole) == [(T, 2)] * 2


def test_cpu_devices_are_set_before_jax_starts():
    """And it does not start JAX by itself: a second call may still change its mind."""
    code = (
        "import jaxrnn as jr, jax, os; jr.devices.use_cpu_devices(2); "
        "jr.devices.use_cpu_devices(3); print(len(jax.devices()), os.environ.get('PJRT_NPROC'))"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"} | {"PJRT_NPROC": "3"}  # which the user has set, so it stays
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout == "3 3\n"


@pytest.mark.parametrize(
    ("release", "cores", "given", "asked", "in_the_end"),
    [
        ("0.10.1", 2, {}, (2, 3), "6"),
        ("0.11.2", 3, {}, (2,), "4"),
        ("0.10.1", 2, {}, (2, 1), None),
        ("0.10.1", 4, {}, (2,), None),
        ("0.12.0.1", 2, {}, (2,), None),
        ("0.10.1", 2, {"PJRT_NPROC": "2"}, (2,), "2"),
        ("0.10.1", 2, {"NPROC": "3"}, (2,), None),
    ],
)
def test_devices_that_share_cores_get_threads_enough(monkeypatch, release, cores, given, asked, in_the_end):
    """Fewer hang in collectives before jaxlib 0.12."""
    monkeypatch.setattr(meshes.jaxlib, "__version__", release)
    monkeypatch.setattr(meshes.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(meshes.os, "environ", dict(given))
    monkeypatch.setattr(meshes, "_asked", {})
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for n in asked:
        jr.devices.use_cpu_devices(n)
    assert meshes.os.environ.get("PJRT_NPROC") == in_the_end


def test_cpu_devices_that_are_there_already():
    assert len(jax.devices()) == 2  # JAX has started now
    jr.devices.use_cpu_devices(2)
    assert len(jax.devices()) == 2


PROCESS = """
import jax, jax.numpy as jnp, numpy as np, jaxrnn as jr
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import PartitionSpec

jr.devices.use_cpu_devices(2)
assert jr.devices.join_processes(timeout=60, heartbeat=20) == jr.devices.join_processes() == jax.process_count() == 2
rank = jax.process_index()
assert jax.devices()[2 * rank].process_index == rank
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

layer = jr.scan(jr.lstm(3, 4))
xs = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
mine = xs[:, 2 * rank : 2 * rank + 2]
keys = jax.random.split(jax.random.key(rank))
over_all = jr.devices.shard_batch({"n": np.arange(2) + 2 * rank, "key": keys}, jr.devices.batch_mesh(), batch_axis=0)
assert process_allgather(over_all["n"], tiled=True).tolist() == [0, 1, 2, 3] and over_all["key"].shape == (4,)
for shard in jr.devices.replicate(jax.random.key(5), jr.devices.batch_mesh()).addressable_shards:
    np.testing.assert_array_equal(jax.random.key_data(shard.data), jax.random.key_data(jax.random.key(5)))

# Two steps of SGD for two members: a process for each, or both for both.
traces = []

def train(member, xs):
    traces.append(1)
    loss = lambda params: (layer.apply(params, xs)[1] ** 2).mean()

    def step(params, _):
        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - member["rate"] * g, params, gradient), value

    params, losses = jax.lax.scan(step, layer.init(member["key"]), length=2)
    return member, params, losses

def spread(member, xs):
    return train(member, jax.lax.with_sharding_constraint(xs, PartitionSpec(None, "batch")))

members = {"key": jax.random.split(jax.random.key(1), 2), "rate": jnp.array([0.1, 1.0])}
want = jax.jit(jax.vmap(train, in_axes=(0, None)))(members, xs)[1:]
for groups in (2, 1):
    mesh = jr.devices.batch_mesh(members=groups)
    assert {device.process_index for device in mesh.devices[0]} == ({0, 1} if groups == 1 else {0})
    shared = jr.devices.shard_batch(xs if groups == 2 else mine, mesh, axes="batch")  # all that its own devices need
    assert shared.shape == xs.shape
    run = jr.devices.ensemble(spread, mesh=mesh, axes="member")
    for again in range(2):  # with keys and numbers of this process, then with what the program returned
        members, *got = run(members, shared)
        assert {shard.data.shape[0] for shard in got[1].addressable_shards} == {2 // groups}
        jax.tree.map(close, process_allgather(tuple(got), tiled=True), want)
assert len(traces) == 3  # of the process alone, and of each ensemble
for n in (1, 2):
    try:
        jr.devices.batch_mesh(n)
    except ValueError as error:
        assert "leaves out all those of process 1" in str(error)
    else:
        raise AssertionError(n)
"""


def run_processes(code, count=2):
    """The outputs and exit codes of processes that find one another through the environment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # to compile takes most of the time
    environment = {**os.environ, **quick, "JAX_COORDINATOR_ADDRESS": address}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = []
    try:
        for rank in range(count):
            own = {**environment, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(rank)}
            processes.append(subprocess.Popen([sys.executable, "-c", code], env=own, **options))
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return outputs, [process.returncode for process in processes]


def test_two_processes():
    """Batches and members, divided among two processes of two devices: the numbers of a process alone."""
    outputs, codes = run_processes(PROCESS)
    assert codes == [0, 0], "\n".join(outputs)


KILLED = """
import os, signal, jaxrnn as jr
jr.devices.join_processes(timeout=20, heartbeat=3)
from jax.experimental.multihost_utils import sync_global_devices
sync_global_devices("both are there")
if os.environ["JAX_PROCESS_ID"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
try:
    sync_global_devices("never")
except Exception as error:
    print("raised", error)
"""


@pytest.mark.full
def test_a_killed_process_ends_the_other():
    outputs, codes = run_processes(KILLED)
    assert codes == [-signal.SIGABRT, -signal.SIGKILL], "\n".join(outputs)
    assert "raised" in outputs[0] and "heartbeat" in outputs[0]


PLACES = {
    "alone": ({}, None),
    "one of one": ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
    "variables": (
        {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"},
        ("a:1", 3, 2, "deactivate"),
    ),
    "variables before SLURM": (
        {"JAX_COORDINATOR_ADDRESS": "[::1]:7", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"},
        ("[::1]:7", 2, 0, "deactivate"),
    ),
    "a task of a step": (
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"},
        (None, 4, 3, "slurm"),
    ),
    # salloc starts its shell as a step of one task, which keeps the variables of the allocation.
    "an interactive shell": ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
    "a batch script": ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, None),
}


@pytest.fixture
def environment(monkeypatch):
    """One that names no processes, and a function that adds to it."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROC"))]:
        monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(*item) for item in variables.items()]


@pytest.mark.parametrize("name", PLACES)
def test_where_processes_are_found(name, environment, monkeypatch):
    variables, place = PLACES[name]
    environment(variables)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((args, options)))
    assert jr.devices.join_processes(timeout=7, heartbeat=5) == (1 if place is None else place[1])
    seconds = {"initialization_timeout": 7, "shutdown_timeout_seconds": 7, "heartbeat_timeout_seconds": 5}
    assert calls == ([] if place is None else [(place[:3], {"cluster_detection_method": place[3], **seconds})])


def test_waiting_says_for_whom(environment, monkeypatch, caplog):
    environment({"JAX_COORDINATOR_ADDRESS": "there:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})
    said = threading.Event()
    caplog.handler.addFilter(lambda record: said.set() or True)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: said.wait(10))
    jr.devices.join_processes(timeout=1)
    assert "process 1 of 2 still waits for the others at there:1, and will give up 1 s after" in caplog.text


PROCESS_ERRORS = {
    "no count": (
        {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "0"},
        ["join_processes: expected JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID to be set together"]
        + ["has JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID without JAX_NUM_PROCESSES; set it too"],
    ),
    "address alone": (
        {"JAX_COORDINATOR_ADDRESS": "a:1"},
        ["has JAX_COORDINATOR_ADDRESS without JAX_NUM_PROCESSES and JAX_PROCESS_ID; set them too"],
    ),
    "no port": (
        {"JAX_COORDINATOR_ADDRESS": "a", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
        ["JAX_COORDINATOR_ADDRESS must be host:port of process 0, got 'a'; give a:1234, say"],
    ),
    "counted from 1": (
        {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
        ["JAX_PROCESS_ID one of 0, 1 … below it, got '2' and '2'; count the processes from 0"],
    ),
    "words": (
        {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
        ["JAX_NUM_PROCESSES must be a number of processes", "got 'two' and '0'"],
    ),
}


@pytest.mark.parametrize("name", PROCESS_ERRORS)
def test_errors_of_processes(name, environment):
    variables, words = PROCESS_ERRORS[name]
    environment(variables)
    with pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, words))):
        jr.devices.join_processes()


def test_processes_are_joined_before_jax_starts(environment):
    assert len(jax.devices()) == 2  # JAX has started now
    environment({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})
    with pytest.raises(RuntimeError, match=r"join_processes: expected to be called before JAX starts, .* 1 of 2"):
        jr.devices.join_processes()


def four_devices(call):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda devices=jax.devices: devices() * 2)
        return call()


MESH = functools.partial(jr.devices.batch_mesh, 2)
ERRORS = {
    "too late": (
        lambda: jax.devices() and jr.devices.use_cpu_devices(3),
        RuntimeError,
        ["use_cpu_devices: expected to be called before JAX starts", "with 2 CPU devices and cannot have 3"]
        + ["right after the imports", "JAX_NUM_CPU_DEVICES=3"],
    ),
    "no device": (
        lambda: jr.devices.use_cpu_devices(0),
        ValueError,
        ["use_cpu_devices: n must be a positive int, got 0"],
    ),
    "half a device": (lambda: jr.devices.use_cpu_devices(1.5), TypeError, ["n must be a positive int, got 1.5"]),
    "mesh of more": (
        lambda: jr.devices.batch_mesh(3),
        ValueError,
        ["batch_mesh: asked for 3 devices, but JAX has 2 (cpu)", "jr.devices.use_cpu_devices(3) before"],
    ),
    "mesh of -1": (lambda: jr.devices.batch_mesh(-1), ValueError, ["batch_mesh: n must be a positive int, got -1"]),
    "mesh of more groups": (
        lambda: jr.devices.batch_mesh(2, members=3),
        ValueError,
        ["batch_mesh: asked for 6 devices, 3 groups of 2, but JAX has 2 (cpu)", "jr.devices.use_cpu_devices(6) before"],
    ),
    "groups that do not divide": (
        lambda: four_devices(lambda: jr.devices.batch_mesh(members=3)),
        ValueError,
        ["batch_mesh: the 4 devices that JAX has (cpu) cannot be divided into 3 groups", "a divisor of 4"],
    ),
    "batches that do not divide": (
        lambda: four_devices(lambda: jr.devices.batch_mesh(3, members="rest")),
        ValueError,
        ["the 4 devices that JAX has (cpu) cannot be divided into groups of 3", "leave some devices unused"],
    ),
    "the rest of the rest": (
        lambda: jr.devices.batch_mesh(members="rest"),
        ValueError,
        ["batch_mesh: n and members cannot both be all the rest; give n=1", "or members=1"],
    ),
    "groups in words": (
        lambda: jr.devices.batch_mesh(members="all"),
        TypeError,
        ["members must be a positive int, got 'all'"],
    ),
    "seconds": (
        lambda: jr.devices.join_processes(timeout=0),
        ValueError,
        ["join_processes: timeout must be a positive int"],
    ),
    "axis of a mesh": (
        lambda: jr.devices.shard_batch(jnp.ones((T, B)), MESH(), axes="bach"),
        ValueError,
        ["shard_batch: axes must name one or more axes of the mesh, which has 'batch', got 'bach'; did you mean"],
    ),
    "batch": (
        lambda: jr.devices.shard_batch({"xs": jnp.ones((T, 5, I))}, MESH()),
        ValueError,
        ["shard_batch: the batch axis 1 of tree['xs'], 5, cannot be divided among 2 devices"]
        + ["give a multiple of 2, such as 6, or a mesh of 1 device"],
    ),
    "axis": (
        lambda: jr.devices.shard_batch((jnp.ones((T, B)), jnp.ones(B)), MESH()),
        ValueError,
        ["expected batch_axis to name an axis of tree[1], which has shape (4,), got 1", "such as (1, 0)"],
    ),
    "axis -1": (lambda: jr.devices.shard_batch(jnp.ones((T, B)), MESH(), batch_axis=-1), ValueError, ["got -1"]),
    "axes of another tree": (
        lambda: jr.devices.shard_batch((jnp.ones((T, B)), jnp.ones(B)), MESH(), batch_axis=(1, 0, 0)),
        ValueError,
        ["shard_batch: batch_axis must be", "the upper part of the tree", "got (1, 0, 0)"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, error, words = ERRORS[name]
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words))):
        call()
