"""What a run over time promises beyond the contract of each cell: dtypes, noise, pytrees, unusual steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.combine import BiParams
from jaxrnn.planning.constants import DEFAULT, using
from tests.cases import draw, randomised, weigh
from tests.programs import accumulators, loops

T, B, I, H = 6, 3, 3, 4
PLANS = pytest.mark.parametrize("plan", ["auto", "plain"])

# ---- dtypes ------------------------------------------------------------------------------------

RECURRENT = [jr.elman, jr.lstm, jr.gru, functools.partial(jr.gru, reset="after"), jr.peephole_lstm]


IN_BFLOAT16 = pytest.mark.parametrize(
    "options", [{"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}], ids=["compute", "parameters"]
)


@IN_BFLOAT16
@pytest.mark.parametrize("make", RECURRENT)
def test_bfloat16_keeps_the_carry_in_float32(make, options):
    cell = make(I, H, bias_init="uniform", **options)
    params = cell.init(jax.random.key(0))
    stored = options.get("param_dtype", jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(stored)}
    xs = jax.random.normal(jax.random.key(1), (T, B, I), stored)
    carry, ys = jax.jit(jr.scan(cell).apply)(params, xs)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(carry)} == {"float32"}
    assert ys.dtype == jnp.bfloat16
    params, xs = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
    exact = jax.jit(jr.scan(make(I, H)).apply)(params, xs)[1]
    # bfloat16 keeps 8 bits: products of rounded factors differ by up to 2^-8, and gates contract them.
    np.testing.assert_allclose(ys.astype(jnp.float32), exact, atol=0.02)
    assert jnp.abs(ys.astype(jnp.float32) - exact).max() > 0


@PLANS
@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16], ids=["float32 weights", "bfloat16 weights"])
def test_4096_equal_contributions_add_up(plan, stored):
    """A weight that every step uses alike: its gradient is T, where bfloat16 sums of ones stop at 256."""

    def step(params, h, x):
        y = jnp.dot(x.astype(jnp.bfloat16), params["W"].astype(jnp.bfloat16))
        return h + 0 * y.astype(h.dtype), y

    cell = jr.Cell(lambda key: {"W": jnp.ones((1, 1), stored)}, lambda params, batch: jnp.zeros((*batch, 1)), step)
    layer, xs = jr.scan(cell, plan=plan), jnp.ones((4096, 1))
    loss = lambda params: layer.apply(params, xs)[1].astype(jnp.float32).sum()
    gradient = jax.jit(jax.grad(loss))({"W": jnp.ones((1, 1), stored)})["W"]
    assert gradient.dtype == stored
    np.testing.assert_allclose(gradient.astype(float), 4096, rtol=0.01)


@PLANS
@IN_BFLOAT16
def test_recurrent_gradients_of_a_long_contracting_lstm_in_bfloat16(plan, options):
    exact = jr.scan(jr.lstm(2, 3))
    params = jax.tree.map(lambda a: 0.3 * a.astype(jnp.bfloat16).astype(jnp.float32), exact.init(jax.random.key(0)))
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), params)
    xs = 0.5 + jax.random.normal(jax.random.key(1), (4096, 2)).astype(jnp.bfloat16).astype(jnp.float32)
    xs = xs.astype(jnp.bfloat16).astype(jnp.float32)
    loss = lambda layer, params, xs: layer.apply(params, xs)[1].astype(jnp.float32).sum()
    want = jax.jit(jax.grad(functools.partial(loss, exact)))(params, xs).W_hh
    layer = jr.scan(jr.lstm(2, 3, **options), plan=plan)
    if "param_dtype" in options:
        params, xs = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, xs))
    got = jax.jit(jax.grad(functools.partial(loss, layer)))(params, xs).W_hh
    assert float(jnp.linalg.norm(got.astype(jnp.float32) - want) / jnp.linalg.norm(want)) < 0.01


@pytest.mark.parametrize("make", RECURRENT)
def test_float64_throughout(make, x64):
    cell = make(I, H, param_dtype=jnp.float64)
    carry, ys = jr.scan(cell).apply(cell.init(jax.random.key(0)), jnp.ones((T, I)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((carry, ys))} == {"float64"}


# ---- noise -------------------------------------------------------------------------------------


def zoneout(rate, per_sequence=False):
    """A user's cell with noise: units keep their old state with probability ``rate`` (Krueger et al. 2017)."""
    inner = jr.elman(I, H)

    def noise(params, key, times, x):
        batch_shape = x.shape[:-1]
        if per_sequence:
            return jax.random.bernoulli(key, rate, (1, *batch_shape, H))
        at = lambda time: jax.random.bernoulli(jax.random.fold_in(key, time), rate, (*batch_shape, H))
        return jax.vmap(at)(times)

    def step(params, h, x, keep=None):
        new, _ = inner.step(params, h, x)
        h = rate * h + (1 - rate) * new if keep is None else jnp.where(keep, h, new)
        return h, h

    return jr.Cell(inner.init, inner.initial_carry, step, noise=noise)


