"""Rules that leave something out of the influence, or draw: each against its paper's formulas, or brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxrnn as jr
from jaxrnn.online.spatial import feedback_matrix
from tests.cases import draw, randomised
from tests.errors import assert_fails

T, I, H, O = 5, 3, 4, 2
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64, sums in another order
full = pytest.mark.full


def loss(y, target):
    return ((y - target) ** 2).sum() / 2


def problem(cell, output_size=O, steps=T):
    """``(params, xs, targets)`` of one sequence, random, biases too."""
    params = randomised(jax.eval_shape(cell.init, jax.random.key(0)), 1)
    return params, draw((steps, cell.input_size), 2), draw((steps, output_size), 3)


def run(cell, params, xs, targets, key=None, mask=None, resets=None, batch_shape=(), of=loss, **options):
    """The gradients of every step."""
    learner = jr.online(cell, of, **options)
    state = learner.init(params, batch_shape, key=key)

    def step(state, inputs):
        state, _, grads = learner.step(params, state, *inputs)
        return state, grads

    return jax.lax.scan(step, state, (xs, targets, mask, resets))[1]


def summed(grads):
    return jax.tree.map(lambda a: a.sum(0), grads)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def assert_close(got, want, **close):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **(close or EXACT))


# ---- the papers' networks, transcribed -----------------------------------------------------------

LEAKY = jr.chain(jr.ctrnn(I, H, tau=4.0, dt=1.0, activation="tanh"), jr.readout(H, O))


def murray(params, xs, targets, B, τ=4.0):
    """Equations 1 to 5 of Murray 2019, sums of the updates' factors over time; B (O, H), None: W_outᵀ."""
    (W_in, W, b, _), (W_out, b_out) = jax.tree.map(np.asarray, params)
    B = W_out.T if B is None else np.asarray(B)
    h, p, q, s = np.zeros(H), np.zeros((H, H)), np.zeros((I, H)), np.zeros(H)
    by = [np.zeros_like(a) for a in (W_in, W, b, W_out, b_out)]
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        φ = np.tanh(h @ W + x @ W_in + b)
        slope = (1 - φ**2) / τ
        p = np.outer(h, slope) + (1 - 1 / τ) * p
        q = np.outer(x, slope) + (1 - 1 / τ) * q
        s = slope + (1 - 1 / τ) * s
        h = (1 - 1 / τ) * h + φ / τ
        ε = h @ W_out + b_out - target
        back = ε @ B
        for total, part in zip(by, (back * q, back * p, back * s, np.outer(h, ε), ε), strict=True):
            total += part
    return by


@pytest.mark.parametrize("feedback", ["symmetric", pytest.param("random", marks=full), "given"])
def test_rflo_is_murrays(feedback, traced, x64):
    params, xs, targets = problem(LEAKY)
    key, B, given = jax.random.key(5), None, feedback
    if feedback == "random":
        salted = functools.reduce(jax.random.fold_in, (0x6F6E, 2), key)
        B = feedback_matrix("test", "random", salted, O, H)
    elif feedback == "given":
        B = given = draw((O, H), 9)
    under = lambda p, **options: summed(run(LEAKY, p, xs, targets, key, **options))
    got = traced(functools.partial(under, rule="rflo", feedback=given))(params)
    assert_close(got, murray(params, xs, targets, B))
    if feedback == "symmetric":  # on this network both are one; SnAp-1 has the unit's own weight too
        assert_close(traced(functools.partial(under, rule="eprop"))(params), got)
        own = traced(functools.partial(under, rule="snap1"))(params)
        assert np.abs(own[0].W_hh - got[0].W_hh).max() > 1e-3
    else:
        assert np.abs(got[0].W_hh - murray(params, xs, targets, None)[1]).max() > 1e-3


@full
def test_random_feedback_is_drawn_by_the_key_for_good(x64):
    params, xs, targets = problem(LEAKY)
    under = jax.jit(lambda key: run(LEAKY, params, xs, targets, key, rule="eprop", feedback="random"))
    one, again, other = (under(jax.random.key(n)) for n in (0, 0, 1))
    assert_close(one, again)
    assert np.abs(flat(one[0]) - flat(other[0])).max() > 1e-3
    assert_close(one[1], other[1])  # the readout's own
    B = [feedback_matrix("", "random", jax.random.key(n), 3, 200) for n in range(2)]
    np.testing.assert_allclose(B[0].std() * np.sqrt(3), 1, atol=0.1)


