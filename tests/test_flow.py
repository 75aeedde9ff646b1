"""``gradient_flow`` against the analytic linear recurrence, Python loops with explicit zeros, and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import CASES, B, H, I, T, draw, randomised
from tests.turns import named_in_turn
from tests.user_cells import clockwork, linear, textbook_lstm

LENGTHS = jnp.array([6, 3, 1])


def last_step(carry, ys):
    return (ys[-1] * draw(ys.shape[1:], 5).astype(ys.dtype)).sum()


def at_ends(carry, ys):
    return (jr.last(ys, LENGTHS) * draw(ys.shape[1:], 5)).sum()


def all_steps(carry, ys):
    return (jnp.sin(ys) * draw(ys.shape, 6)).sum() + sum((a.real + a.imag).sum() for a in jax.tree.leaves(carry))


def test_linear_recurrence(x64):
    """∂L/∂h_t = (Wᵀ)^(T-1-t) v for L = v · h_T, and ∂L/∂W_t = ∂L/∂h_t h_{t-1}ᵀ."""
    W, v, T = np.asarray(draw((5, 5), 1)) * 0.6, np.asarray(draw((5,), 2)), 30
    cell = linear(W)
    flow = jr.gradients.gradient_flow(cell, cell.init(None), jnp.zeros((T, 0)), lambda carry, ys: ys[-1] @ v)
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
    flow = jax.jit(lambda *of: jr.gradients.gradient_flow(cell, *of, loss))(params, xs)
    for state, g in zip(flow.states, zeros_in_a_loop(cell, params, xs, loss), strict=True):
        g = np.asarray(g)
        norms = np.linalg.norm(g, axis=-1)
        np.testing.assert_allclose(state.norm, norms, rtol=1e-12)
        np.testing.assert_allclose(state.mean, norms.mean(1), rtol=1e-12)
        np.testing.assert_allclose(state.sd, norms.std(1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(state.per_unit, np.sqrt((g**2).mean(1)), rtol=1e-9)


@pytest.mark.parametrize(
    ("case", "flags"),
    [
        pytest.param(case, "masked" if index % 2 else "plain", id=name.id, marks=name.marks)
        for index, (case, name) in enumerate(zip(CASES, named_in_turn([c.name for c in CASES], 2), strict=True))
    ],
)
def test_contributions_are_those_of_bptt(case, flags, x64, traced):
    """The norms of ``bptt_contributions``, for every cell, wrapper and direction; every state is reached."""
    params, xs = randomised(case.layer.init(jax.random.key(0)), 1), draw((T, B, *case.x_shape), 2)
    options = {}
    if flags == "masked":
        gaps = jnp.asarray(np.random.default_rng(3).random((T, B)) < 0.7)
        options = {"lengths": LENGTHS, "mask": gaps, "resets": jnp.roll(gaps, 1)}
    both = jr.gradients.gradient_flow, jr.gradients.bptt_contributions
    flow, parts = traced(lambda *of: [one(case.layer, *of, all_steps, **options) for one in both])(params, xs)
    for norms, part in zip(jax.tree.leaves(flow.params), jax.tree.leaves(parts), strict=True):
        expected = np.sqrt((np.asarray(part, np.float64) ** 2).reshape(T, -1).sum(1))
        np.testing.assert_allclose(norms, expected, rtol=2e-6, atol=1e-12)
    norms = [a.norm for a in jax.tree.leaves(flow.states, is_leaf=lambda a: isinstance(a, jr.gradients.StateFlow))]
    assert norms and all(n.shape == (T, B) and bool((n > 0).any()) for n in norms)
    if flags == "masked":
        off = ~np.asarray(gaps & (jnp.arange(T)[:, None] < LENGTHS))
        assert all(bool((np.asarray(n)[off] == 0).all()) for n in norms)


def test_the_tree_says_place_and_direction():
    model = jr.stack(jr.bidirectional(jr.lstm(I, H), jr.gru(I, H)), jr.dropout(0.5), jr.scan(clockwork(2 * H, H)))
    params = model.init(jax.random.key(0))
    flow = jax.jit(lambda params, xs: jr.gradients.gradient_flow(model, params, xs, last_step))(
        params, jnp.ones((T, B, I))
    )
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
    flow = jax.jit(lambda xs: jr.gradients.gradient_flow(cell, params, xs, at_ends, lengths=LENGTHS))(padded)
    weights = draw((B, H), 5)
    for b, length in enumerate(LENGTHS[:2]):
        loss = lambda carry, ys, b=b: ys[-1] @ weights[b]
        own = jax.jit(lambda xs, loss=loss: jr.gradients.gradient_flow(cell, params, xs, loss))(xs[:length, b])
        np.testing.assert_allclose(flow.states.norm[:length, b], own.states.norm, rtol=1e-12)
    by_lag = jr.gradients.norm_by_lag(flow.states.norm, lengths=LENGTHS)
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
        return jax.jit(lambda xs: jr.gradients.gradient_flow(layer, params, xs, lambda carry, ys: ys[at].sum()))

    ahead, back = flow(-1, False)(xs), flow(0, True)(xs[::-1])
    np.testing.assert_allclose(back.states.c.norm, ahead.states.c.norm[::-1], rtol=1e-12)
    curves = jr.gradients.norm_by_lag(back.states.c.norm, reverse=True), jr.gradients.norm_by_lag(ahead.states.c.norm)
    np.testing.assert_allclose(*curves, rtol=1e-12)


def test_in_jit_and_vmap_and_under_other_plans(x64):
    cell = jr.lstm(I, H, learned_carry=True)
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((T, B, I), 2)
    one = jr.gradients.gradient_flow(cell, params, xs[:, 1], lambda carry, ys: ys[-1].sum())

    def of_each(**options):
        layer = jr.scan(cell, **options)
        flow = lambda x: jr.gradients.gradient_flow(layer, params, x, lambda carry, ys: ys[-1].sum())
        return jax.vmap(flow, in_axes=1)(xs)

    for each in jax.jit(lambda: [of_each(), of_each(checkpoint=4), of_each(plan="plain")])():
        for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(one), strict=True):
            # The norms of contributions are float32.
            np.testing.assert_allclose(a[1], b, rtol=1e-5 if b.dtype == jnp.float32 else 1e-12)


def test_pascanu_bound(x64):
    """Where the largest singular value of W_hh is below 1/γ, γ = 1 bounding tanh', the gradient decays at each step."""
    cell = jr.elman(I, H)
    params = randomised(cell.init(jax.random.key(0)), 1)
    W = params.W_hh / jnp.linalg.norm(params.W_hh, 2) * 0.9
    flow = jax.jit(lambda *of: jr.gradients.gradient_flow(cell, *of, lambda carry, ys: ys[-1].sum()))(
        params._replace(W_hh=W), draw((40, B, I), 2)
    )
    norms = np.asarray(flow.states.norm)
    assert (norms[:-1] <= 0.9 * norms[1:]).all() and (norms[0] > 0).all()


