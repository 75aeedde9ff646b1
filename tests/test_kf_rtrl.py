"""KF-RTRL and UORO: the mean over draws is the gradient, and of enough products every draw is."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxrnn as jr
from jaxrnn.programs.tracing import flat_program, is_call
from tests.test_online_rules import flat, full, loss, problem, run, summed


def draws_of(cell, rule, count, steps=3, key=0, learned=False):
    """``(gradients of each draw, BPTT's)``, flat."""
    size = cell.output_size
    params, xs, targets = problem(cell, size, steps)

    def bptt(params):
        return sum(map(loss, jr.scan(cell, plan="plain").apply(params, xs)[1], targets))

    def one(key):
        return ravel_pytree(summed(run(cell, params, xs, targets, key, rule=rule)))[0]

    drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(key), count))
    return np.asarray(drawn), flat(jax.jit(jax.grad(bptt))(params))


def assert_unbiased(drawn, exact):
    """Number by number within 4 standard errors: by chance one of 16,000 is not."""
    error = drawn.std(0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(0) - exact) <= 4 * error + 1e-12).all()
    assert (drawn.std(0) > 1e-3).any() and (np.abs(exact) > 1e-2).any()


@pytest.mark.parametrize("rule", [pytest.param("uoro", marks=full), "kf_rtrl", pytest.param("kf_rtrl:1", marks=full)])
def test_the_mean_over_draws_is_the_gradient(rule, x64):
    assert_unbiased(*draws_of(jr.elman(2, 2), rule, 20_000))


KRONECKER = {
    "lstm": jr.lstm(2, 2),
    "gru_after": jr.gru(2, 2, reset="after", learned_carry=True),
    "gru_before": jr.gru(2, 2),
    "peephole_lstm": jr.peephole_lstm(2, 2),
    "weight_norm": jr.weight_norm(jr.elman(2, 2)),
    "masked": jr.masked_weights(jr.elman(2, 3), density=0.7),
    "dale": jr.ctrnn(2, 4, dale=0.5),
    "chain": jr.chain(jr.elman(2, 2), jr.mgu(2, 2), jr.readout(2, 1)),
    "lem": jr.lem(2, 2),
}


@full
@pytest.mark.parametrize("rule", ["uoro", "kf_rtrl", "kf_rtrl:2"])
@pytest.mark.parametrize("name", KRONECKER)
def test_of_other_cells_too(name, rule, x64):
    assert_unbiased(*draws_of(KRONECKER[name], rule, 20_000))


@full
@pytest.mark.parametrize("name", KRONECKER)
def test_a_sum_of_as_many_products_as_steps_is_exact(name, x64):
    drawn, exact = draws_of(KRONECKER[name], "kf_rtrl:3", 2)
    np.testing.assert_allclose(drawn, [exact, exact], rtol=1e-7, atol=1e-9)  # by decompositions of matrices
    assert np.abs(exact).max() > 1e-2


def test_one_decomposition_a_step():
    """Several side by side, of wide batches, make XLA's CPU client wait for ever: of 20,000 members, say."""
    cell = jr.gru(2, 2, reset="after")
    learner, params = jr.online(cell, loss, rule="kf_rtrl:2"), jax.eval_shape(cell.init, jax.random.key(0))

    def step(params):
        return learner.step(params, learner.init(params, key=jax.random.key(1)), np.ones(2, "f"), np.ones(2, "f"))[2]

    names = [op.name for op in flat_program(lambda *a: jax.tree.leaves(step(*a)), params, flattens=is_call)[0].ops]
    assert names.count("svd") == 1 and not {"qr", "geqrf", "eigh", "householder_product"}.intersection(names)


@full
def test_more_products_vary_less(x64):
    variance = {}
    for rule in ("uoro", "kf_rtrl", "kf_rtrl:1", "kf_rtrl:3"):
        drawn, _ = draws_of(jr.elman(2, 4), rule, 2_000, steps=6)
        variance[rule] = drawn.var(0).sum()
    assert variance["uoro"] > variance["kf_rtrl"] > variance["kf_rtrl:1"] > variance["kf_rtrl:3"] > 0
