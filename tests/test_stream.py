"""A cell stepped for sessions that come and go: each gets what a run over its own sequence alone gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised
from tests.errors import assert_fails
from tests.user_cells import clockwork

I, H, CAPACITY = 3, 4, 3
# Both sides compute in float64, the sums of a product in another order: a few hundred roundings of 2e-16.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def two_fields(input_size, hidden_size):
    """A user's cell of a pytree of inputs (features and a scalar gain) and of outputs, an integer in its carry."""

    def init(key):
        return {"W": jnp.ones((input_size + hidden_size, hidden_size))}

    def initial_carry(params, batch_shape=()):
        return {"h": jnp.ones((*batch_shape, hidden_size)), "count": jnp.full(batch_shape, 5, jnp.int32)}

    def step(params, carry, x):
        joined = jnp.concatenate([x["features"], carry["h"]], axis=-1)
        h = jnp.tanh(x["gain"][..., None] * (joined @ params["W"]))
        carry = {"h": h, "count": carry["count"] + 1}
        return carry, {"h": h, "count": carry["count"]}

    return jr.Cell(init, initial_carry, step, x_ndim={"features": 1, "gain": 0})


CHAIN = jr.chain(jr.lstm(I, H), jr.layer_norm(H), jr.dropout(0.5), jr.gru(H, H), jr.readout(H, 2))
CELLS = {
    "chain": CHAIN,
    "elman_learned_carry": jr.elman(I, H, learned_carry=True),
    "peephole_learned_carry": jr.peephole_lstm(I, H, learned_carry=True),
    "lru": jr.lru(I, H),  # a complex carry
    "zoneout": jr.zoneout(jr.lstm(I, H), rate=0.2),
    "tokens": jr.chain(jr.embedding(7, I), jr.gru(I, H)),
    "clockwork": clockwork(I, H),
    "two_fields": two_fields(I, H),
}


def input_of(cell, name, rng):
    """One step of one session."""
    features = rng.normal(size=I)
    if name == "two_fields":
        return {"features": features, "gain": rng.normal()}
    return rng.integers(7, dtype=np.int32) if cell.x_ndim == 0 else features


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def poisoned(a):
    """NaN where there is one."""
    return np.full_like(a, np.nan if np.issubdtype(a.dtype, np.floating) else -1)


def visits(seed, sessions, ticks):
    """What happens at random, tick by tick: ``(who joins, who has an input, who leaves)``."""
    rng = np.random.default_rng(seed)
    waiting, here = [f"session {n}" for n in range(sessions)], []
    for _ in range(ticks):
        joining = [waiting.pop(0) for _ in range(CAPACITY - len(here)) if waiting and rng.random() < 0.7]
        here += joining
        present = [session for session in here if rng.random() < 0.6]
        leaving = [session for session in here if rng.random() < 0.2]
        here = [session for session in here if session not in leaving]
        yield joining, present, leaving


@pytest.mark.parametrize("name", CELLS)
def test_each_session_gets_what_a_run_of_its_own_gives(name, x64):
    cell = CELLS[name]
    params = randomised(cell.init(jax.random.key(0)))
    served, slots, traced = jr.stream(cell), jr.Slots(CAPACITY), []

    def step(params, carry, x, **flags):
        traced.append(x)
        return served.step(params, carry, x, **flags)

    step, carry = jax.jit(step, donate_argnums=1), served.initial_carry(params, (CAPACITY,))
    rng, inputs, outputs, used = np.random.default_rng(1), {}, {}, set()
    for joining, present, leaving in visits(seed=2, sessions=9, ticks=25):
        used.update((slots.join(session), session) for session in joining)
        arrived = {session: input_of(cell, name, rng) for session in present}
        x = [jax.tree.map(poisoned, jax.tree.map(np.asarray, input_of(cell, name, rng))) for _ in range(CAPACITY)]
        for session in arrived:
            x[slots[session]] = arrived[session]
        mask, resets = slots.flags(present)
        before = jax.tree.map(np.array, carry)
        carry, y = step(params, carry, stacked(x), mask=mask, resets=resets)
        for session in present:
            inputs.setdefault(session, []).append(arrived[session])
            outputs.setdefault(session, []).append(jax.tree.map(lambda a, s=slots[session]: a[s], y))
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(carry), strict=True):
            np.testing.assert_array_equal(old[~mask & ~resets], np.asarray(new)[~mask & ~resets])
        assert all((np.asarray(a)[~mask] == 0).all() for a in jax.tree.leaves(y))
        for session in leaving:
            slots.leave(session)
    assert len(traced) == 1
    assert {slot for slot, _ in used} == {0, 1, 2} and len(used) == 9  # slots were taken by several, one after another
    longest = max(map(len, inputs.values()))
    assert sum(len(steps) > 1 for steps in inputs.values()) >= 5

    # One run of all sessions, padded to one length: tests/test_contract.py holds it to plain loops.
    xs = stacked([stacked(steps + steps[-1:] * (longest - len(steps))) for steps in inputs.values()])
    xs, lengths = jax.tree.map(lambda a: a.swapaxes(0, 1), xs), np.array([len(steps) for steps in inputs.values()])
    _, ys = jax.jit(jr.scan(cell, plan="plain").apply)(params, xs, lengths=lengths)
    for b, session in enumerate(inputs):
        own = jax.tree.map(lambda a, b=b: a[: lengths[b], b], ys)
        jax.tree.map(lambda a, want: np.testing.assert_allclose(a, want, **CLOSE), stacked(outputs[session]), own)


