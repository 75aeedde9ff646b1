"""Wrappers, by hand: what a leaky, normalized or clipped cell, or one with zoneout, computes; the gates they show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import WRAPPERS, B, H, I, T, draw, drawn, masks, randomised
from tests.user_cells import clockwork


@pytest.mark.parametrize(("rate", "keep"), [(0.1, None), (0.5, 1.0), (1.0, None)])
def test_leaky_moves_part_of_the_way(rate, keep, x64):
    inner = jr.elman(I, H)
    params, h, x = drawn(inner)
    new, y = jr.leaky(inner, rate=rate, keep=keep).step(params, h, x)
    kept = 1 - rate if keep is None else keep
    np.testing.assert_allclose(new, kept * h + rate * inner.step(params, h, x)[0], rtol=1e-12)
    np.testing.assert_array_equal(y, new)


def test_leaky_lstm_blends_both_states_and_the_readout_sees_it(x64):
    inner = jr.chain(jr.lstm(I, H), jr.readout(H, 2))
    params, carry, x = drawn(inner)
    (new, _), y = jr.leaky(inner, rate=0.25).step(params, carry, x)
    (own, _), _ = inner.step(params, carry, x)
    for a, b, c in zip(new, carry[0], own, strict=True):
        np.testing.assert_allclose(a, 0.75 * b + 0.25 * c, rtol=1e-12)
    np.testing.assert_allclose(y, new.h @ params[1].W_hy + params[1].b_y, rtol=1e-12)


def test_leaky_leaves_integers_alone():
    inner = clockwork(I, H)
    params = inner.init(jax.random.key(0))
    carry, _ = jr.leaky(inner, rate=0.5).step(params, inner.initial_carry(params), jnp.ones(I))
    assert carry["clock"].dtype == jnp.int32 and carry["clock"] == 1


def test_leaky_gradient_has_a_way_back():
    """With keep = 1 and no weights at all the gradient of a state 200 steps back is 1."""
    cell = jr.leaky(jr.elman(I, H), rate=0.1, keep=1.0)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))

    def last(h):
        return jr.scan(cell).apply(params, jnp.ones((200, I)), h)[0].sum()

    np.testing.assert_array_equal(jax.grad(last)(jnp.zeros(H)), np.ones(H))


@pytest.mark.parametrize("inner", [jr.elman(I, H), jr.lstm(I, H)], ids=["elman", "lstm"])
def test_normalized_reads_its_state_normalized(inner, x64):
    cell = jr.normalized(inner, epsilon=1e-3)
    params, carry, x = drawn(cell)
    h = np.asarray(getattr(carry, "h", carry))
    read = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-3) * params.scale + params.shift
    expected = inner.step(params.cell, carry._replace(h=read) if hasattr(carry, "h") else read, x)
    for a, b in zip(jax.tree.leaves(cell.step(params, carry, x)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("max_value", [0.2, 1e6])
def test_clip_state_of_an_lstm(max_value, x64):
    """The memory is clipped where it is computed: the output sees the clipped one."""
    inner = jr.lstm(I, H)
    params, carry, x = drawn(inner)
    new, y = jr.clip_state(inner, max_value=max_value).step(params, carry, x)
    gates = jr.gates(inner, params, carry, x)
    c = np.clip(gates.c, -max_value, max_value)
    np.testing.assert_array_equal(new.c, c)
    np.testing.assert_allclose(new.h, np.clip(gates.o * np.tanh(c), -max_value, max_value), rtol=1e-12)
    np.testing.assert_array_equal(y, new.h)


def test_zoneout_keeps_units_at_random(x64):
    inner = jr.lstm(I, H)
    params, carry, x = drawn(inner)
    keep_h, keep_c = masks((B, H), 0.5) > 0, masks((B, H), 0.2, 6) > 0
    cell = jr.zoneout(inner, rate=0.5, c_rate=0.2)
    new, y = cell.step(params, carry, x, ([keep_h, keep_c], None))
    own, _ = inner.step(params, carry, x)
    np.testing.assert_array_equal(new.h, np.where(keep_h, carry.h, own.h))
    np.testing.assert_array_equal(new.c, np.where(keep_c, carry.c, own.c))
    np.testing.assert_array_equal(y, new.h)


def test_zoneout_in_evaluation_is_its_mean(x64):
    inner = jr.lstm(I, H)
    params, carry, x = drawn(inner)
    new, _ = jr.zoneout(inner, rate=0.5, c_rate=0.2).step(params, carry, x)
    own, _ = inner.step(params, carry, x)
    np.testing.assert_allclose(new.h, 0.5 * carry.h + 0.5 * own.h, rtol=1e-12)
    np.testing.assert_allclose(new.c, 0.2 * carry.c + 0.8 * own.c, rtol=1e-12)


def test_zoneout_draws_its_rates_anew_at_each_step():
    cell = jr.zoneout(jr.lstm(I, 50), rate=0.1, c_rate=0.6)
    params = cell.init(jax.random.key(0))
    (keep_h, keep_c), _ = cell.noise(params, jax.random.key(1), jnp.arange(20), jnp.zeros((4, I)))
    assert keep_h.shape == keep_c.shape == (20, 4, 50)
    # 4,000 draws: a standard error of 0.005 and 0.008, five of them.
    np.testing.assert_allclose([keep_h.mean(), keep_c.mean()], [0.1, 0.6], atol=0.04)
    assert (keep_h[0] != keep_h[1]).any() and (keep_h != keep_c).any()
    (later, _), _ = cell.noise(params, jax.random.key(1), jnp.arange(5, 10), jnp.zeros((4, I)))
    np.testing.assert_array_equal(later, keep_h[5:10])  # a function of absolute time


def test_held_steps_override_zoneout():
    cell = jr.zoneout(jr.gru(I, H), rate=0.5)
    params = randomised(cell.init(jax.random.key(0)), 1)
    xs, h = draw((4, B, I), 2).astype(jnp.float32), jnp.ones((B, H))
    layer, key = jr.scan(cell), jax.random.key(1)
    held, _ = layer.apply(params, xs, h, lengths=jnp.array([0, 2, 4]), key=key)
    np.testing.assert_array_equal(held[0], h[0])
    np.testing.assert_allclose(held[1], layer.apply(params, xs, h, key=key)[1][1, 1], rtol=1e-6)  # float32


def test_noise_of_wrappers_and_of_what_they_wrap_are_two():
    """A zoneout around a recurrent dropout: the inner one's mask is drawn, and is what its own key gives."""
    inner = jr.recurrent_dropout(jr.gru(I, H), rate=0.5)
    cell = jr.zoneout(inner, rate=0.5)
    params, x = cell.init(jax.random.key(0)), jnp.ones((B, I))
    (kept,), ((mask, _), _) = cell.noise(params, jax.random.key(1), jnp.arange(3), x)
    assert kept.shape == (3, B, H) and mask.shape == (1, B, H)
    h, _ = cell.step(params, jnp.ones((B, H)), x, ([kept[0]], ((mask[0], None), None)))
    own, _ = inner.step(params, jnp.ones((B, H)), x, ((mask[0], None), None))
    np.testing.assert_array_equal(h, jnp.where(kept[0], 1.0, own))