NOISY = {
    "dropout": jr.chain(jr.dropout(0.5), jr.elman(I, H), jr.dropout(0.3)),
    "zoneout": zoneout(0.4),
    "one draw per sequence": zoneout(0.4, per_sequence=True),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", NOISY)
def test_noise_is_a_function_of_key_and_absolute_time(name, reverse):
    layer = jr.scan(NOISY[name], reverse=reverse)
    params, xs, key = layer.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (T, B, I)), jax.random.key(2)
    whole = layer.apply(params, xs, key=key)[1]
    pieces = [(0, 2), (2, 3), (3, T)]
    state, parts = None, {}
    for start, stop in reversed(pieces) if reverse else pieces:
        state, parts[start] = layer.apply(params, xs[start:stop], state, key=key, start=start)
    np.testing.assert_allclose(jnp.concatenate([parts[start] for start, _ in pieces]), whole, rtol=1e-6, atol=1e-7)
    assert not np.allclose(whole, layer.apply(params, xs, key=jax.random.key(3))[1])
    assert not np.allclose(whole, layer.apply(params, xs)[1])
    np.testing.assert_array_equal(layer.apply(params, xs)[1], layer.apply(params, xs)[1])


def test_stack_and_chain_drop_the_same():
    members = (jr.lstm(I, H), jr.dropout(0.5), jr.gru(H, H), jr.dropout(0.5), jr.readout(H, 2))
    stack, chain = jr.stack(*members), jr.scan(jr.chain(*members))
    params, xs, key = stack.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (T, B, I)), jax.random.key(2)
    for options in ({}, {"key": key}, {"key": key, "lengths": jnp.array([6, 2, 0])}):
        stacked, chained = (layer.apply(params, xs, **options) for layer in (stack, chain))
        assert jax.tree.structure(stacked) == jax.tree.structure(chained)
        for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(chained), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_dropout_keeps_the_mean_and_drops_the_share():
    xs = jnp.ones((50, 8, 25))
    ys = jr.scan(jr.dropout(0.3)).apply((), xs, key=jax.random.key(0))[1]
    np.testing.assert_allclose(np.unique(ys), [0, 1 / 0.7], rtol=1e-6)
    # 10,000 draws: the share's standard deviation is 0.0046.
    np.testing.assert_allclose((ys == 0).mean(), 0.3, atol=0.02)
    assert len({tuple(row) for row in np.asarray(ys[:, 0])}) == 50  # a mask of its own for every step


def test_a_held_step_overrides_zoneout():
    layer = jr.scan(zoneout(0.4))
    params, xs = layer.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (T, B, I))
    options = {"key": jax.random.key(2), "lengths": jnp.array([6, 2, 0])}
    carry, ys = layer.apply(params, xs, **options)
    np.testing.assert_array_equal(carry[1], ys[1, 1])
    np.testing.assert_array_equal(carry[2], 0)
    assert (ys[2:, 1] == 0).all()


def test_bidirectional_directions_draw_apart():
    cell = jr.chain(jr.dropout(0.5), jr.readout(I, H))
    layer = jr.bidirectional(cell, cell)
    params = layer.init(jax.random.key(0))
    params = BiParams(params.forward, params.forward)
    ys = layer.apply(params, jnp.ones((T, B, I)), key=jax.random.key(1))[1]
    assert not np.allclose(ys[..., :H], ys[..., H:])


def test_noise_of_a_wrong_length_is_refused():
    cell = jr.elman(I, H)._replace(noise=lambda params, key, times, x: jnp.zeros((T + 1, B)))
    with pytest.raises(ValueError, match=rf"noise has a leaf of shape \({T + 1}, {B}\).* lead with T = {T}"):
        jr.scan(cell).apply(cell.init(jax.random.key(0)), jnp.ones((T, B, I)), key=jax.random.key(1))


# ---- combinations ------------------------------------------------------------------------------