@pytest.mark.parametrize("batch_shape", [(), (2,), (2, 2)])
def test_steps_are_those_of_scan_with_its_flags(batch_shape, x64):
    T, cell = 4, jr.chain(jr.lstm(I, H, learned_carry=True), jr.gru(H, 2))
    params, served = randomised(cell.init(jax.random.key(0))), jr.stream(cell)
    rng = np.random.default_rng(3)
    xs, mask, resets = draw((T, *batch_shape, I)), *(rng.random((2, T, *batch_shape)) < 0.5)
    want, want_ys = jr.scan(cell).apply(params, xs, mask=mask, resets=resets)
    carry, step = served.initial_carry(params, batch_shape), jax.jit(served.step)
    for t in range(T):
        carry, y = step(params, carry, xs[t], mask=mask[t], resets=resets[t])
        np.testing.assert_allclose(y, want_ys[t], **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), carry, want)


def test_a_reset_puts_a_learned_carry_in_place_present_or_not():
    cell = jr.elman(I, H, learned_carry=True)
    params, served = randomised(cell.init(jax.random.key(0))), jr.stream(cell)
    start, x = jnp.full((2, H), 9.0), jnp.ones((2, I))
    flags = {"mask": jnp.array([True, False]), "resets": jnp.array([True, True])}
    carry, y = served.step(params, start, x, **flags)
    want, want_y = cell.step(params, cell.initial_carry(params, (2,)), x)
    np.testing.assert_allclose(y[0], want_y[0], atol=1e-6)
    np.testing.assert_array_equal(carry[1], cell.initial_carry(params))
    np.testing.assert_allclose(carry[0], want[0], atol=1e-6)


def test_without_flags_it_is_the_cells_own_step_and_holds_no_loop():
    params, served, x = CHAIN.init(jax.random.key(0)), jr.stream(CHAIN), jnp.ones((1, I))
    step, carry = jax.jit(served.step), served.initial_carry(params, (1,))
    for a, want in zip(*map(jax.tree.leaves, (step(params, carry, x), CHAIN.step(params, carry, x))), strict=True):
        np.testing.assert_allclose(a, want, atol=1e-6)  # float32
    flag = jnp.ones(1, bool)
    for flags in ({}, {"mask": flag, "resets": flag}):
        assert "while" not in step.lower(params, carry, x, **flags).as_text()


def test_the_initial_carry_can_be_donated_and_leaves_the_params_alone():
    cell = jr.lstm(I, H, learned_carry=True)
    params, served = cell.init(jax.random.key(0)), jr.stream(cell)
    carry = served.initial_carry(params)  # no batch: the cell's own would be the arrays of params
    carry, _ = jax.jit(served.step, donate_argnums=1)(params, carry, jnp.ones(I))
    assert not any(a.is_deleted() for a in jax.tree.leaves(params))


def test_narrow_dtypes_stay():
    cell = jr.lstm(I, H, dtype=jnp.bfloat16)
    params, served = cell.init(jax.random.key(0)), jr.stream(cell)
    carry, y = served.step(params, served.initial_carry(params, (2,)), jnp.ones((2, I)), mask=jnp.array([True, False]))
    assert y.dtype == jnp.bfloat16 and {a.dtype for a in carry} == {jnp.dtype("float32")}


# ---- slots -------------------------------------------------------------------------------------


