"""The linear cells: their papers' equations in NumPy, their spectra at first, and ``affine`` of any cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, stats

import jaxrnn as jr
from jaxrnn.cells import spectra
from tests.cases import WRAPPERS, draw, randomised

# Both sides compute in float64 and sum under 10 products, over a few steps.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
T, B, I, H = 6, 2, 3, 4
KEY = jax.random.key(0)

# ---- the equations: (params, carry, x) -> (carry, y, gates) ---------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lru(p, h, x):
    λ = np.exp(-np.exp(p.log_nu) + 1j * np.exp(p.log_theta))
    h = λ * h + np.exp(p.log_gamma) * (x @ (p.B_re + 1j * p.B_im))
    y = (h @ (p.C_re + 1j * p.C_im)).real
    return h, y if p.D is None else y + p.D * x, {}


def s5(discretization, intervals=False):
    def equations(p, h, x):
        Λ, Δ = p.Lambda_re + 1j * p.Lambda_im, np.exp(p.log_step)
        if intervals:
            x, Δ = x[..., :-1], Δ * x[..., -1:]
        if discretization == "zoh":
            a, b = np.exp(Λ * Δ), (np.exp(Λ * Δ) - 1) / Λ
        else:
            a, b = (1 + Δ / 2 * Λ) / (1 - Δ / 2 * Λ), Δ / (1 - Δ / 2 * Λ)
        h = a * h + b * (x @ (p.B_re + 1j * p.B_im))
        # The conjugates too, in place of twice the real part.
        states, C = np.concatenate([h, h.conj()], -1), np.concatenate([p.C_re + 1j * p.C_im, p.C_re - 1j * p.C_im])
        y = (states @ C).real
        return h, y if p.D is None else y + p.D * x, {}

    return equations


def g(a):
    return np.where(a >= 0, a + 0.5, sigmoid(a))


def min_gru(candidate):
    def equations(p, h, x):
        z, n = np.split(x @ p.W_xh + (0 if p.b is None else p.b), 2, -1)
        z, n = sigmoid(z), candidate(n)
        h = (1 - z) * h + z * n
        return h, h, dict(z=z, n=n, h=h)

    return equations


def min_lstm(p, h, x):
    f, i, n = np.split(x @ p.W_xh + p.b, 3, -1)
    f, i, n = sigmoid(f), sigmoid(i), g(n)
    f, i = f / (f + i), i / (f + i)
    h = f * h + i * n
    return h, h, dict(f=f, i=i, n=n, h=h)


def rg_lru(blocks):
    def equations(p, h, x):
        x = x if p.W_xh is None else x @ p.W_xh
        side = H // blocks
        full = {gate: np.zeros((H, H)) for gate in "ri"}
        for n, W in enumerate(p.W):
            at = slice(n * side, (n + 1) * side)
            full["r"][at, at], full["i"][at, at] = W[:, :side], W[:, side:]
        r, i = (sigmoid(x @ full[gate] + b) for gate, b in zip("ri", np.split(p.b, 2), strict=True))
        a = sigmoid(p.Lambda) ** (8 * r)
        h = a * h + np.sqrt(1 - a**2) * (i * x)
        return h, h, dict(r=r, i=i, a=a, h=h)

    return equations


def linear_rnn(p, h, x):
    if p.a_im is None:
        h = p.a * h + x @ p.W_xh + p.b
        return h, h, {}
    h = (p.a + 1j * p.a_im) * h + x @ (p.W_xh + 1j * p.W_im) + p.b
    return h, h.real, {}


def sru(p, c, x):
    n, f, r = np.split(x @ p.W_xh, 3, -1)
    f, r = sigmoid(f + p.b[:H]), sigmoid(r + p.b[H:])
    c = f * c + (1 - f) * n
    h = r * np.tanh(c) + (1 - r) * (x if p.W_s is None else x @ p.W_s)
    return c, h, dict(n=n, f=f, r=r, c=c, h=h)


def qrnn(order):
    def equations(p, c, x):
        a = dict(zip(order, np.split(x @ p.W_xh + (0 if p.b is None else p.b), len(order), -1), strict=True))
        n, f = np.tanh(a["n"]), sigmoid(a["f"])
        i, o = sigmoid(a["i"]) if "i" in a else 1 - f, sigmoid(a["o"]) if "o" in a else np.ones(f.shape)
        c = f * c + i * n
        return c, o * c, dict(n=n, f=f, i=i, o=o, c=c, h=o * c)

    return equations


CELLS = {
    "sru": (jr.sru(I, H), sru),
    "sru, square": (jr.sru(H, H, highway_bias=-1.0), sru),
    "qrnn, f": (jr.qrnn(I, H, pooling="f", bias=False), qrnn("nf")),
    "qrnn, fo": (jr.qrnn(I, H), qrnn("nfo")),
    "qrnn, ifo": (jr.qrnn(I, H, pooling="ifo"), qrnn("nfio")),
    "lru": (jr.lru(I, H, state_size=5), lru),
    "lru, square": (jr.lru(H, H), lru),
    "s5, zoh": (jr.s5(I, H, state_size=6), s5("zoh")),
    "s5, bilinear": (jr.s5(H, H, discretization="bilinear", blocks=2), s5("bilinear")),
    "s5, intervals": (jr.s5(I + 1, I, state_size=2, intervals=True), s5("zoh", intervals=True)),
    "min_gru": (jr.min_gru(I, H), min_gru(g)),
    "min_gru, linear": (jr.min_gru(I, H, candidate="linear", bias=False), min_gru(lambda a: a)),
    "min_lstm": (jr.min_lstm(I, H), min_lstm),
    "rg_lru": (jr.rg_lru(I, H, blocks=2), rg_lru(2)),
    "rg_lru, square": (jr.rg_lru(H, H), rg_lru(1)),
    "linear_rnn": (jr.linear_rnn(I, H), linear_rnn),
    "linear_rnn, complex": (jr.linear_rnn(I, H, diagonal="complex"), linear_rnn),
}


def problem(cell, batch_shape=(B,), steps=T):
    """Params, a carry and inputs, random; of zeros the tests would see little."""
    params = randomised(jax.eval_shape(cell.init, KEY), 1)
    carry = randomised(jax.eval_shape(lambda p: cell.initial_carry(p, batch_shape), params), 2)
    return params, carry, draw((steps, *batch_shape, cell.input_size), 3)


@pytest.mark.parametrize("name", CELLS)
def test_steps_are_the_equations(name, x64):
    cell, equations = CELLS[name]
    params, carry, xs = problem(cell)
    (end, ys), gates = jax.jit(
        lambda *args: (jr.scan(cell).apply(*args), jr.trace_gates(cell, *args) if cell.gates else None)
    )(params, xs, carry)
    h, rows = np.asarray(carry), []
    for x in np.asarray(xs):
        h, *row = equations(jax.tree.map(np.asarray, params), h, x)
        rows.append(row)
    np.testing.assert_allclose(end, h, **TOLERANCE)
    np.testing.assert_allclose(ys, np.stack([y for y, _ in rows]), **TOLERANCE)
    for gate in rows[0][1]:
        np.testing.assert_allclose(getattr(gates, gate), np.stack([made[gate] for _, made in rows]), **TOLERANCE)


# ---- affine ---------------------------------------------------------------------------------------


def tokens(size):
    """A user's: a carry of two leaves, one shared by no other sequence, the other complex; it reads tokens."""

    def affine(p, token):
        a = {"sum": p["decay"], "turn": jnp.exp(1j * p["angle"])}
        return a, {"sum": p["table"][token], "turn": p["table"][token] * (1 + 1j)}

    def output(p, carry, token):
        return carry["sum"] * carry["turn"].real

    def init(key):
        return {"decay": jnp.float64(0.9), "angle": jnp.ones(size, float), "table": jnp.ones((5, size), float)}

    return jr.Cell(init, affine=affine, output=output, x_ndim=0)


