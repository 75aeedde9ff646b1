"""Fixed points and linear dynamics under one input, or one for each state: as runs of one state at a time."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import CELLS, draw, randomised, x_shape

M, I, H = 5, 3, 4
CELL = jr.elman(I, H)
PARAMS = randomised(CELL.init(jax.random.key(0)), 1, scale=0.3)
STARTS, XS = draw((M, H), 2), draw((M, I), 3)
find, linear, jacobian = jr.gradients.find_fixed_points, jr.gradients.linear_analysis, jr.gradients.step_jacobian


def iterated(params, x):
    """In float64 with NumPy: a map that contracts ends in its fixed point."""
    W_xh, W_hh, b = (np.asarray(a, np.float64) for a in (params.W_xh, params.W_hh, params.b))
    h = np.zeros(H)
    for _ in range(500):
        h = np.tanh(h @ W_hh + x @ W_xh + b)
    return h


@pytest.mark.parametrize("method", ["adam", "newton"])
def test_each_start_has_its_own_input(method, x64):
    params = jax.tree.map(lambda a: a.astype(float), PARAMS)
    starts, xs = STARTS.astype(float), XS.astype(float)[jnp.array([0, 1, 2, 1, 3])]  # two have the same: one point
    found = find(CELL, params, starts, xs, method=method, batch_size=2)
    assert sorted(found.hits.tolist()) == [1, 1, 1, 2] and len({*found.start.tolist()} - {1, 3}) == 3
    for h, hits, start in zip(found.carry, found.hits, found.start, strict=True):
        np.testing.assert_allclose(h, iterated(params, xs[start]), atol=1e-6)
        assert hits == (2 if start in (1, 3) else 1)
    if method == "adam":
        return
    around = jax.jit(lambda carry, x: linear(CELL, params, carry, x))(found.carry, xs[found.start])
    slope = 1 - np.asarray(found.carry) ** 2  # tanh' at the point, where h = tanh(W h + V x + b)
    np.testing.assert_allclose(around.by_state, slope[:, :, None] * np.asarray(params.W_hh).T, atol=1e-6)
    np.testing.assert_allclose(around.by_input, slope[:, :, None] * np.asarray(params.W_xh).T, atol=1e-6)
    none = jax.eval_shape(lambda: linear(CELL, params, found.carry[:0], xs[found.start][:0]))
    assert none.by_input.shape == (0, H, I)


def test_one_point_under_two_inputs_is_two():
    """h_t = h_{t-1}, whatever x is: every start is fixed, and near ones are one where their input is the same."""
    stays = jr.Cell(lambda key: {}, lambda p, batch_shape=(): jnp.zeros((*batch_shape, 1)), lambda p, h, x: (h, h))
    starts = jnp.array([0.0, 1e-3, 0.0, 1e-3, 5.0])[:, None]
    for x, hits in [
        (jnp.array([[1.0, 0], [1, 0], [2, 0], [2, 1], [1, 0]]), [2, 1, 1, 1]),
        ({"a": jnp.array([[1.0], [1], [2], [2], [1]]), "b": jnp.array([[0], [0], [0], [1], [0]])}, [2, 1, 1, 1]),
        (jnp.zeros((M, 0)), [4, 1]),
        ((), [4, 1]),  # a cell that reads nothing
    ]:
        found = find(stays, {}, starts, x, steps=1)
        assert sorted(found.hits.tolist(), reverse=True) == hits


@pytest.mark.parametrize("name", ["lstm", pytest.param("conv_lstm", marks=pytest.mark.full)])
def test_linear_dynamics_under_inputs_of_their_own(name, x64):
    """Equal to those of one state after the other; by the input, to finite differences. Images have more axes."""
    cell, lead = CELLS[name], (2, 1)
    params = randomised(cell.init(jax.random.key(0)), 1)
    carry, xs = randomised(cell.initial_carry(params, lead), 2), draw((*lead, *x_shape(cell)), 3)

    @jax.jit
    def measured(carry, xs):  # the eigenvalues, which cost most, are dropped as nobody reads them
        each, one = linear(cell, params, carry, xs), linear(cell, params, carry, xs[1, 0])
        jacobians = jacobian(cell, params, carry, xs), jacobian(cell, params, carry, xs[1, 0])
        return *jacobians, each.by_state, one.by_state, each.by_input, one.by_input

    J, shared, *by_state, by_input, by_shared_input = measured(carry, xs)
    np.testing.assert_allclose(by_state, [J, shared], atol=1e-12)
    np.testing.assert_allclose(by_shared_input[1], by_input[1], atol=1e-12)

    @jax.jit
    def step(h, x):
        return jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(cell.step(params, h, x)[0])])

    slope = jax.jit(jax.jacrev(step, argnums=0))  # the other way round than the library, which pushes forward
    for n in np.ndindex(lead):
        h = jax.tree.map(lambda a, n=n: a[n], carry)
        for of, x in ((J, xs[n]), (shared, xs[1, 0])):
            expected = [a.reshape(J.shape[-1], -1) for a in jax.tree.leaves(slope(h, x))]
            np.testing.assert_allclose(of[n], np.concatenate(expected, axis=1), atol=1e-12)
        directions = 1e-6 * np.eye(xs[n].size).reshape(-1, *xs[n].shape)
        differences = np.stack([(step(h, xs[n] + d) - step(h, xs[n] - d)) / 2e-6 for d in directions], axis=-1)
        np.testing.assert_allclose(by_input[n], differences, atol=1e-8)  # rounding leaves about 1e-10


CALLS = {
    "find_fixed_points": (lambda x, cell=CELL: find(cell, cell.init(jax.random.key(0)), STARTS, x, steps=1), "start"),
    "linear_analysis": (lambda x, cell=CELL: linear(cell, cell.init(jax.random.key(0)), STARTS, x), "state"),
    "step_jacobian": (lambda x, cell=CELL: jacobian(cell, cell.init(jax.random.key(0)), STARTS, x), "state"),
}
CONV = jr.gru(I, H)._replace(x_ndim=3)


@pytest.mark.parametrize("who", CALLS)
@pytest.mark.parametrize(
    "x, cell, message",
    [
        (jnp.zeros((4, I)), CELL, "x must be (3,), one input for all, or (5, 3), one for each {each}, got (4, 3)."),
        (jnp.zeros((1, I)), CELL, "x must be (3,), one input for all, or (5, 3), one for each {each}, got (1, 3)."),
        (jnp.zeros((M, 1, I)), CELL, "x must be (3,), one input for all, or (5, 3), one for each {each}, got (5, 1,"),
        (jnp.zeros(9), CELL, "x must be (3,), one input for all, or (5, 3), one for each {each}, got (9,)."),
        (jnp.zeros((M, 9)), CELL, "x must be (3,), one input for all, or (5, 3), one for each {each}, got (5, 9)."),
        (jnp.zeros(()), CELL, "x must be (3,), one input for all, or (5, 3), one for each {each}, got ()."),
        (jnp.zeros((2, 3)), CONV, "x must be (I, I2, 3), one input for all, or (5, I, I2, 3), one for"),
    ],
)
def test_inputs_of_another_shape_are_told(who, x, cell, message):
    call, each = CALLS[who]
    with pytest.raises(ValueError, match=re.escape(f"{who}: {message.format(each=each)}")):
        call(x, cell)


def test_inputs_that_are_trees_are_told():
    for x, message in [
        ({"a": jnp.zeros((M, 1)), "b": jnp.zeros(2)}, "of x, all arrays must be one for all starts, or all one"),
        ({"a": jnp.zeros((M, 1)), "b": jnp.zeros((3, 2))}, r"x\['b'\] must be \(2,\), one input for all, or \(5, 2\),"),
    ]:
        cell = CELL._replace(input_size=None)
        with pytest.raises(ValueError, match=f"find_fixed_points: {message}"):
            find(cell, PARAMS, STARTS, x)
    tree = jr.Cell(CELL.init, CELL.initial_carry, CELL.step, x_ndim={"a": 1, "b": 0})
    with pytest.raises(ValueError, match=r"x must have the structure of the cell's x_ndim, {'a': 1, 'b': 0}, got"):
        find(tree, PARAMS, STARTS, XS[0])
    with pytest.raises(FloatingPointError, match="find_fixed_points: x is not finite"):
        find(CELL, PARAMS, STARTS, XS.at[2, 1].set(jnp.nan))


@pytest.mark.parametrize("method", ["adam", "newton"])
def test_a_start_from_which_no_step_can_be_taken_is_named(method):
    model = jr.chain(jr.embedding(5, 3), CELL)
    params = model.init(jax.random.key(0))
    tokens = jnp.arange(len(STARTS)) % 5
    find = functools.partial(jr.gradients.find_fixed_points, model, params, ((), STARTS), method=method, steps=5)
    assert find(tokens, tolerance=100.0).hits.sum() == len(STARTS)
    with pytest.raises(FloatingPointError, match=r"one step from 2 of 5 starts is not finite, first from 1; .* token"):
        find(tokens.at[jnp.array([1, 3])].set(5))