def test_slots_are_reset_until_the_first_input_of_each_session():
    slots = jr.Slots(2)
    assert slots.join("ann") == 0
    mask, resets = slots.flags([])
    assert mask.tolist() == [False, False] and resets.tolist() == [True, True]
    assert [flags.tolist() for flags in slots.flags({"ann": 1.0})] == [[True, False], [True, True]]
    assert [flags.tolist() for flags in slots.flags(["ann"])] == [[True, False], [False, True]]
    assert resets.tolist() == [True, True]  # handed out, they stay as they were
    slots.leave("ann")
    assert slots.join("eve") == 0 and slots.join(7) == 1 and slots[7] == 1
    assert [flags.tolist() for flags in slots.flags([7])] == [[False, True], [True, True]]


def test_slots_refuse_what_cannot_be():
    slots = jr.Slots(1)
    with pytest.raises(KeyError, match="no session 'ann' among these 0; it has to join first"):
        slots.leave("ann")
    slots.join("ann")
    with pytest.raises(ValueError, match="'ann' is in slot 0 already"):
        slots.join("ann")
    with pytest.raises(ValueError, match=r"no room for 'bob', all 1 slots are taken; .* larger capacity"):
        slots.join("bob")
    with pytest.raises(KeyError, match="no session 'bob'"):
        slots.flags(["ann", "bob"])
    assert slots.flags(["ann"])[1].tolist() == [True]  # the call that failed has not counted
    with pytest.raises(TypeError, match=r"Slots: capacity must be a positive int, got 1\.5"):
        jr.Slots(1.5)


# ---- errors ------------------------------------------------------------------------------------

LSTM = jr.lstm(I, H)


def step(cell=LSTM, x=None, carry=None, **flags):
    """A step, all right but for what is given."""
    served, params = jr.stream(cell), cell.init(jax.random.key(0))
    carry = served.initial_carry(params, (2,)) if carry is None else carry
    return served.step(params, carry, jnp.ones((2, I)) if x is None else x, **flags)


USER = jr.Cell(lambda key: (), lambda params, batch_shape=(): jnp.zeros(batch_shape), lambda p, c, x: (c, x))
ERRORS = {
    "a layer": (lambda: jr.stream(jr.scan(LSTM)), TypeError, ["stream:", "scan(lstm)", "jr.chain"]),
    "a stack": (lambda: jr.stream(jr.stack(LSTM)), TypeError, ["stream: expected a Cell, got stack", "jr.chain"]),
    "both directions": (
        lambda: jr.stream(jr.bidirectional(LSTM, LSTM)),
        TypeError,
        ["got bidirectional", "jr.chain", "in both directions reads the future"],
    ),
    "no cell": (lambda: jr.stream(LSTM.step), TypeError, ["stream: expected a Cell, got function"]),
    "capacity": (
        lambda: jr.stream(LSTM).initial_carry((), 3),
        TypeError,
        ["stream(lstm): batch_shape must be a tuple of ints, got 3", "(3,)"],
    ),
    "features": (lambda: step(x=jnp.ones((2, 5))), ValueError, ["stream(lstm): expected x of shape (*B, 3), got 5"]),
    "batch of x": (
        lambda: step(x=jnp.ones((4, I))),
        ValueError,
        ["lstm", "carry.h should have shape (4, 4), got (2, 4)"],
    ),
    "axes of x": (
        lambda: step(USER, x=jnp.float32(1), carry=jnp.zeros(())),
        ValueError,
        ["stream(user cell): x must be (*B, …) with 1 feature axes last, got shape ()"],
    ),
    "mask of another batch": (
        lambda: step(mask=jnp.ones(3, bool)),
        ValueError,
        ["stream(lstm): mask must have shape (2,), that is *B, the batch axes of x, got (3,)", "broadcast"],
    ),
    "resets of another batch": (lambda: step(resets=jnp.array(True)), ValueError, ["resets must have", "got ()"]),
    "mask of numbers": (
        lambda: step(mask=jnp.ones(2, jnp.int32)),
        TypeError,
        ["stream(lstm): mask must be boolean (True for members that have an input), got int32; use mask.astype(bool)"],
    ),
    "resets of numbers": (lambda: step(resets=jnp.ones(2)), TypeError, ["resets must be boolean", "begin anew"]),
    "carry of another cell": (lambda: step(carry=jnp.ones((2, H))), ValueError, ["carry should be LSTMCarry"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    assert_fails(*ERRORS[case])
