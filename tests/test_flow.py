"""``gradient_flow`` against the analytic linear recurrence, Python loops with explicit zeros, and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import CASES, B, H, I, T, draw, randomised
from tests.user_cells import clockwork, textbook_lstm

LENGTHS = jnp.array([6, 3, 1])


def last_step(carry, ys):
    return (ys[-1] * draw(ys.shape[1:], 5).astype(ys.dtype)).sum()


def at_ends(carry, ys):
    return (jr.last(ys, LENGTHS) * draw(ys.shape[1:], 5)).sum()


def all_steps(carry, ys):
    return (jnp.sin(ys) * draw(ys.shape, 6)).sum() + sum(a.sum() for a in jax.tree.leaves(carry))


def linear(W):
    """h_t = W h_{t-1}, no inputs."""

    def step(params, h, x):
        h = h @ params["W"].T
        return h, h

    return jr.Cell(
        lambda key: {"W": jnp.asarray(W)},
        lambda params, batch_shape=(): jnp.ones((*batch_shape, len(W)), params["W"].dtype),
        step,
    )


def test_linear_recurrence(x64):
    """∂L/∂h_t = (Wᵀ)^(T-1-t) v for L = v · h_T, and ∂L/∂W_t = ∂L/∂h_t h_{t-1}ᵀ."""
    W, v, T = np.asarray(draw((5, 5), 1)) * 0.6, np.asarray(draw((5,), 2)), 30
    cell = linear(W)
    flow = jr.gradient_flow(cell, cell.init(None), jnp.zeros((T, 0)), lambda carry, ys: ys[-1] @ v)
    for t in range(T):
        delta = np.linalg.matrix_power(W.T, T - 1 - t) @ v
        h_before = np.linalg.matrix_power(W, t) @ np.ones(5)
        np.testing.assert_allclose(flow.states.norm[t], np.linalg.norm(delta), rtol=1e-12)
        np.testing.assert_allclose(flow.states.per_unit[t], np.abs(delta), rtol=1e-9)
        expected = np.linalg.norm(np.outer(delta, h_before))
        np.testing.assert_allclose(flow.params["W"][t], expected, rtol=1e-5)  # norms of contributions are float32


def zeros_in_a_loop(cell, params, xs, loss):
    """∂L/∂h_t from a Python loop over an LSTM written out, zeros added to h and c where they are computed."""

    def run(zeros):
        h, c = cell.initial_carry(params, xs.shape[1:-1])
        ys = []
        for t, x in enumerate(xs):
            a = {gate: x @ p["W"] + h @ p["U"] + p["b"] for gate, p in params.items()}
            i, f, o = (jax.nn.sigmoid(a[gate]) for gate in "ifo")
            c = f * c + i * jnp.tanh(a["g"]) + zeros[1][t]
            h = o * jnp.tanh(c) + zeros[0][t]
            ys.append(h)
        return loss((h, c), jnp.stack(ys))

    return jax.jit(jax.grad(run))([jnp.zeros((len(xs), *xs.shape[1:-1], H))] * 2)


@pytest.mark.parametrize("loss", [last_step, all_steps])
def test_explicit_zeros_in_an_lstm(loss, x64):
    cell = textbook_lstm(I, H)
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((T, B, I), 2)
    flow = jax.jit(lambda *of: jr.gradient_flow(cell, *of, loss))(params, xs)
    for state, g in zip(flow.states, zeros_in_a_loop(cell, params, xs, loss), strict=True):
        g = np.asarray(g)
        norms = np.linalg.norm(g, axis=-1)
        np.testing.assert_allclose(state.norm, norms, rtol=1e-12)
        np.testing.assert_allclose(state.mean, norms.mean(1), rtol=1e-12)
        np.testing.assert_allclose(state.sd, norms.std(1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(state.per_unit, np.sqrt((g**2).mean(1)), rtol=1e-9)


@pytest.mark.parametrize(
    ("case", "flags"),
    [(case, "masked" if index % 2 else "plain") for index, case in enumerate(CASES)],
    ids=[case.name for case in CASES],
)
def test_contributions_are_those_of_bptt(case, flags, x64):
    """The norms of ``bptt_contributions``, for every cell, wrapper and direction; every state is reached."""
    params, xs = randomised(case.layer.init(jax.random.key(0)), 1), draw((T, B, I), 2)
    options = {}
    if flags == "masked":
        gaps = jnp.asarray(np.random.default_rng(3).random((T, B)) < 0.7)
        options = {"lengths": LENGTHS, "mask": gaps, "resets": jnp.roll(gaps, 1)}
    run = lambda function: jax.jit(lambda *of: function(case.layer, *of, all_steps, **options))(params, xs)  # noqa: E731
    flow, parts = run(jr.gradient_flow), run(jr.bptt_contributions)
    for norms, part in zip(jax.tree.leaves(flow.params), jax.tree.leaves(parts), strict=True):
        expected = np.sqrt((np.asarray(part, np.float64) ** 2).reshape(T, -1).sum(1))
        np.testing.assert_allclose(norms, expected, rtol=2e-6, atol=1e-12)
    norms = [a.norm for a in jax.tree.leaves(flow.states, is_leaf=lambda a: isinstance(a, jr.StateFlow))]
    assert norms and all(n.shape == (T, B) and bool((n > 0).any()) for n in norms)
    if flags == "masked":
        off = ~np.asarray(gaps & (jnp.arange(T)[:, None] < LENGTHS))
        assert all(bool((np.asarray(n)[off] == 0).all()) for n in norms)


def test_the_tree_says_place_and_direction():
    model = jr.stack(jr.bidirectional(jr.lstm(I, H), jr.gru(I, H)), jr.dropout(0.5), jr.scan(clockwork(2 * H, H)))
    params = model.init(jax.random.key(0))
    flow = jax.jit(lambda params, xs: jr.gradient_flow(model, params, xs, last_step))(params, jnp.ones((T, B, I)))
    first, none, clock = flow.states
    assert isinstance(first, jr.BiCarry) and none == () and clock["clock"] is None
    assert first.forward.h.norm.shape == (T, B) and first.backward.per_unit.shape == (T, H)
    assert (first.forward.h.norm.min(1) > 0).tolist() == [True] * 4 + [False] * 2  # the clock last ticks at step 3
    assert flow.params[2]["W_hh"].shape == (T,) and jax.tree.structure(flow.params) == jax.tree.structure(params)


def test_each_sequence_by_itself_where_padded(x64):
    """A batch with lengths gives each sequence the flow of its own unpadded run, whatever the padding holds."""
    cell = jr.gru(I, H)
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((T, B, I), 2)
    padded = jnp.where(jnp.arange(T)[:, None, None] < LENGTHS[:, None], xs, jnp.nan)
    flow = jax.jit(lambda xs: jr.gradient_flow(cell, params, xs, at_ends, lengths=LENGTHS))(padded)
    weights = draw((B, H), 5)
    for b, length in enumerate(LENGTHS[:2]):
        own = jr.gradient_flow(cell, params, xs[:length, b], lambda carry, ys, b=b: ys[-1] @ weights[b])
        np.testing.assert_allclose(flow.states.norm[:length, b], own.states.norm, rtol=1e-12)
    by_lag = jr.norm_by_lag(flow.states.norm, lengths=LENGTHS)
    np.testing.assert_allclose(
        by_lag[0], np.mean([flow.states.norm[length - 1, b] for b, length in enumerate(LENGTHS)])
    )
    np.testing.assert_allclose(by_lag[2], np.mean([flow.states.norm[3, 0], flow.states.norm[0, 1]]))
    np.testing.assert_allclose(by_lag[5], flow.states.norm[0, 0])
    np.testing.assert_allclose(flow.states.mean[2], np.mean(flow.states.norm[2, :2]))


def test_reversed_by_lag(x64):
    """A reversed run of the reversed sequence is the forward run."""
    cell = jr.lstm(I, H)
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((T, B, I), 2)

    def flow(at, reverse):
        layer = jr.scan(cell, reverse=reverse)
        return jax.jit(lambda xs: jr.gradient_flow(layer, params, xs, lambda carry, ys: ys[at].sum()))

    ahead, back = flow(-1, False)(xs), flow(0, True)(xs[::-1])
    np.testing.assert_allclose(back.states.c.norm, ahead.states.c.norm[::-1], rtol=1e-12)
    curves = jr.norm_by_lag(back.states.c.norm, reverse=True), jr.norm_by_lag(ahead.states.c.norm)
    np.testing.assert_allclose(*curves, rtol=1e-12)


def test_in_jit_and_vmap_and_under_other_plans(x64):
    cell = jr.lstm(I, H, learned_carry=True)
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((T, B, I), 2)
    one = jr.gradient_flow(cell, params, xs[:, 1], lambda carry, ys: ys[-1].sum())

    def of_each(**options):
        layer = jr.scan(cell, **options)
        flow = lambda x: jr.gradient_flow(layer, params, x, lambda carry, ys: ys[-1].sum())  # noqa: E731
        return jax.jit(jax.vmap(flow, in_axes=1))(xs)

    for each in (of_each(), of_each(checkpoint=4), of_each(plan="plain")):
        for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(one), strict=True):
            # The norms of contributions are float32.
            np.testing.assert_allclose(a[1], b, rtol=1e-5 if b.dtype == jnp.float32 else 1e-12)


def test_pascanu_bound(x64):
    """Where the largest singular value of W_hh is below 1/γ, γ = 1 bounding tanh', the gradient decays at each step."""
    cell = jr.elman(I, H)
    params = randomised(cell.init(jax.random.key(0)), 1)
    W = params.W_hh / jnp.linalg.norm(params.W_hh, 2) * 0.9
    flow = jax.jit(lambda *of: jr.gradient_flow(cell, *of, lambda carry, ys: ys[-1].sum()))(
        params._replace(W_hh=W), draw((40, B, I), 2)
    )
    norms = np.asarray(flow.states.norm)
    assert (norms[:-1] <= 0.9 * norms[1:]).all() and (norms[0] > 0).all()


def test_norms_do_not_overflow_where_squares_would():
    W = 1e3 * np.eye(3, dtype=np.float32)
    cell = linear(W)
    flow = jr.gradient_flow(cell, {"W": jnp.asarray(W)}, jnp.zeros((12, 0)), lambda carry, ys: (1e-30 * ys[-1]).sum())
    np.testing.assert_allclose(
        flow.states.norm, [np.sqrt(3) * 10.0 ** (3 * (11 - t) - 30) for t in range(12)], rtol=1e-5
    )


def test_no_array_of_weights_over_time():
    """Nothing of the size T × H × H stands in the compiled program."""
    cell, T, H = jr.lstm(2, 16), 50, 16
    params = cell.init(jax.random.key(0))
    flow = jax.jit(lambda params, xs: jr.gradient_flow(cell, params, xs, lambda carry, ys: ys[-1].sum()))
    memory = flow.lower(params, jnp.ones((T, 1, 2))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * T * H * H