def test_residual_of_a_layer_is_that_of_its_cell():
    """Padding passes neither: outputs are 0 there, whatever stands in the input."""
    cell = jr.gru(I, I)
    params, xs = randomised(cell.init(jax.random.key(0))), draw((T, B, I), 1).at[-1, 0].set(jnp.nan)
    flags = {"lengths": jnp.array([5, 3, 0]), "mask": jnp.asarray(draw((T, B), 2) > -0.5), "start": 0}
    of_layer = jr.residual(jr.scan(cell)).apply(params, xs, **flags)
    of_cell = jr.scan(jr.residual(cell)).apply(params, xs, **flags)
    jax.tree.map(np.testing.assert_array_equal, of_layer, of_cell)


# ---- pytrees and unusual steps -----------------------------------------------------------------


def test_inputs_outputs_and_carry_may_be_pytrees():
    """Images and tokens in, two outputs out, a random key in the carry."""

    def initial_carry(params, batch_shape=()):
        return {"sum": jnp.zeros(batch_shape), "key": jax.random.split(jax.random.key(9), batch_shape)}

    def step(params, carry, x):
        total = carry["sum"] + params * x["image"].sum((-2, -1)) + x["token"]
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(carry["key"])
        return {"sum": total, "key": keys}, (total, x["token"] * 2)

    cell = jr.Cell(lambda key: jnp.ones(()), initial_carry, step, x_ndim={"image": 2, "token": 0})
    xs = {"image": jax.random.normal(jax.random.key(0), (T, B, 2, 2)), "token": jnp.arange(T * B).reshape(T, B)}
    lengths = np.array([6, 2, 0])
    carry, (totals, doubled) = jax.jit(jr.scan(cell).apply)(jnp.ones(()), xs, lengths=lengths)
    on = np.arange(T)[:, None] < lengths
    steps = np.where(on, xs["image"].sum((2, 3)) + xs["token"], 0)
    np.testing.assert_allclose(totals, np.where(on, steps.cumsum(0), 0), rtol=1e-5)
    np.testing.assert_array_equal(doubled, np.where(on, 2 * xs["token"], 0))
    untouched = initial_carry(None, (B,))["key"]
    same = jax.random.key_data(carry["key"]) == jax.random.key_data(untouched)
    np.testing.assert_array_equal(same.all(-1), [False, False, True])
    by_params = jax.grad(lambda p: jr.scan(cell).apply(p, xs, lengths=lengths)[1][0].sum())(jnp.ones(()))
    np.testing.assert_allclose(
        by_params, np.where(on, np.where(on, xs["image"].sum((2, 3)), 0).cumsum(0), 0).sum(), rtol=1e-4
    )


@jax.custom_vjp
def clipped(a):
    return a


clipped.defvjp(lambda a: (a, None), lambda _, d: (jnp.clip(d, -0.1, 0.1),))


def inner_scan(a):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c + 0.1), None), a, length=2)[0]


def inner_while(a):
    return jax.lax.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, jax.lax.stop_gradient(a)) + a


UNUSUAL = {
    "custom_vjp": clipped,
    "custom_vjp in a checkpoint": jax.checkpoint(clipped),
    "custom_jvp": jax.nn.relu,
    "inner scan": inner_scan,
    "while loop": inner_while,
    "checkpoint": jax.checkpoint(jnp.sin),
    "cond": lambda a: jax.lax.cond(a.sum() > 0, jnp.sin, jnp.cos, a),
    "nested jit": jax.jit(lambda a: jax.jit(jnp.tanh)(a) * 2),
    "stop_gradient": lambda a: jnp.tanh(a) + jax.lax.stop_gradient(a),
    "printing": lambda a: (jax.debug.callback(lambda _: None, a), jnp.tanh(a))[1],
    "callback": lambda a: jnp.tanh(a) + jax.lax.stop_gradient(jax.pure_callback(np.sign, a, jax.lax.stop_gradient(a))),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_steps_run_under_every_plan(name, x64, traced):
    act = UNUSUAL[name]
    xs = draw((T, I))
    W = randomised({"h": jnp.ones((H, H)), "x": jnp.ones((I, H)), "b": jnp.ones(H)})

    def run(plan, W, gain):
        def step(params, h, x):  # gain is a traced value that the step closes over
            h = act(h @ params["h"] + act(x @ params["x"]) * gain + params["b"])
            return h, h

        cell = jr.Cell(lambda key: W, lambda params, batch: jnp.zeros((*batch, H)), step)
        return weigh(jr.scan(cell, plan=plan).apply(W, xs))

    def loop(W, gain):
        h, ys = jnp.zeros(H), []
        for x in xs:
            h = act(h @ W["h"] + act(x @ W["x"]) * gain + W["b"])
            ys.append(h)
        return weigh((h, jnp.stack(ys)))

    def both(f):
        """Value and gradient, and the gradient of a function of the gradient."""
        bent = lambda *args: sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(jax.grad(f)(*args)))
        return lambda *args: (jax.value_and_grad(f, argnums=(0, 1))(*args), jax.grad(bent)(*args))

    want = traced(both(loop))(W, 0.7)
    for plan in ("auto", "plain"):
        got = traced(both(functools.partial(run, plan)))(W, 0.7)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), got, want)


