"""Linear cells: step, scan and the associative method are one to 1e-12; where products overflow, it is the scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import CELLS, I, draw
from tests.evaluating import evaluated
from tests.side_by_side import assert_close, problem, reported, run

T = 66
rng = np.random.default_rng(0)
GAPS, RESETS = rng.random((T, 2)) < 0.8, rng.random((T, 2)) < 0.05
ALL = {"mask": GAPS, "resets": RESETS, "lengths": jnp.array([T, 50])}
EXACT = {"rtol": 1e-12, "atol": 1e-12}

USERS = jr.Cell(
    lambda key: {"a": draw((3,), 4), "W": draw((I, 3), 5)},
    affine=lambda params, x: (jnp.tanh(params["a"] * x[..., :1]), x @ params["W"]),
    input_size=I,
)
LINEAR = {kind: CELLS[kind] for kind in ("lru", "s5", "min_gru", "min_lstm", "rg_lru", "linear_rnn")} | {
    "a user's": USERS
}


@pytest.mark.parametrize(
    ("kind", "reverse", "plan"), [(kind, i % 2 == 1, ("plain", "auto")[i // 2 % 2]) for i, kind in enumerate(LINEAR)]
)
def test_step_scan_and_associative_are_one(kind, reverse, plan, x64):
    cell = LINEAR[kind]
    params, xs, carry = problem(cell, T, scale=0.5)
    layer = jr.parallel(cell, method="associative", chunks=8, reverse=reverse, plan=plan)
    found, reports = reported(run, layer, params, xs, carry, **ALL)
    scan = jr.scan(cell, reverse=reverse, plan="plain")
    want = run(scan, params, xs, carry, **ALL)
    assert_close(found, want, **EXACT)
    assert [(report.way.method, report.accepted, report.way.chunks) for report in reports] == [
        ("associative", True, 8)
    ] * 2
    by_hand = evaluated(functools.partial(jax.lax.scan, functools.partial(cell.step, params), reverse=reverse))(
        carry, xs
    )
    assert_close(layer.apply(params, xs, carry), by_hand, **EXACT)


def test_derivatives_of_any_order(x64):
    params, xs, carry = problem(CELLS["min_gru"], 24, ())
    layers = jr.parallel(CELLS["min_gru"], method="associative", chunks=4, plan="plain"), jr.scan(CELLS["min_gru"])

    def second(layer):
        loss = lambda xs: (layer.apply(params, xs, carry)[1] ** 2).sum()
        return jax.jvp(jax.grad(loss), (xs,), (draw(xs.shape, 9),))[1], jax.vmap(jax.grad(loss))(
            jnp.stack([xs, 2 * xs])
        )

    assert_close(*(evaluated(functools.partial(second, layer))() for layer in layers))


def scaled(factor):
    """h_t = factor h_{t-1} + x_t."""
    return jr.Cell(lambda key: {"a": jnp.full(1, factor)}, affine=lambda p, x: (p["a"], x), input_size=1)


@pytest.mark.parametrize("factor", [1e30, -1e12, 3.0])
def test_products_that_overflow(factor):
    """In float32; the scan's own infinities and NaN stand where the scan has them."""
    cell = scaled(factor)
    params = cell.init(jax.random.key(0))
    xs = draw((48, 1), 1).astype(jnp.float32)
    for carry in (jnp.zeros(1), jnp.ones(1)):
        resets = np.arange(48) % 7 == 3
        args = (params, xs, carry)
        options = {"resets": resets} if factor != 3.0 else {}
        layers = jr.parallel(cell, method="associative", chunks=4, plan="plain"), jr.scan(cell)
        found, want = (layer.apply(*args, **options) for layer in layers)
        assert_close(found, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("fill", [jnp.nan, jnp.inf])
def test_what_is_not_finite(fill, x64):
    params, xs, carry = problem(USERS, T)
    xs = xs.at[30, 1].set(fill)
    layers = jr.parallel(USERS, method="associative", chunks=8, plan="plain"), jr.scan(USERS)
    found, want = (run(layer, params, xs, carry, resets=RESETS) for layer in layers)
    assert not np.isfinite(want[0][1][1]).all() and np.isfinite(want[0][1][1][:30]).all()
    assert_close(found, want)


@pytest.mark.parametrize(
    ("name", "shape", "taken"),
    [("lru", (1024, 1), True), ("lru", (1024, 2), False), ("min_gru", (1024, 1), False), ("lru", (512, 1), False)],
)
def test_auto_takes_it_for_one_row_of_complex_numbers(name, shape, taken):
    """On a CPU; what the others have in common is that the scan is one kernel there, or has work for all cores."""
    cell = CELLS[name]
    params = jax.eval_shape(cell.init, jax.random.key(0))
    (run,) = jr.explain(jr.parallel(cell), params, jax.ShapeDtypeStruct((*shape, I), jnp.float32)).scans
    assert (run.in_parallel is not None, run.not_in_parallel is not None) == (taken, not taken)
    assert not taken or run.in_parallel.startswith("32 chunks of 32 steps side by side, exact")
