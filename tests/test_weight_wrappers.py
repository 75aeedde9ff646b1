"""Wrappers of weights, by hand: what the weights of a run are, their gradients, that the loop over time has no part."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as jr
from tests.cases import B, H, I, T, draw, drawn, randomised
from tests.user_cells import textbook_lstm

KEY = jax.random.key(3)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64, a few steps


def run_by_hand(p, xs, h):
    """An Elman network, in NumPy."""
    return np.stack([h := np.tanh(h @ p.W_hh + x @ p.W_xh + p.b) for x in np.asarray(xs)])


def problem(cell):
    params, h, _ = drawn(cell)
    return params, draw((T, B, I), 4), h


def gradients(cell, params, xs, h, **options):
    """By the params, of a run that is weighed."""
    weights = draw((T, B, H), 9)
    return jax.grad(lambda params: (jr.scan(cell).apply(params, xs, h, **options)[1] * weights).sum())(params)


# ---- drawn once a run -----------------------------------------------------------------------------


def test_weight_drop_by_hand(x64):
    inner = jr.elman(I, H)
    cell = jr.weight_drop(inner, rate=0.25)
    params, xs, h = problem(cell)
    ((kept,), inside) = cell.noise(params, KEY, jnp.arange(T), xs[0])
    assert kept.shape == (1, H, H) and 0 < kept.sum() < H * H and inside is None
    M = np.asarray(kept[0]) / 0.75
    alone = params._replace(W_hh=M * params.W_hh)

    @jax.jit
    def everything():
        run = jr.scan(cell).apply
        whole, (half, first) = run(params, xs, h, key=KEY), run(params, xs[:4], h, key=KEY)
        by_params, by_alone = gradients(cell, params, xs, h, key=KEY), gradients(inner, alone, xs, h)
        evaluation = run(params, xs, h), jr.scan(inner).apply(params, xs, h)
        return whole[1], (first, run(params, xs[4:], half, key=KEY, start=4)[1]), (by_params, by_alone), evaluation

    ys, chunks, (by_params, by_alone), evaluation = everything()
    np.testing.assert_allclose(ys, run_by_hand(alone, xs, h), **CLOSE)
    np.testing.assert_allclose(np.concatenate(chunks), ys, **CLOSE)
    for a, b in zip(by_params, by_alone._replace(W_hh=M * by_alone.W_hh), strict=True):
        if a is not None:
            np.testing.assert_allclose(a, b, **CLOSE)
    np.testing.assert_array_equal(*(ys for _, ys in evaluation))


def test_weight_noise_by_hand(x64):
    cell = jr.weight_noise(jr.elman(I, H, learned_carry=True), std=0.5)
    params, xs, _ = problem(cell)
    ε, _ = cell.noise(params, KEY, jnp.arange(T), xs[0])
    leaves, treedef = jax.tree.flatten(params)
    noisy = treedef.unflatten([W + 0.5 * e[0] for W, e in zip(leaves, ε, strict=True)])
    assert len({float(e.ravel()[0]) for e in ε}) == 4  # each its own draw
    run = jax.jit(lambda: [jr.scan(cell).apply(params, xs, key=key)[1] for key in (KEY, None)])
    ys, evaluation = run()
    h0 = np.tile(params.h0, (B, 1))  # without noise, as h_{t-1} of the first step
    np.testing.assert_allclose(ys, run_by_hand(noisy, xs, h0), **CLOSE)
    np.testing.assert_allclose(evaluation, run_by_hand(params, xs, h0), **CLOSE)


def test_what_is_drawn():
    """4,800 draws: a standard error of 0.006 of a rate of 0.2, and of 0.01 of a deviation."""
    inner = jr.gru(20, 40)
    dropped, noisy = jr.weight_drop(inner, rate=0.2), jr.weight_noise(inner, std=9.0, names="W_hh")
    params = jax.tree.map(lambda a: jnp.zeros(a.shape), jax.eval_shape(inner.init, KEY))

    @jax.jit
    def draws(key):
        of = lambda cell, *times: cell.noise(params, key, jnp.arange(*times), jnp.ones(20))[0][0]
        return of(dropped, 3), of(noisy, 3), of(dropped, 7, 9)

    kept, ε, later = map(np.asarray, draws(KEY))
    assert kept.shape == ε.shape == (1, 40, 120)
    np.testing.assert_allclose([kept.mean(), ε.std(), ε.mean()], [0.8, 1, 0], atol=0.05)
    np.testing.assert_array_equal(later, kept)  # of the key alone, not of time


def test_names_choose_by_the_end_of_a_path():
    chain = jr.chain(jr.gru(I, H), jr.gru(H, H))
    drawn_by = lambda cell: jax.eval_shape(cell.noise, jax.eval_shape(cell.init, KEY), KEY, jnp.arange(2), jnp.ones(I))[
        0
    ]
    for names, count in (("W_hh", 2), ("0.W_hh", 1), (("W_hh", "0.b"), 3), (["1.W_xh"], 1)):
        assert len(drawn_by(jr.weight_drop(chain, rate=0.5, names=names))) == count
    assert len(drawn_by(jr.weight_drop(textbook_lstm(I, H), rate=0.5, names="U"))) == 4
    masked = jr.masked_weights(jr.weight_norm(jr.lstm(I, H)))
    inside = jax.tree.leaves(jax.eval_shape(masked.init, KEY).cell)
    ε = drawn_by(jr.weight_noise(masked, std=0.1))
    assert [e.shape[1:] for e in ε] == [a.shape for a in inside]  # v, g and biases, not masks


def test_a_draw_that_rows_share_is_not_packed():
    """A mask (1, H, 3H) in a batch of H rows is none of the rows' own."""
    layer = jr.scan(jr.weight_drop(jr.gru(I, 6), rate=0.5), plan=jr.Plan(pack=True))
    shapes = jax.eval_shape(layer.init, KEY)
    for rows in (5, 6):
        found = jr.explain(layer, shapes, jnp.ones((T, rows, I)), lengths=np.full(rows, 2), key=KEY)
        assert found.scans[0].not_packed == "noise that the rows share"


