"""Carries of all steps by Newton's method, beside ``lax.scan``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.loops.carry_structure import carry_step, connected, is_affine
from jaxrnn.loops.newton import newton_carries
from tests.user_cells import textbook_lstm

I = 3


def separate_lstm(units):
    """An LSTM in which a unit sees itself alone (as IndRNN's), of separate parameters."""

    def step(params, carry, x):
        h, c = carry
        a = [x @ W + jax.lax.broadcast_to_rank(u, h.ndim) * h for W, u in params]
        c = jax.nn.sigmoid(a[0] + 1) * c + jax.nn.sigmoid(a[1]) * jnp.tanh(a[2])
        h = jax.nn.sigmoid(a[3]) * jnp.tanh(c)
        return (h, c), h

    def init(key):
        keys = jax.random.split(key, 8)
        return [(jax.random.normal(k, (I, units)), jax.random.normal(u, (units,))) for k, u in keys.reshape(4, 2)]

    def initial_carry(params, batch_shape=()):
        return (jnp.zeros((*batch_shape, units), params[0][0].dtype),) * 2

    return jr.Cell(init, initial_carry, step)


def of_cell(cell, T=60, B=2, seed=0, gain=1.0):
    """Its step over flat lists, a start that is not zero, inputs; all in float64, no parameter zero."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda a: gain * a.astype(float) + 0.2 * rng.normal(size=a.shape), cell.init(jax.random.key(seed))
    )
    carry = cell.initial_carry(params, (B,))
    tree = jax.tree.structure(carry)

    def step(carry, x):
        new, y = cell.step(params, jax.tree.unflatten(tree, carry), x[0])
        return jax.tree.leaves(new), y

    start = [a + 0.3 * rng.normal(size=a.shape) for a in jax.tree.leaves(carry)]
    return step, start, [jnp.asarray(rng.normal(size=(T, B, I)))]


def scanned(step, start, xs, reverse=False):
    def turn(carry, x):
        return step(carry, x)[0], carry

    end, before = jax.jit(lambda start, xs: jax.lax.scan(turn, start, xs, reverse=reverse))(start, xs)
    return before, end


def solved(step, start, xs, **options):
    options = {"tol": 1e-12, "max_iterations": 30, "guess": [jnp.zeros_like(a) for a in start], **options}
    return jax.jit(lambda start, xs: newton_carries(step, start, xs, **options))(start, xs)


def check(step, start, xs, reverse=False, **options):
    """The report of a run that has to converge to the scan's carries."""
    before, end, report = solved(step, start, xs, reverse=reverse, **options)
    assert report.converged
    for a, b in zip([*before, *end], [*(of := scanned(step, start, xs, reverse))[0], *of[1]], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)
        assert a.dtype == b.dtype
    residuals, n = np.asarray(report.residuals), int(report.iterations)
    assert not np.isnan(residuals[:n]).any() and np.isnan(residuals[n:]).all() and (n == 1 or residuals[n - 1] < 1e-12)
    return report


CELLS = {  # whether each number of the carry goes its own way; iterations at most
    "gru": (jr.gru(I, 4), False, 8),
    "elman": (jr.elman(I, 4), False, 12),
    "textbook_lstm": (textbook_lstm(I, 3), False, 8),
    "separate_lstm": (separate_lstm(4), True, 9),
    "lru": (jr.lru(I, 4), True, 1),
    "min_gru": (jr.min_gru(I, 4), True, 1),
}


@pytest.mark.parametrize("name", CELLS)
def test_equals_the_scan(x64, name):
    cell, by_number, most = CELLS[name]
    step, start, xs = of_cell(cell)
    structure = carry_step(step, start, [a[0] for a in xs])
    ((leaves, found),) = connected(structure)
    assert found == by_number and leaves == list(range(len(start)))
    assert is_affine(structure) == (most == 1)
    report = check(step, start, xs, reverse=name in ("elman", "separate_lstm", "lru"), batch_ndim=1)
    assert report.iterations <= most


def test_the_units_of_an_lstm():
    """What is left beside products: of each unit, c's part in h and c."""
    step, start, xs = of_cell(textbook_lstm(I, 3))
    structure = carry_step(step, start, [a[0] for a in xs])
    assert connected(structure, cut=True) == [([0, 1], True)]


def test_rows_that_meet(x64):
    """Without a word on rows the whole carry is one; a guess of all steps."""
    rng = np.random.default_rng(0)
    W = jnp.asarray(rng.normal(size=(3, 3)))

    def step(carry, x):
        h = jnp.tanh(carry[0] @ W + carry[0][::-1] + x[0])
        return [h, 0.5 * carry[1] + h.sum()], h

    xs = [jnp.asarray(rng.normal(size=(40, 2, 3)))]
    start = [jnp.ones((2, 3)), jnp.ones(())]
    check(step, start, xs, guess=[jnp.asarray(rng.normal(size=(40, *a.shape))) for a in start])


def test_quasi(x64):
    """Products left out of the Jacobian: one tangent, more iterations, the same carries."""
    step, start, xs = of_cell(jr.gru(I, 4))
    full, quasi = (check(step, start, xs, batch_ndim=1, jacobian=j, max_iterations=60) for j in ("full", "quasi"))
    assert 2 * full.iterations < quasi.iterations < 60


@pytest.mark.parametrize("jacobian", ["full", "quasi"])
def test_a_chaotic_run_is_not_claimed(x64, jacobian):
    step, start, xs = of_cell(jr.elman(I, 24), T=200, B=1, gain=4.0)
    _, _, report = solved(step, start, xs, batch_ndim=1, jacobian=jacobian)
    assert not report.converged
    short = [a[:6] for a in xs]
    assert check(step, start, short, batch_ndim=1, jacobian=jacobian).iterations <= 8  # step by step at the latest


def test_small_corrections_tell_nothing_of_what_grows(x64):
    """A number that starts at 0, and would grow with any rounding, beside one that is 1: a fixed point of the run."""
    start, xs = [jnp.asarray([1.0, 0.0, 0.0])], [jnp.zeros((200, 1))]

    rates = jnp.asarray([0.5, 1.5, 1.5])

    def linear(carry, x):
        return [carry[0] @ jnp.diag(rates)], x

    def bent(carry, x):
        return [jnp.sin(carry[0] @ jnp.diag(rates))], x

    def alone(carry, x):  # a product could add what rounds a 1; here a 0 stays one
        return [jnp.sin(carry[0] * rates)], x

    def crossed(carry, x):  # what grows is not on the diagonal, which is all that "quasi" sees
        h = carry[0]
        return [jnp.sin(jnp.asarray([0.5, 0, 0]) * h + jnp.asarray([0, 1.5, 1.5]) * h[jnp.asarray([0, 2, 1])])], x

    for step, jacobian in ((linear, "auto"), (bent, "auto"), (crossed, "full"), (crossed, "quasi")):
        assert not solved(step, start, xs, jacobian=jacobian, max_iterations=90)[2].converged
    assert solved(crossed, start, [a[:8] for a in xs], jacobian="quasi")[2].converged
    assert solved(alone, start, xs)[2].converged


def test_small_residuals_are_not_small_errors(x64):
    """A guess that drifts by less than tol a step, and further than where the step is straight."""

    def step(carry, x):
        h, v = carry
        return [h + jnp.sin(v), v], x

    start, xs = [jnp.zeros(1), jnp.ones(1)], [jnp.zeros((1500, 1))]
    v = 1 + 9e-6 * jnp.arange(1.0, 1501.0)[:, None]
    guess = [jnp.cumsum(jnp.sin(jnp.concatenate([jnp.ones((1, 1)), v[:-1]])), axis=0), v]
    before, _, report = solved(step, start, xs, guess=guess, tol=1e-5)
    assert report.converged and report.iterations == 3
    np.testing.assert_allclose(before[0][:, 0], np.sin(1) * np.arange(1500), rtol=0, atol=1e-8)


def turned(rate):
    """A vector that is turned by a right angle and shrinks: the diagonal of the Jacobian is 0."""

    def step(carry, x):
        return [rate * jnp.asarray([1.0, -1.0]) * carry[0][::-1] + x[0]], x

    return step


def test_what_is_still_to_come_of_quasi(x64):
    """Corrections that shrink by a tenth an iteration add up to nine times the last."""
    start, xs = [jnp.zeros(2)], [jnp.asarray(np.random.default_rng(0).normal(size=(400, 2)))]
    step = turned(0.9)
    before, _, report = solved(step, start, xs, jacobian="quasi", tol=1e-4, max_iterations=200)
    right, _ = scanned(step, start, xs)
    error = np.abs(before[0] - right[0]).max() / np.abs(right[0]).max()
    assert report.converged and error < 1e-4 and 90 < report.iterations < 130


def test_a_guess_that_seems_right(x64):
    """One that goes astray by less than tol a step is told from the right one, which is believed at once."""
    start, xs = [jnp.ones(2)], [jnp.zeros((900, 2))]
    for rate, off, believed in ((0.9, 0.0, True), (1.0, 5e-13, False)):
        step = turned(rate)
        before, (end,) = scanned(step, start, xs)
        after = jnp.concatenate([before[0][1:], end[None]])
        guess = [after + off * jnp.arange(900.0)[:, None] * after / jnp.linalg.norm(after, axis=-1, keepdims=True)]
        _, _, report = solved(step, start, xs, guess=guess, jacobian="quasi", max_iterations=60)
        assert report.converged == believed and (report.iterations < 60) == believed


def test_a_marginal_linear_recurrence(x64):
    """Orthogonal: nothing is forgotten, nothing grows; rounding adds up to √T of one step's."""
    W = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0])

    def step(carry, x):
        return [carry[0] @ W + x[0]], x

    start, xs = [jnp.ones(8)], [jnp.asarray(np.random.default_rng(1).normal(size=(2000, 8)))]
    assert check(step, start, xs).iterations == 1
    assert not solved(step, start, xs, tol=1e-15)[2].converged


