"""How wrong online rules are: the parts by lag against each step's contributions, the sums against BPTT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxrnn as jr
from jaxrnn.gradients import agreements
from tests.cases import draw, randomised
from tests.errors import assert_fails

T, B, I, H = 4, 2, 2, 3
CELL = jr.chain(jr.gru(I, H, learned_carry=True), jr.readout(H, 1))
RULES = {
    "rtrl": "rtrl",
    "window 2": {"rule": "tbptt", "window": 2},
    "half": jr.gradients.OnlineRule(  # half of the direct influence, nothing of the past
        lambda start: (),
        lambda step, trace: (),
        lambda step, trace, u: [a / 2 for a in step.pull(u)[1]],
    ),
}


def problem(dtype=None):
    params = randomised(jax.eval_shape(CELL.init, jax.random.key(0)), 1)
    return params, draw((T, B, I), 2), draw((T, B, 1), 3)


def by_lag_by_hand(params, xs, targets):
    """(T, P), from what each step contributes to each loss; the learned carry's stands at the first step."""
    total = [0.0] * T
    for t in range(T):
        parts = jr.gradients.bptt_contributions(
            CELL, params, xs, lambda carry, ys, t=t: agreements.squared_error(ys[t], targets[t])
        )
        rows = np.stack([ravel_pytree(jax.tree.map(lambda a, i=i: a[i], parts))[0] for i in range(T)])
        for i in range(t + 1):
            total[t - i] = total[t - i] + rows[i]
    return np.stack(total)


@pytest.mark.full
def test_the_exact_parts_are_what_steps_contribute(x64):
    params, xs, targets = problem()
    lags = agreements._by_lag("test", CELL, params, xs, targets, agreements.squared_error)
    got = np.stack([ravel_pytree(jax.tree.map(lambda a, k=k: a[k], lags))[0] for k in range(T)])
    np.testing.assert_allclose(got, by_lag_by_hand(params, xs, targets), rtol=1e-10, atol=1e-12)
    by_key = lambda p: sum(map(agreements.squared_error, jr.scan(CELL).apply(p, xs)[1], targets))
    np.testing.assert_allclose(got.sum(0), ravel_pytree(jax.grad(by_key)(params))[0], rtol=1e-10)
    flat, unravel = ravel_pytree(params)
    along = draw(flat.shape, 7)
    ends = [float(by_key(unravel(flat + ε * along))) for ε in (1e-5, -1e-5)]
    np.testing.assert_allclose(got.sum(0) @ along, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


@pytest.mark.full
def test_rules_that_are_known(x64):
    """RTRL, which comes to its parts forward in time, agrees at every lag; a window of 2 at the first two alone."""
    params, xs, targets = problem()
    found = jr.gradients.agreement(CELL, params, xs, targets, RULES)
    assert found.rules == ("rtrl", "window 2", "half") and found.draws == 32
    assert found.params == ("[0].W_xh", "[0].W_hh", "[0].b", "[0].h0", "[1].W_hy", "[1].b_y")
    one, zero = np.ones(T), np.zeros(T)
    np.testing.assert_allclose(found.by_lag.cosine[0], one)
    np.testing.assert_allclose(found.by_lag.norm[:2], [one, one * (np.arange(T) < 2)], atol=1e-12)
    np.testing.assert_allclose(found.by_lag.bias[:2], [zero, one * (np.arange(T) >= 2)], atol=1e-12)
    np.testing.assert_allclose(found.whole.bias[0], 0, atol=1e-12)
    assert 1e-3 < found.whole.bias[1] < found.whole.bias[2] and not found.by_lag.deviation.any()
    np.testing.assert_allclose(found.by_lag.norm[2, 1:], 0, atol=1e-12)
    np.testing.assert_allclose(found.by_param.norm[:, 4:], 1)  # the readout's own are exact
    exact = by_lag_by_hand(params, xs, targets)[0]
    place, gated = np.arange(exact.size), 3 * H * (I + H + 1)
    halved = np.where(place < gated, exact / 2, np.where(place < gated + H, 0, exact))  # h0 is of the past
    np.testing.assert_allclose(found.by_lag.norm[2, 0], np.linalg.norm(halved) / np.linalg.norm(exact))
    lines = str(found).splitlines()
    assert lines[0] == "beside back-propagation through 4 steps; random rules: 32 draws"
    assert lines[2].split() == ["rule", "cosine", "norm", "bias", "deviation"]
    assert lines[3].split() == ["rtrl", "1.000", "1.000", "0.000", "0.000"]


@pytest.mark.full
def test_rules_that_draw(x64):
    """Mean and variance over draws are those of as many runs."""
    params, xs, targets = problem()
    key, draws = jax.random.key(3), 64
    rules = {"kf": "kf_rtrl", "random": {"rule": "eprop", "feedback": "random"}}
    found = jr.gradients.agreement(CELL, params, xs, targets, rules, key=key, draws=draws)
    learner = jr.online(CELL, agreements.squared_error, rule="kf_rtrl")

    def one(key):
        state, total = learner.init(params, (B,), key=key), 0.0
        for x, target in zip(xs, targets, strict=True):
            state, _, grads = learner.step(params, state, x, target)
            total = total + ravel_pytree(grads)[0]
        return total

    drawn = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, draws)))
    exact = by_lag_by_hand(params, xs, targets).sum(0)
    size = np.linalg.norm(exact)
    norms = np.linalg.norm(drawn, axis=1)
    got = [a[0] for a in found.whole]
    want = [(drawn @ exact / norms / size).mean(), norms.mean() / size]
    want += [np.linalg.norm(drawn.mean(0) - exact) / size, np.sqrt(drawn.var(0).sum()) / size]
    np.testing.assert_allclose(got, want, rtol=1e-8)
    assert found.whole.deviation.min() > 1e-2 and found.whole.bias[0] < 4 * found.whole.deviation[0] / 8
    assert (found.by_param.deviation[:, 4:] < 1e-12).all()


