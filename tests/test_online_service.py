"""Members that join, pause, leave and learn: nobody touches another, also not by numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.online.places import RUNS, Numbers
from jaxrnn.online.rows import Rows, in_groups
from jaxrnn.training import checkpoints
from tests.cases import draw, randomised
from tests.errors import assert_fails
from tests.test_online import assert_close, loss

I, H, B, T = 2, 3, 3, 4
CELL = jr.chain(jr.gru(I, H, reset="after", learned_carry=True), jr.readout(H, 1))
PARAMS = randomised(jax.eval_shape(CELL.init, jax.random.key(0)), 1)
XS, TARGETS = (np.asarray(draw((T, B, n), seed)) for n, seed in ((I, 2), (1, 3)))
KEEPS, SKIPS = (jr.online(CELL, loss, rule="snap1", nonfinite=what) for what in ("keep", "skip"))


def steps(learner, xs, targets, mask, state=None):
    """``(state, [y], [grads])`` under fixed params."""
    state = learner.init(PARAMS, xs.shape[1:2]) if state is None else state
    ys, all_grads = [], []
    for x, target, on in zip(xs, targets, mask, strict=True):
        state, y, grads = learner.step(PARAMS, state, x, target, on)
        ys.append(y)
        all_grads.append(grads)
    return state, ys, all_grads


def test_members_that_are_not_finite_are_left_out_and_counted(traced):
    """As if they were masked: an input, a target, a trace that overflowed; of rules with other traces too."""
    xs, targets, on = XS.copy(), TARGETS.copy(), np.ones((T, B), bool)
    mask = on.copy()
    mask[0, 2] = False  # what is masked is not counted
    xs[0, 2] = xs[1, 0] = np.nan
    targets[2, 1] = np.inf
    clean = mask.copy()
    clean[1, 0] = clean[2, 1] = False
    keep = lambda a: np.where(clean[..., None], a, 0).astype(a.dtype)
    want = traced(lambda xs: steps(KEEPS, xs, keep(targets), clean))(keep(xs))
    got = traced(lambda xs: steps(SKIPS, xs, targets, mask))(xs)
    assert np.asarray(got[0].skipped).tolist() == [1, 1, 0]
    assert_close(got[1:], want[1:], rtol=1e-5, atol=1e-6)  # float32, sums in another order
    assert_close(got[0]._replace(skipped=None), want[0], rtol=1e-5, atol=1e-6)


def test_a_trace_that_overflowed_reaches_nobody(traced):
    def run(params):
        state = SKIPS.init(params, (B,))
        bad = state._replace(trace=jax.tree.map(lambda a: a.at[1].set(jnp.inf), state.trace))
        return SKIPS.step(params, bad, XS[0], TARGETS[0]), KEEPS.step(
            params, state._replace(skipped=None), XS[0], TARGETS[0], np.array([True, False, True])
        )

    (state, y, grads), (_, want_y, want) = traced(run)(PARAMS)
    assert np.asarray(state.skipped).tolist() == [0, 1, 0] and not np.any(y[1])
    assert_close((y, grads), (want_y, want), rtol=1e-5, atol=1e-6)


def test_a_service_is_each_session_by_itself():
    """Sessions come, pause, go; one program; the gradient is the sum of what each has alone, in its order."""
    learner = SKIPS
    traces = []

    @jax.jit
    def step(state, x, target, mask, resets):
        traces.append(1)
        return learner.step(PARAMS, state, x, target, mask, resets)

    slots, state, rng = jr.Slots(2), learner.init(PARAMS, (2,)), np.random.default_rng(4)
    sent, outputs, total = {}, {}, jax.tree.map(np.zeros_like, PARAMS)
    for came, left, active in (("ab", "", "ab"), ("", "", "b"), ("", "a", "b"), ("c", "", "cb"), ("", "", "c")):
        for session in left:
            slots.leave(session)
        for session in came:
            slots.join(session)
        x, target = np.full((2, I), np.nan, np.float32), np.full((2, 1), np.nan, np.float32)
        for session in active:
            x[slots[session]], target[slots[session]] = rng.normal(size=I), rng.normal(size=1)
            sent.setdefault(session, []).append((x[slots[session]].copy(), target[slots[session]].copy()))
        state, y, grads = step(state, x, target, *slots.flags(active))
        for session in active:
            outputs.setdefault(session, []).append(np.asarray(y[slots[session]]))
        total = jax.tree.map(np.add, total, grads)
    assert len(traces) == 1 and not np.any(state.skipped)

    alone = jax.jit(lambda state, x, target: KEEPS.step(PARAMS, state, x, target))
    want = jax.tree.map(np.zeros_like, PARAMS)
    for session, pairs in sent.items():
        own = KEEPS.init(PARAMS)
        for (x, target), y in zip(pairs, outputs[session], strict=True):
            own, expected, grads = alone(own, x, target)
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
            want = jax.tree.map(np.add, want, grads)
    assert {name: len(pairs) for name, pairs in sent.items()} == {"a": 1, "b": 4, "c": 2}
    assert_close(total, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["uoro", pytest.param("rtrl", marks=pytest.mark.full)])
def test_a_state_is_saved_and_resumed_bit_by_bit(rule, tmp_path):
    """Key, time, counts and traces with it: whoever resumes goes on as if nothing had happened."""
    learner = jr.online(CELL, loss, rule=rule, nonfinite="skip")

    @jax.jit
    def step(held, x, target):
        params, state = held
        state, _, grads = learner.step(params, state, x, target)
        return jax.tree.map(lambda a, b: a - 0.1 * b, params, grads), state

    held = PARAMS, learner.init(PARAMS, (B,), key=jax.random.key(5))
    for t in range(2):
        held = step(held, XS[t], TARGETS[t])
    checkpoints.save(tmp_path, 2, held)
    resumed = checkpoints.restore(tmp_path, held).state
    for t in range(2, T):
        held, resumed = step(held, XS[t], TARGETS[t]), step(resumed, XS[t], TARGETS[t])
    for a, b in zip(*(jax.tree.leaves(tree) for tree in (held, resumed)), strict=True):
        a, b = (jax.random.key_data(k) if jnp.issubdtype(k.dtype, jax.dtypes.prng_key) else k for k in (a, b))
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert int(resumed[1].time) == T


def test_numbers_are_read_at_places_that_run_evenly_or_not():
    arrays = [np.arange(12.0).reshape(3, 4), np.arange(100.0, 107.0)]
    row = np.concatenate([a.ravel() for a in arrays] + [np.zeros(1)])
    numbers = Numbers(arrays, np.float32)
    rng = np.random.default_rng(0)
    for places in (
        np.arange(0, 12, 5),
        np.tile(np.arange(10, 14), (2, 1)),  # over the end of an array
        np.array([19, 19, 19, 3, 2, 1]),
        np.array([[7]]),
        rng.integers(len(row), size=(3, 2 * RUNS)),
        np.zeros((0, 2), int),
    ):
        np.testing.assert_array_equal(numbers.take(places), row[places])


@pytest.mark.parametrize("n", [1, 3, 8])
def test_rows_in_groups_of_sequences(n, x64):
    """Row 1 of two, which reads both old ones, then row 0, which reads the new row 1: as on paper."""
    rng = np.random.default_rng(n)
    A, N = ({of: rng.normal(size=(n, 1, 3)) for of in pairs} for pairs in ([(0, 0), (1, 0), (1, 1)], [(0, 1)]))
    v, d, u = (rng.normal(size=(n, *shape)) for shape in ((2, 1), (1, 3), (1, 3)))
    old, mask = [rng.normal(size=(n, 2, 3)) for _ in range(2)], np.arange(n) % 3 != 1
    rows = Rows((1, 0), dict.fromkeys(A), dict.fromkeys(N))
    assert rows.is_in_place and not rows._replace(order=(0, 1)).is_in_place

    def run(*given):
        return in_groups(rows, lambda given: [0.0, given[0] * given[1]], *given, by_products=True)

    got, total = jax.jit(run)(((A, N), (v, d)), old, {0: u}, mask)
    of = mask[:, None, None]
    second = np.where(of, A[1, 0] * old[0] + A[1, 1] * old[1] + v * d, old[1])
    first = np.where(of, A[0, 0] * old[0] + N[0, 1] * second, old[0])
    for a, want in zip((*got, total), (first, second, (u * first).sum(0)), strict=True):
        np.testing.assert_allclose(a, want, rtol=1e-12)


def test_a_state_without_counts_is_refused():
    assert_fails(
        lambda: SKIPS.step(PARAMS, KEEPS.init(PARAMS, (B,)), XS[0], TARGETS[0]),
        ValueError,
        ["online(chain): this state counts no skipped steps", "nonfinite='skip'"],
    )
