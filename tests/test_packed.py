"""Ragged batches whose sequences share lanes: ``jr.Plan(pack=True)`` beside "plain", and what it leaves alone.

The contract runs packed as well (``RUNS`` in cases.py); here is what its small batches do not reach.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxrnn as jr
from jaxrnn.running.packing import pack
from tests.cases import draw, randomised
from tests.programs import computations_of

T, B, I, H = 11, 7, 3, 4
PACKED = jr.Plan(pack=True)
LENGTHS = np.array([3, 11, 0, 7, 1, 9, 2])
packed = jax.jit(pack, static_argnums=1, static_argnames="reverse")
RANDOM = np.random.default_rng(3).random((T, B))
MASK, RESETS = RANDOM < 0.7, RANDOM[::-1] < 0.2


def assert_trees_close(got, want, rtol=1e-9, atol=1e-9):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, want)


def loss_of(cell, plan, reverse=False, key=None, **flags):
    layer = jr.scan(cell, plan=plan, reverse=reverse)

    def loss(params, xs, carry=None):
        carry, ys = layer.apply(params, xs, carry, key=key, **flags)
        return sum((jnp.sin(a) + a**2).sum() for a in jax.tree.leaves((carry, ys)))

    return loss


def problem(cell):
    return randomised(cell.init(jax.random.key(0))), draw((T, B, I), 1)


def gradients(cell, plan, *args, **options):
    loss = loss_of(cell, plan, **options)
    return jax.jit(jax.value_and_grad(loss, argnums=range(len(args))))(*args)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_values_and_gradients_are_those_of_plain(reverse, x64):
    """All flags, a carry that was given, a batch that does not fill its lanes."""
    cell = jr.lstm(I, H)
    carry = jr.cells.LSTMCarry(draw((B, H), 4), draw((B, H), 5))
    flags = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS, "reverse": reverse}
    args = (*problem(cell), carry)
    assert_trees_close(gradients(cell, PACKED, *args, **flags), gradients(cell, "plain", *args, **flags))


@pytest.mark.parametrize(
    "cell",
    [
        jr.recurrent_dropout(jr.gru(I, H), rate=0.5, input_rate=0.2),  # one draw a row
        jr.zoneout(jr.lstm(I, H), rate=0.3, c_rate=0.5),  # one a step and row
    ],
    ids=["recurrent_dropout", "zoneout"],
)
def test_noise_moves_with_its_row(cell, x64):
    options = {"lengths": LENGTHS, "key": jax.random.key(3)}
    args = problem(cell)
    assert explained(cell, lengths=LENGTHS, key=jax.random.key(3)).packed
    assert_trees_close(gradients(cell, PACKED, *args, **options), gradients(cell, "plain", *args, **options))


def test_other_derivatives_and_vmap(x64):
    """Forward mode, a derivative of the gradient, and members with lengths and parameters of their own."""
    cell = jr.gru(I, H)
    params, xs = problem(cell)

    def found(plan):
        def of(params, lengths):
            gradient = jax.grad(loss_of(cell, plan, lengths=lengths))
            along = jax.tree.map(jnp.ones_like, params)
            return jax.jvp(lambda p: gradient(p, xs), (params,), (along,))

        members = jax.tree.map(lambda a: jnp.stack([a, -a]), params)
        return jax.jit(jax.vmap(of))(members, jnp.stack([jnp.array(LENGTHS), T - jnp.array(LENGTHS)]))

    assert_trees_close(found(PACKED), found("plain"))


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_gradients_contracted_in_parts(recompute, x64, monkeypatch):
    """Parts of 8 of the lanes' 32 steps, of which the longest lane takes 12: one whole, one half, two not at all."""
    monkeypatch.setattr("jaxrnn.planning._rules.steps_of_a_contraction", lambda *_, **__: 8)
    cell, plan = jr.gru(I, H), jr.Plan(pack=True, recompute=recompute)
    assert any("8 steps at once" in name for name in explained(cell, plan=plan, lengths=LENGTHS).contracted_in_parts)
    args = problem(cell)
    assert_trees_close(gradients(cell, plan, *args, lengths=LENGTHS), gradients(cell, "plain", *args, lengths=LENGTHS))

    def curvature(plan):
        loss = loss_of(cell, plan, lengths=LENGTHS)
        return jax.jit(jax.grad(lambda p: sum((a**2).sum() for a in jax.tree.leaves(jax.grad(loss)(p, args[1])))))

    assert_trees_close(curvature(plan)(args[0]), curvature("plain")(args[0]))