@pytest.mark.usefixtures("many_weights")
def test_gradients_leave_the_loop_for_a_textbook_cell():
    """Eight products, as the equations: under "auto" no array of a weight's shape goes round the backward loop."""

    def step(p, carry, x):
        h, c = carry
        i, f, g, o = (x @ p["W"][k] + h @ p["U"][k] + p["b"][k] for k in range(4))
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def init(key):
        return {"W": [jnp.ones((5, 7))] * 4, "U": [jnp.ones((7, 7))] * 4, "b": [jnp.ones(7)] * 4}

    cell = jr.Cell(init, lambda params, batch: (jnp.zeros((*batch, 7)), jnp.zeros((*batch, 7))), step)
    params, xs = init(None), jnp.ones((9, 2, 5))

    def made_each_step(plan):
        """The shapes that the loops of the gradient hand on from step to step, or stack."""
        loss = lambda params: jr.scan(cell, plan=plan).apply(params, xs)[1].sum()
        return {v.aval.shape for loop in loops(jax.grad(loss), params) for v in loop.outvars}

    assert {(7, 7), (5, 7)} <= made_each_step("plain")
    assert not {(7, 7), (5, 7), (7,)} & made_each_step("auto")
    assert (2, 7) in made_each_step("auto")


def test_without_a_carry_a_step_runs_as_the_plan_says():
    """All steps at once, but one by one under "plain" and where the step has callbacks."""
    seen = []

    def step(params, carry, x):
        return carry, jax.pure_callback(lambda x: (seen.append(x.shape), 2 * x)[1], x, x)

    cell = jr.Cell(lambda key: (), lambda params, batch: (), step)
    for plan in ("auto", "plain"):
        np.testing.assert_array_equal(jr.scan(cell, plan=plan).apply((), jnp.ones((T, I)))[1], 2)
    assert set(seen) == {(I,)}
    loops = {
        plan: "scan"
        in str(jax.make_jaxpr(lambda xs, p=plan: jr.scan(jr.dropout(0.1), plan=p).apply((), xs))(jnp.ones((T, I))))
        for plan in ("auto", "plain")
    }
    assert loops == {"auto": False, "plain": True}


def test_outputs_that_depend_on_nothing():
    def step(params, h, x):
        return jnp.tanh(h @ params + x), (1.0, x, jnp.zeros(2), params[0])

    cell = jr.Cell(lambda key: jnp.ones((I, I)), lambda params, batch: jnp.zeros((*batch, I)), step)
    xs = draw((T, I)).astype(jnp.float32)
    loss = lambda plan, p: weigh(jr.scan(cell, plan=plan).apply(p, xs))
    auto, plain = (jax.grad(functools.partial(loss, plan))(0.3 * jnp.ones((I, I))) for plan in ("auto", "plain"))
    np.testing.assert_allclose(auto, plain, rtol=1e-5)


def test_a_carry_of_python_numbers():
    cell = jr.Cell(lambda key: 0.5, lambda params, batch=(): 0.0, lambda p, h, x: ((h + p * x) * 1.0, h))
    for plan in ("auto", "plain"):
        carry, _ = jr.scan(cell._replace(x_ndim=0), plan=plan).apply(0.5, jnp.arange(4.0))
        assert float(carry) == 3.0


@pytest.mark.parametrize("carried", [True, False], ids=["carried", "without a carry"])
@pytest.mark.parametrize("combine", [jnp.add, jnp.multiply])
def test_narrow_biases_and_gains_add_up_beside_products(carried, combine):
    """In bfloat16 a sum over 4096 steps stalls unless it is kept in float32: within 1 %, also under "auto"."""
    xs = jnp.full((4096, 1, 8), 0.7, jnp.bfloat16)
    params = {"W": 0.5 * draw((8, 4)).astype(jnp.bfloat16), "b": jnp.ones(4, jnp.bfloat16)}

    def step(p, h, x):
        y = combine(x @ p["W"], p["b"])
        return (0.5 * h, y + h.astype(y.dtype)) if carried else (h, y)

    initial = lambda p, batch=(): jnp.zeros((*batch, 4)) if carried else ()
    cell = jr.Cell(lambda key: params, initial, step)

    def gradient(params, xs, plan):
        loss = lambda params: (0.3 * jr.scan(cell, plan=plan).apply(params, xs)[1].astype(jnp.float32)).sum()
        return jax.jit(jax.grad(loss))(params)["b"].astype(jnp.float32)

    exact = gradient(jax.tree.map(lambda a: a.astype(jnp.float32), params), xs.astype(jnp.float32), "plain")
    for plan in ("auto", jr.Plan(contract=True)):
        np.testing.assert_allclose(gradient(params, xs, plan), exact, rtol=1e-2)