def test_one_rule(x64):
    """Under a window of 1 all is lag 0, and that is exact."""
    cell = jr.elman(I, H)
    params = randomised(jax.eval_shape(cell.init, jax.random.key(0)), 1)
    rules = {"window": {"rule": "tbptt", "window": 1}}
    found = jr.gradients.agreement(cell, params, draw((3, I), 2), draw((3, H), 3), rules)
    np.testing.assert_allclose(found.by_lag.norm, [[1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(found.by_lag.bias, [[0, 1, 1]], atol=1e-12)
    assert found.whole.bias[0] > 1e-3 and found.params == ("W_xh", "W_hh", "b")


def test_the_figure_shows_the_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    by_lag = [np.array([[1.0, 0.5], [1.0, -0.5]]), np.array([[1.0, 2.0], [0.5, 0.0]])]
    by_lag = jr.gradients.Comparison(*by_lag, *by_lag)
    found = jr.gradients.Agreement(("rtrl", "snap1"), ("W",), by_lag, by_lag, by_lag, 1)
    figure = jr.plotting.agreement(found)
    figure.savefig(tmp_path / "figure.png")
    left, right = figure.axes
    for axes, values in ((left, by_lag.cosine), (right, by_lag.norm)):
        for line, row in zip(axes.lines, values, strict=False):
            assert line.get_ydata().tolist() == row.tolist() and line.get_xdata().tolist() == [0, 1]
    styles = [[(line.get_color(), line.get_linestyle()) for line in axes.lines[:2]] for axes in (left, right)]
    assert styles[0] == styles[1] and styles[0][0] != styles[0][1]  # a rule looks alike on both sides
    assert left.get_ylim()[0] == pytest.approx(-0.55) and right.get_yscale() == "symlog"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rtrl", "snap1"]


def asked(**changed):
    params = jax.tree.map(lambda a: jnp.zeros(a.shape), jax.eval_shape(CELL.init, jax.random.key(0)))
    given = {"params": params, "xs": jnp.ones((T, B, I)), "targets": jnp.ones((T, B, 1)), "rules": ["rtrl"], **changed}
    return jr.gradients.agreement(CELL, **given)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rules": ["uoro"]}, ["agreement(chain): rule 'uoro' draws at random and has no key", "key="]),
        ({"rules": ["snp1"]}, ["agreement(chain): rule must be one of", "did you mean 'snap1'?"]),
        ({"xs": jnp.ones((0, B, I)), "targets": jnp.ones((0, B, 1))}, ["agreement(chain): xs has T = 0 steps"]),
        ({"targets": jnp.ones((T, 3, 1))}, ["agreement(chain): targets has shape (4, 3, 1)", "(4, 2)"]),
        (
            {"targets": jnp.ones((T, B))},
            ["agreement(chain): targets must have the shapes of the outputs, (4, 2, 1)", "got (4, 2)", "loss="],
        ),
        ({"rules": {"a": {"rule": "tbptt"}}}, ["agreement(chain): rule='tbptt' goes back a window", "window="]),
    ],
)
def test_what_does_not_fit_is_named(changed, words):
    assert_fails(lambda: asked(**changed), ValueError, words)
