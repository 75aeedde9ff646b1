"""Learning online: each rule against its definition, computed by other means, in float64."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxrnn as jr
from jaxrnn.online.influence import influence_of
from jaxrnn.online.local import local_problem
from jaxrnn.online.problem import Problem, carry_of, params_of
from tests.cases import CELLS, draw, has_derivative, randomised, x_shape

T, B, I, H = 5, 2, 3, 4
MASK = np.array([[1, 1], [1, 0], [0, 1], [1, 1], [1, 1]], bool)
RESETS = np.array([[0, 0], [0, 1], [0, 0], [1, 0], [0, 0]], bool)
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, sums in another order


def complex_params(size):
    """h_t = a h_{t-1} + x_t with a complex parameter."""
    return jr.Cell(
        lambda key: {"a": jnp.full(size, 0.5 + 0.3j)},
        lambda params, batch_shape=(): jnp.zeros((*batch_shape, size), params["a"].dtype),
        lambda params, h, x: ((new := params["a"] * h + x), new),
        input_size=size,
    )


def float_carry(cell):
    params = jax.eval_shape(cell.init, jax.random.key(0))
    return all(map(has_derivative, jax.tree.leaves(jax.eval_shape(cell.initial_carry, params))))


FLOATS = {name: cell for name, cell in CELLS.items() if float_carry(cell)} | {"complex_params": complex_params(I)}
ALWAYS = ("lstm_learned_carry", "lru")
NOISY = jr.chain(jr.dropout(0.5), jr.zoneout(jr.weight_noise(jr.elman(I, H), std=0.5), rate=0.5))


def in_turn(names, always):
    return [pytest.param(name, marks=() if name in always else pytest.mark.full) for name in names]


def loss(y, target):
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: (jnp.abs(a - b) ** 2).sum(), y, target))


def problem(cell, batch_shape=(B,)):
    """``(params, xs, targets)``, random; the targets fit the outputs."""
    params = randomised(jax.eval_shape(cell.init, jax.random.key(0)), 1)
    xs = draw((T, *batch_shape, *x_shape(cell)), 2)
    ys = jax.eval_shape(lambda p: jr.scan(cell, plan="plain").apply(p, xs)[1], params)
    return params, xs, draw(ys.shape, 3)


def run(learner, params, xs, targets, mask=None, resets=None, batch_shape=(B,), **options):
    """``(state, ys, grads)``, the grads of every step."""
    state = learner.init(params, batch_shape, x=jax.typeof(xs[0]), **options)

    def step(state, inputs):
        state, y, grads = learner.step(params, state, *inputs)
        return state, (y, grads)

    state, (ys, grads) = jax.lax.scan(step, state, (xs, targets, mask, resets))
    return state, ys, grads


def summed(grads):
    return jax.tree.map(lambda a: a.sum(0), grads)


def by_scan(cell, params, xs, targets, **options):
    """``(carry, ys)`` of the scan, and the gradient of the sum of losses."""
    mask = options.get("mask")

    def whole(params):
        carry, ys = jr.scan(cell, plan="plain").apply(params, xs, **options)
        on = np.ones(ys.shape[:2], bool) if mask is None else mask
        clean = jnp.where(on.reshape(*on.shape, *(1,) * (ys.ndim - 2)), targets, 0)
        return sum(loss(ys[t], clean[t]) for t in range(T)), (carry, ys)

    return jax.grad(whole, has_aux=True)(params)


def assert_close(got, want, **close):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if jnp.issubdtype(a.dtype, jnp.inexact):
            np.testing.assert_allclose(a, b, **(close or EXACT))


@pytest.mark.parametrize("name", in_turn(FLOATS, ALWAYS))
def test_rtrl_sums_to_the_gradient_of_the_scan(name, traced, x64):
    """With masks, resets and learned carries; what stands at masked steps does not matter."""
    cell = FLOATS[name]
    params, xs, targets = problem(cell)
    xs, targets = (jnp.asarray(np.where(MASK.reshape(T, B, *(1,) * (a.ndim - 2)), a, np.nan)) for a in (xs, targets))
    want, (carry, ys) = traced(lambda p: by_scan(cell, p, xs, targets, mask=MASK, resets=RESETS))(params)
    state, outputs, grads = traced(lambda p: run(jr.online(cell, loss), p, xs, targets, MASK, RESETS))(params)
    assert_close(summed(grads), want)
    assert_close((state.carry, outputs), (carry, ys))
    assert int(state.time) == T and any(np.abs(a).max() > 0 for a in jax.tree.leaves(want))


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(jr.ctrnn(I, H, tau=2.0, dt=0.5, noise=0.1), id="one array"),
        pytest.param(NOISY, id="nested", marks=pytest.mark.full),
    ],
)
def test_noise_by_key_and_absolute_time(cell, traced, x64):
    """Noise of each sequence and noise that all share, drawn as the scan draws it."""
    params, xs, targets = problem(cell)
    options = {"key": jax.random.key(7), "start": 3}
    want, (_, ys) = traced(lambda p: by_scan(cell, p, xs, targets, **options))(params)
    _, outputs, grads = traced(lambda p: run(jr.online(cell, loss), p, xs, targets, **options))(params)
    assert_close((summed(grads), outputs), (want, ys))


def test_two_batch_axes_and_a_carry_that_is_given(traced, x64):
    cell = CELLS["gru_after"]
    params, xs, targets = problem(cell, (2, 1))
    start = draw((2, 1, H), 5)

    def whole(params):
        ys = jr.scan(cell, plan="plain").apply(params, xs, start)[1]
        return sum(loss(ys[t], targets[t]) for t in range(T))

    learner = jr.online(cell, loss)
    state, _, grads = traced(lambda p: run(learner, p, xs, targets, batch_shape=(2, 1), carry=start))(params)
    assert_close(summed(grads), traced(jax.grad(whole))(params))
    assert all(a.shape[:2] == (2, 1) for a in jax.tree.leaves(state.trace))
    assert not jnp.any(summed(grads).h0)  # which nothing starts from


# ---- SnAp ----------------------------------------------------------------------------------------


class InStages(NamedTuple):
    """Weights of a cell that computes s, from s then m, and h from both."""

    A: jax.Array
    R: jax.Array
    B: jax.Array
    p: jax.Array
    O: jax.Array
    Q: jax.Array
    q: jax.Array


def in_stages(params, carry, x):
    h, m, s = carry
    s = jax.nn.sigmoid(x @ params.A + h @ params.R) * s + x @ params.B
    m = 0.5 * m + params.p * jnp.tanh(s)
    h = jax.nn.sigmoid(x @ params.O + h @ params.Q) * m + params.q * s
    return (h, m, s), h


STAGES = jr.Cell(
    lambda key: InStages(*(jnp.zeros(shape) for shape in [(I, H), (H, H), (I, H), (H,), (I, H), (H, H), (H,)])),
    lambda params, batch_shape=(): (jnp.zeros((*batch_shape, H)),) * 3,
    in_stages,
    input_size=I,
)
SPARSE = {
    "stages": STAGES,
    "dense_lstm": jr.lstm(I, H),
    "elman": jr.masked_weights(jr.elman(I, H), density=0.4),
    "lstm": jr.masked_weights(jr.lstm(I, H), density=0.3, names="W_hh"),
    "gru": jr.masked_weights(jr.gru(I, H, learned_carry=True), density=0.3),
    "gru_after": jr.gru(I, H, reset="after"),
    "gru_before": jr.gru(I, H),
    "wide_elman": jr.masked_weights(jr.elman(I, 14), density=0.3, names="W_hh"),
    "wide_gru": jr.masked_weights(jr.gru(I, 12, reset="after"), density=0.3, names="W_hh"),
}


def masked_recursion(cell, params, xs, targets, n, traced):
    """Menick's recursion on dense matrices, one sequence; the pattern is that of the Jacobians' numbers."""
    theta, unravel = ravel_pytree(params)
    h0, tree = ravel_pytree(cell.initial_carry(params))

    def step(theta, h, x):
        return ravel_pytree(cell.step(unravel(theta), tree(h), x)[0])[0]

    def jacobians(theta):
        h, steps = h0, []
        for x, target in zip(jnp.unstack(xs), jnp.unstack(targets), strict=True):
            direct, carried = jax.jacobian(step, (0, 1))(theta, h, x)
            h = step(theta, h, x)
            steps.append((direct, carried, jax.grad(lambda h, t: loss(h[: t.size], t))(h, target)))
        return jax.jacobian(lambda theta: ravel_pytree(cell.initial_carry(unravel(theta)))[0])(theta), steps

    J, steps = jax.tree.map(np.asarray, traced(jacobians)(theta))
    M = functools.reduce(np.logical_or, [direct != 0 for direct, *_ in steps], J != 0)
    reads = functools.reduce(np.logical_or, [carried != 0 for _, carried, _ in steps]).astype(int)
    for _ in range(n - 1):
        M = M | (reads @ M > 0)
    grads = []
    for direct, carried, by_h in steps:
        J = M * (carried @ J + direct)
        grads.append(by_h @ J)
    return np.stack(grads), int(M.sum())


@pytest.mark.parametrize(
    ("name", "n"),
    [
        pytest.param(name, n, marks=() if (name, n) == ("elman", 2) else pytest.mark.full)
        for name, n in itertools.product(SPARSE, (1, 2, 3))
    ],
)
def test_snap_is_its_masked_recursion(name, n, traced, x64):
    cell = SPARSE[name]
    params = randomised(jax.eval_shape(cell.init, jax.random.key(0)), 1)
    if hasattr(params, "masks"):
        params = params._replace(masks=jax.tree.map(lambda a: (a > 0.3).astype(a.dtype), params.masks))
    xs, targets = draw((T, I), 2), draw((T, cell.output_size or H), 3)
    learner = jr.online(cell, loss, rule=f"snap:{n}", masks=params if hasattr(params, "masks") else None)
    state, _, grads = traced(lambda p: run(learner, p, xs, targets, batch_shape=()))(params)
    want, entries = masked_recursion(cell, params, xs, targets, n, traced)
    got = np.stack([ravel_pytree(jax.tree.map(lambda a, t=t: a[t], grads))[0] for t in range(T)])
    np.testing.assert_allclose(got, want, **EXACT)
    kept = sum(a.size for a in jax.tree.leaves(state.trace))
    assert entries <= kept <= 2 * entries  # padding where classes are not equally large


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.full
def test_snap_is_rtrl_once_its_pattern_is_full(name, traced, x64):
    """And not before: one step is an approximation, and no more than that."""
    cell = {"elman": jr.elman(I, H), "lstm": jr.lstm(I, H)}.get(name, SPARSE[name])
    params, xs, targets = problem(cell)

    def under(rule, masks=None):
        return traced(lambda p: run(jr.online(cell, loss, rule=rule, masks=masks), p, xs, targets)[2])(params)

    exact, one = under("rtrl"), under("snap1")
    assert_close(under("snap:9"), exact)
    assert_close(under("snap2"), exact) if name in ("elman", "lstm", "gru_after", "gru_before") else None
    far = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(exact), strict=True))
    assert far > 1e-3 and all(np.isfinite(a).all() for a in jax.tree.leaves(one))
    if name != "gru":  # whose learned initial carry reaches further in the first step already
        np.testing.assert_allclose(*(ravel_pytree(jax.tree.map(lambda a: a[0], g))[0] for g in (one, exact)), **EXACT)


# ---- what is kept --------------------------------------------------------------------------------


def kept(cell, rule="rtrl", **options):
    """The numbers that a rule keeps for one sequence, and those of the params."""
    params = jax.eval_shape(cell.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct(x_shape(cell), jnp.float32)
    state = jax.eval_shape(lambda p: jr.online(cell, loss, rule=rule, **options).init(p, x=x), params)
    return sum(a.size for a in jax.tree.leaves(state.trace)), sum(a.size for a in jax.tree.leaves(params))


DIAGONAL = {"indrnn": 1, "min_gru": 1, "min_lstm": 1, "linear_rnn": 1, "sru": 1, "rg_lru": 2, "lru": 2}


@pytest.mark.parametrize("name", in_turn(DIAGONAL, ("min_gru",)))
def test_diagonal_recurrences_are_exact_at_the_cost_of_their_pattern(name):
    """A number for each that a parameter feeds: two where the state is complex, or gates are made block by block."""
    entries, size = kept(CELLS[name])
    assert 0 < entries <= DIAGONAL[name] * size


def test_of_a_carry_computed_in_stages_no_row_reads_what_is_overwritten():
    """What h is computed from is cut off it. Cotangents: one of an LSTM; two where two leaves read a third."""
    x, passes = jax.ShapeDtypeStruct((I,), jnp.float32), []
    for cell, rule in ((STAGES, "snap1"), (STAGES, "eprop"), (jr.lstm(I, H), "snap1")):
        params = cell.init(jax.random.key(0))
        parts, carry = params_of(params), carry_of(jax.eval_shape(cell.initial_carry, params))
        given = Problem("", cell, parts, carry, *jax.eval_shape(parts.split, params), x, None)
        kept = influence_of(given if rule == "snap1" else local_problem(given, rule), 1)
        orders = {len(s.block.R): s.carried.order for s in kept.storages}
        assert orders == ({1: (0,), 2: (1, 0), 3: (2, 1, 0)} if cell is STAGES else {1: (0,), 2: (1, 0)})
        assert kept.way.stages is not None and all(s.carried.is_in_place for s in kept.storages)
        passes.append(kept.way.passes)
    assert passes == [2, 2, 1]


def test_what_one_step_reaches():
    S, (I_, H_) = 3, (I, H)
    entries, size = kept(jr.gru(I_, H_, reset="after"), "snap1")
    assert entries == size
    of_gate = (I_ + H_ + 1) * H_
    assert kept(jr.lstm(I_, H_), "snap1")[0] == 7 * of_gate  # i, f and g reach h and c, o reaches h alone
    assert kept(jr.gru(I_, H_), "snap1")[0] == (2 + H_) * of_gate  # what r gates reaches all
    assert kept(jr.chain(jr.elman(I_, S), jr.readout(S, 2)))[0] == S * (I_ + S + 1) * S
    first, second = (I_ + S + 1) * S, (S + H_ + 1) * H_
    assert kept(jr.chain(jr.elman(I_, S), jr.elman(S, H_)))[0] == (S + H_) * first + H_ * second


# ---- windows, UORO -------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [2, pytest.param(T, marks=pytest.mark.full)])
def test_a_window_is_back_propagation_through_so_many_steps(window, traced, x64):
    cell = CELLS["lstm_learned_carry"]
    params, xs, targets = problem(cell)

    def by_hand(params):
        """Each loss by the steps of its window, from a carry that depends on nothing; the first ones by all."""
        held = [cell.initial_carry(params, (B,))]
        for x in jnp.unstack(xs):
            held.append(cell.step(params, held[-1], x)[0])

        def of(params, t):
            first = max(t + 1 - window, 0)
            carry = held[first] if t + 1 > window else cell.initial_carry(params, (B,))
            for x in jnp.unstack(xs)[first : t + 1]:
                carry, y = cell.step(params, carry, x)
            return loss(y, targets[t])

        return jax.tree.map(lambda *a: jnp.stack(a), *(jax.grad(of)(params, t) for t in range(T)))

    learner = jr.online(cell, loss, rule="tbptt", window=window)
    assert_close(traced(lambda p: run(learner, p, xs, targets)[2])(params), traced(by_hand)(params))


@pytest.mark.full
def test_a_window_over_all_is_the_gradient_of_the_scan(traced, x64):
    cell = CELLS["lstm_learned_carry"]
    params, xs, targets = problem(cell)
    learner = jr.online(cell, loss, rule="tbptt", window=T)
    want, _ = traced(lambda p: by_scan(cell, p, xs, targets, mask=MASK, resets=RESETS))(params)
    assert_close(summed(traced(lambda p: run(learner, p, xs, targets, MASK, RESETS)[2])(params)), want)


def test_uoro_is_unbiased(traced, x64):
    """The mean over draws within 4 standard errors of the exact gradient, number by number."""
    cell = jr.elman(2, 3)
    params = randomised(jax.eval_shape(cell.init, jax.random.key(0)), 1)
    xs, targets = draw((3, 1, 2), 2), draw((3, 1, 3), 3)
    resets = np.array([[False], [False], [True]])

    def of(key, rule):
        learner = jr.online(cell, loss, rule=rule)
        return ravel_pytree(summed(run(learner, params, xs, targets, None, resets, (1,), key=key)[2]))[0]

    def both():
        keys = jax.random.split(jax.random.key(0), 4000)
        return jax.vmap(lambda key: of(key, "uoro"))(keys), of(keys[0], "rtrl")

    drawn, exact = traced(both)()
    error = drawn.std(0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(0) - exact) <= 4 * error + 1e-12).all()
    assert (drawn.std(0) > 1e-3).any() and (np.abs(exact) > 1e-2).any()
