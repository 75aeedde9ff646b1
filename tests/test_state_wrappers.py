"""Wrappers of states, by hand: dilated recurrences, slow clocks, noise at every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import GAPS, RESETS, B, H, I, T, draw, drawn, randomised
from tests.user_cells import clockwork

KEY = jax.random.key(3)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64, a few steps


# ---- dilated --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dilation", "reverse"), [(2, False), (3, True)])
def test_dilated_is_interleaved_runs(dilation, reverse, x64, traced):
    """Of the cell itself, over every k-th step, from k carries."""
    inner = jr.lstm(I, H)
    cell = jr.dilated(inner, dilation=dilation)
    params, carry, _ = drawn(cell)
    xs, lengths = draw((T, B, I), 4), np.array([T, 4, 0])
    assert carry.states.h.shape == (B, dilation, H)

    @traced
    def everything():
        whole = jr.scan(cell, reverse=reverse).apply(params, xs, carry)
        short = jr.scan(cell, reverse=reverse).apply(params, xs, carry, lengths=lengths)
        apart = []
        for k in range(dilation):
            own = jax.tree.map(lambda a, k=k: a[:, k], carry.states)
            picked = (xs[::-1] if reverse else xs)[k::dilation]
            apart.append(jr.scan(inner).apply(params, picked, own))
        return whole, short, apart, jr.scan(cell, reverse=reverse).apply(params, xs[:4, 1], own_of(carry, 1))

    def own_of(carry, b):
        return jax.tree.map(lambda a: a[b], carry)

    (end, ys), (short_end, short_ys), apart, alone = everything()
    ys = ys[::-1] if reverse else ys
    for k, (own_end, own_ys) in enumerate(apart):
        np.testing.assert_allclose(ys[k::dilation], own_ys, **CLOSE)
        at = (k - T) % dilation  # the oldest stands first
        np.testing.assert_allclose(end.states.c[:, at], own_end.c, **CLOSE)
    np.testing.assert_allclose(short_ys[:4, 1], alone[1], **CLOSE)  # the steps of the padding do not count
    np.testing.assert_array_equal(short_end.states.h[2], carry.states.h[2])
    np.testing.assert_allclose(short_end.states.h[1], alone[0].states.h, **CLOSE)


def test_dilated_by_hand(x64):
    """Every state is read three steps later; resets empty all of them."""
    cell = jr.dilated(jr.elman(I, H), dilation=3)
    params, carry, _ = drawn(cell)
    xs = draw((T, I), 4)
    states, expected = list(np.asarray(carry.states[0])), []
    for t in range(T):
        states = [np.zeros(H)] * 3 if t == 4 else states
        h = np.tanh(states[0] @ params.W_hh + xs[t] @ params.W_xh + params.b)
        expected.append(h)
        states = [*states[1:], h]
    end, ys = jax.jit(jr.scan(cell).apply)(params, xs, jax.tree.map(lambda a: a[0], carry), resets=np.arange(T) == 4)
    np.testing.assert_allclose(ys, expected, **CLOSE)
    np.testing.assert_allclose(end.states, states, **CLOSE)


def test_gates_of_a_dilated_cell_are_those_of_the_state_that_it_reads(x64, traced):
    inner = jr.gru(I, H)
    cell = jr.dilated(inner, dilation=2)
    params, carry, x = drawn(cell)
    gates, own, (new, _) = traced(
        lambda: (
            jr.gates(cell, params, carry, x),
            jr.gates(inner, params, carry.states[:, 0], x),
            cell.step(params, carry, x),
        )
    )()
    for a, b in zip(gates, own, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(new.states[:, -1], gates.h)


def test_dilated_carries_of_any_leaves():
    cell = jr.dilated(clockwork(I, H), dilation=2)
    params = cell.init(KEY)
    carry = cell.initial_carry(params, (B,))
    for _ in range(3):
        carry, _ = cell.step(params, carry, jnp.ones((B, I)))
    np.testing.assert_array_equal(carry.states["clock"], [[1, 2]] * B)


@pytest.mark.parametrize(
    "wrap",
    [
        functools.partial(jr.leaky, rate=0.5),
        functools.partial(jr.zoneout, rate=0.5),
        functools.partial(jr.noisy_state, std=0.5),
        functools.partial(jr.clip_state, max_value=0.5),
    ],
    ids=["leaky", "zoneout", "noisy_state", "clip_state"],
)
def test_states_that_move_on_are_changed_inside(wrap):
    """In a chain too. Inside is where the message says. Inputs that a carry holds are no states."""
    inner = jr.gru(I, H)
    dilated = jr.dilated(inner, dilation=2)
    for cell in (dilated, jr.chain(dilated, jr.readout(H, H)), jr.qrnn(I, H, window=2)):
        layer = jr.scan(wrap(cell))
        with pytest.raises(
            TypeError, match=r"^\w+: the carry of jr\..* holds .* the one inside: jr\.dilated\(jr\.\w+\(cell"
        ):
            jax.eval_shape(lambda p, a=layer: a.apply(p, jnp.ones((T, I)), key=KEY), jax.eval_shape(layer.init, KEY))
    inside = jr.scan(jr.dilated(wrap(inner), dilation=2))
    made = jax.eval_shape(lambda p: inside.apply(p, jnp.ones((T, I)), key=KEY), jax.eval_shape(inside.init, KEY))
    assert made[1].shape == (T, H)


@pytest.mark.parametrize("wrap", [jr.normalized, functools.partial(jr.recurrent_dropout, rate=0.5)])
def test_wrappers_that_look_for_h_go_inside(wrap):
    for cell in (jr.dilated(jr.gru(I, H), dilation=2), jr.every(jr.gru(I, H), period=2)):
        layer = jr.scan(wrap(cell))
        with pytest.raises(TypeError, match=r"of jr\.every and jr\.dilated the cell inside"):
            layer.apply(layer.init(KEY), jnp.ones((T, I)), key=KEY)


# ---- every ----------------------------------------------------------------------------------------


def test_every_is_a_run_over_the_steps_of_its_clock(x64, traced):
    inner = jr.chain(jr.lstm(I, H), jr.readout(H, 2))
    cell = jr.every(inner, period=2)
    params, carry, _ = drawn(inner)
    xs = draw((T, B, I), 4)
    start = jr.wrappers.EveryCarry(carry, jnp.zeros(B, jnp.int32))
    (end, ys), (own_end, own_ys) = traced(
        lambda: (jr.scan(cell).apply(params, xs, start), jr.scan(inner).apply(params, xs[::2], carry))
    )()
    np.testing.assert_allclose(ys, np.repeat(own_ys, 2, axis=0), **CLOSE)
    np.testing.assert_allclose(end.cell[0].c, own_end[0].c, **CLOSE)
    assert (end.clock == 0).all()


def test_every_sequence_has_a_clock_of_its_own(x64, traced):
    """It stands still at steps that are not valid, and starts again where the sequence does."""
    cell = jr.every(jr.elman(I, H), period=3)
    params, carry, _ = drawn(cell)
    assert carry.clock.dtype == jnp.int32
    carry = carry._replace(clock=jnp.array([0, 1, 2], jnp.int32))
    xs = draw((T, B, I), 4)
    expected, clocks = np.zeros((T, B, H)), np.array(carry.clock)
    states = np.array(carry.cell)
    for t in range(T):
        for b in range(B):
            if RESETS[t, b]:
                states[b], clocks[b] = 0, 0
            if GAPS[t, b]:
                if clocks[b] == 0:
                    states[b] = np.tanh(states[b] @ params.W_hh + xs[t, b] @ params.W_xh + params.b)
                expected[t, b], clocks[b] = states[b], (clocks[b] + 1) % 3
    end, ys = traced(lambda: jr.scan(cell).apply(params, xs, carry, mask=GAPS, resets=RESETS))()
    np.testing.assert_allclose(ys, expected, **CLOSE)
    np.testing.assert_array_equal(end.clock, clocks)


def test_gates_of_a_held_cell(x64, traced):
    inner = jr.lstm(I, H)
    cell = jr.every(inner, period=2)
    params, carry, x = drawn(cell)
    carry = carry._replace(clock=jnp.array([0, 1, 0], jnp.int32))
    gates, own, (new, y) = traced(
        lambda: (
            jr.gates(cell, params, carry, x),
            jr.gates(inner, params, carry.cell, x),
            cell.step(params, carry, x),
        )
    )()
    np.testing.assert_array_equal(gates.i, own.i)
    for name in ("h", "c"):
        held = np.where([[False], [True], [False]], getattr(carry.cell, name), getattr(own, name))
        np.testing.assert_array_equal(getattr(gates, name), held)
        np.testing.assert_array_equal(getattr(new.cell, name), held)
    np.testing.assert_array_equal(y, new.cell.h)
    np.testing.assert_array_equal(new.clock, [1, 0, 1])


# ---- noisy_state ----------------------------------------------------------------------------------


def test_noisy_state_by_hand(x64):
    """The readout sees the noisy state; chunks draw what the whole run draws; integers are left alone."""
    inner = jr.elman(I, H, output_size=2)
    cell = jr.noisy_state(inner, std=0.5)
    params, h, _ = drawn(inner)
    xs = draw((T, B, I), 4)
    (ε,), _ = cell.noise(params, KEY, jnp.arange(T), xs[0])
    assert ε.shape == (T, B, H)
    expected, state = [], np.asarray(h)
    for t in range(T):
        state = np.tanh(state @ params.W_hh + xs[t] @ params.W_xh + params.b) + 0.5 * np.asarray(ε[t])
        expected.append(state @ params.W_hy + params.b_y)

    @jax.jit
    def everything():
        run = jr.scan(cell).apply
        half, first = run(params, xs[:4], h, key=KEY)
        rest = run(params, xs[4:], half, key=KEY, start=4)[1]
        return (
            run(params, xs, h, key=KEY)[1],
            (first, rest),
            run(params, xs, h)[1],
            jr.scan(inner).apply(params, xs, h)[1],
        )

    ys, chunks, *evaluation = everything()
    np.testing.assert_allclose(ys, expected, **CLOSE)
    np.testing.assert_array_equal(np.concatenate(chunks), ys)
    np.testing.assert_array_equal(*evaluation)


def test_noise_of_every_leaf_that_is_numbers():
    cell = jr.noisy_state(jr.chain(clockwork(I, H), jr.lstm(H, 50)), std=2.0)
    params, x = cell.init(KEY), jnp.ones((20, I))
    ε, inside = cell.noise(params, KEY, jnp.arange(4), x)
    clock, h, lstm_h, lstm_c = ε
    assert clock is None and inside is None and h.shape == (4, 20, H) and (lstm_h != lstm_c).any()
    np.testing.assert_allclose([lstm_h.std(), lstm_h.mean()], [1, 0], atol=0.08)  # 4,000 draws: 0.011 and 0.016
    carry = cell.initial_carry(params, (20,))
    step = jax.jit(lambda noise: cell.step(params, carry, x, noise)[0])
    drawn_once, none = step((jax.tree.map(lambda a: a[0], ε), None)), step(None)
    np.testing.assert_allclose(drawn_once[1].c - none[1].c, 2 * lstm_c[0], atol=1e-5)  # float32
    assert (drawn_once[0]["clock"] == 1).all()


def test_held_steps_get_no_noise():
    layer = jr.scan(jr.noisy_state(jr.gru(I, H), std=1.0))
    params = randomised(layer.init(KEY), 1)
    h = jnp.ones((B, H))
    end, _ = layer.apply(params, jnp.ones((T, B, I)), h, lengths=np.array([0, 2, T]), key=KEY)
    np.testing.assert_array_equal(end[0], h[0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jr.dilated(jr.gru(I, H), dilation=0), "dilated: dilation must be a positive int, got 0"),
        (lambda: jr.every(jr.gru(I, H), period=0), "every: period must be a positive int, got 0"),
        (lambda: jr.noisy_state(jr.gru(I, H), std=-0.5), "noisy_state: std must be 0 or above, got -0.5"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