α, ρ, β, V, γ = 0.9, 0.8, 0.3, 0.5, 0.3  # of Bellec's adaptive neurons; V the threshold


@jax.custom_jvp
def spike(v, A):
    return (v > A).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals, tangents):
    v, A = primals
    ψ = γ / V * jnp.maximum(0, 1 - jnp.abs((v - A) / V))
    return spike(v, A), ψ * (tangents[0] - tangents[1])


def lsnn_step(params, carry, x):
    v, a, z = carry["v"], carry["a"], carry["z"]
    W = params["W"] * (1 - np.eye(H))
    a = ρ * a + z
    v = α * v + z @ W + x @ params["W_in"] - jax.lax.stop_gradient(z) * V
    z = spike(v, V + β * a)
    return {"v": v, "a": a, "z": z}, z


LSNN = jr.Cell(
    lambda key: {"W": jnp.zeros((H, H)), "W_in": jnp.zeros((I, H))},
    lambda params, batch_shape=(): {k: jnp.zeros((*batch_shape, H), params["W"].dtype) for k in ("v", "a", "z")},
    lsnn_step,
    input_size=I,
    output_size=H,
)


def filtered(cell, κ):
    """z̄_t = κ z̄_{t-1} + z_t of what a cell puts out: a readout of it is Bellec's readout with a leak."""

    def initial_carry(params, batch_shape=()):
        carry = cell.initial_carry(params, batch_shape)
        return {"cell": carry, "z": jnp.zeros((*batch_shape, H), jax.tree.leaves(carry)[0].dtype)}

    def step(params, carry, x):
        new, z = cell.step(params, carry["cell"], x)
        z = κ * carry["z"] + z
        return {"cell": new, "z": z}, z

    return jr.Cell(cell.init, initial_carry, step, input_size=I, output_size=H)


def bellec(params, xs, targets, B, κ):
    """Equations 22 to 25 and 28 of Bellec et al. 2020: the readout has a leak κ; B (O, H)."""
    W, W_in, (W_out, b_out) = np.asarray(params[0]["W"]), np.asarray(params[0]["W_in"]), map(np.asarray, params[1])
    B = W_out.T if B is None else np.asarray(B)
    v, a, z, ψ, spikes = *np.zeros((4, H)), 0
    y, z_bar = np.copy(b_out), np.zeros(H)
    ε_v, ε_a, e_bar = ([np.zeros((n, H)) for n in (H, I)] for _ in range(3))
    by = [np.zeros((H, H)), np.zeros((I, H)), np.zeros((H, O))]
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        ε_a = [ψ * e + (ρ - ψ * β) * f for e, f in zip(ε_v, ε_a, strict=True)]
        ε_v = [α * e + pre[:, None] for e, pre in zip(ε_v, (z, x), strict=True)]
        v, a = α * v + z @ (W * (1 - np.eye(H))) + x @ W_in - z * V, ρ * a + z
        A = V + β * a
        z, ψ = (v > A).astype(float), γ / V * np.maximum(0, 1 - np.abs((v - A) / V))
        y, z_bar = κ * y + z @ W_out + (1 - κ) * b_out, κ * z_bar + z
        e_bar = [κ * old + ψ * (e - β * f) for old, e, f in zip(e_bar, ε_v, ε_a, strict=True)]
        for total, e in zip(by, e_bar, strict=False):
            total += (y - target) @ B * e
        by[2] += np.outer(z_bar, y - target)
        spikes += z.sum()
    by[0] *= 1 - np.eye(H)
    assert 3 < spikes < 0.9 * len(xs) * H
    return by


@pytest.mark.parametrize(("feedback", "κ"), [("symmetric", 0.0), ("given", 0.7)])
def test_eprop_is_bellecs(feedback, κ, traced, x64):
    cell = jr.chain(filtered(LSNN, κ) if κ else LSNN, jr.readout(H, O))
    params, xs, targets = problem(cell, steps=8)
    xs = 3 * xs  # so that there are spikes
    B = None if feedback == "symmetric" else draw((O, H), 9)
    given = feedback if B is None else B
    got = traced(lambda p: summed(run(cell, p, xs, targets, rule="eprop", feedback=given)))(params)
    want = bellec(params, xs, targets, B, κ)
    assert_close([got[0]["W"], got[0]["W_in"], got[1].W_hy], want)
    assert all(np.abs(a).max() > 1e-2 for a in want)