# ---- made of others -------------------------------------------------------------------------------


def test_weight_norm_by_hand(x64, traced):
    """The gradients are equation 3 of the paper: of g that of W along v, of v what is across it."""
    inner = jr.elman(I, H)
    cell = jr.weight_norm(inner, names="W_hh")
    params, xs, h = problem(cell)
    v, g = np.asarray(params.cell.W_hh), np.asarray(params.g[0])
    size = np.sqrt((v**2).sum(0))
    alone = params.cell._replace(W_hh=g * v / size)

    @traced
    def everything():
        return jr.scan(cell).apply(params, xs, h)[1], gradients(cell, params, xs, h), gradients(inner, alone, xs, h)

    ys, by_params, by_alone = everything()
    np.testing.assert_allclose(ys, run_by_hand(alone, xs, h), **CLOSE)
    by_W = np.asarray(by_alone.W_hh)
    by_g = (by_W * v).sum(0) / size
    np.testing.assert_allclose(by_params.g[0], by_g, **CLOSE)
    np.testing.assert_allclose(by_params.cell.W_hh, g / size * by_W - g * by_g / size**2 * v, **CLOSE)
    np.testing.assert_allclose(by_params.cell.W_xh, by_alone.W_xh, **CLOSE)


def test_weight_norm_begins_with_the_weights_of_the_cell(x64, traced):
    for inner in (jr.gru(I, H), jr.conv_lstm(I, 2, spatial_shape=(3,))):
        cell = jr.weight_norm(inner)
        params, own = jax.jit(lambda key, i=inner, c=cell: (i.init(key), c.init(key)))(KEY)
        assert [g.shape for g in own.g] == [W.shape[-1:] for W in (params.W_xh, params.W_hh)]
        x = draw((B, *(3,) * (inner.x_ndim - 1), I), 3).astype(jnp.float32)
        step = lambda c, p, x=x: c.step(p, c.initial_carry(p, (B,)), x)[1]
        ys = traced(lambda c=cell, i=inner, p=params, o=own, step=step: (step(c, o), step(i, p)))()
        np.testing.assert_allclose(*ys, rtol=1e-5, atol=1e-6)  # float32


def test_a_unit_without_weights_stays_so(x64, traced):
    cell = jr.weight_norm(jr.elman(I, H), names="W_hh")
    params, xs, h = problem(cell)
    none = params._replace(cell=params.cell._replace(W_hh=params.cell.W_hh.at[:, 1].set(0)))
    by = traced(lambda: gradients(cell, none, xs, h))()
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(by)) and by.g[0][1] == 0 != by.g[0][0]


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (7, 3), (2, 3, 4)])
def test_spectral_norm_is_that_of_numpy(shape, x64, traced):
    """Gaussian matrices, whose first two singular values are near each other: the number of iterations tells."""
    W = draw(shape, 8)
    cell = jr.Cell(lambda key: {"W": W}, lambda p, batch_shape=(): jnp.zeros(()), lambda p, h, x: (h, p["W"]))
    singular = np.linalg.svd(np.asarray(W).reshape(-1, shape[-1]), compute_uv=False)
    few, many = traced(
        lambda: [
            jr.spectral_norm(cell, scale=0.5, iterations=n).step({"W": W}, jnp.zeros(()), jnp.zeros(1))[1]
            for n in (2, 300)
        ]
    )()
    np.testing.assert_allclose(many, 0.5 * W / singular[0], rtol=1e-8)
    # Never too large a value, so that what it divides by is not; and near after two iterations.
    ratio = np.linalg.norm(few) / np.linalg.norm(many)
    assert 1 <= ratio < 1.3


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_spectral_norm_of_any_size(size, traced):
    cell = jr.spectral_norm(jr.elman(2, 2, activation="identity"), names="W_hh")
    W = jnp.diag(jnp.array([2.0, 1.0])) * jnp.float32(size)
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(cell.init, KEY))._replace(W_hh=W)
    step = lambda params: cell.step(params, jnp.ones(2), jnp.zeros(2))[1]
    y, by_params = traced(lambda: (step(params), jax.grad(lambda p: step(p)[1])(params)))()
    np.testing.assert_allclose(y, [0, 0] if size == 0 else [1, 0.5], rtol=1e-6)  # float32
    assert np.isfinite(by_params.W_hh).all()


