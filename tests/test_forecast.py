"""Forecasts of convergence: known exponents, margins that decide, and steps to forget that two runs really take."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.parallel_over_time.forecast import forecast_from_growth
from tests.cases import draw, randomised
from tests.user_cells import clockwork

KEY = jax.random.key(0)
T, I = 400, 2
FORGOTTEN = 23 * math.log(2)  # log(1/ε) of float32


def autonomous(start, F):
    """h_t = F(h_{t-1}), of one number."""
    return jr.Cell(
        lambda key: {}, lambda p, batch_shape=(): jnp.full((*batch_shape, 1), start), lambda p, h, x: (F(h), h)
    )


def forecast(cell, params=None, xs=None, carry=None, **options):
    params = cell.init(KEY) if params is None else params
    return jr.forecast_convergence(cell, params, jnp.zeros((T, 0)) if xs is None else xs, carry, **options)


def of_growth(growth, T=100, affine=False):
    """What disturbances of a float32 state that grow so mean for T steps: (steps,), or (steps, sequences)."""
    growth = np.asarray(growth, float)
    return forecast_from_growth(growth.reshape(len(growth), -1), T, 2**-23, affine)


# ---- known exponents -----------------------------------------------------------------------------


def test_the_logistic_map_is_chaotic():
    found = forecast(autonomous(0.3, lambda h: 4 * h * (1 - h)), xs=jnp.zeros((2000, 0)))
    assert found.regime == "chaotic" and found.steps_to_forget == math.inf and found.chunks == 1
    assert found.exponent == pytest.approx(math.log(2), abs=4 * found.standard_error)
    assert 0 < found.standard_error < 0.02


def test_a_linear_recurrence_contracts_as_its_factor_says():
    found = forecast(autonomous(0.5, lambda h: 0.9 * h))
    assert found.exponent == pytest.approx(math.log(0.9), rel=1e-6)
    expected = round(FORGOTTEN / -math.log(0.9))
    assert (found.regime, found.steps_to_forget, found.chunks) == ("marginal", expected, T // expected)
    longer = forecast(autonomous(0.5, lambda h: 0.9 * h), steps=10_000)
    assert (longer.regime, longer.steps, longer.chunks) == ("contracting", 10_000, 10_000 // expected)


def test_an_orthogonal_recurrence_is_marginal_at_any_length():
    cell = jr.elman(I, 6, activation="identity", recurrent_init="orthogonal")
    params = randomised(cell.init(KEY), 1)._replace(W_hh=cell.init(KEY).W_hh)
    found = forecast(cell, params, draw((T, I), 2), steps=1_000_000)
    assert found.regime == "marginal" and found.exponent == pytest.approx(0, abs=1e-7)  # float32
    assert found.chunks == 1


@pytest.mark.parametrize(("slowest", "regime"), [(-0.2, "contracting"), (-0.001, "marginal")])
def test_a_complex_carry_forgets_as_its_largest_eigenvalue(slowest, regime):
    cell = jr.lru(I, 5)
    params = randomised(cell.init(KEY), 1)._replace(log_nu=jnp.log(jnp.array([0.9, -slowest, 0.5, 0.7, 2.0])))
    found = forecast(cell, params, draw((T, I), 2))
    assert found.exponent == pytest.approx(slowest, rel=1e-5)  # float32
    assert found.regime == regime and found.affine
    assert ("but the cell is linear in its state: an associative scan is exact in one pass" in str(found)) == (
        regime == "marginal"
    )


def test_a_dense_elman_of_gain_4_is_chaotic():
    """The exponent beside that of two trajectories in NumPy, pulled together again after every step."""
    cell = jr.elman(I, 24)
    W = 4 / np.sqrt(24) * np.random.default_rng(3).normal(size=(24, 24))
    params = randomised(cell.init(KEY), 1, scale=0.1)._replace(W_hh=jnp.asarray(W, jnp.float32))
    found = forecast(cell, params, jnp.zeros((1000, I)), 0.1 * draw((24,), 4))

    h, other, grown, b = np.full(24, 0.1), np.full(24, 0.1), [], np.asarray(params.b, float)
    other[0] += 1e-8
    for _ in range(4000):
        h, other = np.tanh(h @ W + b), np.tanh(other @ W + b)
        size = np.linalg.norm(other - h)
        grown.append(np.log(size / 1e-8))
        other = h + (other - h) * 1e-8 / size
    assert found.regime == "chaotic" and found.exponent > 0.1
    assert found.exponent == pytest.approx(np.mean(grown[1000:]), abs=4 * found.standard_error)


# ---- the steps to forget are those that two runs take to agree ---------------------------------------


@pytest.mark.parametrize(
    "cell", [jr.gru(I, 8), jr.lstm(I, 8), jr.lru(I, 5), jr.elman(I, 8)], ids=lambda cell: cell.spec.kind
)
def test_two_runs_agree_after_the_steps_to_forget(cell):
    params, xs = randomised(cell.init(KEY), 1, scale=0.3), draw((T, I), 2)
    found = forecast(cell, params, xs)
    assert found.regime == "contracting"
    starts = randomised(cell.initial_carry(params, (2,)), 5, scale=1.0)
    _, states = jax.lax.scan(lambda h, x: (cell.step(params, h, jnp.stack([x, x]))[0],) * 2, starts, xs)
    leaves = [np.asarray(a) for a in jax.tree.leaves(states)]
    apart = np.max([np.abs(a[:, 0] - a[:, 1]).max(-1) for a in leaves], axis=0)
    size = max(np.abs(a).max() for a in leaves)
    agreed = np.flatnonzero(apart > 2**-23 * size)[-1] + 2  # from here on they are one run, to rounding
    assert agreed / 2 <= found.steps_to_forget <= 2 * agreed


# ---- what decides ------------------------------------------------------------------------------------


def test_four_chunks_with_their_warm_up_must_fit():
    """log(1/ε) / 0.5 is 31.9 steps."""
    shorter, longer = of_growth(np.full(100, -0.5), 127), of_growth(np.full(100, -0.5), 128)
    assert (shorter.regime, shorter.chunks) == ("marginal", 3)
    assert (longer.regime, longer.chunks, longer.steps_to_forget) == ("contracting", 4, 32)


def test_the_margin_decides_at_the_edge():
    """Every other block of ten steps half a unit more, and less: the same mean, less sure of it."""
    spread = np.repeat(np.resize([0.5, -0.5], 10), 10)
    surely, unsure = of_growth(np.full(100, -0.5), 150), of_growth(spread - 0.5, 150)
    assert surely.exponent == unsure.exponent == -0.5 and surely.standard_error == 0
    assert unsure.standard_error == pytest.approx(0.5 / math.sqrt(9), rel=1e-12)  # of a mean of ten, ± 0.5 each
    assert (surely.regime, unsure.regime) == ("contracting", "marginal")
    assert "32 steps, of T = 150, which is not sure" in str(unsure)
    assert of_growth(np.full(100, 0.05)).regime == "chaotic" and of_growth(spread + 0.05).regime == "marginal"


@pytest.mark.parametrize(("steps", "regime"), [(999, "marginal"), (1001, "chaotic")])
def test_growth_counts_once_it_is_e_over_the_run(steps, regime):
    assert of_growth(np.full(128, 1e-3), steps).regime == regime


def test_the_sequence_that_forgets_slowest_decides():
    """Not the mean of all, and with a margin of its own."""
    found = of_growth(np.broadcast_to([-1.0, 0.5, -2.0], (100, 3)))
    assert (found.regime, found.exponent) == ("chaotic", 0.5)
    uneven = np.stack([np.resize([-3.0, -1.0], 105), np.full(105, -1.0)], 1)
    found = of_growth(uneven)
    assert (found.regime, found.steps_to_forget, found.standard_error) == ("contracting", 16, 0)


def test_a_step_forgets_no_more_than_everything():
    """Every twentieth step loses the state for good, the others keep it: 20 steps to forget."""
    found = of_growth(np.where(np.arange(200) % 20 == 7, -np.inf, 0.0), 200)
    assert (found.regime, found.steps_to_forget, found.chunks) == ("contracting", 20, 10)


@pytest.mark.parametrize(
    ("dtypes", "steps"), [(["bfloat16"], 7), (["float32", "bfloat16"], 23), (["float64"], 52), (["complex64"], 23)]
)
def test_rounding_is_that_of_the_finest_part_of_the_carry(dtypes, steps, x64):
    """A state that is halved loses a bit at each step."""

    def initial_carry(params, batch_shape=()):
        return [jnp.ones((*batch_shape, 1), dtype) for dtype in dtypes]

    cell = jr.Cell(lambda key: {}, initial_carry, lambda params, h, x: (jax.tree.map(lambda a: a / 2, h), x))
    assert forecast(cell, xs=jnp.zeros((20, 0))).steps_to_forget == steps


def test_steps_of_burn_in_are_not_counted():
    """A factor that each step reads: e³ in the first 20 steps, 1/e in the others."""
    cell = jr.Cell(
        lambda key: {}, lambda p, batch_shape=(): jnp.zeros((*batch_shape, 1)), lambda p, h, x: (jnp.exp(x) * h, h)
    )
    xs = jnp.where(jnp.arange(100.0)[:, None] < 20, 3.0, -1.0)
    assert forecast(cell, xs=xs).exponent == pytest.approx(-1, rel=1e-6)  # a fifth
    assert forecast(cell, xs=xs, burn_in=10).exponent == pytest.approx(-5 / 9, rel=1e-6)


def test_the_carry_given_decides_where_there_are_two_fates():
    """h_t = tanh(2 h_{t-1}): 0 is unstable, log 2; ±0.9575 are stable."""
    cell = autonomous(0.0, lambda h: jnp.tanh(2 * h))
    at_rest, moving = forecast(cell), forecast(cell, carry=jnp.array([0.5]))
    assert at_rest.regime == "chaotic" and at_rest.exponent == pytest.approx(math.log(2), rel=1e-6)
    assert moving.regime == "contracting"
    assert moving.exponent == pytest.approx(math.log(2 * (1 - 0.9575040240772687**2)), rel=1e-5)


def test_noise_is_left_out():
    cell = jr.gru(I, 8)
    params, xs = cell.init(KEY), draw((T, I), 2)
    assert forecast(jr.recurrent_dropout(cell, rate=0.5), params, xs) == forecast(cell, params, xs)


# ---- words ------------------------------------------------------------------------------------------


def test_words():
    assert str(of_growth(np.full(100, -0.5), 128)) == (
        "contracting: leading Lyapunov exponent -0.5 ± 0 a step; a disturbance shrinks to rounding in about 32 steps, "
        "of T = 128: up to 4 chunks can run side by side, each after so long a warm-up"
    )
    assert str(of_growth(np.full(100, -0.5))) == (
        "marginal: leading Lyapunov exponent -0.5 ± 0 a step; a disturbance shrinks to rounding in about 32 steps, of "
        "T = 100: chunks would have to run again and again; use jr.scan"
    )
    assert str(of_growth(np.zeros(100))) == (
        "marginal: leading Lyapunov exponent +0 ± 0 a step; a disturbance does not shrink over T = 100 steps: chunks "
        "would have to run again and again; use jr.scan"
    )
    assert str(of_growth(np.full(100, 0.5))) == (
        "chaotic: leading Lyapunov exponent +0.5 ± 0 a step; a disturbance grows by a factor of e every 2 steps, so "
        "that guessed carries never agree: parallel methods cannot pay; use jr.scan"
    )


GRU = jr.gru(I, 3)
XS = jnp.ones((20, I))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: forecast(jr.scan(GRU), {}, XS),
            TypeError,
            r"expected a Cell, got scan\(gru\), a Layer; give the Cell",
        ),
        (lambda: forecast(GRU, xs=XS[:0]), ValueError, "xs has T = 0 steps; give at least 1"),
        (
            lambda: forecast(GRU, xs=XS[:11]),
            ValueError,
            "xs has T = 11 steps, of which burn_in=2 leaves 9, and its margin needs at least 10; give a longer xs",
        ),
        (lambda: forecast(GRU, xs=XS, burn_in=20), ValueError, "burn_in=20 leaves none of the T = 20 steps"),
        (lambda: forecast(GRU, xs=XS, steps=0), ValueError, "steps must be a positive int, got 0"),
        (lambda: forecast(GRU, xs=XS[:, None][:, :0]), ValueError, r"xs holds no sequence, its batch is \(0,\)"),
        (lambda: forecast(clockwork(I, 3), xs=XS), TypeError, r"carry\['clock'\] is int32, and there is no derivative"),
        (lambda: forecast(jr.dense(I, 3), xs=XS), ValueError, "the cell carries nothing"),
        (lambda: forecast(GRU, xs=XS, carry=jnp.ones(4)), ValueError, r"carry should have shape \(3,\), got \(4,\)"),
        (lambda: jax.jit(lambda xs: forecast(GRU, xs=xs))(XS), TypeError, "needs? values, so it cannot be jitted"),
        (
            lambda: forecast(autonomous(1.0, lambda h: 1e10 * h), xs=XS[:, :0]),
            FloatingPointError,
            "the state is not finite at 17 of 20 steps, first at 3",
        ),
        (
            lambda: forecast(autonomous(0.0, lambda h: jnp.sqrt(jnp.abs(h))), xs=XS[:, :0]),
            FloatingPointError,
            "the derivative by the state is not finite at step 4, or before; look at what the step does",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=f"^forecast_convergence: .*{message}"):
        call()