def in_parallel(cell, params, carry, xs):
    """The carries of all steps by ``jax.lax.associative_scan``, a user's way to use ``affine``."""
    a, b = jax.vmap(lambda x: cell.affine(params, x))(xs)
    spread = lambda a, b: jnp.broadcast_to(a.reshape(T, *(1,) * (b.ndim - a.ndim), *a.shape[1:]), b.shape)
    a = jax.tree.map(spread, a, b)

    def combine(first, then):
        (a1, b1), (a2, b2) = first, then
        return jax.tree.map(jnp.multiply, a1, a2), jax.tree.map(lambda a, b, c: a * b + c, a2, b1, b2)

    a, b = jax.lax.associative_scan(combine, (a, b))
    return jax.tree.map(lambda a, b, h: a * h + b, a, b, carry)


@pytest.mark.parametrize("name", [*CELLS, "tokens"])
def test_the_step_is_the_affine_recurrence(name, x64):
    """Every step's carry and output are those of the recurrence solved in parallel."""
    cell = tokens(H) if name == "tokens" else CELLS[name][0]
    if name == "tokens":
        params, xs = randomised(cell.init(KEY), 1), jnp.asarray(np.random.default_rng(0).integers(5, size=(T, B)))
        carry = randomised(cell.initial_carry(params, (B,)), 2)
    else:
        params, carry, xs = problem(cell)

    def both(params, carry, xs):
        by_step = jax.lax.scan(lambda h, x: (lambda h, y: (h, (h, y)))(*cell.step(params, h, x)), carry, xs)[1]
        carries = in_parallel(cell, params, carry, xs)
        return by_step, (carries, jax.vmap(lambda h, x: cell.output(params, h, x))(carries, xs))

    by_step, parallel = jax.jit(both)(params, carry, xs)
    assert jax.tree.structure(by_step) == jax.tree.structure(parallel)
    for a, b in zip(jax.tree.leaves(by_step), jax.tree.leaves(parallel), strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE)


