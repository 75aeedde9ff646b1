"""jaxrnn against the recurrent cells of other JAX libraries with the same weights: outputs and final states.

Each peer's function says, in code, what that library calls differently, and returns the jaxrnn cell, its
parameters, and ``run(xs, h, c) -> (final carry as ours, ys)``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

I, H, T, B = 3, 5, 9, 4

# Relative to the largest entry: some ten rounded operations a step, nine steps, in each library's own order.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}

pytestmark = pytest.mark.usefixtures("x64")


def concat(*gates):
    return np.concatenate(gates, axis=-1)


def flax_lstm(draw):
    """A kernel for each gate, biases on the recurrent side alone, carry (c, h)."""
    nn = pytest.importorskip("flax.linen")
    weights = {f"i{gate}": {"kernel": draw(I, H)} for gate in "ifgo"}
    weights |= {f"h{gate}": {"kernel": draw(H, H), "bias": draw(H)} for gate in "ifgo"}
    net = nn.RNN(nn.OptimizedLSTMCell(H), time_major=True, return_carry=True)

    def run(xs, h, c, **options):
        (c, h), ys = net.apply({"params": {"cell": weights}}, xs, initial_carry=(c, h), **options)
        return jr.LSTMCarry(h, c), ys

    params = jr.LSTMParams(
        W_xh=concat(*(weights[f"i{gate}"]["kernel"] for gate in "ifgo")),
        W_hh=concat(*(weights[f"h{gate}"]["kernel"] for gate in "ifgo")),
        b=concat(*(weights[f"h{gate}"]["bias"] for gate in "ifgo")),
    )
    return jr.lstm(I, H), params, run


def flax_gru(draw):
    """A kernel for each gate; z multiplies the old state, so its block is negated; reset after."""
    nn = pytest.importorskip("flax.linen")
    weights = {f"i{gate}": {"kernel": draw(I, H), "bias": draw(H)} for gate in "rzn"}
    weights |= {f"h{gate}": {"kernel": draw(H, H)} for gate in "rz"}
    weights |= {"hn": {"kernel": draw(H, H), "bias": draw(H)}}
    net = nn.RNN(nn.GRUCell(H), time_major=True, return_carry=True)

    def run(xs, h, c, **options):
        return net.apply({"params": {"cell": weights}}, xs, initial_carry=h, **options)

    sign = {"r": 1, "z": -1, "n": 1}
    params = jr.GRUParams(
        W_xh=concat(*(sign[gate] * weights[f"i{gate}"]["kernel"] for gate in "rzn")),
        W_hh=concat(*(sign[gate] * weights[f"h{gate}"]["kernel"] for gate in "rzn")),
        b=concat(*(sign[gate] * weights[f"i{gate}"]["bias"] for gate in "rzn")),
        b_hh=weights["hn"]["bias"],
    )
    return jr.gru(I, H, reset="after"), params, run


def flax_simple(draw):
    """One bias, as ours."""
    nn = pytest.importorskip("flax.linen")
    weights = {"i": {"kernel": draw(I, H), "bias": draw(H)}, "h": {"kernel": draw(H, H)}}
    net = nn.RNN(nn.SimpleCell(H), time_major=True, return_carry=True)

    def run(xs, h, c, **options):
        return net.apply({"params": {"cell": weights}}, xs, initial_carry=h, **options)

    return (
        jr.elman(I, H),
        jr.ElmanParams(weights["i"]["kernel"], weights["h"]["kernel"], weights["i"]["bias"]),
        run,
    )


def haiku_run(hk, core, weights, xs, state):
    unroll = hk.without_apply_rng(hk.transform(lambda: hk.dynamic_unroll(core(H), xs, state)))
    return unroll.apply(weights)


def haiku_lstm(draw):
    """One matrix for [x, h], gate order i g f o, and 1 added to the forget gate at every step."""
    hk = pytest.importorskip("haiku")
    w, b = draw(I + H, 4 * H), draw(4 * H)

    def run(xs, h, c):
        weights = {"lstm/linear": {"w": w, "b": b}}
        ys, state = haiku_run(hk, hk.LSTM, weights, xs, hk.LSTMState(h, c))
        return jr.LSTMCarry(*state), ys

    def ours(a):
        i, g, f, o = np.split(a, 4, axis=-1)
        return concat(i, f, g, o)

    forget = np.repeat([0, 1, 0, 0], H).astype(b.dtype)
    return jr.lstm(I, H), jr.LSTMParams(ours(w[:I]), ours(w[I:]), ours(b) + forget), run


def haiku_gru(draw):
    """Gate order z r n, reset before the product, z multiplies the candidate as ours does."""
    hk = pytest.importorskip("haiku")
    weights = {"w_i": draw(I, 3 * H), "w_h": draw(H, 3 * H), "b": draw(3 * H)}

    def run(xs, h, c):
        ys, state = haiku_run(hk, hk.GRU, {"gru": weights}, xs, h)
        return state, ys

    def ours(a):
        z, r, n = np.split(a, 3, axis=-1)
        return concat(r, z, n)

    return (
        jr.gru(I, H, reset="before"),
        jr.GRUParams(*(ours(weights[name]) for name in ("w_i", "w_h", "b"))),
        run,
    )


def equinox_run(cell, xs, start):
    def step(carry, x):
        carry = jax.vmap(cell)(x, carry)
        return carry, carry

    return jax.lax.scan(step, start, xs)


def with_weights(cell, **weights):
    for name, value in weights.items():
        assert getattr(cell, name).shape == value.shape
        object.__setattr__(cell, name, jnp.asarray(value))  # modules are frozen dataclasses
    return cell


def equinox_lstm(draw):
    """A row for each output, gate order i f g o, one bias, carry (h, c)."""
    eqx = pytest.importorskip("equinox")
    W_ih, W_hh, b = draw(4 * H, I), draw(4 * H, H), draw(4 * H)
    theirs = with_weights(eqx.nn.LSTMCell(I, H, key=jax.random.key(0)), weight_ih=W_ih, weight_hh=W_hh, bias=b)

    def run(xs, h, c):
        (h, c), (ys, _) = equinox_run(theirs, xs, (h, c))
        return jr.LSTMCarry(h, c), ys

    return jr.lstm(I, H), jr.LSTMParams(W_ih.T, W_hh.T, b), run


def equinox_gru(draw):
    """A row for each output; z multiplies the old state, so its block is negated; reset after the product."""
    eqx = pytest.importorskip("equinox")
    W_ih, W_hh, b, b_n = draw(3 * H, I), draw(3 * H, H), draw(3 * H), draw(H)
    theirs = eqx.nn.GRUCell(I, H, key=jax.random.key(0))
    theirs = with_weights(theirs, weight_ih=W_ih, weight_hh=W_hh, bias=b, bias_n=b_n)
    sign = np.repeat([1, -1, 1], H).astype(b.dtype)
    params = jr.GRUParams(W_ih.T * sign, W_hh.T * sign, b * sign, b_n)
    return jr.gru(I, H, reset="after"), params, lambda xs, h, c: equinox_run(theirs, xs, h)


FLAX = [flax_lstm, flax_gru, flax_simple]
PEERS = [*FLAX, haiku_lstm, haiku_gru, equinox_lstm, equinox_gru]


def problem(dtype):
    rng = np.random.default_rng(7)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    return draw, draw(T, B, I), draw(B, H), draw(B, H)


def start_of(cell, h, c):
    return jr.LSTMCarry(h, c) if cell.spec.kind == "lstm" else h


def assert_close(got, want, dtype):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
def test_peer(peer, dtype):
    draw, xs, h, c = problem(dtype)
    cell, params, run = peer(draw)
    carry, ys = jax.jit(jr.scan(cell).apply)(params, xs, start_of(cell, h, c))
    want_carry, want_ys = jax.jit(run)(xs, h, c)
    assert_close(ys, want_ys, dtype)
    assert_close(carry, want_carry, dtype)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("peer", FLAX, ids=lambda peer: peer.__name__)
def test_flax_with_lengths(peer, reverse):
    """Flax leaves what it computed on padding in its outputs; ours are 0 there."""
    draw, xs, h, c = problem("float64")
    cell, params, run = peer(draw)
    lengths = np.array([T, 1, 4, 7])
    valid = (np.arange(T)[:, None] < lengths)[..., None]
    carry, ys = jax.jit(jr.scan(cell, reverse=reverse).apply)(params, xs, start_of(cell, h, c), lengths=lengths)
    want_carry, want_ys = run(xs, h, c, seq_lengths=lengths, reverse=reverse, keep_order=True)
    assert_close(ys, np.where(valid, want_ys, 0), "float64")
    assert_close(carry, want_carry, "float64")