def test_gradient_of_spectral_norm(x64, traced):
    """Equation 12 of the paper, once the iteration is at its end: without what W' already has along u v^T."""
    cell = jr.spectral_norm(jr.elman(I, H), names="W_hh", iterations=400)
    params, xs, h = problem(cell)
    u, singular, vT = np.linalg.svd(np.asarray(params.W_hh))
    alone = params._replace(W_hh=params.W_hh / singular[0])
    by, by_alone = traced(lambda: (gradients(cell, params, xs, h).W_hh, gradients(jr.elman(I, H), alone, xs, h).W_hh))()
    expected = (by_alone - (by_alone * alone.W_hh).sum() * np.outer(u[:, 0], vT[0])) / singular[0]
    np.testing.assert_allclose(by, expected, rtol=1e-7)  # what is left of the second singular vector


def test_masked_weights_stay_out_in_training():
    """Adam with weight decay, which moves every weight that has a gradient or is not 0."""
    cell = jr.masked_weights(jr.elman(I, H), density=0.5)
    params = jax.jit(cell.init)(KEY)
    assert all((W == 0).any() for W, m in zip(params.cell, params.masks, strict=False))
    _, xs, h = problem(jr.elman(I, H))
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    state, trained = optimizer.init(params), params

    @jax.jit
    def update(params, state):
        updates, state = optimizer.update(gradients(cell, params, xs, h), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        trained, state = update(trained, state)
    for W, before, m, now in zip(trained.cell, params.cell, params.masks, trained.masks, strict=False):
        np.testing.assert_array_equal(W == 0, m == 0)
        assert (before != W)[m > 0].all() and ((now > 0) == (m > 0)).all()


def test_masked_weights_by_hand(x64, traced):
    mask = np.random.default_rng(1).random((H, H)) < 0.5
    cell = jr.masked_weights(jr.elman(I, H), mask=mask, names="W_hh")
    first = cell.init(KEY)
    np.testing.assert_array_equal(first.cell.W_hh, np.where(mask, jr.elman(I, H).init(KEY).W_hh, 0))
    np.testing.assert_array_equal(first.masks[0], mask)
    assert jr.build(cell.spec.to_dict()) == cell
    params, xs, h = problem(cell)
    params = params._replace(masks=(~mask,))  # pruned otherwise; W itself is not 0 there
    ys = traced(lambda: jr.scan(cell).apply(params, xs, h)[1])()
    alone = params.cell._replace(W_hh=np.where(mask, 0, params.cell.W_hh))
    np.testing.assert_allclose(ys, run_by_hand(alone, xs, h), **CLOSE)


def test_density_is_the_share_of_the_weights():
    masks = jax.jit(jr.masked_weights(jr.gru(40, 40), density=0.1).init)(KEY).masks
    assert [m.shape for m in masks] == [(40, 120)] * 2 and (masks[0] != masks[1]).any()
    np.testing.assert_allclose([m.mean() for m in masks], 0.1, atol=0.02)  # a standard error of 0.004


# ---- every wrapper of weights ---------------------------------------------------------------------

WRAPPED = {
    "weight_drop": functools.partial(jr.weight_drop, rate=0.5),
    "weight_noise": functools.partial(jr.weight_noise, std=0.1),
    "weight_norm": jr.weight_norm,
    "spectral_norm": functools.partial(jr.spectral_norm, iterations=2),
    "masked_weights": jr.masked_weights,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_nothing_is_added_to_the_loops(kind):
    """No operation at a step, forward and backward, that the cell has not: the rest is done once."""

    def at_each_step(cell):
        layer = jr.scan(cell, plan=jr.Plan(one_kernel=False))
        params, options = jax.eval_shape(cell.init, KEY), {"key": KEY} if cell.noise else {}
        (found,) = jr.explain(layer, params, jnp.ones((T, 50, I)), **options).scans
        last = found.programs["persistent_kernel"]
        return [Counter(op.name for op in loop.parts().each_step) for loop in (last.primal, last.tangent)]

    for wrapped, own in zip(at_each_step(WRAPPED[kind](jr.gru(I, H))), at_each_step(jr.gru(I, H)), strict=True):
        assert wrapped - own == Counter() and wrapped["dot_general"] == own["dot_general"] > 1


@pytest.mark.parametrize(
    "kind",
    ["weight_norm", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("spectral_norm", "masked_weights"))],
)
def test_linear_recurrences_stay_such(kind, x64, traced):
    inner = jr.min_gru(I, H)
    cell = WRAPPED[kind](inner)
    assert cell.affine is not None and cell.output is not None
    params = randomised(cell.init(KEY), 1)
    xs = draw((T, B, I), 4)
    run = lambda run, **options: run(cell, **options).apply(params, xs)[1]
    by_scan, at_once, alone = traced(
        lambda: (run(jr.scan), run(jr.parallel, method="associative"), jr.scan(inner).apply(drawn(inner)[0], xs)[1])
    )()
    np.testing.assert_allclose(at_once, by_scan, **CLOSE)
    assert abs(by_scan - alone).max() > 1e-3


@pytest.mark.parametrize("kind", ["weight_norm", "masked_weights"])  # which have parameters of their own
def test_wrapped_models_are_saved(kind, tmp_path):
    cell = WRAPPED[kind](jr.chain(jr.gru(I, H), jr.readout(H, 2)))
    params = jax.jit(cell.init)(KEY)
    jr.save(tmp_path / "model.safetensors", cell, params)
    again, loaded, _ = jr.load(tmp_path / "model.safetensors")
    assert again == cell and jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["weight_norm", "masked_weights"])