def overflowing(carry, x):
    h, s = carry
    return [0.9 * jnp.exp(-h) + x[0] ** 2, 0.5 * s + jnp.sin(h)], x


def cubic(carry, x):
    h, s = carry
    return [h - 0.3 * h**3 + x[0], 0.5 * s + h], x


@pytest.mark.parametrize(("step", "guess", "most"), [(overflowing, -5.0, 12), (cubic, 0.0, 14)])
def test_damping(x64, step, guess, most):
    """Full steps go nowhere: the run is taken where f leads, and the Jacobians are damped for a while."""
    xs = [0.3 * jnp.asarray(np.random.default_rng(0).normal(size=(200, 2)))]
    assert check(step, [jnp.ones(2)] * 2, xs, guess=[jnp.full(2, guess)] * 2).iterations <= most


def clipped(a):
    """a; its cotangent is cut to 0.01."""
    clip = jax.custom_vjp(lambda a: a)
    clip.defvjp(lambda a: (a, None), lambda _, ct: (jnp.clip(ct, -0.01, 0.01),))
    return clip(a)


@pytest.mark.parametrize("where", ["open", "in a loop"])
def test_rules_of_users(x64, where):
    """A rule says nothing of how the step answers; inside a loop it cannot be opened, and what it holds is left out."""

    def step(carry, x):
        h = clipped(carry[0]) if where == "open" else jax.lax.fori_loop(0, 1, lambda _, a: clipped(a), carry[0])
        return [0.5 * jnp.tanh(h + x[0])], x

    xs = [jnp.asarray(np.random.default_rng(0).normal(size=(50, 3)))]
    report = check(step, [jnp.ones(3)], xs, max_iterations=60)
    assert (report.iterations < 8) == (where == "open")


