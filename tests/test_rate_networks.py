"""``jr.ctrnn`` and ``jr.echo_state``: their equations in NumPy, noise, Dale's law, connections, spectral radii."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

import jaxrnn as jr
from jaxrnn.cells.connectivity import log_spectral_radius
from tests.cases import draw, randomised

# Both sides compute in float64 and sum under 10 products.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
T, B, I, H = 6, 2, 3, 5
KEY = jax.random.key(0)
TAU = (0.5, 1.0, 2.0, 4.0, 8.0)
MASK = np.random.default_rng(0).random((H, H)) < 0.6

# ---- the equations: (options, params, carry, x, noise) -> (carry, y) ---------------------------------


def shares(method, tau, dt, sigma):
    """How much of the new a step takes, and the standard deviation of a current's jump."""
    tau = np.asarray(tau)
    if method == "euler":
        return dt / tau, sigma * np.sqrt(2 * dt / tau)
    return 1 - np.exp(-dt / tau), sigma * np.sqrt(1 - np.exp(-2 * dt / tau))


def ctrnn(p, carry, x, ξ=0.0, *, form, method, tau, dt, f, noise=0.0, excitatory=None, positive=False, mask=1):
    α, s = shares(method, tau, dt, noise)
    W = p.W_hh
    if excitatory is not None:
        W = abs(W)
        W[excitatory:] *= -1
    W, U = W * mask, abs(p.W_xh) if positive else p.W_xh
    if form == "rate":
        r = carry + α * (-carry + f(carry @ W + x @ U + p.b + s / α * ξ))
        return r, r
    new = carry + α * (-carry + f(carry) @ W + x @ U + p.b) + s * ξ
    return new, f(new)


def echo_state(p, h, x, ξ=0.0, *, leak):
    h = (1 - leak) * h + leak * np.tanh(h @ p.W_hh + x @ p.W_xh + p.b)
    return h, h


def relu(a):
    return np.maximum(a, 0)


def softplus(a):
    return np.log1p(np.exp(a))


def rates(form, method, tau, f, **more):
    """A cell and its equations, by the options that both have; ``more`` are (the cell's, the equations')."""
    ours = {name: value[0] for name, value in more.items()}
    theirs = {name: value for of_each in more.values() for name, value in of_each[1].items()}
    cell = jr.ctrnn(I, H, form=form, method=method, tau=tau, dt=0.4, activation=f.__name__, **ours)
    return cell, functools.partial(ctrnn, form=form, method=method, tau=tau, dt=0.4, f=f, **theirs)


NOISE = {"noise": (0.3, {"noise": 0.3})}
WIRED = {
    "dale": (0.6, {"excitatory": 3}),
    "excitatory_input": (True, {"positive": True}),
    "connections": (MASK, {"mask": MASK}),
    "self_connections": (False, {"mask": MASK & ~np.eye(H, dtype=bool)}),
}
CELLS = {
    "rate": rates("rate", "euler", 1.5, relu, **NOISE),
    "rate, exponential": rates("rate", "exponential", TAU, softplus, **NOISE),
    "current": rates("current", "euler", TAU, relu, **NOISE),
    "current, exponential": rates("current", "exponential", 0.3, softplus, **NOISE),
    "rate, wired": rates("rate", "euler", TAU, softplus, **WIRED),
    "current, wired": rates("current", "exponential", TAU, relu, **WIRED, **NOISE),
    "echo_state": (jr.echo_state(I, H, leak=0.7), functools.partial(echo_state, leak=0.7)),
}


def problem(cell, batch_shape):
    params = jax.tree.map(np.asarray, randomised(jax.eval_shape(cell.init, KEY), 1))
    return params, *(np.asarray(draw((*batch_shape, n), seed)) for seed, n in ((2, H), (3, I)))


@pytest.mark.parametrize("batch_shape", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_step_is_the_equations(name, batch_shape, x64):
    cell, equations = CELLS[name]
    params, carry, x = problem(cell, batch_shape)
    ξ = np.asarray(draw((*batch_shape, H), 4))
    for noise in ((), (ξ,)) if cell.noise else ((),):
        got, want = cell.step(params, carry, x, *noise), equations(params, carry, x, *noise)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, **TOLERANCE)


