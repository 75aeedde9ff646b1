"""Large weights of the forward loop on the left of their products: where, and that no number changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised
from tests.programs import equations, gradient, loops
from tests.user_cells import textbook_lstm

T, B, I, H = 7, 2, 3, 5

pytestmark = pytest.mark.usefixtures("many_rows")


@pytest.mark.parametrize("rows, transposed", [(511, []), (512, ["(2, 2048)"])])
def test_which_weights_stand_on_the_left(rows, transposed):
    """On a CPU those of 2²⁰ and more; here 2048 columns."""
    cell = jr.lstm(rows, 512)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    (scan,) = jr.explain(jr.scan(cell), params, jax.ShapeDtypeStruct((T, B, rows), jnp.float32)).scans
    assert scan.weights_on_the_left == transposed


@pytest.mark.parametrize("batch, with_gradient", [(3, True), (64, True), (65, False)])
def test_when_weights_stand_on_the_left(monkeypatch, batch, with_gradient):
    """Never without a gradient: the copies are many times what such a run holds."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    cell = jr.lstm(512, 512)
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jax.ShapeDtypeStruct((400, batch, 512), jnp.float32)
    of_loop = lambda loop: [eqn.outvars[0].aval.shape == (2048, batch) for eqn in equations(loop, "dot_general")]
    (forward,) = loops(lambda params, xs: jr.scan(cell).apply(params, xs)[1], params, xs)
    assert of_loop(forward) == [False] * 2
    assert of_loop(loops(gradient(cell, "auto"), params, xs)[0]) == [with_gradient] * 2


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(jr.lstm(I, H), id="lstm"),
        pytest.param(jr.elman(I, H), id="elman", marks=pytest.mark.full),
        pytest.param(textbook_lstm(I, H), id="textbook", marks=pytest.mark.full),
    ],
)
def test_large_weights_stand_on_the_left(monkeypatch, cell, x64):
    """Here of any number of weights, so that the form is reached."""
    monkeypatch.setattr("jaxrnn.planning._rules.puts_weights_on_the_left", lambda *_, **__: True)
    params, xs = randomised(cell.init(jax.random.key(0))), draw((T, B, I), 1)

    def everything(plan):
        run = lambda params, xs: jr.scan(cell, plan=plan).apply(params, xs)
        return run(params, xs), gradient(cell, plan)(params, xs)

    got, want = jax.jit(lambda: [everything(plan) for plan in ("auto", "plain")])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), got, want)
    loop, _ = loops(gradient(cell, "auto"), params, xs)
    width = H if "elman" in str(cell.spec) else 4 * H
    assert [eqn.outvars[0].aval.shape for eqn in equations(loop, "dot_general")] == [(width, B)] * 2
    assert jr.explain(jr.scan(cell), params, xs).scans[0].weights_on_the_left == [str((B, width))]