def test_nan_ends(x64):
    step, start, xs = of_cell(jr.gru(I, 4))
    _, _, report = solved(step, start, [xs[0].at[30, 1].set(jnp.nan)], batch_ndim=1)
    assert not report.converged and report.iterations < 10
    step, start, xs = of_cell(jr.lru(I, 4))
    _, _, report = solved(step, start, [xs[0].at[30, 1].set(jnp.nan)], batch_ndim=1)
    assert not report.converged


def test_vmap(x64):
    """Each run has its own iterations."""
    rng = np.random.default_rng(0)
    start, xs, W = [jnp.ones(3)], [jnp.asarray(rng.normal(size=(60, 3)))], jnp.asarray(rng.normal(size=(3, 3)))

    def step(gain, carry, x):
        return [jnp.tanh(gain * carry[0] @ W + x[0])], x

    gains = jnp.asarray([0.01, 0.9])
    before, _, report = jax.vmap(lambda gain: solved(functools.partial(step, gain), start, xs))(gains)
    for i, gain in enumerate(gains):
        np.testing.assert_allclose(before[0][i], scanned(functools.partial(step, gain), start, xs)[0][0], atol=1e-11)
    assert report.converged.all() and report.iterations[0] < report.iterations[1]


@pytest.mark.multidevice
def test_one_decision_for_all_devices(x64):
    """One device's rows are chaotic."""
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    W = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)))
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(60, 2, 8)))

    def one_step(gain, carry, x):
        return [jnp.tanh(carry[0] @ W * gain + x[0])], x

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(None, "data"), P("data")), out_specs=(P(None, "data"), P())
    )
    def run(xs, gain):
        before, _, report = newton_carries(
            functools.partial(one_step, gain[0]),
            [jnp.zeros((1, 8))],
            [xs],
            guess=[jnp.zeros((1, 8))],
            tol=1e-12,
            max_iterations=20,
            batch_ndim=1,
        )
        return before[0], report.converged

    for gains, converges in (((0.2, 0.3), True), ((0.2, 8.0), False)):
        before, converged = jax.jit(run)(xs, jnp.asarray(gains))
        assert converged == converges
        if converges:
            for row, gain in enumerate(gains):
                of_row, _ = scanned(functools.partial(one_step, gain), [jnp.zeros(8)], [xs[:, row]])
                np.testing.assert_allclose(before[:, row], of_row[0], rtol=0, atol=1e-11)


def test_no_steps():
    before, end, report = newton_carries(
        lambda carry, x: (carry, x), [jnp.ones(3)], [jnp.ones((0, 2))], guess=[jnp.ones(3)], tol=1e-5, max_iterations=3
    )
    assert before[0].shape == (0, 3) and (end[0] == 1).all() and report.converged and report.iterations == 0