def test_a_users_linear_cell_is_init_and_affine():
    """A moving average of the inputs; the carry starts at zeros, at least in float32, and is the output."""
    cell = jr.Cell(lambda key: jnp.asarray(0.5, "bfloat16"), affine=lambda a, x: (a, (1 - a) * x), input_size=2)
    params = cell.init(KEY)
    carry = cell.initial_carry(params, (3,))
    assert (carry.shape, carry.dtype) == ((3, 2), jnp.float32)
    resets = np.array([[False] * 3, [False] * 3, [True] * 3])
    end, ys = jr.scan(cell).apply(params, jnp.ones((3, 3, 2), "bfloat16"), resets=resets)
    np.testing.assert_array_equal(ys[:, 0, 0], [0.5, 0.75, 0.5])
    np.testing.assert_array_equal(end, ys[-1])
    again = jr.Cell(cell.init, affine=cell.affine, input_size=2)
    assert again == cell and hash(again) == hash(cell) and cell._replace() == cell
    assert jr.check_cell(cell, params, jnp.arange(12.0).reshape(3, 2, 2).astype("bfloat16")) is None


RESCALED = ("weight_norm", "spectral_norm", "masked_weights")  # weights alone, before affine reads them


@pytest.mark.parametrize("kind", [kind for kind in WRAPPERS if kind not in RESCALED])
def test_wrappers_of_a_linear_cell_are_linear_no_more(kind):
    """They change the step, so that ``affine`` would be that of another cell."""
    wrap, cell = WRAPPERS[kind][0], jr.min_gru(I, H)
    if kind == "zoneout":
        wrap = functools.partial(jr.zoneout, rate=0.1)
    assert cell.affine is not None and cell.output is not None
    assert wrap(cell).affine is None and wrap(cell).output is None


def test_residual_and_chain_are_linear_no_more():
    cell = jr.min_gru(H, H)
    assert jr.residual(cell).affine is None and jr.chain(cell).affine is None


def test_what_replaces_affine_makes_the_step_anew():
    cell = jr.Cell(lambda key: jnp.float32(0.5), affine=lambda a, x: (a, x), input_size=1)
    half, h, x = cell.init(KEY), jnp.ones(1), jnp.ones(1)
    faster = cell._replace(affine=lambda a, x: (a * a, x))
    assert (cell.step(half, h, x)[1], faster.step(half, h, x)[1]) == (1.5, 1.25)
    assert faster.initial_carry.affine is faster.affine
    doubled = faster._replace(output=lambda a, h, x: 2 * h)
    assert [a.item() for a in doubled.step(half, h, x)] == [1.25, 2.5]
    kept = doubled._replace(affine=None)  # what steps as before, and is not known to be linear
    assert kept.output is None and [a.item() for a in kept.step(half, h, x)] == [1.25, 2.5]
    other = doubled._replace(step=lambda a, h, x: (h, x))
    assert (other.affine, other.output) == (None, None) and other.step(half, h, 3 * x)[1] == 3
    assert doubled._replace(init=lambda key: jnp.float32(2.0)).affine is doubled.affine


# ---- spectra at first -----------------------------------------------------------------------------


