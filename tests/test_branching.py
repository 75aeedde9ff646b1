"""Members side by side, and the cells of no memory that stand in them; the contract runs both: tests/cases.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import randomised
from tests.errors import apply, assert_fails, step

I, H, T, B = 3, 4, 5, 2
KEY = jax.random.key(0)
XS = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, I)), jnp.float32)
ACTOR = jr.chain(jr.dropout(0.5), jr.gru(I, H), jr.readout(H, 2))
CRITIC = jr.chain(jr.elman(I, H), jr.dropout(0.3), jr.readout(H, 1))
LENGTHS = jnp.array([3, 5])


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_branch_is_its_members_on_one_input():
    """Cells first, then lifted: the same params, carry and noise; the noise of each member its own."""
    of_cells, of_layers = jr.branch(ACTOR, CRITIC), jr.branch(jr.scan(ACTOR), CRITIC)
    assert isinstance(of_cells, jr.Cell) and isinstance(of_layers, jr.Layer)
    params = randomised(of_cells.init(KEY))
    options = {"lengths": LENGTHS, "resets": jnp.zeros((T, B), bool).at[2].set(True), "start": 1}

    @jax.jit
    def three(params, key):
        lifted = jr.scan(of_cells).apply(params, XS, key=key, **options)
        layers = of_layers.apply(params, XS, key=key, **options)
        apart = [
            jr.scan(cell).apply(p, XS, key=jax.random.fold_in(key, n), **options)
            for n, (cell, p) in enumerate(zip((ACTOR, CRITIC), params, strict=True))
        ]
        return lifted, layers, tuple(zip(*apart, strict=True))

    lifted, layers, apart = three(params, jax.random.key(7))
    jax.tree.map(close, lifted, apart)
    jax.tree.map(close, layers, apart)
    evaluated = jr.scan(of_cells).apply(params, XS, **options)
    assert np.abs(evaluated[1][0] - lifted[1][0]).max() > 0.01 < np.abs(evaluated[1][1] - lifted[1][1]).max()


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)  # float32, fused otherwise


@pytest.mark.parametrize("lift", [jr.scan, lambda cell: jr.branch(*map(jr.scan, (ACTOR, CRITIC)), merge=merge)])
def test_padding_is_zero_whatever_the_merge_makes_of_zeros(lift):
    layer = lift(jr.branch(ACTOR, CRITIC, merge=merge))
    params = randomised(layer.init(KEY))
    mask = jnp.ones((T, B), bool).at[1, 1].set(False)
    by_lengths, by_mask, all_valid = (
        layer.apply(params, XS, **flags)[1] for flags in ({"lengths": LENGTHS, "start": 1}, {"mask": mask}, {})
    )
    for ys, on in ((by_lengths, np.arange(1, T + 1)[:, None] < LENGTHS), (by_mask, mask)):
        for leaf in jax.tree.leaves(ys):
            assert (leaf[~on] == 0).all() and (leaf[on] != 0).all()
    assert jax.tree.structure(all_valid) == jax.tree.structure({"both": 0, "sum": 0})


def merge(logits, value):
    return {"both": jnp.concatenate([jnp.exp(logits), value], -1), "sum": 1 + logits.sum(-1) ** 2}


def test_in_a_chain_step_by_step():
    """Streamed: an actor and a critic on one memory, whose outputs are a tuple."""
    policy = jr.chain(jr.lstm(I, H), jr.branch(jr.readout(H, 2), jr.readout(H, 1)))
    params, server = randomised(policy.init(KEY)), jr.stream(policy)
    carry, steps = server.initial_carry(params, (B,)), []
    step = jax.jit(server.step)
    for x in XS:
        carry, y = step(params, carry, x, mask=jnp.ones(B, bool), resets=jnp.zeros(B, bool))
        steps.append(y)
    streamed = jax.tree.map(lambda *a: jnp.stack(a), *steps)
    for got, want in zip(streamed, jr.scan(policy).apply(params, XS)[1], strict=True):
        close(got, want)


@pytest.mark.parametrize(
    ("model", "input_size", "output_size", "x_ndim"),
    [
        (jr.branch(jr.dropout(0.5), jr.gru(3, 4), jr.readout(3, 2)), 3, None, 1),
        (jr.branch(jr.gru(3, 4), jr.readout(3, 2), merge="concat"), 3, 6, 1),
        (jr.branch(jr.scan(jr.gru(3, 4)), jr.readout(3, 2), merge="concat"), 3, 6, 1),
        (jr.branch(jr.gru(3, 4), jr.dropout(0.5), merge="concat"), 3, None, 1),
        (jr.branch(jr.gru(3, 4), jr.gru(3, 4), merge=jnp.add), 3, None, 1),
        (jr.branch(jr.embedding(5, 2), jr.pointwise(lambda x: jax.nn.one_hot(x, 5), x_ndim=0)), None, None, 0),
    ],
    ids=["tuple", "concat", "layers", "of unknown size", "function", "tokens"],
)
def test_sizes_where_they_are_known(model, input_size, output_size, x_ndim):
    assert (model.input_size, model.output_size, model.x_ndim) == (input_size, output_size, x_ndim)


def test_fields_of_a_convolution_have_lengths_too():
    """``x_ndim`` says which axes are features, so that lengths are those of sequences."""
    fields = jnp.asarray(np.random.default_rng(1).normal(size=(T, B, 4, I)), jnp.float32)
    layer = jr.stack(jr.conv_lstm(I, 2, spatial_shape=(4,)), jr.dropout(0.5, x_ndim=2), jr.pointwise(jnp.exp, x_ndim=2))
    ys = layer.apply(layer.init(KEY), fields, lengths=LENGTHS, key=KEY)[1]
    assert ys.shape == (T, B, 4, 2) and not ys[3:, 0].any() and ys[:3, 0].all() and (ys[:3, 0] == 1).any()


def test_pointwise_of_any_input():
    pooled = jr.pointwise(lambda x: x.mean((-3, -2)), x_ndim=3)
    images = jnp.arange(2.0 * 3 * 4 * 4 * 5).reshape(2, 3, 4, 4, 5)  # (T, B, 4, 4, 5)
    ys = jr.scan(pooled).apply((), images, lengths=jnp.array([2, 1, 0]))[1]
    np.testing.assert_allclose(ys[:, 0], images[:, 0].mean((1, 2)), rtol=1e-6)
    assert not ys[:, 2].any() and ys[0, 1].any() and not ys[1, 1].any()
    both = jr.stack(
        jr.branch(jr.pointwise(jnp.sin), jr.pointwise("relu")), jr.pointwise(lambda pair: pair[0] + pair[1])
    )
    np.testing.assert_allclose(both.apply(both.init(KEY), XS)[1], jnp.sin(XS) + jnp.maximum(XS, 0), rtol=1e-6)


def test_a_dense_layer_in_narrow_floats_is_activated_in_float32():
    cell = jr.dense(I, 2, activation="softplus", dtype="bfloat16")
    params = randomised(cell.init(KEY))
    y = cell.step(params, (), XS[0])[1]
    a = XS[0].astype("bfloat16").astype("float32") @ params.W_hy.astype("bfloat16").astype("float32") + params.b_y
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jax.nn.softplus(a).astype("bfloat16"))


def test_files_take_readout_and_dense_without_activation_for_one(tmp_path):
    path, cell = tmp_path / "cell.safetensors", jr.readout(I, 2)
    params = randomised(cell.init(KEY))
    jr.save(path, cell, params)
    for same in (jr.dense(I, 2), jr.dense(I, 2, activation="identity")):
        assert_same(jr.load(path, same)[1], params)
    for other in (jr.dense(I, 2, activation="relu"), jr.dense(I, 2, bias=False)):
        with pytest.raises(ValueError, match=r"but the model given is dense.* computes something else"):
            jr.load(path, other)
    for heads in (jr.branch(cell, cell, merge="concat"), jr.branch(jr.scan(cell), cell, merge="concat")):
        jr.save(path, jr.branch(cell, cell, merge="concat"), (params, params))
        assert_same(jr.load(path, heads)[1], (params, params))
    with pytest.raises(ValueError, match=r"merge='concat'.*computes something else"):
        jr.load(path, jr.branch(cell, cell))


def test_files_hold_the_parameters_of_functions(tmp_path):
    path = tmp_path / "cell.safetensors"
    model = jr.branch(jr.gru(I, H), jr.pointwise(jnp.sin), merge=lambda h, x: (x, h))
    params = randomised(model.init(KEY))
    jr.save(path, model, params)
    assert_same(jr.load(path, model)[1], params)
    with pytest.raises(ValueError, match=r"parameters without their model: .*option merge is the function"):
        jr.load(path)


GRU = jr.gru(I, H)
TWO = jr.branch(jr.dense(I, H), jr.readout(I, 2))
MISTAKES = {
    "of nothing": (lambda: jr.branch(), ValueError, ["branch: needs at least one member, got none"]),
    "of a function": (lambda: jr.branch(GRU, jnp.tanh), TypeError, ["branch: member 1 must be a Cell or a Layer"]),
    "merge": (
        lambda: jr.branch(GRU, GRU, merge="concatenate"),
        ValueError,
        ["branch: merge must be one of 'tuple', 'concat' or a function", "did you mean 'concat'?"],
    ),
    "sizes": (
        lambda: jr.branch(jr.dropout(0.1), GRU, jr.scan(jr.readout(5, 2))),
        ValueError,
        ["branch: member 1 (gru) has input_size=3 but member 2 (scan(readout)) has input_size=5", "give them one"],
    ),
    "axes": (
        lambda: jr.branch(jr.embedding(5, 2), jr.pointwise("tanh")),
        ValueError,
        ["branch: member 0 (embedding) has x_ndim=0 but member 1 (pointwise) has x_ndim=1"],
    ),
    "outputs of two, read by a layer": (
        lambda: apply(jr.stack(TWO, jr.gru(H, 2))),
        TypeError,
        ["scan(gru): x must be one array, got tuple of 2: (array (7, 2, 4), array (7, 2, 2))", "merge='concat'"],
    ),
    "outputs of two, read by a cell": (
        lambda: step(jr.chain(TWO, jr.embedding(3, 2))),
        TypeError,
        ["embedding: x must be one array, got tuple of 2", "jr.pointwise(function) in between"],
    ),
    "outputs of two, dropped": (
        lambda: jr.scan(jr.chain(TWO, jr.dropout(0.5))).apply(((TWO.init(KEY)), ()), XS, key=KEY),
        TypeError,
        ["dropout: x must be one array, got tuple of 2"],
    ),
    "outputs of two, added to": (
        lambda: step(jr.residual(jr.branch(jr.dense(I, I), jr.dense(I, I)))),
        TypeError,
        ["residual: the output of branch must be one array, got tuple of 2"],
    ),
    "outputs of two, joined": (
        lambda: step(jr.branch(GRU, TWO, merge="concat")),
        TypeError,
        ["branch: the output of member 1 must be one array", "merge='concat' takes arrays, give it a function"],
    ),
    "outputs of two, both ways": (
        lambda: apply(jr.bidirectional(TWO, TWO, merge="sum")),
        TypeError,
        ["bidirectional: the output of member 0 must be one array", "merge='sum' takes arrays, give it a function"],
    ),
    "a list for an array": (
        lambda: step(GRU, x=[1.0, 2.0, 3.0]),
        TypeError,
        ["gru: x must be an array, got [1.0, 2.0, 3.0] (list); use jnp.asarray"],
    ),
    "a merge that drops the batch": (
        lambda: apply(jr.branch(GRU, GRU, merge=lambda a, b: (a + b).sum())),
        ValueError,
        ["branch: what merge returned has shape () but every leaf must lead with the batch axes (2,)"],
    ),
    "a function that drops the batch": (
        lambda: apply(jr.pointwise(jnp.sum)),
        ValueError,
        ["pointwise: what f returned has shape () but every leaf must lead with the batch axes (2,)"],
    ),
    "params": (
        lambda: step(jr.branch(GRU, GRU), params=[1, 2], carry=(1, 2)),
        ValueError,
        ["branch: params must be a tuple with an entry for each of the 2 members (gru, gru), got list"],
    ),
    "carry of cells": (
        lambda: step(jr.branch(GRU, GRU), carry=(1,)),
        ValueError,
        ["branch: carry must be a tuple with an entry for each of the 2 members", "got tuple of 1"],
    ),
    "carry of layers": (
        lambda: apply(jr.branch(GRU, jr.scan(GRU)), carry=(1,)),
        ValueError,
        ["branch: carry must be a tuple with an entry for each of the 2 members", "got tuple of 1"],
    ),
    "pointwise, name": (lambda: jr.pointwise("rely"), ValueError, ["pointwise: f must be one of", "mean 'relu'?"]),
    "dropout, axes": (lambda: jr.dropout(0.5, x_ndim=True), TypeError, ["dropout: x_ndim must be an int, 0 or above"]),
    "pointwise, axes": (
        lambda: jr.pointwise("relu", x_ndim=1.0),
        TypeError,
        ["pointwise: x_ndim must be an int, 0 or above"],
    ),
    "dense, activation": (
        lambda: jr.dense(I, 2, activation="rely"),
        ValueError,
        ["dense: activation must be one of", "did you mean 'relu'?"],
    ),
    "dense, size": (lambda: jr.dense(0, 2), ValueError, ["dense: input_size must be a positive int, got 0"]),
    "dense, bias": (lambda: jr.dense(I, 2, bias=None), TypeError, ["dense: bias must be True or False, got None"]),
    "readout, bias": (lambda: jr.readout(I, 2, bias="zeros"), TypeError, ["readout: bias must be True or False"]),
    "dense, features": (
        lambda: apply(jr.dense(I, 2), jnp.ones((T, B, 4))),
        ValueError,
        ["scan(dense): expected x of shape (T, *B, 3), got 4 features"],
    ),
}


def test_noise_behind_a_cell_that_reads_several_arrays():
    joined = jr.Cell(
        lambda key: (), lambda p, batch_shape=(): (), lambda p, c, x: (c, jnp.concatenate(x, -1)), x_ndim=(1, 1)
    )
    cell = jr.chain(joined, jr.dropout(0.5))
    _, ys = jr.scan(cell).apply(((), ()), (XS, 2 * XS), key=KEY)
    kept = ys != 0
    assert kept.any() and not kept.all()
    np.testing.assert_array_equal(ys, np.where(kept, 2 * np.concatenate([XS, 2 * XS], -1), 0))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake):
    assert_fails(*MISTAKES[mistake])