# ---- other cells, by their equations with what is held as an argument of its own -----------------


def sigmoid(a):
    return 1 / (1 + jnp.exp(-a))


def peephole_lstm(params, held, carry, x):
    """``held``: h as products read it, c as gates read it."""
    h, c = held
    W_xh, W_hh, b, U_i, U_f, U_o, _ = params
    i, f, g, o = jnp.split(x @ W_xh + h @ W_hh + b, 4)
    c_new = sigmoid(f + U_f * c) * carry[1] + sigmoid(i + U_i * c) * jnp.tanh(g)
    return jnp.concatenate([sigmoid(o + U_o * c_new) * jnp.tanh(c_new), c_new])


def gru(params, held, carry, x):
    W_xh, W_hh, b, _, _ = params
    a = x @ W_xh + b
    r, z = (sigmoid(u) for u in jnp.split(a[: 2 * H] + held @ W_hh[:, : 2 * H], 2))
    n = jnp.tanh(a[2 * H :] + (r * held) @ W_hh[:, 2 * H :])
    return (1 - z) * carry + z * n


BY_EQUATIONS = {
    "gru": (jr.gru(I, H), gru),
    "peephole_lstm": (jr.peephole_lstm(I, H), peephole_lstm),
}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        pytest.param(name, rule, marks=() if (name, rule) == ("peephole_lstm", "rflo") else full)
        for name in BY_EQUATIONS
        for rule in ("eprop", "rflo")
    ],
)
def test_of_gated_cells_what_the_definition_leaves(name, rule, traced, x64):
    """J_t = D̂_t J_{t-1} + I_t with dense matrices; what is held is an argument that no derivative is taken by."""
    cell, equations = BY_EQUATIONS[name]
    params, xs, targets = problem(cell, H)
    theta, unravel = ravel_pytree(params)
    as_carry = (lambda h: h) if name == "gru" else (lambda h: (h[:H], h[H:]))
    sees_gates = name == "peephole_lstm" and rule == "eprop"  # its own memory's, which no weight matrix stands before

    def new(theta, h, held, x):
        held, carry = as_carry(held), as_carry(h)
        return equations(unravel(theta), (held[0], carry[1]) if sees_gates else held, carry, x)

    def by_hand(theta):
        h = jnp.zeros(H if name == "gru" else 2 * H)
        J, grads = jnp.zeros((h.size, theta.size)), []
        for x, target in zip(jnp.unstack(xs), jnp.unstack(targets), strict=True):
            direct, carried = jax.jacobian(new, (0, 1))(theta, h, h, x)
            h, J = new(theta, h, h, x), carried @ J + direct
            grads.append((h[:H] - target) @ J[:H])
        return jnp.stack(grads)

    want = traced(by_hand)(theta)
    got, other = (
        traced(lambda p, r=r: run(cell, p, xs, targets, rule=r))(params)
        for r in (rule, "snap1" if name == "gru" else "eprop")
    )
    got = np.stack([flat(jax.tree.map(lambda a, t=t: a[t], got)) for t in range(T)])
    np.testing.assert_allclose(got, want, **EXACT)
    if rule == "rflo":
        assert np.abs(flat(summed(other)) - got.sum(0)).max() > 1e-4


# ---- member by member ----------------------------------------------------------------------------


