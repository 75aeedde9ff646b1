"""Cells whose weights are large, where one row is multiplied by all columns in place of some."""

import functools

import jax
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised
from tests.programs import equations

H = 96
CUTTING = {  # cells that multiply by pieces of a matrix
    "gru": jr.gru,
    "gru heads": functools.partial(jr.gru, heads=2),
    "gru layer_norm": functools.partial(jr.gru, layer_norm="ba2016"),
    "lem": functools.partial(jr.lem, dt=1.0),
    "mgu": jr.mgu,
    "qrnn": jr.qrnn,
    "sru": jr.sru,
}


@pytest.mark.parametrize("name", CUTTING)
def test_one_row_is_multiplied_by_whole_matrices(name):
    """Alone a row has the outputs and gates that it has among many; no weight is cut for it."""
    cell = CUTTING[name](H, H)
    params, x = randomised(cell.init(jax.random.key(0))), draw((64, H), 1)
    carry = jax.tree.map(lambda a: draw(a.shape, 2).astype(a.dtype), cell.initial_carry(params, (64,)))
    step = jax.jit(cell.step)
    want = step(params, carry, x)
    one = jax.tree.map(lambda a: a[5], (carry, x))
    got = step(params, *one)
    alike = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5)  # sums of 192 products
    jax.tree.map(lambda a, b: alike(a, b[5]), got, want)

    def cuts(*of):
        cut = equations(jax.make_jaxpr(cell.step)(params, *of).jaxpr, "slice")
        return [eqn.invars[0].aval.shape for eqn in cut if eqn.invars[0].aval.size >= H * H]

    heads = name == "gru heads"  # blocks are smaller, and cut
    assert len(cuts(carry, x)) == 2
    assert len(cuts(*one)) == (2 if heads else 0)


def test_of_a_row_under_vmap_and_under_a_plan():
    """Whole matrices change no number of a gradient, a batch of rows or a run over time, whose plan cuts them once."""
    cell = jr.gru(H, H)
    params, xs = randomised(cell.init(jax.random.key(0))), draw((3, 2, H), 1)
    scanned = {plan: jr.scan(cell, plan=plan).apply for plan in ("auto", "plain")}

    def losses(params, xs):
        alone = {name: jax.vmap(lambda x, run=run: run(params, x)[1], 1, 1)(xs) for name, run in scanned.items()}
        return {**alone, "batch": scanned["plain"](params, xs)[1]}

    got = jax.jit(lambda params: losses(params, xs))(params)
    gradients = jax.jit(jax.jacrev(lambda params: {k: (v**2).mean() for k, v in losses(params, xs).items()}))(params)
    alike = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for found in (got, gradients):
        for name in scanned:
            jax.tree.map(alike, found[name], found["batch"])
    (of_one,) = jr.explain(jr.scan(cell), params, xs[:, :1]).scans
    assert of_one.cut == [str((H, 2 * H)), str((H, H))]
