"""Time over devices: chunks stay on the device that has them, forward and backward, and where they do not converge."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn as jr
from jaxrnn.parallel_over_time.choice import chunks_of
from tests.cases import draw
from tests.programs import collectives_in_loops

pytestmark = pytest.mark.multidevice

T, B, I, H, K = 176, 3, 4, 6, 16  # chunks of 11 steps, 8 on each of two devices: in no program for one stands 176


def gated(make):
    """A cell, and parameters with biases."""
    cell = make(I, H)
    drawn = cell.init(jax.random.key(0))
    return cell, jax.tree.map(lambda a: a + 0.1 * draw(a.shape, 3), drawn)


def slow_to_forget(everywhere):
    """It halves what it carries, but not where the probe looks last, or nowhere."""

    def step(params, carry, x):
        new = jnp.where(x[..., :1] == 1, 1, 0.5) * carry + jnp.tanh(x @ params["W"])
        return new, new

    params = {"W": draw((I, H), 3)}
    cell = jr.Cell(init=lambda key: params, initial_carry=lambda params, batch: jnp.zeros((*batch, H)), step=step)
    keeps = jnp.ones(T, bool) if everywhere else (jnp.arange(T) // (T // K) > 1) & (jnp.arange(T) // (T // K) < 5)
    return cell, params, keeps


def problem(layer, params, **options):
    """What gives ``((loss, ys), gradients)``, and its arguments."""
    xs = draw((T, B, I), 1)
    if (keeps := options.pop("keeps", None)) is not None:
        xs = xs.at[..., 0].set(keeps[:, None])
    weights = draw(jax.eval_shape(layer.apply, params, xs)[1].shape, 2)

    def loss(params, xs, weights, options):
        ys = layer.apply(params, xs, **options)[1]
        return (ys * weights).sum(), ys

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), (params, xs, weights, options)


def flags():
    """Sequences of two lengths, and resets."""
    return {"lengths": jnp.array([T, 100, 3]), "resets": jnp.zeros((T, B), bool).at[30].set(True)}


def by_scan(cell, params, reverse=False, **options):
    loss, args = problem(jr.scan(cell, reverse=reverse), params, **options)
    return jax.jit(loss)(*args)


@functools.cache
def gru_by_scan():
    return by_scan(*gated(jr.gru), **flags())


def on_mesh(loss, args, kind=AxisType.Auto):
    """What the program for two devices that share time makes of it, and its text."""
    mesh = jax.make_mesh((2,), ("time",), axis_types=(kind,), devices=jax.devices()[:2])
    put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
    over_time = lambda a: put(a, "time") if a.shape[0] == T else put(a)
    args = jax.tree.map(put, args[0]), *jax.tree.map(over_time, args[1:])
    with jax.set_mesh(mesh):
        compiled = jax.jit(loss).lower(*args).compile()
        got = compiled(*args)
    assert got[1][1].sharding.spec[0] == "time"
    return got, compiled.as_text()


def assert_trees_close(got, want, tol=1e-5):
    """Outputs and gradients, relative to the largest number of each leaf: sums in another order."""
    (_, got_ys), got_gradients = got
    (_, ys), gradients = want
    for a, b in zip(jax.tree.leaves((got_ys, got_gradients)), jax.tree.leaves((ys, gradients)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tol * float(jnp.abs(b).max()))


def whole_sequences(program):
    """The shapes of arrays that hold all of time, in a program for one of two devices."""
    shapes = re.findall(r"\w\[([\d,]+)\]", program)
    return [shape for shape in shapes if shape.startswith((f"{T},", f"{K},{T // K},"))]


def assert_nothing_gathered(program):
    """No device has all of time, and none waits for the others within a chunk."""
    assert whole_sequences(program) == []
    assert "collective-permute" in collectives_in_loops(program)  # boundaries, once a sweep
    assert collectives_in_loops(program, innermost=True) == []


@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.full), AxisType.Explicit], ids=lambda kind: kind.name
)
def test_chunks_over_devices(kind):
    cell, params = gated(jr.gru)
    got, program = on_mesh(*problem(jr.parallel(cell, method="chunks", chunks=K), params, **flags()), kind)
    assert_trees_close(got, gru_by_scan())
    assert_nothing_gathered(program)


@pytest.mark.parametrize("everywhere", [True, False])
def test_what_does_not_converge_over_devices(everywhere):
    """Step by step, chunk after chunk, each device in its turn: known from the probe, or seen after two sweeps."""
    cell, params, keeps = slow_to_forget(everywhere)
    layer = jr.parallel(cell, method="chunks", chunks=K, max_iterations=2, reverse=everywhere)
    given = {"keeps": keeps}
    got, program = on_mesh(*problem(layer, params, **given))
    assert_trees_close(got, by_scan(cell, params, reverse=everywhere, **given))
    assert_nothing_gathered(program)


def test_a_linear_cell_over_devices():
    cell, params = gated(jr.min_gru)
    got, program = on_mesh(*problem(jr.parallel(cell, method="associative", chunks=K, reverse=True), params))
    assert_trees_close(got, by_scan(cell, params, reverse=True))
    assert whole_sequences(program) == collectives_in_loops(program, innermost=True) == []


def test_memory_of_each_device():
    """Less than a tenth of its own part of what enters, whatever a run that does not converge would need."""
    cell, steps, mesh = jr.gru(I, H), 2**18, jr.devices.batch_mesh(2, axis="time")
    xs = jax.ShapeDtypeStruct((steps, I), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("time")))
    params = jax.eval_shape(cell.init, jax.random.key(0))
    layer = jr.parallel(cell, method="chunks", chunks=512)
    memory = jax.jit(lambda params, xs: layer.apply(params, xs)[1]).lower(params, xs).compile().memory_analysis()
    assert memory.output_size_in_bytes == steps * H * 4 // 2
    assert memory.temp_size_in_bytes < 0.1 * steps * I * 4 // 2


BOTH_AXES = """
import jax, jax.numpy as jnp, numpy as np, jaxrnn as jr
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tests.programs import collectives_in_loops