def assert_spread(values, low, high):
    """Uniform from low to high: the Kolmogorov-Smirnov test at one seed in 10,000."""
    values = np.asarray(values, np.float64)
    assert low <= values.min() and values.max() <= high
    assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-4


def test_lru_starts_on_a_ring():
    p = jr.lru(1, 1, state_size=2000, r_min=0.6, r_max=0.9, max_phase=0.3).init(KEY)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    modulus = np.exp(-np.exp(p.log_nu))
    assert_spread(modulus**2, 0.36 - 1e-6, 0.81 + 1e-6)  # even over the area; logarithms of float32
    assert_spread(np.exp(p.log_theta), 0, 0.3)
    np.testing.assert_allclose(np.exp(p.log_gamma) ** 2 + modulus**2, 1, rtol=1e-6)
    for a in (p.B_re, p.B_im):
        assert stats.kstest(a.ravel() * np.sqrt(2), "norm").pvalue > 1e-4
    for a in (p.C_re, p.C_im):
        assert stats.kstest(a.ravel() * np.sqrt(2000), "norm").pvalue > 1e-4


def hippo_n(size):
    """HiPPO-LegS with its low-rank part added, which leaves it normal."""
    n = np.arange(size)
    legs = -np.sqrt(np.outer(2 * n + 1, 2 * n + 1)) * (n[:, None] > n) - np.diag(n + 1)
    return legs + np.sqrt(np.outer(n + 0.5, n + 0.5))


