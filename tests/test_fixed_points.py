"""Fixed points and the linear dynamics around them: analytic cases, NumPy's eigenvalues, finite differences."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import CELLS, H, I, draw, randomised
from tests.user_cells import autonomous

NOTHING = jnp.zeros(0)


def find(F, starts, **options):
    """Of the map F without inputs."""
    starts = jnp.asarray(starts)
    cell = autonomous(starts[0], F)
    return jr.gradients.find_fixed_points(cell, cell.init(None), starts, NOTHING, **options)


def stay(h):
    return h


# ---- what is found -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["adam", "newton"])
def test_points_of_tanh(method, x64):
    found = find(lambda h: jnp.tanh(2 * h), jnp.linspace(-1, 1, 9)[:, None], method=method)
    points = np.sort(found.carry[:, 0])
    # Adam ends within about 1e-8 of a minimum; Newton's steps converge to rounding.
    root = 0.9575040240772687
    np.testing.assert_allclose(points, [-root, 0, root], atol=1e-6 if method == "adam" else 1e-12)
    assert found.speed.max() < 1e-12 and found.hits.sum() == 9


def test_a_linear_map_has_one(x64):
    A, b = 0.3 * np.asarray(draw((4, 4), 1)), np.asarray(draw(4, 2))
    found = find(lambda h: h @ A.T + b, draw((70, 4), 3))  # more starts than a batch
    np.testing.assert_allclose(found.carry, np.linalg.solve(np.eye(4) - A, b)[None], atol=1e-6)
    assert found.hits.tolist() == [70]


def test_saddle_between_two_stable_points(x64):
    def F(h):
        u, v = h[..., 0], h[..., 1]
        return jnp.stack([1.5 * u - 0.5 * u**3, 0.5 * v + 0.25], axis=-1)

    found = find(F, draw((50, 2), 1), method="newton")
    order = np.argsort(found.carry[:, 0])
    np.testing.assert_allclose(found.carry[order], [[-1, 0.5], [0, 0.5], [1, 0.5]], atol=1e-7)
    cell = autonomous(jnp.zeros(2), F)
    around = jr.gradients.linear_analysis(cell, cell.init(None), found.carry[order], NOTHING)
    np.testing.assert_allclose(around.eigenvalues, [[0.5, 0], [1.5, 0.5], [0.5, 0]], atol=1e-6)
    assert around.stable.tolist() == [True, False, True]
    np.testing.assert_allclose(around.time_constants[1], [1 / np.log(1.5), 1 / np.log(2)], rtol=1e-6)
    assert around.by_input.shape == (3, 2, 0)


def test_the_input_moves_the_point(x64):
    cell = jr.elman(2, 3)
    params = randomised(cell.init(jax.random.key(0)), 1, scale=0.2)
    x = jnp.array([1.0, -1.0])
    found = jr.gradients.find_fixed_points(cell, params, draw((5, 3), 1), x)
    h, _ = jax.lax.scan(lambda h, x: cell.step(params, h, x), jnp.zeros(3), jnp.broadcast_to(x, (200, 2)))
    np.testing.assert_allclose(found.carry, h[None], atol=1e-6)  # the map contracts, so its iterates end there
    assert jnp.abs(h).min() > 0.01  # and away from 0, where they would end without input


def test_carry_tree_of_an_lstm(x64):
    cell = CELLS["lstm"]
    params, x = randomised(cell.init(jax.random.key(0)), 1), draw(I, 2)
    starts = jr.LSTMCarry(draw((20, H), 3), draw((20, H), 4))
    found = jr.gradients.find_fixed_points(cell, params, starts, x, method="newton", tolerance=1e-16)
    assert isinstance(found.carry, jr.LSTMCarry) and len(found.speed) > 0
    again, _ = cell.step(params, found.carry, jnp.broadcast_to(x, (len(found.speed), I)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), again, found.carry)
    speed = sum(0.5 * ((a - b) ** 2).sum(-1) for a, b in zip(again, found.carry, strict=True))
    np.testing.assert_allclose(found.speed, speed, atol=1e-20)


# ---- what is left out --------------------------------------------------------------------------


def test_duplicates_are_merged_and_counted(x64):
    """Every point of h = h is fixed, so the starts stay where they are; 0.016 is near 0.008, but not near 0."""
    starts = np.array([0.0, 7.0, 0.008, 0.016, 3.0])[:, None]
    found = find(stay, starts, steps=1)
    assert found.carry[:, 0].tolist() == [0.0, 7.0, 0.016, 3.0]
    assert found.hits.tolist() == [2, 1, 1, 1] and found.start.tolist() == [0, 1, 3, 4]
    apart = find(stay, np.concatenate([starts, starts]), steps=1, duplicates=0.0)
    assert apart.hits.tolist() == [2] * 5  # equal points are one all the same


def test_a_line_of_fixed_points_stays_a_line(x64):
    found = find(stay, np.linspace(-1, 1, 401)[:, None], steps=1, duplicates=0.1)
    assert len(found.speed) >= 10 and found.hits.sum() == 401
    assert np.diff(np.sort(found.carry[:, 0])).min() > 0.1


def test_the_slowest_of_duplicates_stands_for_them(x64):
    found = find(lambda h: 1.00001 * h, [[5.0], [0.305], [0.3]], steps=1, learning_rate=1e-12)
    assert found.start.tolist() == [2, 0] and found.hits.tolist() == [2, 1]
    np.testing.assert_allclose(found.speed, 0.5 * (1e-5 * np.array([0.3, 5.0])) ** 2, rtol=1e-6)


def test_fast_points_are_left_out(x64):
    starts, still = [[0.03], [1e-5], [2.0]], {"steps": 1, "learning_rate": 1e-12}
    assert find(lambda h: 2 * h, starts, **still).start.tolist() == [1]  # q = h²/2
    assert find(lambda h: 2 * h, starts, tolerance=1e-3, **still).start.tolist() == [1, 0]


def test_outliers_are_left_out(x64):
    """Of 0, …, 9 and 1000 the mean is 95, the mean distance 164.5: 1000 is 5.5 times as far."""
    starts = np.array([*range(10), 1000.0])[:, None]
    for outliers, count in ((5.0, 10), (6.0, 11)):
        assert len(find(stay, starts, steps=1, outliers=outliers).speed) == count
    assert len(find(stay, [[3.0]], steps=1, outliers=0.1).speed) == 1  # a single start has no distance


def test_no_point_at_all():
    found = find(lambda h: h + 1, [[0.0, 0.0], [1.0, 2.0]], steps=3)
    assert found.carry.shape == (0, 2)
    assert [a.shape for a in found[1:]] == [(0,)] * 3
    cell = autonomous(jnp.zeros(2), lambda h: h + 1)
    around = jr.gradients.linear_analysis(cell, cell.init(None), found.carry, NOTHING)
    assert around.eigenvalues.shape == (0, 2) and around.stable.shape == (0,)


# ---- the linear dynamics -----------------------------------------------------------------------


def test_linear_analysis_against_numpy(x64):
    cell = CELLS["lstm"]
    params, x = randomised(cell.init(jax.random.key(0)), 1), draw(I, 2)
    carry = randomised(cell.initial_carry(params, (2, 3)), 3)
    around = jr.gradients.linear_analysis(cell, params, carry, x)
    leaves, treedef = jax.tree.flatten(carry)
    cuts = np.cumsum([a.shape[-1] for a in leaves])[:-1]
    h = np.concatenate(leaves, axis=-1)

    def F(h, x):
        new, _ = cell.step(params, treedef.unflatten(jnp.split(jnp.asarray(h), cuts, axis=-1)), jnp.asarray(x))
        return np.concatenate(jax.tree.leaves(new), axis=-1)

    def differences(of, size):
        return np.stack([(of(d) - of(-d)) / 2e-6 for d in 1e-6 * np.eye(size)], axis=-1)

    N, xs = h.shape[-1], np.broadcast_to(x, (2, 3, I))
    # Central differences at 1e-6 leave about 1e-10 of rounding and 1e-12 of curvature.
    np.testing.assert_allclose(around.by_state, differences(lambda d: F(h + d, xs), N), atol=1e-8)
    np.testing.assert_allclose(around.by_input, differences(lambda d: F(h, xs + d), I), atol=1e-8)

    moduli = np.sort(np.abs(np.linalg.eigvals(around.by_state)), axis=-1)[..., ::-1]
    np.testing.assert_allclose(np.abs(around.eigenvalues), moduli, rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(around.stable, moduli[..., 0] < 1)
    np.testing.assert_allclose(around.time_constants, 1 / np.abs(np.log(moduli)), rtol=1e-6, atol=1e-9)
    turned = around.by_state @ around.eigenvectors
    np.testing.assert_allclose(turned, around.eigenvalues[..., None, :] * around.eigenvectors, atol=1e-10)


# ---- errors ------------------------------------------------------------------------------------

CELL = jr.elman(I, H)
PARAMS = CELL.init(jax.random.key(0))
STARTS, X = jnp.zeros((5, H)), jnp.zeros(I)


def search(cell=CELL, params=PARAMS, starts=STARTS, x=X, **options):
    return jr.gradients.find_fixed_points(cell, params, starts, x, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cell": jr.scan(CELL)}, TypeError, "expected a Cell, got scan(elman), a Layer; give the Cell that it runs"),
        ({"cell": jr.readout(I, H), "starts": ()}, ValueError, "the cell carries nothing"),
        ({"cell": CELLS["user_clockwork"]}, TypeError, "is int32, and there is no derivative by"),
        ({"params": PARAMS._replace(b=jnp.zeros(9))}, ValueError, "params.b should have shape (4,), got (9,)"),
        ({"starts": jnp.zeros((5, 9))}, ValueError, "should have shape (5, 4), got (5, 9)"),
        ({"starts": jnp.zeros(())}, ValueError, "should have shape (0, 4), got ()"),
        ({"starts": jnp.zeros((5, H), int)}, TypeError, "is int32 but the cell carries float32"),
        ({"starts": jnp.zeros((0, H))}, ValueError, "starts holds no state; give each leaf (M0, …) with at least one."),
        ({"starts": STARTS.at[1:3, 0].set(jnp.nan)}, FloatingPointError, "2 of 5 starts are not finite."),
        ({"method": "newtno"}, ValueError, "method must be one of 'adam', 'newton', got 'newtno'; did you mean"),
        ({"steps": 0}, ValueError, "steps must be a positive int, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be a positive int, got 2.0 (float)"),
        ({"learning_rate": 0}, ValueError, "must be positive and duplicates not negative, got 0, 1e-08, 10.0 and 0.01"),
        ({"tolerance": -1.0}, ValueError, "got 0.1, -1.0, 10.0 and 0.01."),
        ({"duplicates": -0.5}, ValueError, "got 0.1, 1e-08, 10.0 and -0.5."),
        ({"outliers": 0}, ValueError, "got 0.1, 1e-08, 0 and 0.01."),
    ],
)
def test_errors_of_the_search(arguments, error, message):
    if isinstance(cell := arguments.get("cell"), jr.Cell):
        arguments = {"params": cell.init(jax.random.key(0)), **arguments}
    with pytest.raises(error, match=r"(?s)find_fixed_points.*" + re.escape(message)):
        search(**arguments)


@pytest.mark.parametrize("traced", ["params", "starts", "x"])
def test_search_is_not_for_jit(traced):
    values = {"params": PARAMS, "starts": STARTS, "x": X}
    with pytest.raises(TypeError, match=r"how many points there are depends on values, so it cannot be jitted"):
        jax.jit(lambda a: search(**{traced: a}))(values[traced])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((jr.scan(CELL), PARAMS, STARTS, X), TypeError, "expected a Cell, got scan(elman)"),
        ((CELL, PARAMS._replace(b=jnp.zeros(9)), STARTS, X), ValueError, "params.b should have shape (4,), got (9,)"),
        ((CELL, PARAMS, STARTS, 1.0), TypeError, "x must be one array of floats, the input of one step, got float."),
        ((CELL, PARAMS, STARTS, jnp.zeros(I, int)), TypeError, "x must be one array of floats"),
        ((CELL, PARAMS, STARTS, (X,)), TypeError, "the input of one step, got tuple."),
    ],
)
def test_errors_of_the_analysis(arguments, error, message):
    with pytest.raises(error, match=r"linear_analysis.*" + re.escape(message)):
        jr.gradients.linear_analysis(*arguments)
