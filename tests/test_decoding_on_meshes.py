"""Closed loops whose batch is divided over two devices: the numbers of one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn as jr
from tests.cases import randomised

CELL = jr.chain(jr.embedding(6, 3), jr.gru(3, 4), jr.readout(4, 6))
PARAMS = randomised(CELL.init(jax.random.key(0)), 1, scale=1.5)
FIRST = jnp.array([0, 3, 5, 1])
XS = jnp.array([[0, 3, 5, 1], [2, 2, 4, 0], [5, 1, 1, 3]])


def mesh_of(kind):
    return jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])


def divided(a, mesh):
    return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*(None,) * (a.ndim - 1), "data")))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_generation_and_the_gradient_of_a_token_model(kind):
    """``jr.embedding`` looks up rows of a table; on Explicit axes the lookup says where they go."""
    write = functools.partial(
        jr.generate, CELL, carry=None, steps=5, sample="temperature", key=jax.random.key(3), stop=2
    )
    score = lambda params, xs: jr.log_likelihood(CELL, params, xs).sum()
    both = jax.jit(lambda params, first, xs: (write(params, first=first), jax.grad(score)(params, xs)))
    alone = both(PARAMS, FIRST, XS)
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
        written, gradient = both(params, divided(FIRST, mesh), divided(XS, mesh))
    np.testing.assert_array_equal(written.tokens, alone[0].tokens)
    np.testing.assert_array_equal(written.lengths, alone[0].lengths)
    assert 1 < int(written.lengths.sum()) < 20 and len(written.tokens.sharding.device_set) == 2
    # float32, sums of two devices
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradient, alone[1])


def test_beams_are_refused_on_explicit_axes_and_run_inside_shard_map():
    search = lambda params, first: jr.beam_search(CELL, params, None, first, steps=4, width=3, stop=2)
    alone = jax.jit(search)(PARAMS, FIRST)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
        first = divided(FIRST, mesh)
        with pytest.raises(
            ValueError, match=r"beam_search: the batch is sharded over Explicit axes .* inside jax.shard_map"
        ):
            jax.jit(search)(params, first)
        batch = PartitionSpec("data")
        out = jr.decoding.Beams(PartitionSpec(None, "data"), batch, batch, batch)
        inside = jax.jit(jax.shard_map(search, in_specs=(PartitionSpec(), batch), out_specs=out))(params, first)
    np.testing.assert_array_equal(inside.tokens, alone.tokens)
    np.testing.assert_allclose(inside.scores, alone.scores, rtol=1e-5)  # float32, products of other shapes