@pytest.mark.parametrize("blocks", [1, 2])
def test_s5_starts_from_hippo_n(blocks, x64):
    """The eigenvalues of each block; real matrices B and C, in its eigenbasis."""
    P, inputs, outputs = 24, 30, 40
    p = jr.s5(inputs, outputs, state_size=P, blocks=blocks, param_dtype="float64").init(KEY)
    np.testing.assert_allclose(p.Lambda_re, -0.5, **TOLERANCE)
    for found in np.split(np.asarray(p.Lambda_im), blocks):
        eigenvalues = np.linalg.eigvals(hippo_n(P // blocks))  # by the routine for any matrix
        np.testing.assert_allclose(np.sort(eigenvalues.imag), np.sort([*found, *-found]), rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(eigenvalues.real, -0.5, rtol=1e-11)
    V = np.kron(np.eye(blocks), spectra.hippo_n(P // blocks)[1])
    A, Λ = np.kron(np.eye(blocks), hippo_n(P // blocks)), p.Lambda_re + 1j * p.Lambda_im
    np.testing.assert_allclose(A @ V, V * Λ, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(V.conj().T @ V, np.eye(P // 2), atol=1e-12)
    real_B, real_C = 2 * (V @ (p.B_re + 1j * p.B_im).T).real, 2 * ((p.C_re + 1j * p.C_im).T @ V.conj().T).real
    for a, scale in ((real_B, inputs**-0.5), (real_C, P**-0.5)):
        assert stats.kstest(np.ravel(a) / scale, "norm").pvalue > 1e-4


def test_s5_starts_with_steps_of_all_sizes():
    p = jr.s5(1, 1, state_size=4000, blocks=1000, step_min=0.01, step_max=0.5).init(KEY)
    assert_spread(p.log_step, np.log(0.01) - 1e-6, np.log(0.5) + 1e-6)


def test_rg_lru_starts_slow():
    p = jr.rg_lru(1, 4000, blocks=20).init(KEY)
    assert_spread(sigmoid(np.asarray(p.Lambda, np.float64)) ** 8, 0.9 - 1e-5, 0.999 + 1e-5)  # Λ is float32
    assert p.W.shape == (20, 200, 400) and stats.kstest(np.ravel(p.W[0]) * np.sqrt(200), _truncated).pvalue > 1e-4


def _truncated(x):
    """The distribution of normal numbers within 2 standard deviations, of variance 1, as ``lecun_normal`` draws it."""
    scale = stats.truncnorm(-2, 2).std()
    return stats.truncnorm(-2, 2, scale=1 / scale).cdf(x)


@pytest.mark.parametrize("diagonal", ["real", "complex"])
def test_linear_rnn_starts_in_its_range(diagonal):
    low = -0.5 if diagonal == "real" else 0.5
    p = jr.linear_rnn(1, 2000, diagonal=diagonal, r_min=low, r_max=0.8).init(KEY)
    if diagonal == "real":
        assert_spread(p.a, -0.5, 0.8)
        return
    a = np.asarray(p.a) + 1j * np.asarray(p.a_im)
    assert_spread(abs(a) ** 2, 0.25 - 1e-6, 0.64 + 1e-6)
    assert_spread(np.angle(a), -np.pi - 1e-6, np.pi + 1e-6)


def test_an_rg_lru_whose_gate_is_shut_has_a_gradient():
    """r underflows: the state is kept whole, and so is its gradient."""
    cell = jr.rg_lru(H, H)
    params = cell.init(KEY)._replace(b=jnp.full(2 * H, -200.0))
    h, by_params, by_h = jax.jit(
        lambda p, h: (
            cell.step(p, h, jnp.ones(H))[0],
            *jax.grad(lambda p, h: cell.step(p, h, jnp.ones(H))[1].sum(), (0, 1))(p, h),
        )
    )(params, jnp.arange(4.0))
    np.testing.assert_array_equal(h, jnp.arange(4.0))
    np.testing.assert_array_equal(by_h, 1)
    assert all((np.asarray(a) == 0).all() for a in jax.tree.leaves(by_params))


# ---- S5 beside SciPy ------------------------------------------------------------------------------


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_s5_is_the_system_that_scipy_takes_in_steps(discretization, x64):
    """In real numbers: of each state its real and its imaginary part, time in units of the state's own step."""
    cell = jr.s5(I, I, state_size=4, discretization=discretization)
    params, carry, xs = problem(cell, ())
    p = jax.tree.map(np.asarray, params)
    Δ = np.exp(np.repeat(p.log_step, 2))[:, None]
    A = np.zeros((4, 4))
    for n, (re, im) in enumerate(zip(p.Lambda_re, p.Lambda_im, strict=True)):
        A[2 * n : 2 * n + 2, 2 * n : 2 * n + 2] = [[re, -im], [im, re]]
    parts = lambda re, im: np.stack([re, im], -1).reshape(len(re), 4)
    B, C = parts(p.B_re, p.B_im).T, 2 * parts(p.C_re.T, -p.C_im.T)
    Ad, Bd, *_ = signal.cont2discrete((Δ * A, Δ * B, C, np.diag(p.D)), 1.0, discretization)
    # SciPy puts out what it had before it read the input: the last step's state is read a step later.
    real = lambda h: parts(h.real[None], h.imag[None])[0]
    system, inputs = (Ad, Bd, C, np.zeros((I, I)), 1.0), np.concatenate([xs, np.zeros((1, I))])
    _, after, states = signal.dlsim(system, inputs, x0=real(np.asarray(carry)))
    end, ys = jr.scan(cell).apply(params, xs, carry)
    np.testing.assert_allclose(ys, after[1:] + xs * p.D, **TOLERANCE)
    np.testing.assert_allclose(real(np.asarray(end)), states[-1], **TOLERANCE)


# ---- complex carries, wherever they go -----------------------------------------------------------------


def test_a_complex_carry_in_a_file(x64, tmp_path):
    """What is saved is the parameters, all real, and how the cell is made."""
    cell = jr.lru(I, H, state_size=2, param_dtype="float64")
    params = randomised(cell.init(KEY))
    jr.save(tmp_path / "lru.safetensors", cell, params)
    again, loaded, _ = jr.load(tmp_path / "lru.safetensors")
    assert again == cell and again.affine is not None
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("params", "dtype", "carried"),
    [
        ("float32", None, "complex64"),
        ("bfloat16", None, "complex64"),
        ("float32", "bfloat16", "complex64"),
        ("float32", "float64", "complex128"),
        ("float64", "float32", "complex128"),
    ],
)
def test_a_complex_carry_is_as_wide_as_a_real_one(params, dtype, carried, x64):
    for make in (jr.lru, jr.s5, functools.partial(jr.linear_rnn, diagonal="complex")):
        cell = make(I, H, param_dtype=params, dtype=dtype)
        made = jax.eval_shape(cell.init, KEY)
        carry, y = jax.eval_shape(
            lambda p, cell=cell: cell.step(p, cell.initial_carry(p), jnp.ones(I, dtype or params)), made
        )
        assert (carry.dtype, y.dtype) == (carried, dtype or params)
        assert {a.dtype.name for a in jax.tree.leaves(made)} == {params}
