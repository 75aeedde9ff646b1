"""Recurrent dropout, by hand: which products see the masks, and that one draw serves a whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import B, H, I, T, draw, drawn, masks


@pytest.mark.parametrize(
    ("make", "reads"),
    [
        (lambda: jr.elman(I, H), lambda p, h, x, m: np.tanh((m * h) @ p.W_hh + x @ p.W_xh + p.b)),
        (lambda: jr.elman(I, H, output_size=H), lambda p, h, x, m: np.tanh((m * h) @ p.W_hh + x @ p.W_xh + p.b)),
    ],
    ids=["elman", "elman with a readout"],
)
def test_recurrent_dropout_by_hand(make, reads, x64):
    inner = make()
    params, h, x = drawn(inner)
    keep_h, keep_x = masks((B, H), 0.5) > 0, masks((B, I), 0.2, 6) > 0
    cell = jr.recurrent_dropout(inner, rate=0.5, input_rate=0.2)
    new, y = cell.step(params, h, x, ((keep_h, keep_x), None))
    np.testing.assert_allclose(new, reads(params, h, keep_x / 0.8 * x, keep_h / 0.5), rtol=1e-12)
    readout = new if params.W_hy is None else new @ params.W_hy + params.b_y
    np.testing.assert_allclose(y, readout, rtol=1e-12)  # its product reads the new state, whole


def test_recurrent_dropout_leaves_what_no_product_reads(x64):
    """A GRU's (1 - z) * h takes h whole, its r * h goes into a product, through the mask."""
    inner = jr.gru(I, H)
    params, h, x = drawn(inner)
    m = masks((B, H), 0.5)
    new, _ = jr.recurrent_dropout(inner, rate=0.5).step(params, h, x, ((m > 0, None), None))
    _, z, n, _ = jr.gates(inner, params, m * h, x)
    np.testing.assert_allclose(new, (1 - z) * h + z * n, rtol=1e-12)


def joined(input_size, hidden_size):
    """A user's cell with one product, of [h, x]."""
    W_shape = (hidden_size + input_size, hidden_size)

    def step(W, h, x):
        h = 0.5 * h + jnp.tanh(jnp.concatenate([h, x], axis=-1) @ W)
        return h, h

    def initial_carry(W, batch_shape=()):
        return jnp.zeros((*batch_shape, hidden_size), W.dtype)

    return jr.Cell(lambda key: jax.random.normal(key, W_shape), initial_carry, step)


def test_recurrent_dropout_of_a_users_cell(x64):
    inner = joined(I, H)
    W, h, x = drawn(inner)
    keep_h, keep_x = masks((B, H), 0.5) > 0, masks((B, I), 0.2, 6) > 0
    cell = jr.recurrent_dropout(inner, rate=0.5, input_rate=0.2)
    new, _ = cell.step(W, h, x, ((keep_h, keep_x), None))
    read = np.concatenate([keep_h / 0.5 * h, keep_x / 0.8 * x], axis=-1)
    np.testing.assert_allclose(new, 0.5 * h + np.tanh(read @ W), rtol=1e-12)


@pytest.mark.parametrize("make", [jr.lstm, joined, jr.mgu], ids=["lstm", "user", "mgu"])
def test_recurrent_dropout_draws_once_for_a_sequence(make, x64):
    """A run is that of the steps with the masks of one draw, the same for every step; chunks of it agree."""
    cell = jr.recurrent_dropout(make(I, H), rate=0.5)
    params, carry, _ = drawn(cell)
    xs, key = draw((T, B, I), 4), jax.random.key(3)
    (keep, _), _ = cell.noise(params, key, jnp.arange(T), xs[0])
    assert keep.shape == (1, B, H) and 0 < keep.sum() < keep.size
    noise = ((keep[0], None), None)
    want, held = [], carry
    for t in range(T):
        held, y = cell.step(params, held, xs[t], noise)
        want.append(y)
    layer = jr.scan(cell)
    _, ys = jax.jit(layer.apply)(params, xs, carry, key=key)
    np.testing.assert_allclose(ys, np.stack(want), rtol=1e-12, atol=1e-14)
    half, first = layer.apply(params, xs[:4], carry, key=key)
    _, rest = layer.apply(params, xs[4:], half, key=key, start=4)
    np.testing.assert_allclose(ys, np.concatenate([first, rest]), rtol=1e-12, atol=1e-14)


