"""The gradient of every cell lowers for accelerators on a machine that has none; nothing is run there."""

import jax
import jax.export
import jax.numpy as jnp
import pytest

import jaxrnn as jr
from tests.cases import CELLS, B, T, weigh, x_shape
from tests.turns import named_in_turn

PLATFORMS = ("cuda", "tpu", "rocm")
# "auto" chooses by the platform that runs the tests; on an accelerator it would choose the other.
PLANS = {"auto": "auto", "as on an accelerator": jr.Plan(hoist=True, contract=True)}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", named_in_turn(CELLS, 1))
def test_a_gradient_lowers(name, plan):
    cell = CELLS[name]
    layer = jr.scan(cell, plan=PLANS[plan])
    params = jax.eval_shape(layer.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((T, B, *x_shape(cell)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda params, xs: weigh(layer.apply(params, xs))))
    exported = jax.export.export(gradient, platforms=PLATFORMS)(params, xs)
    assert exported.platforms == PLATFORMS
    assert [a.shape for a in exported.out_avals] == [a.shape for a in jax.tree.leaves(params)]
    assert exported.mlir_module().count("stablehlo.while") >= 2  # the run and its backward run are loops


def test_sequences_that_share_lanes_lower():
    layer = jr.scan(CELLS["lstm"], plan=jr.Plan(pack=True, hoist=True, contract=True))
    params = jax.eval_shape(layer.init, jax.random.key(0))
    xs, lengths = jax.ShapeDtypeStruct((T, B, 3), jnp.float32), jax.ShapeDtypeStruct((B,), jnp.int32)
    gradient = jax.jit(jax.grad(lambda params, xs, lengths: weigh(layer.apply(params, xs, lengths=lengths))))
    exported = jax.export.export(gradient, platforms=PLATFORMS)(params, xs, lengths)
    assert exported.mlir_module().count("stablehlo.while") >= 2