def test_no_two_forms_agree(x64):
    """Nor two methods; at Δt ≪ τ the methods do, and at no Δt the forms."""
    outputs = {}
    for form in ("rate", "current"):
        for method in ("euler", "exponential"):
            for dt in (0.5, 1e-5):
                cell = jr.ctrnn(I, H, form=form, method=method, tau=1.0, dt=dt, activation="tanh")
                params, carry, x = problem(cell, ())
                outputs[form, method, dt] = np.asarray(cell.step(params, carry, x)[0] - carry) / dt
    apart = lambda a, b: np.abs(outputs[a] - outputs[b]).max()
    assert apart(("rate", "euler", 0.5), ("rate", "exponential", 0.5)) > 0.1
    assert apart(("rate", "euler", 1e-5), ("rate", "exponential", 1e-5)) < 1e-4
    assert apart(("rate", "euler", 1e-5), ("current", "euler", 1e-5)) > 0.1


@pytest.mark.parametrize("form", ["rate", "current"])
def test_small_steps_follow_the_differential_equation(form, x64):
    """SciPy's solution of τ dr/dt = …, under an input that stands still: errors fall with Δt, as Euler's do."""
    end, errors = 2.0, []
    for method, dt in (("euler", 0.02), ("euler", 0.01), ("exponential", 0.01)):
        cell = jr.ctrnn(I, H, form=form, method=method, tau=TAU, dt=dt, activation="tanh")
        p, start, u = problem(cell, ())

        def slope(t, state, p=p, u=u):
            if form == "rate":
                return (-state + np.tanh(state @ p.W_hh + u @ p.W_xh + p.b)) / TAU
            return (-state + np.tanh(state) @ p.W_hh + u @ p.W_xh + p.b) / TAU

        want = integrate.solve_ivp(slope, (0, end), start, rtol=1e-10, atol=1e-12).y[:, -1]
        got = jr.scan(cell).apply(p, np.broadcast_to(u, (round(end / dt), I)), jnp.asarray(start))[0]
        errors.append(np.abs(got - want).max())
    assert errors[0] < 0.02 and errors[1] < 0.6 * errors[0] and errors[2] < errors[1]


# ---- noise ------------------------------------------------------------------------------------------


def test_noise_goes_by_absolute_time_and_is_none_without_a_key(x64):
    cell, equations = CELLS["current, wired"]
    layer, (params, carry, _), xs = jr.scan(cell), problem(cell, (B,)), draw((T, B, I), 5)
    run = jax.jit(layer.apply)
    _, ys = run(params, xs, carry, key=KEY)
    drawn = cell.noise(params, KEY, jnp.arange(T), jax.ShapeDtypeStruct((B, I), "float64"))
    assert drawn.shape == (T, B, H) and drawn.dtype == jnp.float64
    state = carry
    for x, ξ, y in zip(np.asarray(xs), np.asarray(drawn), ys, strict=True):
        state, want = equations(params, state, x, ξ)
        np.testing.assert_allclose(y, want, rtol=1e-11, atol=1e-11)
    half, first = run(params, xs[:4], carry, key=KEY)
    _, second = run(params, xs[4:], half, key=KEY, start=4)
    np.testing.assert_allclose(jnp.concatenate([first, second]), ys, **TOLERANCE)
    still = run(params, xs, carry)[1]
    np.testing.assert_array_equal(still, run(params, xs, carry)[1])
    assert np.abs(still - ys).max() > 0.1
    assert jr.ctrnn(I, H).noise is None


