"""``jr.parallel`` is ``jr.scan``, where sweeps really are taken: nothing here falls back unless the test says so."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import CELLS, B, I, differentiated, draw, randomised, weigh, x_shape
from tests.cases import FLAGS as FLAGS_OF_CASES
from tests.evaluating import evaluated
from tests.side_by_side import assert_close, assert_equals_the_scan, inner, problem, reported, run
from tests.turns import named_in_turn
from tests.user_cells import clockwork

H = 4
GRU, LSTM, ELMAN = jr.gru(I, H), jr.lstm(I, H), jr.elman(I, H)
T = 200  # 6 chunks of 33 steps, and 2 steps after them
SIX = {"chunks": 6, "plan": "plain"}  # a plan compiles more, and has tests of its own
rng = np.random.default_rng(0)
GAPS, RESETS = rng.random((T, 2)) < 0.8, rng.random((T, 2)) < 0.02
FLAGS = {
    "none": {},
    "lengths": {"lengths": jnp.array([T, 70])},
    "gaps": {"mask": GAPS},
    "resets": {"resets": RESETS},
    "all": {"lengths": jnp.array([150, T - 1]), "mask": GAPS, "resets": RESETS},
}


@pytest.mark.parametrize(
    ("cell", "reverse", "flags"),
    [
        (GRU, False, "none"),
        (LSTM, True, "lengths"),
        (ELMAN, False, "gaps"),
        (ELMAN, True, "resets"),
        (GRU, False, "all"),
        (LSTM, True, "all"),
    ],
)
def test_values_and_gradients_are_those_of_the_scan(cell, reverse, flags, x64):
    reports = assert_equals_the_scan(cell, *problem(cell, T), of_layer=SIX | {"reverse": reverse}, **FLAGS[flags])
    assert {(report.way.chunks, report.steps) for report in reports} == {(6, 198)}


@pytest.mark.parametrize("plan", ["auto", jr.Plan(hoist=True, contract=True), jr.Plan(fuse=False, recompute=False)])
def test_under_a_plan(plan, x64):
    of_layer = {"chunks": 6, "plan": plan, "reverse": True}
    assert_equals_the_scan(GRU, *problem(GRU, T), of_layer=of_layer, **FLAGS["all"])


def test_a_masked_tail_costs_no_sweep(x64):
    params, xs, carry = problem(ELMAN, T, (3,))
    of_all = assert_equals_the_scan(ELMAN, params, xs, carry, of_layer=SIX)
    for lengths in ([T, 40, 0], [100, 7, 0]):
        reports = assert_equals_the_scan(ELMAN, params, xs, carry, of_layer=SIX, lengths=jnp.array(lengths))
        assert all(own.sweeps <= whole.sweeps <= 2 for own, whole in zip(reports, of_all, strict=True)), reports


def test_a_reversed_run_enters_behind_a_masked_tail_at_no_cost(x64):
    params, xs, carry = problem(ELMAN, T, (3,))
    of_layer = SIX | {"reverse": True}
    of_all = assert_equals_the_scan(ELMAN, params, xs, carry, of_layer=of_layer)
    reports = assert_equals_the_scan(ELMAN, params, xs, carry, of_layer=of_layer, lengths=jnp.array([T, 40, 0]))
    # Of all steps a start still moves by a part of the tolerance in the second sweep, which the third sees at rest.
    assert all(own.sweeps <= whole.sweeps <= 3 for own, whole in zip(reports, of_all, strict=True)), reports


@pytest.mark.parametrize("batch_shape", [(), (2, 1)])
def test_batch_axes(batch_shape, x64):
    params, xs, carry = problem(ELMAN, T, batch_shape)
    lengths = jnp.asarray(np.reshape([T - 60, T][: max(1, int(np.prod(batch_shape)))], batch_shape))
    assert_equals_the_scan(ELMAN, params, xs, carry, of_layer=SIX, lengths=lengths)


def trees():
    """A cell whose inputs, carry and outputs are trees, one leaf of them a matrix."""

    def initial_carry(params, batch_shape=()):
        return {"h": jnp.zeros((*batch_shape, 2)), "S": (jnp.zeros((*batch_shape, 2, 2)),)}

    def step(params, carry, x):
        h = jnp.tanh(params["w"] * carry["h"] + x["a"] + 0.1 * carry["S"][0].sum(-1))
        S = 0.5 * carry["S"][0] + h[..., :, None] * x["b"][..., None, :]
        return {"h": h, "S": (S,)}, (h, S.sum(-1))

    return jr.Cell(lambda key: {"w": jnp.asarray(0.3)}, initial_carry, step)


def test_trees(x64):
    xs = {"a": draw((T, 2, 2), 1), "b": draw((T, 2, 2), 2)}
    loss = lambda layer, *args: weigh(layer.apply(*args, mask=GAPS))
    layers = [jr.parallel(trees(), method="chunks", **SIX), jr.scan(trees())]
    gradient = lambda layer: jax.grad(functools.partial(loss, layer), argnums=(0, 1))
    (found, reports), (want, _) = (
        reported(evaluated(gradient(layer)), {"w": jnp.asarray(0.3)}, xs) for layer in layers
    )
    assert_close(found, want)
    assert [report.accepted for report in reports] == [True, True]


def test_integers_in_the_carry_need_their_sweeps(x64):
    """A clock that counts from the start is right once all chunks before it have run; or where each chunk resets it."""
    cell = clockwork(I, H)
    params, xs, carry = problem_of_clockwork(cell)
    four = SIX | {"chunks": 4, "max_iterations": 4}
    assert_equals_the_scan(cell, params, xs, carry, of_layer=four, sweeps=[3])
    _, reports = reported(run, jr.parallel(cell, method="chunks", chunks=4, max_iterations=2), params, xs, carry)
    assert not reports[0].accepted  # the clock never forgets
    resets = np.zeros((T, 2), bool)
    resets[48::50] = True  # one in each chunk, near its end
    assert_equals_the_scan(cell, params, xs, carry, of_layer=four, sweeps=[1], resets=resets)


def problem_of_clockwork(cell):
    params = randomised(cell.init(jax.random.key(0)), scale=0.3) | {"gain": jnp.asarray(0.5)}
    return params, draw((T, 2, I), 1), {"h": draw((2, H), 2), "clock": jnp.array([1, 2], jnp.int32)}


@pytest.mark.full
def test_noise_chunks_of_calls_and_start(x64):
    """A run in two calls, that hands its carry on, is the whole; noise and lengths count from the start of all."""
    cell = jr.recurrent_dropout(ELMAN, rate=0.1)
    params, xs, carry = problem(cell, T)
    options = {"key": jax.random.key(3), "lengths": jnp.array([T - 30, T])}
    assert_equals_the_scan(cell, params, xs, carry, of_layer=SIX, **options)
    layer = jr.parallel(cell, method="chunks", chunks=2, plan="plain")

    def in_two(params, xs, carry):
        end, ys = layer.apply(params, xs[:120], carry, **options)
        end, more = layer.apply(params, xs[120:], end, start=120, **options)
        return end, jnp.concatenate([ys, more])

    found, reports = reported(in_two, params, xs, carry)
    assert_close(found, jr.scan(cell).apply(params, xs, carry, **options))
    assert [report.accepted for report in reports] == [True, True]


@pytest.mark.parametrize("checkpoint", [True, 96, jr.Budget(60)])
def test_checkpoint(checkpoint, x64):
    args = problem(ELMAN, T)
    layer = jr.parallel(ELMAN, method="chunks", chunks=3, checkpoint=checkpoint, plan="plain")
    assert_close(run(layer, *args, mask=GAPS), run(jr.scan(ELMAN), *args, mask=GAPS))


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_step_by_step(reverse, x64):
    """Parameters of each step for itself, and ∂L/∂h_t."""
    params, xs, carry = problem(ELMAN, T)
    loss = lambda carry, ys: weigh((carry, ys))
    layers = jr.parallel(ELMAN, method="chunks", reverse=reverse, **SIX), jr.scan(ELMAN, reverse=reverse)

    def both(layer):
        def measured(*args):
            options = {"mask": jnp.asarray(GAPS)}
            parts = jr.gradients.bptt_contributions(layer, *args[:2], loss, args[2], **options)
            return parts, jax.tree.leaves(jr.gradients.gradient_flow(layer, *args[:2], loss, args[2], **options))

        return reported(evaluated(measured), params, xs, carry)

    (found, reports), (want, _) = map(both, layers)
    assert_close(found, want)
    assert [report.accepted for report in reports] == [True] * 4


def test_combined(x64):
    """Stacked, in both directions, residual and in branches."""
    run_in_chunks = functools.partial(jr.parallel, method="chunks", **SIX)

    def model(run):
        return jr.stack(
            jr.bidirectional(jr.elman(I, 2), jr.elman(I, 2), merge="concat", run=run),
            jr.residual(run(jr.elman(4, 4))),
            jr.branch(run(jr.elman(4, 2)), run(jr.elman(4, 2), reverse=True), merge=jnp.add),
            jr.readout(2, 1),
        )

    layers = model(run_in_chunks), model(jr.scan)
    params = randomised(layers[0].init(jax.random.key(0)), scale=0.3)
    xs = draw((T, 2, I), 1)
    gradient = lambda layer: evaluated(jax.grad(lambda p: weigh(layer.apply(p, xs, mask=GAPS))))
    found, reports = reported(gradient(layers[0]), params)
    assert_close(found, gradient(layers[1])(params))
    assert [report.accepted for report in reports] == [True] * 10  # of five runs, forward and backward


def test_truncated_backpropagation(x64):
    params, xs, _ = problem(ELMAN, T)
    layers = jr.parallel(ELMAN, method="chunks", **SIX), jr.scan(ELMAN)
    found, want = (
        evaluated(jax.grad(lambda p, layer=layer: weigh(jr.tbptt(layer, window=100).apply(p, xs)[1])))(params)
        for layer in layers
    )
    assert_close(found, want)


def test_vmap(x64):
    """Over parameters, and over inputs: all members take the same decision."""
    layers = jr.parallel(ELMAN, method="chunks", **SIX), jr.scan(ELMAN)
    many = jax.tree.map(lambda *a: jnp.stack(a), *(problem(ELMAN, T, seed=seed) for seed in range(2)))
    flags = {"mask": jnp.asarray(GAPS)}

    def gradients(layer, in_axes):
        one = lambda *args: differentiated(lambda *args: layer.apply(*args, **flags), *args)
        args = [a if axis == 0 else jax.tree.map(lambda a: a[0], a) for a, axis in zip(many, in_axes, strict=True)]
        return evaluated(jax.vmap(one, in_axes))(*args)

    for in_axes in ((0, 0, 0), (0, None, None), (None, 0, None)):
        found, reports = reported(gradients, layers[0], in_axes)
        assert_close(found, gradients(layers[1], in_axes))
        assert [report.accepted for report in reports] == [True, True]


@pytest.mark.parametrize("plan", ["plain", "auto"])
def test_second_derivatives(plan, x64):
    """Reverse over reverse, forward over reverse, and jvp."""
    params, xs, carry = problem(ELMAN, 100, ())
    direction = randomised((params, xs), 5)
    layers = jr.parallel(ELMAN, method="chunks", chunks=3, plan=plan), jr.scan(ELMAN)

    def second(layer):
        return reported(evaluated(functools.partial(of_second_order, layer)), params, xs)

    def of_second_order(layer, params, xs):
        loss = lambda params, xs: weigh(layer.apply(params, xs, carry))
        gradient = jax.grad(loss, argnums=(0, 1))
        reverse_over_reverse = jax.grad(lambda p: inner(gradient(*p), direction))((params, xs))
        return (
            reverse_over_reverse,
            jax.jvp(gradient, (params, xs), direction)[1],
            jax.jvp(loss, (params, xs), direction)[1],
        )

    (found, reports), (want, _) = map(second, layers)
    assert_close(found, want)
    assert all(report.accepted for report in reports) and len(reports) > 6


def test_hessian(x64):
    W = jnp.array([[0.3, -0.2], [0.1, 0.4]])
    cell = jr.Cell(
        lambda key: W,
        lambda W, batch_shape=(): jnp.zeros((*batch_shape, 2)),
        lambda W, h, x: (jnp.tanh(h @ W.T + x),) * 2,
    )
    xs = draw((60, 2), 1)
    of = lambda layer: evaluated(jax.hessian(lambda W: weigh(layer.apply(W, xs))))(W)
    assert_close(of(jr.parallel(cell, method="chunks", chunks=3, plan="plain")), of(jr.scan(cell)))


def test_bfloat16():
    """Parameters and inputs; the carry and sums are float32, and outputs differ by a rounding of bfloat16 at most."""
    params, xs, _ = problem(GRU, T)
    params, xs = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, xs))

    def loss(layer, params):
        outputs = layer.apply(params, xs)
        return (outputs[1].astype(jnp.float32) ** 2).sum(), outputs

    layers = jr.parallel(GRU, method="chunks", **SIX), jr.scan(GRU, plan="plain")
    (found, reports), (want, _) = (
        reported(jax.grad(functools.partial(loss, layer), has_aux=True), params) for layer in layers
    )
    assert found[1][1].dtype == jnp.bfloat16 and [report.accepted for report in reports] == [True, True]
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    assert_close(found, want, rtol=4 * eps, atol=4 * eps)


def text_of_training(layer, params, xs, options):
    run = lambda params, xs: weigh(layer.apply(params, xs, **options))
    program = jax.make_jaxpr(jax.value_and_grad(run))(params, xs)
    return re.sub(r" at 0x[0-9a-f]+", "", str(program))  # of functions in rules


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", named_in_turn(CELLS, 2))
def test_auto_is_the_program_of_another_method(name, reverse):
    """The scan's, or on long runs that of the method it names: so what is tested of these is tested of "auto"."""
    params = jax.eval_shape(CELLS[name].init, jax.random.key(0))
    auto, scan = (make(CELLS[name], reverse=reverse) for make in (jr.parallel, jr.scan))
    for flags in FLAGS_OF_CASES:
        few = params, jnp.zeros((6, B, *x_shape(CELLS[name]))), flags.options
        assert text_of_training(auto, *few) == text_of_training(scan, *few)
    long = params, jnp.zeros((1024, 1, *x_shape(CELLS[name]))), {}
    taken = scan
    if jr.explain(auto, *long[:2]).scans[0].in_parallel is not None:
        taken = jr.parallel(CELLS[name], method="associative", reverse=reverse)
        assert text_of_training(taken, *long) != text_of_training(scan, *long)
    assert text_of_training(auto, *long) == text_of_training(taken, *long)