@pytest.mark.multidevice
def test_sequences_are_packed_within_each_shard(x64):
    cell = jr.elman(I, H)
    params, xs = problem(cell)
    xs, lengths = jnp.concatenate([xs, xs[:, :1]], axis=1), jnp.append(jnp.array(LENGTHS), 5)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def of_shard(params, xs, lengths):
        return jax.lax.psum(loss_of(cell, PACKED, lengths=lengths)(params, xs), "data")

    specs = (PartitionSpec(), PartitionSpec(None, "data"), PartitionSpec("data"))
    sharded = jax.shard_map(of_shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    got = jax.jit(jax.value_and_grad(sharded))(params, xs, lengths)
    assert_trees_close(got, jax.value_and_grad(loss_of(cell, "plain", lengths=lengths))(params, xs))


def test_what_stands_in_padding_reaches_nothing(x64):
    cell = jr.elman(I, H)
    params, xs = problem(cell)
    run = jax.jit(jax.value_and_grad(loss_of(cell, PACKED, lengths=LENGTHS), argnums=(0, 1)))
    padding = (np.arange(T)[:, None] >= LENGTHS)[..., None]
    clean = run(params, xs)
    jax.tree.map(np.testing.assert_array_equal, run(params, jnp.where(padding, jnp.nan, xs)), clean)


def dividing(step, params, carry, x):
    """Where it reads 0, as no step does, infinities come of it."""
    new, _ = step(params, 1 / carry, x)
    return new + 2, jnp.log(carry)


@pytest.mark.parametrize("parts", [None, 8])
def test_what_no_step_has_met_reaches_no_gradient(parts, x64, monkeypatch):
    """A tangent reads what the loop stacked, 0 beyond its end; so does the transpose of a run of all steps."""
    monkeypatch.setattr("jaxrnn.planning._rules.steps_of_a_contraction", lambda *_, **__: parts)
    cell = user_cell(dividing)._replace(initial_carry=lambda params, batch: jnp.ones((*batch, H)))
    params, xs = problem(cell)

    def found(plan):
        loss = loss_of(cell, plan, lengths=LENGTHS)
        members = jax.tree.map(lambda a: jnp.stack([a, -a]), params)
        of_members = jax.grad(lambda members: jax.vmap(loss, (0, None))(members, xs).sum())
        return jax.jit(jax.grad(loss))(params, xs), jax.jit(of_members)(members)

    assert_trees_close(found(PACKED), found("plain"))


def test_a_lane_with_one_sequence_less_reads_no_zeros(x64):
    """Of which this step would make infinities, where no sequence has any padding."""
    cell = user_cell(lambda step, params, carry, x: step(params, carry, jnp.log(x)))
    params, xs = problem(cell)
    full = np.full(B, T)
    found = [jax.jit(jax.grad(loss_of(cell, plan, lengths=full)))(params, jnp.exp(xs)) for plan in (PACKED, "plain")]
    assert_trees_close(*found)
    assert np.isfinite(found[0].W_xh).all()


@pytest.mark.parametrize("output", ["carry", "y"])
def test_what_a_step_returns_wrongly_is_said_of_the_batch_as_it_is(output):
    def wrong(step, params, carry, x):
        new, y = step(params, carry, x)
        return (new[:, :2], y) if output == "carry" else (new, y[0])

    with pytest.raises(ValueError, match=r"got \(7, 2\)" if output == "carry" else r"the batch axes \(7,\)"):
        explained(user_cell(wrong), lengths=LENGTHS)


def test_noise_of_the_wrong_length_is_refused_as_ever():
    def noise(params, key, times, x):
        return jnp.ones((5, len(x), H))

    cell = user_cell(lambda step, params, carry, x, noise=0.0: step(params, carry, x), noise)
    with pytest.raises(ValueError, match=r"a leaf of shape \(5, 7, 4\), but each must lead with T = 11"):
        explained(cell, lengths=LENGTHS, key=jax.random.key(0))


def test_a_lane_at_rest_reads_zeros(x64):
    """As a step that is not valid does. Of another's inputs, sqrt would make NaN here: only time before now goes on."""

    def since(step, params, before, x):
        return x[:, :1], jnp.sqrt(x[:, :1] - before) * params.b

    cell = user_cell(since)._replace(initial_carry=lambda params, batch: jnp.full((*batch, 1), -99.0))
    params, _ = problem(cell)
    xs = jnp.arange(-T * B, 0.0).reshape(T, B, 1) * jnp.ones(I)
    options = {"lengths": LENGTHS}
    assert_trees_close(gradients(cell, PACKED, params, xs, **options), gradients(cell, "plain", params, xs, **options))


def test_places_are_computed_once():
    """What moves values does not compute their places, a difference of steps, for each number anew."""
    loss = lambda params, xs, lengths: loss_of(jr.elman(I, H), PACKED, lengths=lengths)(params, xs)
    program = jax.jit(jax.grad(loss)).lower(*problem(jr.elman(I, H)), jnp.array(LENGTHS)).compile().as_text()
    moving = [text for text in computations_of(program).values() if re.search(r"= f32\[\S* gather\(", text)]
    assert moving and not any(" subtract(" in text for text in moving)


# ---- the lanes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_each_step_is_taken_once_and_in_order(reverse):
    active = MASK & (np.arange(T)[:, None] < LENGTHS)
    lanes = jax.tree.map(np.asarray, packed(jnp.asarray(active), reverse))
    spans = [np.arange(*on[[0, -1]] + (0, 1)) if len(on := np.flatnonzero(row)) else on for row in active.T]
    for b, times in enumerate(spans):
        rows, lane = np.divmod(lanes.place[times, b], lanes.lanes)
        assert len(set(lane)) <= 1
        assert (np.diff(rows) == (-1 if reverse else 1)).all()
        np.testing.assert_array_equal(lanes.source[rows, lane], times * B + b)
    assert lanes.taken.sum() == sum(max(1, len(times)) for times in spans)
    assert not lanes.taken[lanes.longest :].any()


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        ([8, 8, 8, 8], 16),  # alike: as many steps as both sequences of a lane have
        ([8, 4, 4, 1], 9),  # the longest with the shortest
        ([8, 8, 0, 0], 9),  # a sequence without a step holds its carry at one
        ([3, 0, 0, 0], 4),
    ],
)
def test_the_loop_ends_with_the_longest_lane(lengths, steps):
    active = jnp.arange(8)[:, None] < jnp.array(lengths)
    assert packed(active, reverse=False).longest == steps


