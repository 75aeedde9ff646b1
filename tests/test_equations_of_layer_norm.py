"""LSTM and GRU with layer normalisation and heads: equations of Ba et al. 2016 and of TensorFlow's cell in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised

# Both sides compute in float64 and sum under 30 products, over a few steps; dividing by a small variance costs a digit.
TOLERANCE = {"rtol": 1e-11, "atol": 1e-11}
T, B, I, H = 4, 2, 3, 6
KEY = jax.random.key(0)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def LN(a, scale):
    mean = a.mean(-1, keepdims=True)
    var = ((a - mean) ** 2).mean(-1, keepdims=True)
    return scale * (a - mean) / np.sqrt(var + 1e-5)


def full(W, gates):
    """Recurrent weights as one matrix, block-diagonal gate by gate where they have heads."""
    if W.ndim == 2:
        return W
    heads, rows, columns = W.shape
    k = columns // gates
    out = np.zeros((gates, heads * rows, heads * k))
    for gate in range(gates):
        for n in range(heads):
            out[gate, n * rows : (n + 1) * rows, n * k : (n + 1) * k] = W[n, :, gate * k : (gate + 1) * k]
    return np.concatenate(out, -1)


def lstm(form, p, carry, x):
    h, c = carry
    b = 0 if p.b is None else p.b
    u, v = h @ full(p.W_hh, 4), x @ p.W_xh
    if form == "ba2016":
        a = LN(u, p.scale_hh) + LN(v, p.scale_xh) + b
    elif form == "per_gate":
        pairs = zip(np.split(u + v, 4, -1), np.split(p.scale, 4), strict=True)
        a = np.concatenate([LN(gate, scale) for gate, scale in pairs], -1) + b
    else:
        a = u + v + b
    i, f, g, o = np.split(a, 4, -1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = read = f * c + i * g
    if form is not None:
        read = LN(c, p.scale_c) + (0 if p.shift_c is None else p.shift_c)
    c = read if form == "per_gate" else c
    h = o * np.tanh(read)
    h = h if p.W_hr is None else h @ p.W_hr
    return jr.LSTMCarry(h, c), h, dict(i=i, f=f, g=g, o=o, c=c, h=h)


def gru(form, p, h, x):
    reset, norm = form
    b, b_hh = 0 if p.b is None else p.b, 0 if p.b_hh is None else p.b_hh
    U_rz, U_n = np.split(full(p.W_hh, 3), [2 * H], -1)
    W_rz, W_n = np.split(p.W_xh, [2 * H], -1)
    b_rz, b_n = np.split(b + np.zeros(3 * H), [2 * H])

    def ln(a, scale, part):
        return LN(a, np.split(getattr(p, scale), [2 * H])[part]) if norm else a

    rz = sigmoid(ln(h @ U_rz, "scale_hh", 0) + ln(x @ W_rz, "scale_xh", 0) + b_rz)
    r, z = np.split(rz, 2, -1)
    of_x = ln(x @ W_n, "scale_xh", 1) + b_n
    if reset == "before":
        n = np.tanh(ln((r * h) @ U_n, "scale_hh", 1) + of_x)
    else:
        n = np.tanh(of_x + r * (ln(h @ U_n, "scale_hh", 1) + b_hh))
    h = (1 - z) * h + z * n
    return h, h, dict(r=r, z=z, n=n, h=h)


CELLS = {
    "lstm, ba2016": (jr.lstm(I, H, layer_norm="ba2016"), lstm, "ba2016"),
    "lstm, ba2016, heads, projected": (
        jr.lstm(I, H, layer_norm="ba2016", heads=2, projection_size=4, learned_carry=True),
        lstm,
        "ba2016",
    ),
    "lstm, per_gate": (jr.lstm(I, H, layer_norm="per_gate"), lstm, "per_gate"),
    "lstm, per_gate, heads, no biases": (jr.lstm(I, H, layer_norm="per_gate", heads=3, bias=False), lstm, "per_gate"),
    "lstm, heads": (jr.lstm(I, H, heads=3), lstm, None),
    "gru, before": (jr.gru(I, H, layer_norm="ba2016", learned_carry=True), gru, ("before", True)),
    "gru, after, heads": (jr.gru(I, H, layer_norm="ba2016", reset="after", heads=2), gru, ("after", True)),
    "gru, no biases": (jr.gru(I, H, layer_norm="ba2016", heads=3, bias=False), gru, ("before", True)),
    "gru, heads, before": (jr.gru(I, H, heads=2), gru, ("before", False)),
    "gru, heads, after": (jr.gru(I, H, heads=6, reset="after"), gru, ("after", False)),
}


@pytest.mark.parametrize("name", CELLS)
def test_steps_are_the_equations(name, x64):
    """Gates, carry and outputs of a few steps, from a random carry."""
    cell, equations, form = CELLS[name]
    params = randomised(jax.eval_shape(cell.init, KEY), 1)
    carry = randomised(jax.eval_shape(lambda p: cell.initial_carry(p, (B,)), params), 2)
    xs = draw((T, B, I), 3)
    (end, ys), gates = jax.jit(lambda *args: (jr.scan(cell).apply(*args), jr.trace_gates(cell, *args)))(
        params, xs, carry
    )
    p, carry = (jax.tree.map(np.asarray, tree) for tree in (params, carry))
    for t, x in enumerate(np.asarray(xs)):
        carry, y, want = equations(form, p, carry, x)
        np.testing.assert_allclose(ys[t], y, **TOLERANCE)
        for gate, value in want.items():
            np.testing.assert_allclose(getattr(gates, gate)[t], value, **TOLERANCE)
    for got, want in zip(jax.tree.leaves(end), jax.tree.leaves(carry), strict=True):
        np.testing.assert_allclose(got, want, **TOLERANCE)


def test_without_the_options_a_tree_is_as_it_was():
    for cell, record in ((jr.lstm(I, H, layer_norm=None, heads=1), "LSTM"), (jr.gru(I, H, heads=1), "GRU")):
        params = jax.eval_shape(cell.init, KEY)
        assert type(params) is getattr(jr.cells, f"{record}Params") and params.W_hh.ndim == 2
        assert cell == jr.build({"kind": record.lower(), "options": {"input_size": I, "hidden_size": H}})


def test_each_head_and_gate_starts_orthogonal():
    for cell, gates in ((jr.lstm(I, 12, heads=3, projection_size=6), 4), (jr.gru(I, 8, heads=2), 3)):
        W = np.asarray(cell.init(KEY).W_hh)
        for block in np.concatenate(np.split(W, gates, -1)):
            rows = min(block.shape)
            gram = block @ block.T if rows == len(block) else block.T @ block
            np.testing.assert_allclose(gram, np.eye(rows), atol=1e-6)  # float32, of a few columns
        assert len({block.tobytes() for block in W}) == len(W)  # drawn by itself


@pytest.mark.parametrize("form", ["ba2016", "per_gate"])
def test_normalisation_starts_as_the_paper_says(form):
    """Factors of 1, shifts of 0, the forget bias where it was, the weights of the cell without it."""
    params, plain = jr.lstm(I, H, layer_norm=form).init(KEY), jr.lstm(I, H).init(KEY)
    for name in ("W_xh", "W_hh", "b"):
        np.testing.assert_array_equal(getattr(params, name), getattr(plain, name))
    scales = [params.scale_xh, params.scale_hh] if form == "ba2016" else [params.scale]
    assert all((scale == jnp.ones(4 * H)).all() for scale in scales)
    assert (params.scale is None) == (form == "ba2016") == (params.scale_xh is not None)
    assert (params.scale_c == jnp.ones(H)).all() and not params.shift_c.any()
    assert jr.lstm(I, H, layer_norm=form, bias=False).init(KEY).shift_c is None
    of_gru = jr.gru(I, H, layer_norm="ba2016", reset="after").init(KEY)
    assert (of_gru.scale_xh == jnp.ones(3 * H)).all() and (of_gru.scale_hh == jnp.ones(3 * H)).all()
    assert not of_gru.b_hh.any()


@pytest.mark.parametrize("name", ["lstm, ba2016, heads, projected", "lstm, per_gate", "gru, after, heads"])
def test_files_hold_them(name, tmp_path):
    cell = CELLS[name][0]
    params = randomised(jax.eval_shape(cell.init, KEY), 1)
    jr.save(tmp_path / "model.safetensors", cell, params)
    again, loaded, _ = jr.load(tmp_path / "model.safetensors")
    assert again == cell and type(loaded) is type(params)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_scaled_weights_do_not_change_what_is_normalised():
    """Of products that are far from constant: LN does not see a factor of W, up to its epsilon."""
    x, h = 10 * draw((B, I), 3), 10 * draw((B, H), 4)
    cells = {"ba2016": jr.lstm(I, H, layer_norm="ba2016"), "gru": jr.gru(I, H, layer_norm="ba2016", reset="after")}
    for cell in cells.values():
        params = randomised(jax.eval_shape(cell.init, KEY), 1)
        carry = h if cell.spec.kind == "gru" else jr.LSTMCarry(h, h)
        step = jax.jit(
            lambda W_hh, cell=cell, params=params, carry=carry: cell.step(params._replace(W_hh=W_hh), carry, x)[1]
        )
        np.testing.assert_allclose(step(7 * params.W_hh), step(params.W_hh), atol=1e-4)


def test_what_the_options_cannot_mean_is_refused():
    with pytest.raises(
        ValueError, match=r"lstm: layer_norm must be one of 'ba2016', 'per_gate', got 'ba2017'; did you"
    ):
        jr.lstm(I, H, layer_norm="ba2017")
    with pytest.raises(ValueError, match=r"gru: layer_norm must be one of 'ba2016', got 'per_gate'"):
        jr.gru(I, H, layer_norm="per_gate")
    for make, message in (
        (
            lambda: jr.lstm(I, H, heads=4),
            "lstm: heads must divide hidden_size=6, got 4; 1 is one head of all u",
        ),
        (lambda: jr.lstm(I, H, heads=3, projection_size=4), "lstm: heads must divide projection_size=4, got 3"),
        (lambda: jr.gru(I, H, heads=12), "gru: heads must divide hidden_size=6, got 12"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    params = jr.lstm(I, H).init(KEY)
    with pytest.raises(ValueError, match=r"lstm: params should be LayerNormLSTMParams\(.*got LSTMParams"):
        jr.lstm(I, H, layer_norm="ba2016").initial_carry(params)
