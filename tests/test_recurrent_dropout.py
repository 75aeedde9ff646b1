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