@pytest.mark.parametrize("method", ["chunks", "auto"])
def test_nothing_to_run(method, x64):
    """T = 0, T = 1, B = 0, and lengths that are all 0."""
    layer, scan = jr.parallel(GRU, method=method), jr.scan(GRU)
    params, xs, carry = problem(GRU, 64)
    for steps in (0, 1):
        assert_close(run(layer, params, xs[:steps], carry), run(scan, params, xs[:steps], carry))
    nobody = jax.tree.map(lambda a: a[:0], carry)
    assert_close(run(layer, params, xs[:, :0], nobody), run(scan, params, xs[:, :0], nobody))
    (_, (end, ys)), (by_params, by_xs, _) = run(layer, params, xs, carry, lengths=jnp.zeros(2, int))
    np.testing.assert_array_equal(end, carry)
    assert not ys.any() and not any(g.any() for g in jax.tree.leaves((by_params, by_xs)))


def test_padding_never_leaks(x64):
    params, xs, carry = problem(ELMAN, T)
    layer = jr.parallel(ELMAN, method="chunks", **SIX)
    on = (GAPS & (np.arange(T)[:, None] < [120, T]))[..., None]
    clean, *poisoned = (
        run(layer, params, jnp.where(on, xs, fill), carry, mask=GAPS, lengths=jnp.array([120, T]))
        for fill in (0.0, jnp.nan, jnp.inf)
    )
    for found in poisoned:
        jax.tree.map(np.testing.assert_array_equal, found, clean)
    assert np.isfinite(clean[0][0])