def test_one_program_for_any_lengths():
    cell, traces = jr.elman(I, H), []
    params, xs = problem(cell)

    @jax.jit
    def run(lengths):
        traces.append(1)
        return jr.scan(cell, plan=PACKED).apply(params, xs, lengths=lengths)

    for lengths in (LENGTHS, np.full(B, T), np.zeros(B, int)):
        want = jr.scan(cell, plan="plain").apply(params, xs, lengths=lengths)
        assert_trees_close(run(lengths), want, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


# ---- what is left alone, and why ----------------------------------------------------------------


def explained(cell, shape=(T, B), plan=PACKED, reverse=False, checkpoint=False, unroll=1, **options):
    layer = jr.scan(cell, plan=plan, reverse=reverse, checkpoint=checkpoint, unroll=unroll)
    params = jax.eval_shape(layer.init, jax.random.key(0))
    return jr.explain(layer, params, jax.ShapeDtypeStruct((*shape, I), jnp.float32), **options).scans[0]


def user_cell(step, noise=None):
    elman = jr.elman(I, H)
    return jr.Cell(elman.init, elman.initial_carry, functools.partial(step, elman.step), noise=noise)


def centred(step, params, carry, x):
    new, y = step(params, carry, x)
    return new - new.mean(axis=0, keepdims=True), y


def ranked(step, params, carry, x):
    new, y = step(params, carry, x)
    return new + jnp.arange(new.shape[0], dtype=new.dtype)[:, None], y


def averaged(step, params, carry, x):
    new, y = step(params, carry, x)
    return new / len(new), y


def of_seven(step, params, carry, x):
    new, y = step(params, carry, x)
    return new + jnp.zeros((B, H), new.dtype), y


def shared_noise(params, key, times, x):
    return jax.random.normal(key, (len(times), H))


@pytest.mark.parametrize(
    ("cell", "options", "reason"),
    [
        (jr.gru(I, H), {}, "neither lengths nor a mask"),
        (jr.gru(I, H), {"shape": (T, 2), "lengths": LENGTHS[:2]}, "a batch of 2 and 11 steps"),
        (jr.gru(I, H), {"shape": (T, 4, B), "lengths": np.full((4, B), 3)}, "2 batch axes, not 1"),
        (jr.gru(I, H), {"checkpoint": True, "lengths": LENGTHS}, "checkpoint"),
        (jr.gru(I, H), {"unroll": 2, "lengths": LENGTHS}, "unroll"),
        (user_cell(centred), {"lengths": LENGTHS}, "rows that may meet: reduce_sum over the batch"),
        (
            user_cell(ranked),
            {"lengths": LENGTHS},
            "rows that may meet: add of the batch and what differs from row to row",
        ),
        (user_cell(averaged), {"lengths": LENGTHS}, "a step that depends on how many rows there are: a constant"),
        (user_cell(of_seven), {"lengths": LENGTHS}, "a step that does not run with 4 rows"),
        (jr.dense(I, H), {"lengths": LENGTHS}, "a carry that is empty"),
        (
            user_cell(lambda step, params, carry, x, noise=0.0: step(params, carry, x), shared_noise),
            {"lengths": LENGTHS, "key": jax.random.key(0)},
            "noise that the rows share",
        ),
        (jr.cotangent_clip(jr.gru(I, H), max_norm=1.0), {"lengths": LENGTHS}, "custom_vjp_call"),
    ],
    ids=lambda a: a if isinstance(a, str) else None,
)
def test_what_is_not_packed_says_why(cell, options, reason):
    explanation = explained(cell, **options)
    assert (explanation.packed, explanation.not_packed) == (None, reason)
    assert f"not packed, because of {reason}" in str(explanation)


@pytest.mark.parametrize("cell", [user_cell(centred), user_cell(ranked)], ids=["centred", "ranked"])
def test_cells_whose_rows_meet_run_as_they_are(cell):
    params, xs = problem(cell)
    got, want = (jr.scan(cell, plan=plan).apply(params, xs, lengths=LENGTHS) for plan in (PACKED, jr.Plan()))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_explain_says_how_lanes_are_shared():
    explanation = explained(jr.gru(I, H), lengths=LENGTHS)
    assert explanation.not_packed is None
    assert "packed: 2 sequences in each of 4 lanes" in str(explanation)