def test_layerwise_is_exact_within_members_and_back_propagates_between_them(traced, x64):
    """Dense influence matrices of each member; the errors by ``jax.grad`` of one step."""
    dense, first, second, readout = jr.dense(I, I), jr.elman(I, H, output_size=3), jr.gru(3, H), jr.readout(H, O)
    cell = jr.chain(dense, first, second, readout)
    params, xs, targets = problem(cell)
    stop = jax.lax.stop_gradient

    back1, back2 = (ravel_pytree(own)[1] for own in params[1:3])

    def step1(w, h, read):
        return first.step(back1(w), h, read)[0]

    def step2(w, h, y):
        return second.step(back2(w), h, y)[0]

    def lost(p0, p1, p3, δ1, δ2, params, h1, h2, x, target):
        n1 = first.step(stop(params[1]), h1, dense.step(p0, (), x)[1])[0] + δ1
        n2 = second.step(stop(params[2]), h2, n1 @ p1.W_hy + p1.b_y)[0] + δ2
        return loss(readout.step(p3, (), n2)[1], target)

    def by_hand(params):
        p0, p1, p2, p3 = params
        (w1, _), (w2, _) = ravel_pytree(p1), ravel_pytree(p2)
        h1, h2, zero = jnp.zeros(H), jnp.zeros(H), jnp.zeros(H)
        J1, J2, total = jnp.zeros((H, w1.size)), jnp.zeros((H, w2.size)), jax.tree.map(jnp.zeros_like, params)
        for x, target in zip(jnp.unstack(xs), jnp.unstack(targets), strict=True):
            read = dense.step(p0, (), x)[1]
            by0, by1, by3, u1, u2 = jax.grad(lost, range(5))(p0, p1, p3, zero, zero, params, h1, h2, x, target)
            y1 = first.step(p1, h1, read)[1]
            (I1, D1), (I2, D2) = jax.jacobian(step1, (0, 1))(w1, h1, read), jax.jacobian(step2, (0, 1))(w2, h2, y1)
            J1, J2, h1, h2 = D1 @ J1 + I1, D2 @ J2 + I2, step1(w1, h1, read), step2(w2, h2, y1)
            grads = by0, jax.tree.map(jnp.add, by1, back1(u1 @ J1)), back2(u2 @ J2), by3
            total = jax.tree.map(jnp.add, total, grads)
        return total

    got, exact = (
        traced(lambda p, r=r: summed(run(cell, p, xs, targets, rule=r)))(params) for r in ("layerwise", "rtrl")
    )
    assert_close(got, traced(by_hand)(params))
    assert_close(got[2:], exact[2:])  # nothing carried lies behind them
    assert all(np.abs(flat(got[m]) - flat(exact[m])).max() > 1e-3 for m in (0, 1))


@full
def test_layerwise_of_one_member_is_rtrl(traced, x64):
    """With masks, resets and a learned carry; a carry and params that are tuples make no chain."""
    gated = jr.chain(jr.gru(I, H, learned_carry=True), jr.readout(H, O))
    lstm = jr.lstm(I, H)

    def textbook(params, carry, x):
        new, y = lstm.step(lstm_params(params), jr.LSTMCarry(*carry), x)
        return tuple(new), y

    def lstm_params(params):
        return jr.cells.LSTMParams(*params, *[None] * (len(jr.cells.LSTMParams._fields) - 3))

    own = jr.Cell(
        lambda key: (jnp.zeros((I, 4 * H)), (jnp.zeros((H, 4 * H)), jnp.zeros(4 * H))),
        lambda params, batch_shape=(): (jnp.zeros((*batch_shape, H), params[0].dtype),) * 2,
        lambda params, carry, x: textbook((params[0], *params[1]), carry, x),
        input_size=I,
    )
    mask, resets = (
        np.array(rows, bool)
        for rows in ([[1, 1], [1, 0], [0, 1], [1, 1], [1, 1]], [[0, 0], [0, 1], [0, 0], [1, 0], [0, 0]])
    )
    for cell, size in ((gated, O), (own, H)):
        params, xs, targets = problem(cell, size)
        xs, targets = (jnp.stack([a, 2 * a], 1) for a in (xs, targets))
        xs = jnp.where(mask[..., None], xs, jnp.nan)
        under = lambda p, rule, c=cell, x=xs, y=targets: summed(
            run(c, p, x, y, mask=mask, resets=resets, batch_shape=(2,), rule=rule)
        )
        got, want = (traced(functools.partial(under, rule=rule))(params) for rule in ("layerwise", "rtrl"))
        assert_close(got, want)
        assert np.isfinite(flat(got)).all() and np.abs(flat(got)).max() > 1e-2


# ---- what is kept ----------------------------------------------------------------------------------


def kept(cell, rule):
    params = jax.eval_shape(cell.init, jax.random.key(0))
    state = jax.eval_shape(lambda p: jr.online(cell, loss, rule=rule).init(p, key=jax.random.key(0)), params)
    return sum(a.size for a in jax.tree.leaves(state.trace)), sum(a.size for a in jax.tree.leaves(params))