@PLANS
def test_products_in_bfloat16_add_up_outside_of_matrices_too(plan):
    """A step that casts its float32 parameters itself, and multiplies without a matrix."""

    def step(params, h, x):
        y = (params.astype(jnp.bfloat16) * x.astype(jnp.bfloat16)).astype(jnp.float32)
        return 0 * h + y, h * 0 + y

    cell = jr.Cell(lambda key: jnp.ones(2), lambda params, batch: jnp.zeros((*batch, 2)), step)
    loss = lambda params: jr.scan(cell, plan=plan).apply(params, jnp.ones((2048, 2)))[1].sum()
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.ones(2)), 2048, rtol=0.01)


@pytest.mark.parametrize("start", [1.5, jnp.array([0, 2]), "0"], ids=["float", "one each", "text"])
def test_start_is_one_integer(start):
    layer = jr.scan(jr.elman(I, H))
    with pytest.raises(TypeError, match=r"scan\(elman\): start must be one integer, the absolute time"):
        layer.apply(layer.init(jax.random.key(0)), jnp.ones((T, I)), start=start)


def test_a_step_that_returns_no_pair_is_told():
    cell = jr.Cell(lambda key: (), lambda params, batch: jnp.zeros(batch), lambda params, h, x: (h, h, x))
    with pytest.raises(TypeError, match=r"step must return the pair \(carry, y\), got tuple of 3"):
        jr.scan(cell).apply((), jnp.ones((T, I)))


@pytest.mark.parametrize("of", ["inputs", "projections"])
def test_an_outer_product_stays_in_the_loop(of):
    """What would be stacked is as large as the memory itself, T times."""

    def step(W, S, x):
        k = x if of == "inputs" else x @ W
        return 0.9 * S + jnp.einsum("...i,...j->...ij", k, k), ()

    cell = jr.Cell(lambda key: jnp.ones((64, 64)), lambda params, batch: jnp.zeros((*batch, 64, 64)), step)
    sizes = {}
    for plan in ("auto", "plain"):
        layer = jr.scan(cell, plan=plan)
        gradient = jax.grad(lambda W, xs, layer=layer: layer.apply(W, xs)[0].sum(), argnums=(0, 1))
        compiled = jax.jit(gradient).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile()
        sizes[plan] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes["auto"] <= 1.5 * sizes["plain"]


def test_few_outputs_over_all_steps_are_contracted(monkeypatch):
    """Up to 2²², here of two rows and 20 outputs, of which no part of the steps is worth a loop of its own."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    cell = jr.lstm(3, 5)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    for T, few in ((104_857, True), (104_858, False)):
        xs = jax.ShapeDtypeStruct((T, 2, 3), jnp.float32)
        (scan,) = jr.explain(jr.scan(cell, plan=jr.Plan(one_kernel=False)), params, xs).scans
        assert (bool(scan.contracted), scan.contracted_in_parts, bool(scan.added_in_loop)) == (few, [], not few)


@pytest.mark.parametrize("devices, batch, leaves", [(1, 1, True), (1, 32, False), (2, 32, True)])
def test_when_products_leave_the_loop(monkeypatch, devices, batch, leaves):
    """On one CPU device where weights are many beside the outputs; on several always: one process has both."""
    monkeypatch.setattr("jaxrnn.planning._rules.makes_one_kernel", lambda weights, rows: False)
    layer = jr.scan(jr.elman(8, 8))
    params, batches = layer.init(jax.random.key(0)), (draw((3, batch, 8), 1), draw((3, batch, 8), 2))
    if devices > 1:
        mesh = jr.devices.batch_mesh(devices)
        params, batches = jr.devices.replicate(params, mesh), jr.devices.shard_batch(batches, mesh)
    xs, ct = batches
    with using(DEFAULT._replace(stack_up_to=0)):
        gradient = jax.jit(jax.grad(lambda params, xs, ct: (layer.apply(params, xs)[1] * ct).sum()))
        program = gradient.lower(params, xs, ct).compile().as_text()
        (said,) = jr.explain(layer, params, xs).scans
    gathered = set().union(*accumulators(program))
    assert ("f32[8,8]" in gathered) is not leaves
    assert (bool(said.contracted), said.on_several_devices) == (leaves, devices > 1)
