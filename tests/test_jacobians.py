"""Jacobians, singular values, Lyapunov exponents: against NumPy, analytic cases and published exponents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import CELLS, H, I, T, draw, randomised, x_shape
from tests.evaluating import evaluated
from tests.turns import named_in_turn
from tests.user_cells import autonomous, linear

FLOAT_CELLS = [name for name in CELLS if name not in ("user_clockwork", "every", "lru", "s5")]  # of floats


@pytest.mark.parametrize("name", named_in_turn(FLOAT_CELLS, 0))
def test_step_jacobian_is_that_of_the_step(name, x64):
    cell = CELLS[name]
    params = randomised(cell.init(jax.random.key(0)), 1)
    carry, x = randomised(cell.initial_carry(params, (2,)), 3), draw((2, *x_shape(cell)), 2)
    J = jr.gradients.step_jacobian(cell, params, carry, x)
    for b in range(2):
        one = jax.tree.map(lambda a, b=b: a[b], carry)
        leaves, treedef = jax.tree.flatten(one)

        def flat(h, leaves=leaves, treedef=treedef, b=b):
            parts = np.cumsum([a.size for a in leaves])[:-1]
            carry = treedef.unflatten([p.reshape(a.shape) for p, a in zip(jnp.split(h, parts), leaves, strict=True)])
            return jnp.concatenate([a.ravel() for a in jax.tree.leaves(cell.step(params, carry, x[b])[0])])

        h = jnp.concatenate([a.ravel() for a in leaves])
        around = h + 1e-6 * np.stack([np.eye(len(h)), -np.eye(len(h))])
        ahead, behind = evaluated(jax.vmap(jax.vmap(flat)))(around)
        differences = (ahead - behind).T / 2e-6
        np.testing.assert_allclose(J[b], differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("lag", [1, 2, 7, 50])
def test_products_of_a_linear_recurrence(lag, x64):
    W = np.asarray(draw((6, 6), 1)) * 0.5
    cell = linear(W)
    logs = jr.gradients.log_singular_values(cell, cell.init(None), jnp.zeros((51, 0)), lag=lag)
    sigma = np.linalg.svd(np.linalg.matrix_power(W, lag), compute_uv=False)
    assert logs.shape == (51 // lag, 6)
    # NumPy's own values are right to ε times the largest.
    np.testing.assert_allclose(np.exp(logs), np.broadcast_to(sigma, logs.shape), rtol=1e-9, atol=1e-14 * sigma[0])


def test_products_along_a_run(x64):
    """Random step Jacobians, two sequences, a remainder at the front: against products made by NumPy."""
    cell = jr.lstm(I, H)
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((T + 1, 2, I), 2)
    logs = jr.gradients.log_singular_values(cell, params, xs, lag=3)
    carry, Js = cell.initial_carry(params, (2,)), []
    for x in xs:
        Js.append(np.asarray(jr.gradients.step_jacobian(cell, params, carry, x)))
        carry, _ = cell.step(params, carry, x)
    for window in range(2):
        first = 1 + 3 * window
        product = Js[first + 2] @ Js[first + 1] @ Js[first]
        np.testing.assert_allclose(np.exp(logs[window]), np.linalg.svd(product, compute_uv=False), rtol=1e-9)


def test_small_singular_values_keep_their_digits(x64):
    """Over 2,000 steps the values span a thousand decades: logarithms agree with exact arithmetic on a graded W."""
    Q = np.linalg.qr(np.asarray(draw((4, 4), 1)))[0]
    W = Q @ np.diag([1.0, 0.7, 0.5, 0.1]) @ Q.T
    cell = linear(W)
    logs = jr.gradients.log_singular_values(cell, cell.init(None), jnp.zeros((2000, 0)), lag=2000)
    np.testing.assert_allclose(logs[0], 2000 * np.log([1.0, 0.7, 0.5, 0.1]), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_no_overflow_at_ten_thousand_steps(scale):
    """In float32, where scale^10,000 is 10^±5,000."""
    W = jnp.asarray(scale * np.linalg.qr(np.asarray(draw((3, 3), 1), np.float32))[0])
    cell = autonomous(jnp.ones(3), lambda h: _with_derivative(h, h @ W.T))
    logs = jr.gradients.log_singular_values(cell, {}, jnp.zeros((10_000, 0)), lag=10_000)
    np.testing.assert_allclose(logs, np.full((1, 3), 10_000 * np.log(scale)), rtol=1e-3)


def _with_derivative(value, of):
    """The value of one array with the derivative of another: a state that stays while its Jacobian grows."""
    return of + jax.lax.stop_gradient(value - of)


def test_a_dead_unit_has_singular_value_0(x64):
    cell = linear(np.diag([2.0, 0.0, 0.5]))
    logs = jr.gradients.log_singular_values(cell, cell.init(None), jnp.zeros((4, 0)), lag=2)
    np.testing.assert_allclose(np.exp(logs), [[4, 0.25, 0]] * 2, atol=1e-15)


def test_dead_units_of_a_relu_network(x64):
    """Singular Jacobians within a product, at any place: against products made by NumPy."""
    cell = jr.elman(I, 8, activation="relu")
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((12, I), 2)
    logs = jr.gradients.log_singular_values(cell, params, xs, lag=4)
    h, Js = cell.initial_carry(params), []
    for x in xs:
        Js.append(np.asarray(jr.gradients.step_jacobian(cell, params, h, x)))
        h, _ = cell.step(params, h, x)
    assert min(np.linalg.matrix_rank(J) for J in Js) < 8
    for window in range(3):
        product = np.linalg.multi_dot(Js[4 * window : 4 * window + 4][::-1])
        expected = np.linalg.svd(product, compute_uv=False)
        np.testing.assert_allclose(np.exp(logs[window]), expected, rtol=1e-7, atol=1e-12 * expected[0])


def normal_matrix(moduli):
    """A normal matrix with eigenvalues of those moduli: a real one, pairs turned by an angle, in a random basis."""
    Q = np.linalg.qr(np.asarray(draw((len(moduli), len(moduli)), 4)))[0]
    return Q @ np.diag(np.asarray(moduli) * np.array([1, -1, 1, -1, 1])[: len(moduli)]) @ Q.T


def test_exponents_of_a_normal_matrix(x64):
    moduli = [1.2, 0.9, 0.6, 0.4, 0.1]
    cell = linear(normal_matrix(moduli))
    spectrum = jr.gradients.lyapunov_spectrum(cell, cell.init(None), jnp.zeros((400, 0)), burn_in=200)
    np.testing.assert_allclose(spectrum.exponents, np.log(moduli), atol=1e-6)
    leading = jr.gradients.lyapunov_spectrum(cell, cell.init(None), jnp.zeros((400, 0)), burn_in=200, k=2)
    np.testing.assert_allclose(leading.exponents, np.log(moduli[:2]), atol=1e-6)
    np.testing.assert_allclose(leading.growth.mean(0), leading.exponents, atol=1e-12)


def test_exponents_of_a_generic_matrix(x64):
    W = np.asarray(draw((5, 5), 8)) * 0.5
    cell = linear(W)
    spectrum = jr.gradients.lyapunov_spectrum(cell, cell.init(None), jnp.zeros((12_000, 0)), burn_in=2_000)
    expected = np.sort(np.log(np.abs(np.linalg.eigvals(W))))[::-1]
    np.testing.assert_allclose(spectrum.exponents, expected, atol=1e-3)


def test_published_exponents(x64):
    """Logistic map at r = 4: ln 2. tanh map at its fixed point. Hénon map: 0.419 and ln 0.3 - 0.419. Lorenz: 0.906, 0,
    -14.57 (Sprott, Chaos and Time-Series Analysis, 2003)."""
    logistic = autonomous([0.3], lambda h: 4 * h * (1 - h))
    found = jr.gradients.lyapunov_spectrum(logistic, {}, jnp.zeros((50_000, 0)), burn_in=100)
    np.testing.assert_allclose(found.exponents, [np.log(2)], atol=1e-3)

    tanh = autonomous([0.5], lambda h: jnp.tanh(2 * h))
    h = 0.9575040240772687  # tanh(2 h) = h
    found = jr.gradients.lyapunov_spectrum(tanh, {}, jnp.zeros((300, 0)), burn_in=100)
    np.testing.assert_allclose(found.exponents, [np.log(2 * (1 - h**2))], atol=1e-9)

    henon = autonomous([0.1, 0.1], lambda h: jnp.stack([1 - 1.4 * h[..., 0] ** 2 + h[..., 1], 0.3 * h[..., 0]], -1))
    found = jr.gradients.lyapunov_spectrum(henon, {}, jnp.zeros((50_000, 0)), burn_in=100)
    np.testing.assert_allclose(found.exponents[0], 0.419, atol=5e-3)
    np.testing.assert_allclose(found.exponents.sum(), np.log(0.3), atol=1e-9)  # the determinant at every step


def test_lorenz(x64):
    dt = 0.01

    def flow(h):
        x, y, z = h[..., 0], h[..., 1], h[..., 2]
        return jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    def runge_kutta(h):
        a = flow(h)
        b = flow(h + dt / 2 * a)
        c = flow(h + dt / 2 * b)
        return h + dt / 6 * (a + 2 * b + 2 * c + flow(h + dt * c))

    found = jr.gradients.lyapunov_spectrum(
        autonomous([1.0, 1.0, 20.0], runge_kutta), {}, jnp.zeros((60_000, 0)), burn_in=2_000
    )
    np.testing.assert_allclose(found.exponents / dt, [0.906, 0.0, -14.57], atol=0.02)


def test_each_sequence_has_its_own_exponents(x64):
    cell = jr.gru(I, H)
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((50, 2, I), 2)
    both = jr.gradients.lyapunov_spectrum(cell, params, xs, k=2)
    for b in range(2):
        own = jr.gradients.lyapunov_spectrum(cell, params, xs[:, b], k=2)
        np.testing.assert_allclose(both.exponents[b], own.exponents, rtol=1e-9)
    jitted = jax.jit(lambda xs: jr.gradients.lyapunov_spectrum(cell, params, xs, k=2))(xs)
    np.testing.assert_allclose(jitted.exponents, both.exponents, rtol=1e-9)
    assert abs(both.exponents[0, 0] - both.exponents[1, 0]) > 1e-6


def test_no_jacobian_in_the_leading_exponents():
    """H = 1024: a full Jacobian at each step would take T × N × N floats, one alone 4 MB; the program holds less."""
    cell = jr.elman(1, 1024)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    run = jax.jit(lambda params, xs: jr.gradients.lyapunov_spectrum(cell, params, xs, k=2).exponents)
    memory = run.lower(params, jax.ShapeDtypeStruct((100, 1), jnp.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 1024 * 1024


def test_spectral_radius(x64):
    turned = np.array([[0.6, -0.8], [0.8, 0.6]])
    W = np.stack([np.diag([0.5, -2.0]), 0.3 * turned])
    np.testing.assert_allclose(jr.gradients.spectral_radius(W), [2.0, 0.3], rtol=1e-12)
    np.testing.assert_allclose(jr.gradients.spectral_radius(W.tolist()), [2.0, 0.3], rtol=1e-12)


@pytest.mark.parametrize(("gain", "verdict"), [(0.8, "vanishing"), (1.0, "near the edge"), (1.2, "exploding")])
def test_verdict(gain, verdict, x64):
    cell = jr.elman(I, H, activation="identity", param_dtype=jnp.float64)
    params = cell.init(jax.random.key(0))
    params = params._replace(W_hh=gain * jnp.linalg.qr(draw((H, H), 3))[0])
    found = jr.gradients.diagnose(cell, params, draw((100, 2, I), 1))
    assert found.regime == verdict
    assert found.exponent == pytest.approx(np.log(gain), abs=1e-6)
    if gain != 1:
        assert found.time_constant == pytest.approx(1 / abs(np.log(gain)), rel=1e-4)
        assert str(found).startswith(verdict) and f"10^{100 * np.log10(gain):.2g}" in str(found)


@pytest.mark.parametrize("gain", [0.25, 1.0, 3.0])
def test_penalty_of_a_linear_recurrence(gain, x64):
    """J = gain · Q: Ω = (gain - 1)², ∂Ω/∂gain = 2 (gain - 1), whatever the loss."""
    Q = np.linalg.qr(np.asarray(draw((H, H), 4)))[0]
    cell = linear(Q)
    penalty = lambda gain: jr.gradients.jacobian_penalty(
        cell, {"W": gain * Q}, jnp.zeros((T, 2, 0)), lambda carry, ys: jnp.sin(ys).sum()
    )
    value, slope = jax.value_and_grad(penalty)(gain)
    np.testing.assert_allclose([value, slope], [(gain - 1) ** 2, 2 * (gain - 1)], atol=1e-9)


@pytest.mark.full
def test_penalty_does_not_see_the_padding(x64):
    cell, lengths = jr.elman(I, H), jnp.array([T, 3])
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((T, 2, I), 2)
    padded = jnp.where((jnp.arange(T)[:, None] < lengths)[..., None], xs, jnp.nan)
    of = lambda xs: jax.value_and_grad(
        lambda p: jr.gradients.jacobian_penalty(cell, p, xs, lambda carry, ys: jnp.sin(ys).sum(), lengths=lengths)
    )(params)
    for a, b in zip(*map(jax.tree.leaves, (of(padded), of(xs))), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru_before", "peephole_full"])
def test_penalty_is_the_papers(name, x64):
    """Against a Python loop: δ_t by the adjoint recurrence, the paper's immediate derivative by finite differences."""
    cell = CELLS[name]
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((T, 2, I), 2)
    lengths = jnp.array([T, 3])
    w = draw((T, 2, H), 9)
    loss = lambda carry, ys: (ys * w).sum()

    def with_gradients(p):
        """Ω with the gradients and states of ``params`` and the Jacobians of ``p``."""
        total, count = 0.0, 0
        for b in range(2):
            carries = [cell.initial_carry(params)]
            for t in range(int(lengths[b])):
                carries.append(cell.step(params, carries[-1], xs[t, b])[0])
            adjoint = jax.tree.map(jnp.zeros_like, carries[0])
            for t in reversed(range(int(lengths[b]))):
                # The output of these cells is h itself, so its gradient joins that of h.
                add = lambda h, t=t: h + w[t, b]  # noqa: B023
                delta = adjoint._replace(h=add(adjoint.h)) if hasattr(adjoint, "h") else add(adjoint)
                back = lambda q, t=t: jax.vjp(lambda c: cell.step(q, c, xs[t, b])[0], carries[t])[1]  # noqa: B023
                size = lambda tree: jnp.sqrt(sum((a**2).sum() for a in jax.tree.leaves(tree)))
                total += (size(back(p)(delta)[0]) / size(delta) - 1) ** 2
                count += 1
                adjoint = back(params)(delta)[0]
        return total / count

    penalty = lambda p: jr.gradients.jacobian_penalty(cell, p, xs, loss, lengths=lengths)
    value, got = jax.jit(jax.value_and_grad(penalty))(params)
    by_hand, want = jax.value_and_grad(with_gradients)(params)
    np.testing.assert_allclose(value, by_hand, rtol=1e-9)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)


def test_products_that_are_singular_by_zeros(x64):
    """Half of the entries are exactly 0: a row may be 0 on the diagonal of its triangle, and nowhere else."""
    step = lambda params, h, x: (jnp.einsum("...ij,...j->...i", x.reshape(*x.shape[:-1], 3, 3), h),) * 2
    cell = jr.Cell(lambda key: (), lambda params, batch_shape=(): jnp.zeros((*batch_shape, 3)), step)
    rng = np.random.default_rng(1)
    J = rng.normal(size=(2, 400, 3, 3)) * (rng.random((2, 400, 3, 3)) < 0.5)
    logs = jr.gradients.log_singular_values(cell, (), jnp.asarray(J.reshape(2, 400, 9)), lag=2)
    want = np.linalg.svd(J[1] @ J[0], compute_uv=False)
    np.testing.assert_allclose(np.exp(logs[0]), want, rtol=1e-8, atol=1e-10)  # float64, two products