def test_what_is_kept():
    """As the table of ``jr.online`` has it."""
    one = H + I + 1 + H * H  # u of h, x and 1, and A
    assert kept(jr.elman(I, H), "kf_rtrl")[0] == one and kept(jr.elman(I, H), "kf_rtrl:3")[0] == 3 * one
    assert kept(jr.lstm(I, H), "kf_rtrl")[0] == H + I + 1 + 2 * H * 4 * H
    entries, size = kept(jr.ctrnn(I, H), "eprop")
    assert entries == size == kept(jr.ctrnn(I, H), "rflo")[0]
    gru = jr.gru(I, H, reset="after")
    assert kept(jr.chain(gru, jr.readout(H, O)), "eprop")[0] == kept(gru, "eprop")[1]
    two = jr.chain(jr.elman(I, H), jr.elman(H, H))
    assert kept(two, "layerwise")[0] == H * kept(two, "layerwise")[1] < kept(two, "rtrl")[0]


# ---- what is refused -----------------------------------------------------------------------------


def started(cell, rule="eprop", key=None, **options):
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(cell.init, jax.random.key(0)))
    return jr.online(cell, loss, rule=rule, **options).init(params, key=key)


ELMAN, KEY = jr.elman(I, H), jax.random.key(0)
REFUSED = {
    "no leak": (
        lambda: started(ELMAN, "rflo"),
        ["online(elman): rule 'rflo' is not defined for this cell", "a leak or a gate", "jr.leaky"],
    ),
    "no memory of units": (
        lambda: started(jr.chain(jr.gru(I, H), jr.elman(H, H))),
        ["online(chain): rule 'eprop' is not defined for member 1 of the chain", "through weights", "snap1"],
    ),
    "an unknown feedback": (
        lambda: started(LEAKY, feedback="simmetric"),
        ["online(chain): feedback must be one of 'symmetric', 'random', got 'simmetric'; did you mean 'symmetric'?"],
    ),
    "feedback of another shape": (
        lambda: started(LEAKY, feedback=jnp.ones((H, O))),
        ["online(chain): feedback must have shape (2, 4)", "got (4, 2)", "transpose of W_hy"],
    ),
    "feedback without a key": (
        lambda: started(LEAKY, feedback="random"),
        ["online(chain): feedback='random' draws a matrix and has no key", "key=jax.random.key(0)"],
    ),
    "feedback of another rule": (
        lambda: started(LEAKY, "rtrl", feedback="random"),
        ["online(chain): feedback is for rule='rflo' and rule='eprop' alone, got rule='rtrl'"],
    ),
    "feedback without a readout": (
        lambda: started(jr.gru(I, H), feedback="random", key=KEY),
        ["online(gru): feedback stands in place of a readout's transpose", "jr.chain(cell, jr.readout(H, O))"],
    ),
    "no Kronecker product": (
        lambda: started(jr.rg_lru(I, H, blocks=2), "kf_rtrl", KEY),
        ["online(rg_lru): rule 'kf_rtrl' is for weights", "params.W enters dot_general", "rule='uoro'"],
    ),
    "complex weights": (
        lambda: started(jr.lru(I, H, state_size=2), "kf_rtrl", KEY),
        ["online(lru): rule 'kf_rtrl' is for weights that are real numbers", "params.", "makes complex ones", "'uoro'"],
    ),
    "a convolution": (
        lambda: jr.online(jr.conv_gru(I, H, spatial_shape=(5,)), loss, rule="kf_rtrl").init(
            jr.conv_gru(I, H, spatial_shape=(5,)).init(KEY), key=KEY, x=jax.ShapeDtypeStruct((5, I), jnp.float32)
        ),
        ["online(conv_gru): rule 'kf_rtrl'", "enters conv_general_dilated"],
    ),
    "no key": (
        lambda: started(ELMAN, "kf_rtrl"),
        ["online(elman): rule 'kf_rtrl' draws at random and has no key"],
    ),
    "an unknown rule": (
        lambda: started(ELMAN, "kf_rtl"),
        ["online(elman): rule must be one of", "'kf_rtl'; did you mean 'kf_rtrl'?"],
    ),
    "another unknown rule": (lambda: started(ELMAN, "e-prop"), ["'e-prop'; did you mean 'eprop'?"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(case):
    call, words = REFUSED[case]
    assert_fails(call, ValueError, words)


def test_feedback_of_no_floats():
    words = ["online(chain): feedback must be 'symmetric', 'random' or a matrix of floats (O, H), got int32"]
    assert_fails(lambda: started(LEAKY, feedback=jnp.ones((O, H), int)), TypeError, words)
