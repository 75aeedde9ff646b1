"""More cells against their papers' equations, in NumPy and float64; what their options do, and how they start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

import jaxrnn as jr
from tests.cases import draw, randomised

# Both sides compute in float64 and sum under 100 products, over three steps.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
T, B, I, H = 3, 2, 3, 4
KEY = jax.random.key(0)

# ---- the equations: (params, carry, x) -> (carry, gates), the output the first of the carry -------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def blocks(a, gates):
    """The blocks of an array that is fused in this order."""
    return dict(zip(gates, np.split(a, len(gates), axis=-1), strict=True))


def correlated(x, W):
    """(B, *S, I) by (*K, I, O), one channel by another: zeros around the field, one more behind it for even kernels."""
    *K, channels, outputs = W.shape
    around = [((k - 1) // 2, k // 2) for k in K]
    y = np.zeros((*x.shape[:-1], outputs))
    for b, i, o in np.ndindex(len(x), channels, outputs):
        y[b, ..., o] += signal.correlate(np.pad(x[b, ..., i], around), W[..., i, o], "valid", "direct")
    return y


def conv_gru(reset):
    def equations(p, h, x):
        W, U = blocks(p.W_xh, "rzn"), blocks(p.W_hh, "rzn")
        b = dict.fromkeys("rzn", 0) if p.b is None else blocks(p.b, "rzn")
        r, z = (sigmoid(correlated(h, U[gate]) + correlated(x, W[gate]) + b[gate]) for gate in "rz")
        if reset == "before":
            n = np.tanh(correlated(r * h, U["n"]) + correlated(x, W["n"]) + b["n"])
        else:
            n = np.tanh(correlated(x, W["n"]) + b["n"] + r * (correlated(h, U["n"]) + p.b_hh))
        h = (1 - z) * h + z * n
        return h, {"r": r, "z": z, "n": n, "h": h}

    return equations


def antisymmetric_rnn(ε, γ):
    def equations(p, h, x):
        W = p.W_hh.T  # of columns, as the paper has them
        Ah = ((W - W.T - γ * np.eye(H)) @ h.T).T
        if p.W_xh.shape == (I, H):
            h = h + ε * np.tanh(Ah + x @ p.W_xh + p.b)
            return h, {}
        V, b = blocks(p.W_xh, "zn"), blocks(p.b, "zn")
        z, n = sigmoid(Ah + x @ V["z"] + b["z"]), np.tanh(Ah + x @ V["n"] + b["n"])
        h = h + ε * z * n
        return h, {"z": z, "n": n, "h": h}

    return equations


def lem(Δt):
    """In the letters of the paper: y for h, u for x, dt and dt_bar with W_1 and W_2."""

    def equations(p, carry, u):
        y, z = carry
        (V_1, V_2, V_z, V_y), (W_1, W_2, W_z, W_y) = (np.split(a, 4, axis=-1) for a in (p.W_xh, p.W_hh))
        b_1, b_2, b_z, b_y = np.zeros((4, H)) if p.b is None else np.split(p.b, 4)
        dt = Δt * (1 + np.tanh((y @ W_1 + u @ V_1 + b_1) / 2)) / 2
        dt_bar = Δt * (1 + np.tanh((y @ W_2 + u @ V_2 + b_2) / 2)) / 2
        n_z = np.tanh(y @ W_z + u @ V_z + b_z)
        z = (1 - dt) * z + dt * n_z
        n_y = np.tanh(z @ W_y + u @ V_y + b_y)
        y = (1 - dt_bar) * y + dt_bar * n_y
        return jr.cells.LEMCarry(y, z), {"dt": dt, "dt_bar": dt_bar, "n_z": n_z, "n_h": n_y, "z": z, "h": y}

    return equations


def indrnn(act, bound):
    def equations(p, h, x):
        u = np.clip(p.u, -bound, bound)
        h = act(np.stack([u[k] * h[:, k] for k in range(H)], axis=-1) + x @ p.W_xh + p.b)
        return h, {}

    return equations


def ugrnn(act=np.tanh):
    def equations(p, h, x):
        W, U = blocks(p.W_xh, "gn"), blocks(p.W_hh, "gn")
        b = dict.fromkeys("gn", 0) if p.b is None else blocks(p.b, "gn")
        g, n = sigmoid(h @ U["g"] + x @ W["g"] + b["g"]), act(h @ U["n"] + x @ W["n"] + b["n"])
        h = g * h + (1 - g) * n
        return h, {"g": g, "n": n, "h": h}

    return equations


def relu(a):
    return np.maximum(a, 0)


CELLS = {
    "conv_gru, 1d": (jr.conv_gru(I, H, spatial_shape=5), conv_gru("before")),
    "conv_gru, 2d": (jr.conv_gru(I, 2, spatial_shape=(4, 3), kernel_size=(3, 2), reset="after"), conv_gru("after")),
    "conv_gru, 3d": (jr.conv_gru(2, 2, spatial_shape=(2, 3, 2), kernel_size=2, bias=False), conv_gru("before")),
    "antisymmetric_rnn": (jr.antisymmetric_rnn(I, H, epsilon=0.5, gamma=0.3), antisymmetric_rnn(0.5, 0.3)),
    "antisymmetric_rnn, gated": (jr.antisymmetric_rnn(I, H, gated=True), antisymmetric_rnn(0.01, 0.01)),
    "lem": (jr.lem(I, H, dt=0.4), lem(0.4)),
    "lem without biases": (jr.lem(I, H, bias=False), lem(1)),
    "indrnn": (jr.indrnn(I, H), indrnn(relu, np.inf)),
    "indrnn, tanh and bound": (jr.indrnn(I, H, activation="tanh", recurrent_max=0.5), indrnn(np.tanh, 0.5)),
    "ugrnn": (jr.ugrnn(I, H), ugrnn()),
    "ugrnn, relu": (jr.ugrnn(I, H, activation="relu", bias=False), ugrnn(relu)),
}


@pytest.mark.parametrize("name", CELLS)
def test_steps_are_the_equations(name, x64):
    cell, equations = CELLS[name]
    params = randomised(jax.eval_shape(cell.init, KEY), 1)
    carry = randomised(jax.eval_shape(lambda p: cell.initial_carry(p, (B,)), params), 2)
    space = np.atleast_1d(dict(cell.spec.options).get("spatial_shape", ()))
    step = jax.jit(lambda *args: (*cell.step(*args), cell.gates(*args) if cell.gates else None))
    want = jax.tree.map(np.asarray, carry)
    for x in draw((T, B, *map(int, space), cell.input_size), 3):
        carry, y, gates = step(params, carry, x)
        want, want_gates = equations(jax.tree.map(np.asarray, params), want, np.asarray(x))
        assert jax.tree.structure(carry) == jax.tree.structure(want)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), carry, want)
        np.testing.assert_allclose(y, jax.tree.leaves(want)[0], **TOLERANCE)
        assert (gates._asdict() if gates else {}).keys() == want_gates.keys()
        for gate, value in want_gates.items():
            np.testing.assert_allclose(getattr(gates, gate), value, **TOLERANCE)


# ---- what options do ------------------------------------------------------------------------------


def test_the_recurrent_matrix_is_antisymmetric():
    """About the origin a step multiplies by I + ε A, and the eigenvalues of A are imaginary, less γ."""
    ε, γ = 0.2, 0.3
    cell = jr.antisymmetric_rnn(I, H, epsilon=ε, gamma=γ, bias=False)
    params = randomised(cell.init(KEY))
    jacobian = jax.jacobian(lambda h: cell.step(params, h, jnp.zeros(I))[0])(jnp.zeros(H))
    eigenvalues = (np.linalg.eigvals(jacobian) - 1) / ε
    np.testing.assert_allclose(eigenvalues.real, -γ, rtol=1e-5)  # float32
    assert np.abs(eigenvalues.imag).max() > 0.5


BOUND = 2 ** (1 / 100)  # for 100 steps


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_gradients_of_bounded_recurrent_weights(param_dtype):
    """Those of an unbounded cell up to the bound and at it, where ``jnp.clip`` puts a weight; 0 beyond."""
    free, held = (jr.indrnn(1, 6, recurrent_max=bound, param_dtype=param_dtype) for bound in (None, BOUND))
    u = jnp.array([0.3, -0.9, BOUND, -BOUND, 1.5, -1.5], param_dtype)
    h, x = jnp.arange(1.0, 7), jnp.full(1, 99, param_dtype)  # far from where relu bends

    def by_u(cell, u):
        params = cell.init(KEY)._replace(W_xh=jnp.ones((1, 6), param_dtype), u=u)
        (value, slope) = jax.jvp(lambda u: cell.step(params._replace(u=u), h, x)[0], (u,), (jnp.ones_like(u),))
        return np.asarray(value), np.asarray(slope)

    clipped = jnp.clip(u, -BOUND, BOUND)
    value, slope = by_u(held, u)
    np.testing.assert_array_equal(value, by_u(free, clipped)[0])
    np.testing.assert_array_equal(slope[:4], h[:4])
    np.testing.assert_array_equal(slope[4:], 0)
    np.testing.assert_array_equal(by_u(held, clipped)[1], h)  # clipped after an update, all can come back


# ---- how they start -------------------------------------------------------------------------------


def spread(values, low, high):
    """Uniform from low to high: of 64 numbers some lie in the first and in the last tenth, in all but 1 of 400 keys."""
    values, tenth = np.asarray(values, np.float64), (high - low) / 10
    assert low <= values.min() < low + tenth and high - tenth < values.max() <= high


def test_initial_recurrent_weights_of_indrnn():
    spread(jr.indrnn(2, 64).init(KEY).u, 0, 1)
    spread(jr.indrnn(2, 64, recurrent_max=BOUND, initial_min=1 / BOUND).init(KEY).u, 1 / BOUND, BOUND)
    spread(jr.indrnn(2, 64, initial_min=-1.0).init(KEY).u, -1, 1)


def test_initial_weights_of_lem():
    for leaf in jr.lem(3, 64).init(KEY)[:3]:
        spread(leaf, -1 / 8, 1 / 8)


def test_initial_weights_of_antisymmetric_rnn():
    """The standard error of 256 draws is 4.4 %, of 4096 1.1 %: four of each."""
    W_xh, W_hh, b, h0 = jr.antisymmetric_rnn(4, 64, learned_carry=True).init(KEY)
    np.testing.assert_allclose(np.std(W_xh), 4**-0.5, rtol=0.18)
    np.testing.assert_allclose(np.std(W_hh), 64**-0.5, rtol=0.05)
    assert not np.any(b) and not np.any(h0) and b.shape == h0.shape == (64,)


def test_the_gate_of_ugrnn_keeps_at_first():
    at_first = {None: 1, 0.0: 0, 2.5: 2.5}
    for given, forget in at_first.items():
        b = jr.ugrnn(2, 3, forget_bias=given).init(KEY).b
        np.testing.assert_array_equal(b, [*[forget] * 3, 0, 0, 0])
    b = jr.ugrnn(2, 64, T_max=50).init(KEY).b
    spread(np.exp(b[:64]), 1 - 1e-6, 49 * (1 + 1e-6))  # log and exp in float32
    assert not np.any(b[64:])
