"""``jr.fit_readout`` beside scikit-learn's Ridge and NumPy's least squares, over steps that count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import jaxrnn as jr

# Both sides solve in float64, by other decompositions, systems of a condition below 1e4.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
T, B, I, H, O = 30, 3, 2, 6, 2
CELL = jr.echo_state(I, H, density=0.5, leak=0.5, input_scaling=2.0)
PARAMS = CELL.init(jax.random.key(0))
RNG = np.random.default_rng(0)
XS, YS = RNG.normal(size=(T, B, I)).astype("float32"), 3 + RNG.normal(size=(T, B, O))
LENGTHS = np.array([30, 17, 0])
MASK = RNG.random((T, B)) < 0.8
RESETS = np.zeros((T, B), bool)
RESETS[12, 0] = True
IDENTITY = jr.pointwise(lambda h: h)  # whose outputs are the inputs


def states_of(**flags):
    return np.asarray(jr.scan(CELL).apply(PARAMS, XS, **flags)[1], np.float64)


def rows(a, chosen):
    """Sequence after sequence."""
    return np.concatenate([a[chosen[:, b], b] for b in range(B)])


def refit(h, y, ridge, bias=True):
    """scikit-learn's, as the rows [b; W]."""
    made = Ridge(alpha=ridge, fit_intercept=bias, solver="svd").fit(h, y)
    return np.concatenate([made.intercept_[None], made.coef_.T]) if bias else made.coef_.T


def found_weights(found):
    W, b = (None if a is None else np.asarray(a) for a in found.params)
    return W if b is None else np.concatenate([b[None], W])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [1e-6, 0.3, 50.0])
def test_it_is_scikit_learns_ridge(ridge, bias):
    found = jr.fit_readout(CELL, PARAMS, XS, YS, ridge=ridge, bias=bias)
    every = np.ones((T, B), bool)
    h, y = rows(states_of(), every), rows(YS, every)
    want = refit(h, y, ridge, bias)
    # The readout's parameters are float32, as the layer's outputs.
    np.testing.assert_allclose(found_weights(found), want, rtol=1e-5, atol=1e-5)
    assert (found.ridge, found.held_out, found.params.W_hy.dtype) == (ridge, None, jnp.float32)
    design = np.concatenate([np.ones((len(h), int(bias))), h], axis=1)
    np.testing.assert_allclose(found.error, np.mean((design @ found_weights(found) - y) ** 2), rtol=1e-9)


def test_the_readout_goes_on_top():
    found = jr.fit_readout(jr.scan(CELL), PARAMS, XS, YS, ridge=0.1)
    params = PARAMS, found.params
    want = np.asarray(found.params.b_y) + states_of() @ np.asarray(found.params.W_hy)
    np.testing.assert_allclose(jr.stack(CELL, found.readout).apply(params, XS)[1], want, rtol=1e-5, atol=1e-5)
    model = jr.chain(CELL, found.readout)
    _, y = model.step(params, model.initial_carry(params, (B,)), XS[0])
    np.testing.assert_allclose(y, want[0], rtol=1e-5, atol=1e-5)
    assert found.readout == jr.readout(H, O)


FLAGS = {
    "lengths": {"lengths": LENGTHS},
    "all": {"lengths": LENGTHS, "mask": MASK, "resets": RESETS},
}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("washout", [0, 4])
def test_steps_that_do_not_count_are_not_fitted(flags, washout, x64):
    """Nor are their targets read; a reset washes out anew."""
    given = FLAGS[flags]
    chosen = given.get("mask", np.ones((T, B), bool)) & (np.arange(T)[:, None] < LENGTHS)
    for b in range(B):
        fresh = 0
        for t in range(T):
            fresh = 0 if "resets" in given and RESETS[t, b] else fresh
            if chosen[t, b]:
                fresh += 1
                chosen[t, b] = fresh > washout
    poisoned = np.where(chosen[..., None], YS, np.nan)
    params, xs = jax.tree.map(lambda a: a.astype("float64"), (PARAMS, jnp.asarray(XS)))
    found = jr.fit_readout(CELL, params, xs, poisoned, ridge=0.2, washout=washout, **given)
    h = np.asarray(jr.scan(CELL).apply(params, xs, **given)[1])
    np.testing.assert_allclose(found_weights(found), refit(rows(h, chosen), rows(YS, chosen), 0.2), **CLOSE)


@pytest.mark.parametrize("bias", [True, False])
def test_of_several_the_one_with_the_least_held_out_error(bias, x64):
    """Over blocks, each by scikit-learn; ridges that are too small or too large lose."""
    ridges, folds, count = (1e-9, 1e-3, 0.5, 2.0, 1e3), 4, 50
    h = RNG.normal(size=(count, 12))
    y = h @ RNG.normal(size=(12, O)) / 3 + RNG.normal(size=(count, O)) + 1
    found = jr.fit_readout(IDENTITY, (), h, y, ridge=ridges, folds=folds, bias=bias)
    blocks = np.array_split(np.arange(count), np.linspace(0, count, folds + 1).astype(int)[1:-1])
    errors = []
    for ridge in ridges:
        squares = []
        for block in blocks:
            rest = np.setdiff1d(np.arange(count), block)
            made = Ridge(alpha=ridge, fit_intercept=bias, solver="svd").fit(h[rest], y[rest])
            squares.append((made.predict(h[block]) - y[block]) ** 2)
        errors.append(np.concatenate(squares).mean())
    np.testing.assert_allclose(found.held_out, errors, **CLOSE)
    assert found.ridge == ridges[int(np.argmin(errors))] and found.ridge in (0.5, 2.0)
    np.testing.assert_allclose(found_weights(found), refit(h, y, found.ridge, bias), **CLOSE)


