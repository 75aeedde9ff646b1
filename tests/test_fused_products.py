"""Products that share an operand, done as one: a textbook step multiplies once for each operand, whatever its form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised
from tests.programs import equations, gradient, loops, products_in_loops
from tests.user_cells import textbook_lstm

pytestmark = pytest.mark.usefixtures("many_rows")
T, B, I, H = 7, 2, 3, 5


def test_a_textbook_step_multiplies_once_for_each_operand():
    """Eight products of the equations: two in the loop, of x and of h, with the biases added before the split."""
    cell = textbook_lstm(I, H)
    params, xs = randomised(cell.init(jax.random.key(0))), draw((T, B, I), 1).astype(jnp.float32)
    run = lambda plan: lambda params, xs: jr.scan(cell, plan=plan).apply(params, xs)
    assert products_in_loops(run("auto"), params, xs) == [2]
    assert products_in_loops(run(jr.Plan(fuse=False)), params, xs) == [8]
    (loop,) = loops(run("auto"), params, xs)
    assert [eqn.outvars[0].aval.shape for eqn in equations(loop, "add")].count((B, 4 * H)) == 2
    np.testing.assert_allclose(run("auto")(params, xs)[1], run("plain")(params, xs)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("units, steps, alone, in_gradient", [(40, 1, 2, 2), (64, 7, 8, 8), (64, 64, 8, 2)])
def test_where_products_become_one(units, steps, alone, in_gradient):
    """Their weights are copied: 7,040 are few, 17,152 are many, but fewer than the 65,536 outputs of 64 steps."""
    cell = textbook_lstm(I, units)
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jax.ShapeDtypeStruct((steps, B, I), jnp.float32)
    run = lambda params, xs: jr.scan(cell).apply(params, xs)
    assert products_in_loops(run, params, xs) == [alone]
    assert products_in_loops(gradient(cell, "auto"), params, xs)[0] == in_gradient


def summed_both_ways(p, h, x):
    """Pieces in one order from h, in the other from x: each sum must find its own partner."""
    a, b = x @ p["A"] + h @ p["U"], h @ p["V"] + x @ p["C"]
    return jnp.tanh(a) * jnp.sin(b)


def a_piece_used_twice(p, h, x):
    u, v = h @ p["U"], h @ p["V"]
    return jnp.tanh(u + x @ p["A"]) * u + jnp.sin(v + x @ p["C"])


def weights_of_two_widths(p, h, x):
    return jnp.tanh(h @ p["U"] + x @ p["A"]) + (h @ p["N"]) @ p["M"]


def weight_on_the_left(p, h, x):
    h = h.T
    return jnp.tanh((p["U"] @ h).T + x @ p["A"]) * jnp.cos((p["V"] @ h).T)


def contracting_the_second_axis(p, h, x):
    return jnp.tanh(jnp.einsum("bh,gh->bg", h, p["U"]) + x @ p["A"]) * jnp.einsum("bh,gh->bg", h, p["V"])


def a_weight_used_twice(p, h, x):
    return jnp.tanh(h @ p["U"] + x @ p["A"]) * (h @ p["U"]) + h @ p["V"]


def biases_of_two_shapes(p, h, x):
    return jnp.tanh(h @ p["U"] + p["b"]) * jnp.tanh(h @ p["V"] + 0.5) + x @ p["A"]


STEPS = {
    function.__name__.replace("_", " "): function
    for function in (
        *(summed_both_ways, a_piece_used_twice, weights_of_two_widths, weight_on_the_left),
        *(contracting_the_second_axis, a_weight_used_twice, biases_of_two_shapes),
    )
}
WEIGHTS = {"A": (I, H), "C": (I, H), "U": (H, H), "V": (H, H), "N": (H, 2), "M": (2, H), "b": (H,)}


@pytest.mark.parametrize("name", STEPS)
def test_products_of_any_form_are_fused_rightly(name, x64):
    def step(p, h, x):
        h = STEPS[name](p, h, x)
        return h, h

    cell = jr.Cell(None, lambda params, batch: jnp.zeros((*batch, H)), step)
    params = randomised({name: jnp.ones(shape) for name, shape in WEIGHTS.items()})
    xs = draw((T, B, I), 1)
    run = lambda plan: jr.scan(cell._replace(init=lambda key: params), plan=plan).apply(params, xs)
    grad = lambda plan: gradient(cell._replace(init=lambda key: params), plan)(params, xs)
    everything = jax.jit(lambda: [(run(plan), grad(plan)) for plan in ("plain", "auto", jr.Plan(hoist=True))])()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)  # as in test_contract.py
    for got in everything[1:]:
        jax.tree.map(close, got, everything[0])
    (scan,) = jr.explain(jr.scan(cell._replace(init=lambda key: params)), params, xs).scans
    assert scan.fused, "the step was made to have products to fuse"