# ---- the other two kinds -------------------------------------------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("peephole", [False, True])
def test_dropped_candidates_of_an_lstm(peephole, x64, traced):
    """What is added to the memory is dropped, and the output gate of a peephole LSTM sees that memory."""
    inner = (jr.peephole_lstm if peephole else jr.lstm)(I, H)
    params, carry, x = drawn(inner)
    kept = masks((B, H), 0.5) > 0
    cell = jr.recurrent_dropout(inner, rate=0.5, kind="semeniuta2016")
    new, y = traced(lambda: cell.step(params, carry, x, (kept, None)))()
    params, carry, x = jax.tree.map(np.asarray, (params, carry, x))
    a_i, a_f, a_g, a_o = np.split(carry.h @ params.W_hh + x @ params.W_xh + params.b, 4, axis=-1)
    U_i, U_f, U_o = (params.U_i, params.U_f, params.U_o) if peephole else (0, 0, 0)
    c = sigmoid(a_f + U_f * carry.c) * carry.c + sigmoid(a_i + U_i * carry.c) * np.tanh(a_g) * kept / 0.5
    np.testing.assert_allclose(new.c, c, rtol=1e-10)
    np.testing.assert_allclose(new.h, sigmoid(a_o + U_o * c) * np.tanh(c), rtol=1e-10)
    np.testing.assert_array_equal(y, new.h)


@pytest.mark.parametrize("keep", ["candidate", "state"])
def test_dropped_candidates_of_gated_units(keep, x64, traced):
    kept = masks((B, H), 0.5) > 0
    inner = jr.mgu(I, H, keep=keep)
    params, h, x = drawn(inner)
    cell = jr.recurrent_dropout(inner, rate=0.5, kind="semeniuta2016")
    (new, _), (f, n, _) = traced(lambda: (cell.step(params, h, x, (kept, None)), jr.gates(inner, params, h, x)))()
    share = f if keep == "candidate" else 1 - f
    np.testing.assert_allclose(new, (1 - share) * h + share * n * kept / 0.5, rtol=1e-10)


