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
    """``(loss, arguments)``."""
    xs = draw((T, B, I), 1)
    if (keeps := options.pop("keeps", None)) is not None:
        xs = xs.at[..., 0].set(keeps[:, None])
    weights = draw(jax.eval_shape(layer.apply, params, xs)[1].shape, 2)

    def loss(params, xs, weights, options):
        return (layer.apply(params, xs, **options)[1] * weights).sum()

    return jax.value_and_grad(loss, argnums=(0, 1)), (params, xs, weights, options)


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
    """Relative to the largest number of each leaf: sums in another order."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tol * float(jnp.abs(b).max()))


def assert_nothing_gathered(program):
    """No device has all of time, and none waits for the others within a chunk. What K chunks hand on is small."""
    whole = [shape for shape in re.findall(r"\w\[([\d,]+)\]", program) if shape.startswith((f"{T},", f"{K},{T // K},"))]
    assert whole == []
    assert "collective-permute" in collectives_in_loops(program)  # boundaries, once a sweep
    assert collectives_in_loops(program, innermost=True) == []


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
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
