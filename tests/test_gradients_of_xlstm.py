"""The gradient lab on xLSTM, whose memories are in units of exp(m): against the equations without a stabiliser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised, weigh

T, I, H = 4, 3, 2
KEY = jax.random.key(0)
float64 = (
    functools.partial(jr.slstm, I, H, param_dtype=jnp.float64),
    functools.partial(jr.mlstm, I, H, param_dtype=jnp.float64),
)


def slstm_unstabilised(cell):
    """C and N as they are, by the equations of the paper; not beyond a few steps in the range of floats."""

    def initial_carry(params, batch_shape=()):
        return dict.fromkeys(("C", "N", "h"), jnp.zeros((*batch_shape, H)))

    def step(p, s, x):
        i, f, z, o = jnp.split(x @ p.W_xh + s["h"] @ p.W_hh + p.b, 4)
        f, i = jax.nn.sigmoid(f), jnp.exp(i)
        C, N = f * s["C"] + i * jnp.tanh(z), f * s["N"] + i
        h = jax.nn.sigmoid(o) * C / N
        return {"C": C, "N": N, "h": h}, h

    return jr.Cell(cell.init, initial_carry, step)


def mlstm_unstabilised(cell):
    """One head."""

    def initial_carry(params, batch_shape=()):
        return {"C": jnp.zeros((*batch_shape, H, H)), "N": jnp.zeros((*batch_shape, H))}

    def step(p, s, x):
        (q, k, v, o), (bq, bk, bv, bo) = jnp.split(x @ p.W_xh, 4), jnp.split(p.b, 4)
        q, k, v, o = q + bq, k / np.sqrt(H) + bk, v + bv, jax.nn.sigmoid(o + bo)
        i, f = jnp.split(x @ p.W_if + p.b_if, 2)
        f, i = jax.nn.sigmoid(f), jnp.exp(i)
        C, N = f * s["C"] + i * jnp.outer(v, k), f * s["N"] + i * k
        return {"C": C, "N": N}, o * (C @ q) / jnp.maximum(jnp.abs(N @ q), 1)

    return jr.Cell(cell.init, initial_carry, step)


@pytest.mark.parametrize(
    ("make", "unstabilised"),
    [
        pytest.param(float64[0], slstm_unstabilised, id="slstm"),
        pytest.param(float64[1], mlstm_unstabilised, id="mlstm", marks=pytest.mark.full),
    ],
)
def test_the_flow_is_that_of_the_memory_times_its_unit(make, unstabilised, x64, traced):
    """∂L/∂c = exp(m) ∂L/∂C for the same loss, and the parameters get the same at every step."""
    cell = make()
    params, xs = randomised(cell.init(KEY), 1), draw((T, I), 2)
    loss = lambda carry, ys: weigh(ys)
    flow_of = lambda cell: lambda params, xs: jr.gradients.gradient_flow(cell, params, xs, loss)
    ours, theirs = (traced(flow_of(of))(params, xs) for of in (cell, unstabilised(cell)))
    m = traced(functools.partial(jr.trace_gates, cell))(params, xs).m[:-1]  # nothing of the last step's memory is read
    memory, normaliser = (ours.states[0], ours.states[1]) if hasattr(ours.states, "C") else ours.states[1:3]
    for own, name in ((memory, "C"), (normaliser, "N")):
        real = theirs.states[name].per_unit[:-1]
        unit = np.exp(m).reshape(T - 1, -1, *(1,) * (real.ndim - 2)) if real.ndim > 2 else np.exp(m)
        np.testing.assert_allclose(own.per_unit[:-1].reshape(real.shape), unit * real, rtol=1e-9, atol=1e-12)
    assert theirs.states["C"].norm.all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours.params, theirs.params)


def test_the_leading_exponent_of_fresh_cells(traced):
    """At first nothing is stored, and the derivative of the first step is 0: it says nothing of the others."""
    spectrum = lambda cell, burn_in: functools.partial(jr.gradients.lyapunov_spectrum, cell, k=1, burn_in=burn_in)
    cell = jr.mlstm(I, H, heads=2, forget_gate="exp")
    params = cell.init(KEY)._replace(b_if=jnp.array([0.1, -0.2, -3.0, -0.01]))  # f of the second head is e^-0.01
    found = traced(spectrum(cell, 10))(params, draw((20, I)))
    np.testing.assert_allclose(found.exponents, [-0.01], rtol=1e-4)
    cell = jr.slstm(I, H)  # no recurrent weights, and no inputs: f is σ(5) in one unit, σ(-7) in the other
    found = traced(spectrum(cell, 30))(cell.init(KEY), jnp.zeros((40, I)))
    np.testing.assert_allclose(found.exponents, [np.log(1 / (1 + np.exp(-5)))], atol=1e-4)


def fixed(cell, params, starts, x):
    return jr.gradients.find_fixed_points(cell, params, starts, x, method="newton", steps=30, outliers=None)


def test_fixed_points_of_slstm(x64):
    """One for each h that the step keeps: m = log i, n = 1 / (1 - f), c = z n; by iteration of h alone in NumPy."""
    cell = float64[0]()
    params, x = randomised(cell.init(KEY), 1), np.asarray(draw((I,), 2))
    W_xh, W_hh, b = map(np.asarray, params)
    h = np.zeros(H)
    for _ in range(500):
        i, f, z, o = np.split(x @ W_xh + h @ W_hh + b, 4)
        h = 0.5 * h + 0.5 * np.tanh(z) / (1 + np.exp(-o))
    n = 1 + np.exp(f)
    starts = cell.initial_carry(params, (3,))._replace(n=jnp.ones((3, H)), m=draw((3, H), 3))
    found = fixed(cell, params, starts, x)
    assert found.hits.tolist() == [3]
    expected = h, n * np.tanh(z), n, i
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-6), tuple(found.carry), expected)


@pytest.mark.full
@pytest.mark.parametrize("log_f", [-0.5, 0.5])
def test_fixed_points_of_mlstm(log_f, x64):
    """C = v kᵀ / (1 - f), in units of i; with f above 1, too, where it is unstable."""
    cell = float64[1](forget_gate="exp")
    params, x = randomised(cell.init(KEY), 1), np.asarray(draw((I,), 2))
    params = params._replace(W_if=0 * params.W_if, b_if=jnp.array([0.3, log_f]))
    starts = cell.initial_carry(params, (3,))._replace(n=jnp.ones((3, 1, H)), m=draw((3, 1), 3))
    found = fixed(cell, params, starts, x)
    _, k, v, _ = np.split(x @ np.asarray(params.W_xh) + np.asarray(params.b), 4)
    k = k + (1 / np.sqrt(H) - 1) * np.split(x @ np.asarray(params.W_xh), 4)[1]
    expected = np.outer(v, k) / (1 - np.exp(log_f)), k / (1 - np.exp(log_f)), 0.3
    assert found.hits.tolist() == [3]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0, 0], b, rtol=1e-6), tuple(found.carry), expected)