def test_dropped_candidates_beside_gates_and_states_of_their_names(x64, traced):
    """A UGRNN's g is a gate; an sLSTM's n is a normaliser, its candidate z."""
    kept = masks((B, H), 0.5) > 0

    def of(inner):
        params, carry, x = drawn(inner)
        carry = carry if inner.spec.kind == "ugrnn" else carry._replace(n=jnp.abs(carry.n))
        dropping = jr.recurrent_dropout(inner, rate=0.5, kind="semeniuta2016")
        return carry, *traced(
            lambda: (dropping.step(params, carry, x, (kept, None))[0], jr.gates(inner, params, carry, x))
        )()

    h, new, (g, n, _) = of(jr.ugrnn(I, H))
    np.testing.assert_allclose(new, g * h + (1 - g) * n * kept / 0.5, rtol=1e-10)
    carry, new, gates = of(jr.slstm(I, H))
    np.testing.assert_allclose(new.n, gates.n, rtol=1e-10)
    np.testing.assert_allclose(new.c, gates.f * carry.c + gates.i * gates.z * kept / 0.5, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(new.h, gates.o * new.c / new.n, rtol=1e-10, atol=1e-14)


def test_dropped_candidates_of_a_leaky_cell(x64, traced):
    """The wrapper inside changes the state that the dropped candidate makes; a readout sees it."""
    kept, x = masks((B, H), 0.5) > 0, draw((B, H), 3)
    inner = jr.leaky(jr.gru(H, H), rate=0.3)
    params, h, _ = drawn(inner)
    cell = jr.residual(jr.recurrent_dropout(inner, rate=0.5, kind="semeniuta2016"))
    (new, y), (_, z, n, _) = traced(
        lambda: (cell.step(params, h, x, (kept, None)), jr.gates(jr.gru(H, H), params, h, x))
    )()
    np.testing.assert_allclose(new, 0.7 * h + 0.3 * ((1 - z) * h + z * n * kept / 0.5), rtol=1e-10)
    np.testing.assert_allclose(y, x + new, rtol=1e-10)


def test_candidates_are_dropped_anew_at_each_step():
    cell = jr.recurrent_dropout(jr.lstm(I, 50), rate=0.2, kind="semeniuta2016")
    params = cell.init(jax.random.key(0))

    @jax.jit
    def draws(key):
        return [cell.noise(params, key, times, jnp.zeros((4, I)))[0] for times in (jnp.arange(20), jnp.arange(5, 10))]

    kept, later = map(np.asarray, draws(jax.random.key(1)))
    assert kept.shape == (20, 4, 50) and (kept[0] != kept[1]).any()
    np.testing.assert_allclose(kept.mean(), 0.8, atol=0.03)  # 4,000 draws: five standard errors
    np.testing.assert_array_equal(later, kept[5:10])  # a function of absolute time


def test_dropped_memory(x64, traced):
    """Of an LSTM the memory, where h reads it; of a GRU the state. In evaluation 1 - rate of it, in the gates too."""
    kept = masks((B, H), 0.5) > 0
    for inner in (jr.lstm(I, H), jr.gru(I, H)):
        params, carry, x = drawn(inner)
        cell = jr.recurrent_dropout(inner, rate=0.25, kind="moon2015")
        noisy, evaluation, gates, own = traced(
            lambda cell=cell, inner=inner, p=params, c=carry, x=x: (
                cell.step(p, c, x, (kept, None)),
                cell.step(p, c, x),
                jr.gates(cell, p, c, x),
                jr.gates(inner, p, c, x),
            )
        )()
        for (new, y), factor in ((noisy, kept), (evaluation, 0.75)):
            if hasattr(own, "c"):
                np.testing.assert_allclose(new.c, factor * own.c, rtol=1e-10)
                np.testing.assert_allclose(new.h, own.o * np.tanh(factor * own.c), rtol=1e-10)
                np.testing.assert_array_equal(y, new.h)
            else:
                np.testing.assert_allclose(new, factor * own.h, rtol=1e-10)
                np.testing.assert_array_equal(y, new)
        np.testing.assert_array_equal(gates.h, getattr(evaluation[0], "h", evaluation[0]))
        (drawn_once, _) = cell.noise(params, jax.random.key(1), jnp.arange(3), x)
        assert drawn_once.shape == (1, B, H)  # for each sequence, at all steps the same


@pytest.mark.parametrize("kind", ["semeniuta2016", "moon2015"])
def test_runs_of_the_other_kinds(kind, x64):
    """A run is that of the steps with what is drawn; chunks agree; key=None is evaluation."""
    cell = jr.recurrent_dropout(jr.gru(I, H), rate=0.5, kind=kind)
    params, carry, _ = drawn(cell)
    xs, key = draw((T, B, I), 4), jax.random.key(3)
    kept, _ = cell.noise(params, key, jnp.arange(T), xs[0])

    @jax.jit
    def everything():
        by_hand, h = [], carry
        for t in range(T):
            h, y = cell.step(params, h, xs[t], (kept[t if kind == "semeniuta2016" else 0], None))
            by_hand.append(y)
        run = jr.scan(cell).apply
        half, first = run(params, xs[:4], carry, key=key)
        rest = run(params, xs[4:], half, key=key, start=4)[1]
        return jnp.stack(by_hand), run(params, xs, carry, key=key)[1], jnp.concatenate([first, rest])

    by_hand, ys, chunks = everything()
    np.testing.assert_allclose(ys, by_hand, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ys, chunks, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: jr.recurrent_dropout(jr.lstm(I, H), rate=0.5, kind="gal2015"),
            ValueError,
            "kind must be one of 'gal2016', 'semeniuta2016', 'moon2015', got 'gal2015'; did you mean 'gal2016'",
        ),
        (
            lambda: jr.recurrent_dropout(jr.lstm(I, H), rate=0.5, input_rate=0.1, kind="moon2015"),
            ValueError,
            "got input_rate=0.1, which is of kind=\"gal2016\" alone, and kind='moon2015'; put jr.dropout in front",
        ),
        (
            lambda: jr.recurrent_dropout(jr.elman(I, H), rate=0.5, kind="semeniuta2016"),
            TypeError,
            'kind="semeniuta2016" drops the candidate of a gated cell, and elman has no gates',
        ),
        (
            lambda: jr.recurrent_dropout(jr.zoneout(jr.lstm(I, H), rate=0.5), rate=0.5, kind="semeniuta2016"),
            TypeError,
            "computes the new state by the gates, and those of zoneout are without its noise; wrap the cell inside",
        ),
        (  # its n is the normaliser
            lambda: run_of(jr.recurrent_dropout(jr.mlstm(I, H), rate=0.5, kind="semeniuta2016")),
            TypeError,
            r"the candidate, g or n, which the gates of mlstm beside its state \(q, k, v, i, f, o, h\) do not hold",
        ),
        (
            lambda: run_of(jr.recurrent_dropout(jr.chain(jr.gru(I, H), jr.gru(H, H)), rate=0.5, kind="moon2015")),
            TypeError,
            "recurrent_dropout: the carry of chain must be one array of floats",
        ),
    ],
)
def test_other_kinds_refuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


def run_of(cell):
    run = lambda params: jr.scan(cell).apply(params, jnp.ones((T, I)), key=jax.random.key(0))
    return jax.eval_shape(run, jax.eval_shape(cell.init, jax.random.key(0)))