@pytest.mark.parametrize("way", ["rate, exponential", "current, exponential", "current, euler"])
def test_sigma_is_the_standard_deviation_of_a_unit_alone(way, x64):
    """An Ornstein-Uhlenbeck process; what a step keeps of it is its autocorrelation. 2,000 runs, each at its end."""
    form, method = way.split(", ")
    tau = np.array([2.0, 10.0])
    cell = jr.ctrnn(1, 2, form=form, method=method, tau=tau, dt=2.0, noise=0.3, activation="identity")
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, "float64"), jax.eval_shape(cell.init, KEY))
    ys = jr.scan(cell).apply(params, jnp.zeros((40, 2000, 1)), key=KEY)[1]
    keeps = 1 - shares(method, tau, 2.0, 0.3)[0]
    # Euler's steps overshoot: σ² / (1 - α/2).
    variance = 0.09 if method == "exponential" else 0.09 / (1 - (1 - keeps) / 2)
    # A variance from 2,000 draws is good to √(2 / 2000) = 3 %, a correlation to 2 %; four of those.
    np.testing.assert_allclose(ys[-1].var(0), variance, rtol=0.13)
    correlation = [np.corrcoef(ys[-2, :, unit], ys[-1, :, unit])[0, 1] for unit in range(2)]
    np.testing.assert_allclose(correlation, keeps, atol=0.09)
    assert abs(np.corrcoef(ys[-1].T)[0, 1]) < 0.09  # each unit has noise of its own


# ---- signs and connections ----------------------------------------------------------------------------

WIRED_CELL = jr.ctrnn(
    I, 10, tau=2.0, dt=1.0, dale=0.8, excitatory_input=True, density=0.4, seed=3, self_connections=False
)


def test_training_breaks_neither_signs_nor_connections():
    """Under AdamW with a decay, and noise on every parameter besides: the zeros are not the optimiser's to keep."""
    layer, ys = jr.scan(WIRED_CELL), draw((4, 2, 10), 6)
    params, optimizer = layer.init(KEY), optax.adamw(0.3, weight_decay=0.1)
    start = jr.cells.effective_weights(WIRED_CELL, params)
    connected = np.asarray(start.W_hh) != 0
    np.testing.assert_array_equal(connected.sum(0), 4)
    assert not connected.diagonal().any()

    @jax.jit
    def train(params, state, key):
        by = jax.grad(lambda p: jnp.square(layer.apply(p, ones)[1] - ys).sum())(params)
        updates, state = optimizer.update(by, state, params)
        noisy = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(key, a.shape), optax.apply_updates(params, updates))
        return noisy, state, by

    ones, state = jnp.ones((4, 2, I)), optimizer.init(params)
    for n in range(5):
        params, state, by = train(params, state, jax.random.key(n))
        np.testing.assert_array_equal(np.asarray(by.W_hh)[~connected], 0)
        assert (np.asarray(by.W_hh)[connected] != 0).any()
    W_xh, W_hh, *_ = jr.cells.effective_weights(WIRED_CELL, params)
    np.testing.assert_array_equal(W_hh != 0, connected)
    assert (W_hh[:8] >= 0).all() and (W_hh[8:] <= 0).all() and (W_xh >= 0).all()
    assert (np.sign(params.W_hh) != np.sign(W_hh)).any()  # what training did to the parameters


def test_effective_weights_are_parameters_of_the_same_network():
    params = randomised(WIRED_CELL.init(KEY))
    effective = jr.cells.effective_weights(WIRED_CELL, params)
    assert np.abs(effective.W_hh - params.W_hh).max() > 0.1
    h, x = jnp.ones(10), jnp.ones(I)
    np.testing.assert_array_equal(WIRED_CELL.step(params, h, x)[0], WIRED_CELL.step(effective, h, x)[0])
    plain = jr.ctrnn(I, 10, tau=2.0, dt=1.0)
    np.testing.assert_allclose(plain.step(effective, h, x)[0], WIRED_CELL.step(params, h, x)[0], rtol=1e-6)


OTHERS = {"gru": jr.gru(I, H), "layer": jr.scan(WIRED_CELL), "wrapped": jr.leaky(WIRED_CELL, rate=0.5), "none": None}