@pytest.mark.parametrize("fill", [jnp.nan, jnp.inf])
def test_what_is_not_a_number_stays_where_the_scan_has_it(fill, x64):
    """In a valid step, values and gradients; and the run ends."""
    params, xs, carry = problem(GRU, T)
    xs = xs.at[90, 1].set(fill)
    resets = np.zeros((T, 2), bool)
    resets[150] = True
    layers = jr.parallel(GRU, method="chunks", **SIX), jr.scan(GRU)
    found, want = (run(layer, params, xs, carry, resets=resets) for layer in layers)
    assert np.isnan(want[0][1][1][91:150, 1]).all() or not np.isnan(fill)
    assert_close(found, want)  # NaN is equal to NaN here


def test_strict_promotion():
    """No number is made wider, no axis put in front, but by the code that says so."""
    params, xs, _ = problem(GRU, 40)
    layer = jr.parallel(GRU, method="chunks", chunks=3, plan="plain")
    flags = {"mask": GAPS[:40], "resets": RESETS[:40]}
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = jax.grad(lambda params: layer.apply(params, xs, **flags)[1].sum())(params)
    want = jax.grad(lambda params: jr.scan(GRU).apply(params, xs, **flags)[1].sum())(params)
    assert_close(found, want, rtol=1e-4, atol=1e-5)  # float32