# ---- every wrapper -------------------------------------------------------------------------------

IN_CELLS = {kind: wrap(cell) for kind, (wrap, cell) in WRAPPERS.items()}


@pytest.mark.parametrize("kind", IN_CELLS)
def test_spec_rebuilds(kind):
    cell = IN_CELLS[kind]
    again = jr.build(cell.spec.to_dict())
    assert again.spec == cell.spec and cell.spec.kind == kind
    params, carry, x = drawn(cell)
    for a, b in zip(*(jax.tree.leaves(c.step(params, carry, x)) for c in (cell, again)), strict=True):
        np.testing.assert_array_equal(a, b)


GATED = {
    "lstm": jr.lstm(I, H),
    "lstm, projected": jr.lstm(I, H, projection_size=2),
    "peephole_lstm": jr.peephole_lstm(I, H),
    "lstm in bfloat16": jr.lstm(I, H, dtype="bfloat16"),
}
SAME_CARRY = {kind: wrap for kind, (wrap, _) in WRAPPERS.items() if kind not in ("dilated", "every")}
OF_STATES = list(SAME_CARRY)[:6]  # those of weights, and noise, around a GRU alone
WRAPPED = {f"{kind} of {name}": SAME_CARRY[kind](cell) for kind in OF_STATES for name, cell in GATED.items()} | {
    f"{kind} of gru": wrap(jr.gru(I, H)) for kind, wrap in SAME_CARRY.items() if kind != "zoneout"
}
WRAPPED["moon2015 of lstm"] = jr.recurrent_dropout(jr.peephole_lstm(I, H), rate=0.3, kind="moon2015")
WRAPPED["zoneout of gru"] = jr.zoneout(jr.gru(I, H), rate=0.3)
WRAPPED["zoneout of leaky"] = jr.zoneout(jr.leaky(jr.lstm(I, H), rate=0.3), rate=0.3)
WRAPPED["clip_state of normalized"] = jr.clip_state(jr.normalized(jr.lstm(I, H)), max_value=0.2)


@pytest.mark.parametrize("name", WRAPPED)
def test_gates_hold_the_state_that_the_step_carries_on(name, x64):
    cell = WRAPPED[name]
    params, carry, x = drawn(cell)
    new, _ = cell.step(params, carry, x)
    gates = jr.gates(cell, params, carry, x)
    for field in getattr(new, "_fields", ("h",)):
        np.testing.assert_array_equal(getattr(gates, field), getattr(new, field, new))