@pytest.mark.parametrize("cell", OTHERS.values(), ids=OTHERS)
def test_effective_weights_are_those_of_a_ctrnn(cell):
    with pytest.raises(TypeError, match=r"effective_weights: expected cell to be a ctrnn, got \w+.*; give the cell"):
        jr.cells.effective_weights(cell, WIRED_CELL.init(KEY))


def test_connections_are_in_the_file(tmp_path):
    """Those of a seed and those given, as the spec says; the same for every key, and in every version."""
    given = jr.ctrnn(I, H, connections=MASK, param_dtype="bfloat16")
    for name, cell in (("seed", WIRED_CELL), ("given", given)):
        params = cell.init(KEY)
        jr.save(tmp_path / f"{name}.safetensors", cell, params)
        again, loaded, _ = jr.load(tmp_path / f"{name}.safetensors")
        assert again == cell and jr.build(cell.spec.to_dict()) == cell
        W, *others = (
            jr.cells.effective_weights(c, randomised(p)).W_hh != 0
            for c, p in ((cell, params), (again, loaded), (cell, cell.init(jax.random.key(1))))
        )
        assert all((other == W).all() for other in others)
    np.testing.assert_array_equal(W, MASK)
    drawn = jr.ctrnn(1, 4, density=0.5).init(KEY).W_hh != 0
    assert drawn.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]]
    assert (drawn != (jr.ctrnn(1, 4, density=0.5, seed=1).init(KEY).W_hh != 0)).any()


def test_inhibition_balances_excitation_at_first(x64):
    W = np.asarray(jr.ctrnn(1, 50, dale=0.8, spectral_radius=1.5, param_dtype="float64").init(KEY).W_hh)
    assert (W[:40] > 0).all() and (W[40:] < 0).all()
    np.testing.assert_allclose(W.sum(0), 0, atol=1e-12)
    # 18 squarings: log κ / 2^18.
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(W)).max(), 1.5, rtol=1e-4)
    # A unit that hears excitation alone keeps it.
    heard = np.ones((5, 5), bool)
    heard[4, 0] = False
    W = np.asarray(jr.ctrnn(1, 5, dale=0.8, connections=heard, param_dtype="float64").init(KEY).W_hh)
    assert W[:, 0].sum() > 0.1 and np.abs(W[:, 1:].sum(0)).max() < 1e-12


@pytest.mark.parametrize(
    ("W", "radius"),
    [
        (np.diag([0.5, -2.0, 1.0]), 2.0),
        ([[0.0, 3.0], [-3.0, 0.0]], 3.0),  # ±3i
        (np.eye(6, k=1), 0.0),
        (np.eye(3) + np.eye(3, k=1), 1.0),  # one eigenvector alone
        (np.random.default_rng(0).normal(size=(40, 40)), None),
        (1e-15 * np.random.default_rng(1).normal(size=(7, 7)), None),
    ],
    ids=["diagonal", "rotation", "nilpotent", "defective", "random", "small"],
)
def test_the_spectral_radius_is_that_of_the_eigenvalues(W, radius, x64):
    radius = np.abs(np.linalg.eigvals(W)).max() if radius is None else radius
    # ‖Wⁿ‖^(1/n) at n = 2^18; the defective one grows as n²: log(2^36) / 2^18 = 1e-4. The squarings are float32.
    for dtype in ("float64", "float32"):
        found = np.exp(log_spectral_radius(jnp.asarray(W, dtype)))
        np.testing.assert_allclose(found, radius, rtol=2e-4, atol=1e-20)
        assert found.dtype == dtype


# ---- the reservoir ------------------------------------------------------------------------------------


