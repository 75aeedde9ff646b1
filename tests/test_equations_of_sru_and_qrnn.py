"""SRU's form of 2018, and QRNNs with wider windows: equations of their papers in NumPy, windows under gaps and resets.

Their linear forms are in tests/test_linear_cells.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised

# Both sides compute in float64 and sum under 20 products, over a few steps.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
T, B, I, H, K = 7, 3, 3, 4, 3
KEY = jax.random.key(0)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def problem(cell):
    params = randomised(jax.eval_shape(cell.init, KEY), 1)
    carry = randomised(jax.eval_shape(lambda p: cell.initial_carry(p, (B,)), params), 2)
    return params, carry, draw((T, B, cell.input_size), 3)


def sru_2018(p, c, x, α):
    W = np.split(p.W_xh, 3, -1)
    f = sigmoid(x @ W[1] + p.v[:H] * c + (0 if p.b is None else p.b[:H]))
    r = sigmoid(x @ W[2] + p.v[H:] * c + (0 if p.b is None else p.b[H:]))
    n = x @ W[0]
    new = f * c + (1 - f) * n
    h = r * new + (1 - r) * (α * x if p.W_s is None else x @ p.W_s)
    return new, h, dict(n=n, f=f, r=r, c=new, h=h)


@pytest.mark.parametrize(
    ("cell", "α"),
    [
        (jr.sru(I, H, form="2018"), None),
        (jr.sru(H, H, form="2018", bias=False), np.sqrt(3)),
        (jr.sru(H, H, form="2018", highway_bias=-2.0), np.sqrt(1 + 2 * np.exp(-2))),
    ],
    ids=["I is not H", "square", "highway bias"],
)
def test_sru_of_2018(cell, α, x64):
    params, c, xs = problem(cell)
    assert cell.affine is None
    (end, ys), gates = jax.jit(lambda *args: (jr.scan(cell).apply(*args), jr.trace_gates(cell, *args)))(params, xs, c)
    p = jax.tree.map(np.asarray, params)
    for t, x in enumerate(np.asarray(xs)):
        c, y, want = sru_2018(p, np.asarray(c), x, α)
        np.testing.assert_allclose(ys[t], y, **TOLERANCE)
        for gate, value in want.items():
            np.testing.assert_allclose(getattr(gates, gate)[t], value, **TOLERANCE)
    np.testing.assert_allclose(end, c, **TOLERANCE)


def test_the_forms_of_an_sru_are_told_apart():
    with pytest.raises(ValueError, match=r"sru: highway_bias=1.0 sets the highway gate's bias, but bias=False"):
        jr.sru(I, H, bias=False, highway_bias=1.0)
    old, new = (jr.sru(2, 2, form=form, activation=act) for form, act in (("2017", "identity"), ("2018", None)))
    params = randomised(old.init(KEY), 1)
    args = jnp.ones(2), jnp.ones(2)
    silent = params._replace(v=jnp.zeros(4))  # without v the factor of the highway is what is left
    (c, h), (c_new, h_new) = old.step(params, *args), new.step(silent, *args)
    np.testing.assert_allclose(c, c_new, rtol=1e-6)  # float32
    r = old.gates(params, *args).r
    np.testing.assert_allclose(h_new - h, (1 - r) * (np.sqrt(3) - 1), rtol=1e-5)
    assert (np.abs(new.step(params._replace(v=jnp.ones(4)), *args)[0] - c) > 1e-3).all()


def test_an_sru_starts_as_its_paper_says():
    """Uniform, with variance 1/I; the form of 2018 halves that of the gates, v has 1/2, and W_s that of α x."""
    size, bias = 400, -1.0
    params = jr.sru(size, 2 * size, form="2018", highway_bias=bias).init(KEY)
    n, f, r = np.split(np.asarray(params.W_xh), 3, -1)
    for W, variance in ((n, 1), (f, 0.5), (r, 0.5), (params.W_s, 1 + 2 * np.exp(bias))):
        np.testing.assert_allclose(np.var(W) * size, variance, rtol=0.02)  # of 320 000 numbers
        np.testing.assert_allclose(np.abs(W).max(), np.sqrt(3 * variance / size), rtol=1e-3)  # uniform
    np.testing.assert_allclose([np.var(params.v), np.abs(params.v).max()], [0.5, np.sqrt(1.5)], rtol=0.06)
    assert [set(b.tolist()) for b in np.split(np.asarray(params.b), 2)] == [{0}, {bias}]
    old = jr.sru(size, size).init(KEY)
    assert old.v is None and old.W_s is None and not np.asarray(old.b).any()
    np.testing.assert_allclose(np.var(old.W_xh) * size, 1, rtol=0.02)


# ---- windows --------------------------------------------------------------------------------------


def qrnn(cell, params, inputs, c, order):
    """The paper's way: convolutions over the whole sequence, zeros in front of it, then the pooling."""
    T = len(inputs)
    window = len(params.W_xh) // I
    padded = np.concatenate([np.zeros((window - 1, *inputs.shape[1:])), inputs])
    kernel = params.W_xh.reshape(window, I, -1)
    a = sum(padded[k : k + T] @ kernel[k] for k in range(window)) + params.b
    a = dict(zip(order, np.split(a, len(order), -1), strict=True))
    n, f = np.tanh(a["n"]), sigmoid(a["f"])
    i, o = sigmoid(a["i"]) if "i" in a else 1 - f, sigmoid(a["o"]) if "o" in a else np.ones(f.shape)
    hs = []
    for t in range(T):
        c = f[t] * c + i[t] * n[t]
        hs.append(o[t] * c)
    return c, np.stack(hs) if hs else np.zeros((0, H))