@pytest.mark.parametrize("kind", ["leaky", "zoneout", "recurrent_dropout", "cotangent_clip"])
def test_gates_that_a_wrapper_leaves_are_those_of_the_cell(kind, x64):
    inner = jr.peephole_lstm(I, H)
    wrap, _ = WRAPPERS[kind]
    params, carry, x = drawn(inner)
    own, wrapped = jr.gates(inner, params, carry, x), jr.gates(wrap(inner), params, carry, x)
    for gate in ("i", "f", "g", "o"):
        np.testing.assert_array_equal(getattr(wrapped, gate), getattr(own, gate))


def test_gates_of_a_normalized_cell_read_the_state_that_its_step_reads(x64):
    inner = jr.lstm(I, H)
    cell = jr.normalized(inner)
    params, carry, x = drawn(cell)
    h = carry.h
    read = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5) * params.scale + params.shift
    for a, b in zip(
        jr.gates(cell, params, carry, x), jr.gates(inner, params.cell, carry._replace(h=read), x), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10)  # float64, the mean summed in another order


def test_gates_of_a_clipped_cell_see_the_clipped_memory(x64):
    """The output gate of a peephole LSTM reads c_t, which is clipped by then; the others read c_{t-1}."""
    inner = jr.peephole_lstm(I, H)
    params, carry, x = drawn(inner)
    own, (i, f, g, o, c, h) = (
        jr.gates(cell, params, carry, x) for cell in (inner, jr.clip_state(inner, max_value=0.2))
    )
    for a, b in ((i, own.i), (f, own.f), (g, own.g)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(c, np.clip(f * carry.c + i * g, -0.2, 0.2))
    at_o = slice(3 * H, 4 * H)
    a_o = carry.h @ params.W_hh[:, at_o] + x @ params.W_xh[:, at_o] + params.b[at_o] + params.U_o * c
    np.testing.assert_allclose(o, 1 / (1 + np.exp(-a_o)), rtol=1e-12)  # float64
    assert abs(o - own.o).max() > 1e-2
    np.testing.assert_allclose(h, np.clip(o * np.tanh(c), -0.2, 0.2), rtol=1e-12)


def test_traced_gates_of_a_wrapper_are_those_of_its_run(x64):
    cell = jr.leaky(jr.lstm(I, H), rate=0.3)
    params, carry, _ = drawn(cell)
    xs = draw((T, B, I), 4)
    lengths = jnp.array([T, 2, 4])
    traced = jr.trace_gates(cell, params, xs, carry, lengths=lengths)
    end, ys = jr.scan(cell).apply(params, xs, carry, lengths=lengths)
    np.testing.assert_allclose(traced.h, ys, rtol=1e-12)  # two programs, float64
    np.testing.assert_allclose(traced.c[lengths - 1, np.arange(B)], end.c, rtol=1e-12)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jr.clip_state(jr.gru(I, H), max_value=0), ValueError, "clip_state: max_value must be positive, got 0"),
        (
            lambda: jr.clip_state(jr.scan(jr.gru(I, H)), max_value=1),
            TypeError,
            r"clip_state: expected a Cell, got scan\(gru\), a Layer; wrap the cell",
        ),
        (lambda: jr.zoneout(jr.gru(I, H), rate=1.0), ValueError, "zoneout: rate must be at least 0 and below 1, got 1"),
        (lambda: jr.zoneout(jr.lstm(I, H), rate=0.1, c_rate=-1), ValueError, "zoneout: c_rate must be .* got -1"),
        (lambda: jr.zoneout(jr.gru(I, H), rate=jnp.ones(())), TypeError, "zoneout: rate must be a Python number"),
        (
            lambda: step_of(jr.zoneout(jr.gru(I, H), rate=0.1, c_rate=0.1)),
            TypeError,
            "zoneout: c_rate=0.1 is for the memory c of a NamedTuple, which the carry of gru lacks",
        ),
        (
            lambda: jr.recurrent_dropout(jr.gru(I, H), rate=0.1, input_rate=1),
            ValueError,
            "recurrent_dropout: input_rate must be at least 0 and below 1, got 1",
        ),
        (
            lambda: jr.scan(jr.recurrent_dropout(jr.chain(jr.gru(I, H), jr.gru(H, H)), rate=0.1)).apply(
                jr.chain(jr.gru(I, H), jr.gru(H, H)).init(jax.random.key(0)), jnp.ones((T, I)), key=jax.random.key(0)
            ),
            TypeError,
            "recurrent_dropout: the carry of chain must be one array of floats",
        ),
    ],
)
def test_wrappers_refuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


def step_of(cell):
    return cell.step(cell.init(jax.random.key(0)), cell.initial_carry(cell.init(jax.random.key(0))), jnp.ones(I))