def test_a_reservoir_is_drawn_to_its_scales():
    cell = jr.echo_state(2, 200, spectral_radius=0.8, density=0.05, input_scaling=(0.1, 3), bias_scaling=0.5)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), cell.init(KEY))
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(p.W_hh)).max(), 0.8, rtol=2e-4)
    np.testing.assert_array_equal((p.W_hh != 0).sum(0), 10)
    assert (p.W_hh != cell.init(jax.random.key(1)).W_hh).any()
    for values, bound in ((p.W_xh[0], 0.1), (p.W_xh[1], 3), (p.b, 0.5)):
        # All of 200 uniform draws lie below 0.9 of their bound once in 10^9.
        assert np.abs(values).max() <= bound and values.max() > 0.9 * bound and values.min() < -0.9 * bound
    assert not jr.echo_state(2, 9).init(KEY).b.any()
    narrow = jr.echo_state(2, 9, density=1e-9, param_dtype="bfloat16").init(KEY)
    assert narrow.W_hh.dtype == jnp.bfloat16 and ((narrow.W_hh != 0).sum(0) == 1).all()
    orthogonal = np.asarray(jr.echo_state(1, 9, density=1.0, recurrent_init="orthogonal").init(KEY).W_hh)
    np.testing.assert_allclose(orthogonal @ orthogonal.T, 0.81 * np.eye(9), atol=1e-4)


def test_nothing_inside_a_reservoir_learns(x64):
    """Outputs, and gradients by inputs and carry, are those of one that does."""
    frozen, free = (jr.echo_state(I, H, leak=0.7, trainable=trainable) for trainable in (False, True))
    params, carry, _ = problem(free, (B,))
    xs = draw((T, B, I), 5)
    for make in (jr.scan, functools.partial(jr.parallel, method="newton")):

        def loss(params, xs, carry, layer):
            return (layer.apply(params, xs, carry)[1] ** 2).sum()

        (want, (by_free, *others)), (got, (by_frozen, *ours)) = (
            jax.value_and_grad(loss, (0, 1, 2))(params, xs, carry, make(cell)) for cell in (free, frozen)
        )
        assert all(not np.asarray(a).any() for a in by_frozen) and all(np.asarray(a).any() for a in by_free)
        for a, b in zip((got, *ours), (want, *others), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


# ---- bad input ----------------------------------------------------------------------------------------

BAD = {
    "euler": (
        lambda: jr.ctrnn(I, H, tau=(30.0, 10.0, 30.0, 30.0, 30.0)),
        "ctrnn: Euler steps need dt <= tau, got dt=",
    ),
    "tau": (lambda: jr.ctrnn(I, H, tau=(1.0, 2.0)), "ctrnn: tau must be a number or 5 of them, one for each, got an a"),
    "negative tau": (lambda: jr.ctrnn(I, H, tau=-1.0), "ctrnn: tau must be finite and above 0, got -1.0"),
    "traced tau": (lambda: jax.jit(lambda tau: jr.ctrnn(I, H, tau=tau).init(KEY))(1.0), "ctrnn: tau must be a number"),
    "noise": (lambda: jr.ctrnn(I, H, noise=-1.0), "ctrnn: noise must be 0 or above, got -1.0"),
    "all excite": (
        lambda: jr.ctrnn(I, H, dale=0.95),
        "ctrnn: dale must be the fraction of .* which makes 5 of 5",
    ),
    "all inhibit": (lambda: jr.ctrnn(I, H, dale=0.0), "ctrnn: dale must be the fraction .* at least one of each sign"),
    "density": (
        lambda: jr.ctrnn(I, H, density=1.5),
        "ctrnn: density must be above 0 and at most 1, got 1.5; 1",
    ),
    "both": (
        lambda: jr.ctrnn(I, H, density=0.5, connections=MASK),
        r"ctrnn: connections and density=0.5 both say who is connected; give one of them",
    ),
    "connections": (
        lambda: jr.ctrnn(I, H, connections=np.ones((H, H))),
        r"ctrnn: connections must be booleans \(5, 5\), from and to, got float64 .* use connections.astype\(bool\)",
    ),
    "radius": (
        lambda: jr.echo_state(I, H, spectral_radius=0.0),
        "echo_state: spectral_radius must be above 0, got",
    ),
    "leak": (lambda: jr.echo_state(I, H, leak=1.5), "echo_state: leak must be at most 1, got 1.5; 1 keeps nothing"),
    "scaling": (
        lambda: jr.echo_state(I, H, input_scaling=(1.0, -1.0, 1.0)),
        "echo_state: input_scaling must",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused(name):
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