jr.devices.use_cpu_devices(4)
cell = jr.elman(3, 4)
params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (48, 2, 3))
params = params._replace(W_hh=0.5 * params.W_hh, b=params.b + 0.1)
gradient = lambda layer: jax.jit(jax.grad(lambda params, xs: jnp.sin(layer.apply(params, xs)[1]).sum(), argnums=(0, 1)))
want = gradient(jr.scan(cell))(params, xs)
mesh = jax.make_mesh((2, 2), ("time", "batch"), axis_types=(AxisType.Auto, AxisType.Auto))
xs = jax.device_put(xs, NamedSharding(mesh, PartitionSpec("time", "batch")))
compiled = gradient(jr.parallel(cell, method="chunks", chunks=6)).lower(params, xs).compile()
got = compiled(params, jax.device_put(xs, NamedSharding(mesh, PartitionSpec("time", "batch"))))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
assert got[1].sharding.spec == PartitionSpec("time", "batch"), got[1].sharding
assert {shard.data.shape for shard in got[1].addressable_shards} == {(24, 1, 3)}
assert collectives_in_loops(compiled.as_text(), innermost=True) == []
"""


def test_time_and_batch_over_devices():
    run = subprocess.run([sys.executable, "-c", BOTH_AXES], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_rows_over_devices_with_a_step_that_needs_them_all():
    """The rows of one device converge, those of the other do not: both must run on, or one waits for ever."""

    def step_with(mean):
        def step(params, carry, x):
            keeps = x[..., :1]
            new = jnp.where(keeps == 1, 1, 0.1) * carry + jnp.tanh(x @ params["W"]) + mean(x[..., 1:2])
            return new, new

        params = {"W": draw((I, H), 3)}
        return jr.Cell(init=lambda key: params, initial_carry=lambda params, b: jnp.zeros((*b, H)), step=step), params

    def gradients(layer, **where):
        run = lambda params, xs: layer.apply(params, xs)[1]
        run = jax.shard_map(run, **where) if where else run

        def loss(params, xs):
            ys = run(params, xs)
            return jnp.sin(ys).sum(), ys

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    xs = draw((T, 2, I), 1).at[..., 0].set(jnp.array([0, 1]))
    cell, params = step_with(lambda x: x.mean(0))
    want = gradients(jr.scan(cell))(params, xs)
    cell, _ = step_with(lambda x: jax.lax.pmean(x.mean(0), "batch"))
    rows, everywhere = PartitionSpec(None, "batch"), PartitionSpec()
    where = {"mesh": jr.devices.batch_mesh(2), "in_specs": (everywhere, rows), "out_specs": rows}
    assert_trees_close(gradients(jr.parallel(cell, method="chunks", chunks=K), **where)(params, xs), want)


@pytest.mark.parametrize(
    ("steps", "devices", "chunks"),
    [
        (10**6, 1, 1000),
        (65536, 1, 256),
        (2048, 1, 32),
        (4000, 1, 80),
        (4000, 5, 80),
        (4096, 8, 64),
        (36, 12, 12),
        (1001, 1, 40),
    ],
)
def test_the_number_of_chunks_by_rule(steps, devices, chunks):
    """Nothing left over, then a multiple of 8 that 2, 4 or 8 devices can share, then about √T."""
    assert chunks_of(steps, devices) == chunks


def test_chunks_that_devices_cannot_share():
    cell, params = gated(jr.gru)
    mesh = jax.make_mesh((2,), ("time",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        xs = jax.device_put(draw((T, I), 1), NamedSharding(mesh, PartitionSpec("time")))
        with pytest.raises(ValueError, match=r"chunks=11 cannot be shared by the 2 devices along time; give"):
            jax.eval_shape(jr.parallel(cell, chunks=11).apply, params, xs)
        with pytest.raises(ValueError, match=r"scan\(gru\): time, axis 0 of xs, is divided by the mesh's axis 'time'"):
            jax.eval_shape(jr.scan(cell).apply, params, xs)