def test_one_program_for_any_lengths(x64):
    params, xs, carry = problem(ELMAN, T)
    layer, traces = jr.parallel(ELMAN, method="chunks", **SIX), []

    @jax.jit
    def apply(lengths):
        traces.append(1)
        return layer.apply(params, xs, carry, lengths=lengths)

    for lengths in ([T, T], [1, 130], [0, 0]):
        assert_close(apply(jnp.array(lengths)), jr.scan(ELMAN).apply(params, xs, carry, lengths=jnp.array(lengths)))
    assert len(traces) == 1


def test_saved_and_built_by_its_spec(tmp_path):
    layer = jr.parallel(GRU, method="chunks", reverse=True, tol=1e-5, max_iterations=6, chunks=6, checkpoint=100)
    params, xs, _ = problem(GRU, 64)
    assert jr.build(layer.spec) == layer and jr.build(layer.spec.to_dict()) == layer
    jr.save(tmp_path / "m.safetensors", layer, params)
    loaded, weights, _ = jr.load(tmp_path / "m.safetensors")
    assert loaded == layer
    np.testing.assert_array_equal(loaded.apply(weights, xs)[1], layer.apply(params, xs)[1])


def test_the_report():
    """What ``convergence`` says of a run; nothing is measured where no repeats are asked for."""
    params, xs, _ = problem(ELMAN, T)
    report = jr.convergence(jr.parallel(ELMAN, method="chunks", **SIX), params, xs, repeats=None)
    assert (report.method, report.fell_back, report.seconds) == ("chunks", 0, None)
    assert [run.direction for run in report.runs] == ["forward", "backward"]
    assert [(run.who, run.chunks, run.steps) for run in report.runs] == [("parallel(elman)", 6, 198)] * 2
    assert all(len(run.residuals) == run.iterations >= 1 and run.residuals[-1] <= 1 for run in report.runs)
    assert "parallel(elman), forward: chunks, 198 steps in 6 chunks: " in str(report)
    newton = jr.convergence(jr.parallel(ELMAN, method="newton", chunks=7), params, xs, repeats=None)  # 200 = 7 · 28 + 4
    forward = str(newton).splitlines()[0]
    assert forward.startswith("parallel(elman), forward: newton, 200 steps at once: ")
    assert forward.endswith(" of the carry") and newton.fell_back == 0
    short = jr.convergence(jr.parallel(ELMAN), params, xs, repeats=1)
    assert (short.method, short.runs, short.fell_back) == ("scan", (), 0)
    assert short.seconds > 0 < short.scan_seconds and "parallel(elman): the scan; " in str(short)


@pytest.mark.parametrize("early", [True, False])
def test_no_gradient_crosses_a_reset(early):
    """It is exactly 0, as that of the scan."""
    params, xs, carry = jax.tree.map(lambda a: a.astype(jnp.float32), problem(GRU, T))
    begins = np.zeros((T, 2), bool)
    begins[100] = True
    on = (np.arange(T) < 100) == early
    layer = jr.parallel(GRU, method="chunks", **SIX)
    gradient = jax.grad(lambda xs: ((layer.apply(params, xs, carry, resets=begins)[1] ** 2).sum((1, 2)) * on).sum())
    by_xs, reports = reported(evaluated(gradient), xs)
    assert np.abs(by_xs[on]).max() > 1e-3 and [report.accepted for report in reports] == [True, True]
    np.testing.assert_array_equal(by_xs[~on], 0)