def test_norms_do_not_overflow_where_squares_would():
    W = 1e3 * np.eye(3, dtype=np.float32)
    cell = linear(W)
    loss = lambda carry, ys: (1e-30 * ys[-1]).sum()
    flow = jax.jit(lambda W: jr.gradients.gradient_flow(cell, {"W": W}, jnp.zeros((12, 0)), loss))(W)
    np.testing.assert_allclose(
        flow.states.norm, [np.sqrt(3) * 10.0 ** (3 * (11 - t) - 30) for t in range(12)], rtol=1e-5
    )


def test_no_array_of_weights_over_time():
    """Nothing of the size T × H × H stands in the compiled program."""
    cell, T, H = jr.lstm(2, 64), 50, 64
    params = cell.init(jax.random.key(0))
    flow = jax.jit(lambda params, xs: jr.gradients.gradient_flow(cell, params, xs, lambda carry, ys: ys[-1].sum()))
    memory = flow.lower(params, jnp.ones((T, 1, 2))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * T * H * H


def tanh_of(a):
    h = jnp.tanh(a)
    return h, h


def user_step(params, h, x):
    return tanh_of(h @ params["W"] + x @ params["U"] + params["b"])


USER_STEPS = {
    "twice": lambda p, h, x: tanh_of(jnp.tanh(h @ p["W"]) @ p["W"] + x @ p["U"] + p["b"]),
    "tied": lambda p, h, x: (lambda h: (h, h @ p["W"].T))(jnp.tanh(h @ p["W"] + x @ p["U"] + p["b"])),
    "joined": lambda p, h, x: tanh_of(
        jnp.concatenate([h, x], -1) @ jnp.concatenate([p["W"], p["U"]]) + jnp.einsum("ij,j->i", p["W"], p["b"])
    ),
    "blocks": lambda p, h, x: tanh_of(
        jnp.concatenate([h @ p["W"][:, :1], jnp.sin(h) @ p["W"][:, 1:]], -1) + (p["U"].T @ x.T).T + p["b"]
    ),
    "cond": lambda p, h, x: tanh_of(
        jax.lax.cond(x.sum() > 0, lambda W: h @ W, lambda W: jnp.sin(h @ W), p["W"]) + x @ p["U"] * p["b"]
    ),
    "checkpoint": jax.checkpoint(user_step),
    "starts from its parameters": user_step,
}


@pytest.mark.parametrize("name", USER_STEPS)
def test_contributions_to_weights_used_in_any_way(name, x64):
    params = {"W": draw((H, H), 1) * 0.5, "U": draw((I, H), 2), "b": draw((H,), 3)}
    starts = name.startswith("starts")

    def initial_carry(params, batch_shape=()):
        h = jnp.tanh(params["b"] @ params["W"]) if starts else jnp.zeros(H)
        return jnp.broadcast_to(h, (*batch_shape, H))

    cell, xs = jr.Cell(lambda key: params, initial_carry, USER_STEPS[name]), draw((T, B, I), 4)
    resets = {"resets": jnp.zeros((T, B), bool).at[0, 0].set(True).at[3, 1].set(True)} if starts else {}
    both = jr.gradients.gradient_flow, jr.gradients.bptt_contributions
    flow, parts = jax.jit(lambda *of: [one(cell, *of, all_steps, **resets) for one in both])(params, xs)
    for name, part in parts.items():
        expected = np.linalg.norm(np.asarray(part).reshape(T, -1), axis=1)
        np.testing.assert_allclose(flow.params[name], expected, rtol=1e-9, atol=1e-13)


def test_a_learned_carry_that_a_reset_reads_too(x64):
    cell = jr.elman(I, H, learned_carry=True)
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((T, B, I), 2)
    resets = jnp.zeros((T, B), bool).at[0, 0].set(True).at[2, 1].set(True)
    both = jr.gradients.gradient_flow, jr.gradients.bptt_contributions
    flow, parts = jax.jit(lambda *of: [one(cell, *of, all_steps, resets=resets) for one in both])(params, xs)
    np.testing.assert_allclose(flow.params.h0, np.linalg.norm(parts.h0, axis=1), rtol=1e-9)
    assert (np.asarray(flow.params.h0) > 0).tolist() == [True, False, True, False, False, False]


def test_an_output_that_is_the_state_before_its_cast():
    def step(params, h, x):
        h = jnp.tanh((h @ params["W"] + 1).astype(jnp.bfloat16))
        return h.astype(jnp.float32), h

    cell = jr.Cell(
        lambda key: {"W": 0.1 * jnp.eye(4)}, lambda params, batch_shape=(): jnp.zeros((*batch_shape, 4)), step
    )
    flow = jr.gradients.gradient_flow(
        cell, cell.init(None), jnp.zeros((3, 1)), lambda carry, ys: ys[-1].sum().astype(jnp.float32)
    )
    assert flow.states.norm[-1] == 2.0
    h, y = jr.leaky(cell, rate=0.25).step(cell.init(None), jnp.zeros(4), jnp.zeros(1))
    np.testing.assert_allclose(h, 0.25 * np.tanh(1.0), rtol=1e-2)
    np.testing.assert_array_equal(y, h.astype(jnp.bfloat16))


def test_rows_that_cancel_do_not_vanish():
    """Two equal sequences with losses of opposite sign but for 1e-5: float32 must not take their difference for 0."""
    H = 64
    cell = jr.elman(I, H, activation="identity")
    params = cell.init(jax.random.key(0))
    params = params._replace(W_hh=0.9 * jnp.eye(H))
    xs = jnp.repeat(draw((T, 1, I), 1).astype(jnp.float32), 2, axis=1)
    loss = lambda carry, ys: (ys[-1, 0] - (1 - 1e-5) * ys[-1, 1]).sum()
    both = jr.gradients.gradient_flow, jr.gradients.bptt_contributions
    flow, parts = jax.jit(lambda *of: [one(cell, *of, loss) for one in both])(params, xs)
    part = np.asarray(parts.W_hh)
    np.testing.assert_allclose(flow.params.W_hh, np.linalg.norm(part.reshape(T, -1), axis=1), rtol=0.02)


def test_contributions_beyond_float32(x64):
    W = 10 * np.eye(3)
    loss = lambda carry, ys: 1e-60 * ys[-1].sum()
    flow = jax.jit(lambda W: jr.gradients.gradient_flow(linear(W), {"W": W}, jnp.zeros((60, 0)), loss))(W)
    np.testing.assert_allclose(flow.params["W"], [3 * 10.0 ** (59 - 60)] * 60, rtol=1e-9)


def test_the_flow_has_gradients_itself(x64):
    """Of norms by inputs, against finite differences; a contribution of exactly 0 has the derivative 0, not NaN."""
    cell = jr.elman(I, H)
    params, xs, v = randomised(cell.init(jax.random.key(0)), 1), draw((3, B, I), 2), draw((3, B, I), 3)

    def of(xs):
        flow = jr.gradients.gradient_flow(cell, params, xs, lambda carry, ys: jnp.sin(ys[-1]).sum())
        return flow.states.norm[0].sum() + flow.params.W_hh.sum() + flow.params.b.sum()

    of = jax.jit(of)
    difference = (of(xs + 1e-6 * v) - of(xs - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose((jax.grad(of)(xs) * v).sum(), difference, rtol=1e-6)


@pytest.mark.multidevice
def test_each_device_of_a_shard_map_has_its_own_flow():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    cell = jr.elman(1, 1, activation="identity")
    params = cell.init(jax.random.key(0))._replace(W_hh=jnp.eye(1))
    of = lambda x: jr.gradients.gradient_flow(cell, params, x, lambda carry, ys: (ys[-1] ** 2).sum())
    xs = jnp.array([1.0, 3.0]).reshape(1, 2, 1)
    apart = jax.jit(
        jax.shard_map(
            lambda x: (lambda flow: (flow.states.norm, flow.params.b[None]))(of(x)),
            mesh=mesh,
            in_specs=P(None, "d"),
            out_specs=(P(None, "d"), P("d")),
        )
    )(xs)
    of = jax.jit(of)
    for b in range(2):
        own = of(xs[:, b : b + 1])
        np.testing.assert_allclose(apart[0][:, b], own.states.norm[:, 0], rtol=1e-6)
        np.testing.assert_allclose(apart[1][b], own.params.b, rtol=1e-6)
    exponents = jax.shard_map(
        lambda x: jr.gradients.lyapunov_spectrum(cell, params, x).exponents,
        mesh=mesh,
        in_specs=P(None, "d"),
        out_specs=P("d"),
    )
    np.testing.assert_allclose(jax.jit(exponents)(xs), np.zeros((2, 1)), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1.0, 1e15], ids=str)
def test_norms_of_inputs_small_and_large(scale):
    """h_t = 0.5 h_{t-1} + W x_t: step t adds x_tᵀ d_t, d_t = 0.5^(T - 1 - t) w; also where squares leave the floats."""
    B, I, H = 2, 8, 8  # fewer rows than columns: measured by the rows' products
    cell = jr.elman(I, H, activation="identity", bias=False)
    params = cell.init(jax.random.key(0))._replace(W_hh=0.5 * jnp.eye(H))
    xs, w = np.asarray(draw((T, B, I), 1), np.float32) * np.float32(scale), np.asarray(draw((B, H), 2), np.float32)
    flow = jax.jit(lambda xs: jr.gradients.gradient_flow(cell, params, xs, lambda carry, ys: (ys[-1] * w).sum()))(xs)
    norms = np.linalg.norm(np.einsum("tbi,bo->tio", xs.astype(np.float64), w.astype(np.float64)), axis=(1, 2))
    expected = norms * 0.5 ** (T - 1.0 - np.arange(T))
    np.testing.assert_allclose(flow.params.W_xh, expected, rtol=1e-5)  # float32


@pytest.mark.parametrize(("batch", "leaves"), [(2, True), (64, False)], ids=["few rows", "many rows"])
def test_norms_by_rows_where_these_are_few(batch, leaves):
    """Products of all steps' rows with each other, (T, B, B), in place of a product for each step."""
    cell = jr.elman(8, 8)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((T, batch, 8))
    flow = lambda params, xs: jr.gradients.gradient_flow(cell, params, xs, lambda carry, ys: ys[-1].sum()).params
    assert (f"f32[{T},{batch},{batch}]" in str(jax.make_jaxpr(flow)(params, xs))) == leaves