def test_gates_and_carries_are_those_of_the_weights_made(kind, x64, traced):
    inner = jr.lstm(I, H, learned_carry=True)
    cell = WRAPPED[kind](inner)
    params, carry, x = drawn(cell)
    gates, step, own = traced(
        lambda: (jr.gates(cell, params, carry, x), cell.step(params, carry, x), cell.initial_carry(params, (B,)))
    )()
    np.testing.assert_allclose(gates.c, step[0].c, rtol=1e-12)
    np.testing.assert_array_equal(own.h, np.tile(params.cell.initial.h, (B, 1)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: jr.weight_drop(jr.min_gru(I, H), rate=0.5).init(KEY),
            ValueError,
            "weight_drop: min_gru has no parameter called 'W_hh' of real or complex numbers; it has W_xh, b; name",
        ),
        (
            lambda: jr.weight_norm(jr.gru(I, H), names=("W_hh", "b")).init(KEY),
            ValueError,
            "weight_norm: gru has no parameter called 'b' of real numbers, of two axes or more; it has W_xh, W_hh;",
        ),
        (
            lambda: jr.spectral_norm(jr.layer_norm(H)).init(KEY),
            ValueError,
            "spectral_norm: layer_norm has no parameter of real numbers, of two axes or more; it has none",
        ),
        (
            lambda: jr.spectral_norm(jr.chain(jr.gru(I, H), jr.gru(H, H)), names="2.W_hh").init(KEY),
            ValueError,
            r"spectral_norm: chain has no parameter called '2\.W_hh' .* it has 0\.W_xh, 0\.W_hh, 1\.W_xh, 1\.W_hh;",
        ),
        (lambda: jr.weight_noise(jr.gru(I, H), std=-1.0), ValueError, "weight_noise: std must be 0 or above, got -1"),
        (
            lambda: jr.masked_weights(jr.gru(I, H), mask=np.ones((H, H))).init(KEY),
            ValueError,
            r"masked_weights: mask should have the shape of W_xh, \(3, 12\), got \(4, 4\); build it so",
        ),
        (
            lambda: jr.masked_weights(jr.gru(I, H), mask=np.ones((H, H)), density=0.5),
            ValueError,
            "masked_weights: got density=0.5 and a mask; give either of them",
        ),
        (
            lambda: jr.masked_weights(jr.gru(I, H), density=0.0),
            ValueError,
            r"masked_weights: density must be above 0 and at most 1, got 0\.0",
        ),
        (
            lambda: jr.spectral_norm(jr.gru(I, H), scale=0),
            ValueError,
            "spectral_norm: scale must be positive, got 0",
        ),
        (
            lambda: jr.weight_norm(jr.scan(jr.gru(I, H))),
            TypeError,
            r"weight_norm: expected a Cell, got scan\(gru\), a Layer; wrap the cell",
        ),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()