@pytest.mark.parametrize(
    ("window", "pooling", "order"), [(2, "f", "nf"), (3, "fo", "nfo"), (3, "ifo", "nfio"), (T + 2, "fo", "nfo")]
)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_windows_are_causal_convolutions(window, pooling, order, reverse, x64):
    cell = jr.qrnn(I, H, window=window, pooling=pooling)
    assert jr.cells.gate_order("qrnn") == tuple("nfio")
    params, _, xs = problem(cell)
    assert cell.affine is None
    end, ys = jax.jit(jr.scan(cell, reverse=reverse).apply)(params, xs)
    p, inputs = jax.tree.map(np.asarray, params), np.asarray(xs)
    inputs = inputs[::-1] if reverse else inputs
    c, hs = qrnn(cell, p, inputs, np.zeros((B, H)), order)
    np.testing.assert_allclose(ys[::-1] if reverse else ys, hs, **TOLERANCE)
    np.testing.assert_allclose(end.c, c, **TOLERANCE)
    kept = np.concatenate([np.zeros((window - 1, B, I)), inputs])[len(inputs) :]
    np.testing.assert_array_equal(end.xs, kept.swapaxes(0, 1))


def test_masks_hold_the_window_and_resets_clear_it(x64):
    """What stands in gaps is as if it had not been there; each episode is a run of its own, the window too."""
    cell = jr.qrnn(I, H, window=K)
    params, _, xs = problem(cell)
    rng = np.random.default_rng(0)
    mask, resets = rng.random((T, B)) < 0.6, np.zeros((T, B), bool)
    resets[3] = True
    end, ys = jax.jit(jr.scan(cell).apply)(params, jnp.where(mask[..., None], xs, np.nan), mask=mask, resets=resets)
    p, start = jax.tree.map(np.asarray, params), np.zeros(H)
    for b in range(B):
        for episode in (slice(0, 3), slice(3, T)):
            on = mask[episode, b]
            c, hs = qrnn(cell, p, np.asarray(xs)[episode, b][on], start, "nfo")
            np.testing.assert_allclose(ys[episode, b][on], hs, **TOLERANCE)
            assert not np.asarray(ys[episode, b])[~on].any()
        np.testing.assert_allclose(end.c[b], c, **TOLERANCE)