def test_least_squares_of_any_rank(x64):
    """NumPy's, whose solution is the least of many: fewer steps than units, a unit that is there twice, one row."""
    h, y = RNG.normal(size=(40, 5)), RNG.normal(size=(40, 1))
    twice = np.concatenate([h, h[:, :1]], axis=1)
    for some, targets in ((h, y), (twice, y), (twice[:4], y[:4])):
        got = jr.fit_readout(IDENTITY, (), some, targets, ridge=0, bias=False)
        np.testing.assert_allclose(got.params.W_hy, np.linalg.lstsq(some, targets)[0], **CLOSE)
    exact = jr.fit_readout(IDENTITY, (), twice[:4], y[:4], ridge=0)
    np.testing.assert_allclose(twice[:4] @ exact.params.W_hy + exact.params.b_y, y[:4], **CLOSE)
    one = jr.fit_readout(IDENTITY, (), h[:1], y[:1])
    np.testing.assert_allclose(one.params.b_y, y[0], **CLOSE)
    np.testing.assert_array_equal(one.params.W_hy, 0)


def test_float32_states_are_summed_in_float64():
    """Columns of which hᵀh in float32 is singular, in more blocks than one; without x64."""
    n = 4000
    line = np.linspace(-1, 1, n)
    h = np.stack([line, line + 1e-4 * np.sin(40 * line), np.full(n, 300.0)], axis=1).astype("float32")
    y = h.astype(float) @ np.array([[1.0], [-2.0], [0.01]]) + 5
    found = jr.fit_readout(IDENTITY, (), h, y, ridge=0)
    # Of 300 and b_y the sum alone is known; 5e-5 of rounding to float32 in weights of condition 1e4.
    np.testing.assert_allclose(found.params.W_hy[:2, 0], [1.0, -2.0], rtol=1e-5)
    np.testing.assert_allclose(found.params.b_y + 300 * found.params.W_hy[2], 8.0, rtol=1e-6)
    assert found.error < 1e-12
    wide = jr.fit_readout(IDENTITY, (), h.astype("bfloat16"), y, ridge=1.0)
    assert wide.params.W_hy.dtype == jnp.bfloat16


def test_noise_and_the_start_are_the_runs_own():
    noisy = jr.ctrnn(I, H, noise=1.0)
    params, carry, key = noisy.init(jax.random.key(0)), jnp.ones((B, H)), jax.random.key(1)
    found = jr.fit_readout(noisy, params, XS, YS, ridge=0.5, carry=carry, key=key)
    h = np.asarray(jr.scan(noisy).apply(params, XS, carry, key=key)[1], float)
    every = np.ones((T, B), bool)
    np.testing.assert_allclose(found_weights(found), refit(rows(h, every), rows(YS, every), 0.5), rtol=1e-4, atol=1e-5)


def fit(**changed):
    arguments = {"layer": CELL, "params": PARAMS, "xs": XS, "ys": YS} | changed
    return jr.fit_readout(**arguments)


ERRORS = {
    "shape": (
        lambda: fit(ys=YS[..., 0]),
        ValueError,
        r"ys must be real numbers \(T, \*B, O\) that lead with \(30, 3\)",
    ),
    "complex": (lambda: fit(ys=1j * YS), ValueError, "ys must be real numbers .* got complex128"),
    "ridge": (lambda: fit(ridge=-1.0), ValueError, "ridge must be finite and 0 or above, got -1.0; 0 is least squares"),
    "ridges": (lambda: fit(ridge="best"), TypeError, "ridge must be a number, or a sequence of them to choose from"),
    "folds": (lambda: fit(ridge=(1.0, 2.0), folds=1), ValueError, "folds must be from 2 to the 90 steps .* got 1"),
    "washout": (
        lambda: fit(washout=T),
        ValueError,
        "no step is left to fit; give longer sequences, or a washout below",
    ),
    "targets": (
        lambda: fit(ys=np.where(np.arange(T)[:, None, None] == 7, np.nan, YS)),
        FloatingPointError,
        "ys at step 7 are not finite; leave such steps out by mask or lengths",
    ),
    "states": (lambda: fit(xs=np.nan * XS), FloatingPointError, "the layer's outputs at step 0 are not finite"),
    "jit": (lambda: jax.jit(lambda xs: fit(xs=xs).params)(XS), TypeError, "cannot be jitted; call it outside of jit"),
    "two outputs": (
        lambda: fit(layer=jr.branch(CELL, CELL), params=(PARAMS, PARAMS)),
        TypeError,
        r"the layer must put out one array of floats \(T, \*B, H\), got tuple",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_refused(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=f"fit_readout: .*{message}"):
        call()
