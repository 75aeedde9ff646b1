"""What plans do to the program: products hoisted and contracted, values saved; and what explain says."""

import copy
import functools
import json
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised, weigh
from tests.programs import accumulators, equations, gradient, loops, products_in_loops
from tests.user_cells import textbook_lstm

T, B, I, H = 7, 2, 3, 5


def problem(cell, batch=B):
    return randomised(cell.init(jax.random.key(0))), draw((T, batch, I), 1).astype(jnp.float32)


pytestmark = pytest.mark.usefixtures("many_weights")


# ---- what leaves the loop ----------------------------------------------------------------------


@pytest.mark.parametrize("hoist, inside", [(False, 2), (True, 1)])
def test_input_products_are_hoisted(hoist, inside):
    cell = jr.lstm(I, H)
    run = lambda params, xs: jr.scan(cell, plan=jr.Plan(hoist=hoist)).apply(params, xs)
    assert products_in_loops(run, *problem(cell)) == [inside]


def test_a_chain_of_products_is_hoisted_with_what_stands_between():
    cell = jr.chain(jr.readout(I, 4), jr.layer_norm(4), jr.elman(4, H))
    params, xs = problem(cell)
    run = lambda plan: lambda params, xs: jr.scan(cell, plan=plan).apply(params, xs)[1]
    assert products_in_loops(run(jr.Plan(hoist=True)), params, xs) == [1]
    assert products_in_loops(run(jr.Plan(hoist=False)), params, xs) == [3]
    np.testing.assert_allclose(run(jr.Plan(hoist=True))(params, xs), run("plain")(params, xs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend, inside", [("cpu", 2), ("gpu", 1)])
def test_when_products_are_hoisted(monkeypatch, backend, inside):
    """Never on a CPU, elsewhere always, where the plan leaves it open."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    cell = jr.lstm(I, H)

    def run(params, xs, plan):
        return jr.scan(cell, plan=plan).apply(params, xs)

    for plan, products in ((jr.Plan(), inside), (jr.Plan(hoist=False), 2), (jr.Plan(hoist=True), 1)):
        assert products_in_loops(functools.partial(run, plan=plan), *problem(cell)) == [products]


@pytest.mark.parametrize(
    "cell, stacks",
    [
        (jr.gru(I, H), [(B, H)] * 3),  # d_r, d_z, d_n serve W_xh and W_hh alike
        (jr.gru(I, H, reset="after"), [(B, H)] * 4),  # n has two: r stands between
        (jr.lstm(I, H), [(B, 4 * H)]),
        (jr.peephole_lstm(I, H), [(B, 4 * H)]),
    ],
    ids=["gru before", "gru after", "lstm", "peephole"],
)
def test_products_that_meet_in_a_sum_share_their_cotangents(monkeypatch, cell, stacks):
    """What the backward loop hands to the contractions: one array for each sum of products, whatever was split."""
    monkeypatch.setattr("jaxrnn.planning._rules.splits_sums", lambda: True)
    params, xs = problem(cell)
    backward = loops(gradient(cell, jr.Plan(contract=True)), params, xs)[-1]
    of_sums = [v.aval.shape for v in backward.outvars[-len(stacks) :]]
    assert sorted(of_sums) == stacks


def test_a_split_of_a_piece_of_a_split(x64):
    """Splits of splits, whose pieces meet other products."""

    def step(p, h, x):
        a, b = jnp.split(h @ p["U"] + x @ p["A"], 2, axis=-1)
        c, d = jnp.split(a + (x @ p["C"])[..., :4], 2, axis=-1)
        e, f = jnp.split(x @ p["C"], 2, axis=-1)
        h = jnp.tanh(jnp.concatenate([c + e[..., :2], d + f[..., 2:], b + e], -1))
        return h, h

    params = randomised({"U": jnp.ones((8, 8)), "A": jnp.ones((I, 8)), "C": jnp.ones((I, 8))})
    cell = jr.Cell(lambda key: params, lambda params, batch: jnp.zeros((*batch, 8)), step)
    xs = draw((T, B, I), 1)
    got, want = jax.jit(lambda: [gradient(cell, plan)(params, xs) for plan in ("auto", "plain")])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), got, want)


def test_a_split_of_a_constant_is_left_alone(x64):
    """Weights that are pieces of a wider one, and sums of constants: low-rank adaptation."""

    def step(p, h, x):
        left, right = jnp.split(p["wide"], 2, -1)
        a, b = jnp.split(h @ p["U"] + x @ left, 2, axis=-1)
        new = jnp.concatenate([jnp.tanh(a + (x * 2) @ p["V"]), b + jnp.sin(x) @ p["V"]], -1)
        return new + h @ (left + p["down"] @ p["up"]), h @ right

    shapes = {"wide": (4, 8), "down": (4, 2), "up": (2, 4), "U": (4, 4), "V": (4, 2)}
    params = randomised({name: jnp.ones(shape) for name, shape in shapes.items()})
    cell = jr.Cell(lambda key: params, lambda params, batch: jnp.zeros((*batch, 4)), step)
    xs = draw((T, B, 4), 1)
    plans = ("plain", "auto", jr.Plan(fuse=False, contract=True))
    want, *rest = jax.jit(lambda: [gradient(cell, plan)(params, xs) for plan in plans])()
    for got in rest:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), got, want)


@pytest.mark.parametrize("plan, leaves", [("auto", True), ("plain", False), (jr.Plan(contract=False), False)])
def test_no_weight_goes_round_the_compiled_backward_loop(plan, leaves):
    """A user's LSTM of eight products: its gradients are contracted after the loop, and the compiler leaves it so."""
    cell = textbook_lstm(I, H)
    compiled = jax.jit(gradient(cell, plan)).lower(*problem(cell)).compile()
    loops = accumulators(compiled.as_text())
    assert len(loops) == 2
    weights = {
        f"f32[{','.join(map(str, shape))}]"
        for n in (I, H, I + H + 1)  # the last: both and the bias, as one
        for k in (1, 4)
        for shape in ((n, k * H), (k * H, n))
    }
    assert bool(weights & set().union(*loops)) is not leaves
    assert any(f"f32[{B},{H}]" in shapes for shapes in loops), "the carry goes round"


# ---- what is saved -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, values",
    [
        (jr.elman(I, H), 2),  # h_{t-1} for the contraction, h_t for 1 - h²
        (jr.lstm(I, H), 6),  # h_{t-1}, c_{t-1}, i, f, g, o
        (jr.gru(I, H), 4),  # h_{t-1}, r, z, n
        (jr.peephole_lstm(I, H), 6),
        (textbook_lstm(I, H), 6),
    ],
    ids=["elman", "lstm", "gru", "peephole_lstm", "textbook_lstm"],
)
def test_the_smallest_set_is_saved(cell, values):
    params, xs = problem(cell)
    (report,) = jr.explain(jr.scan(cell), params, xs).scans
    assert report.saved == [str((B, H))] * values
    (full,) = jr.explain(jr.scan(cell, plan=jr.Plan(recompute=False)), params, xs).scans
    assert len(full.saved) > values or values == 2  # of the Elman network, JAX 0.12 needs h_{t-1} and 1 - h² alone


def test_what_is_costly_is_saved_though_it_is_large():
    """An inner loop is not run twice: its result is saved; what follows from it cheaply is not."""

    def step(W, h, x):
        slow = jax.lax.fori_loop(0, 3, lambda _, a: jnp.sin(a @ W), h + x)
        wide = jnp.concatenate([slow, jnp.exp(slow)], -1)
        h = jnp.tanh(wide[..., :H] * wide[..., H:]) * h
        return h, h

    cell = jr.Cell(lambda key: jnp.ones((H, H)) * 0.1, lambda p, batch: jnp.zeros((*batch, H)), step, input_size=H)
    (report,) = jr.explain(jr.scan(cell), cell.init(None), jnp.ones((T, B, H))).scans
    assert report.plain_because is None
    assert f"({B}, {2 * H})" not in report.saved


def test_large_steps_are_planned_too():
    """Sizes in the billions, one of them odd, so that nothing divides them all."""

    def step(p, carry, x):
        h, seen = carry
        a, b = jnp.tanh(h @ p[0] + x @ p[1]), jax.nn.sigmoid(h @ p[2] + x @ p[3])
        return (a * b * h * jnp.mean(a), seen), (a * jnp.mean(a)).sum(-1)

    H, B = 2**14, 2**13
    cell = jr.Cell(None, lambda p, batch: (jnp.zeros((*batch, H)), jnp.zeros(batch, bool)), step)
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    cell = cell._replace(init=lambda key: [jnp.zeros((H, H))] * 4)
    (report,) = jr.explain(jr.scan(cell), [of(H, H)] * 4, of(2, B, H)).scans
    assert 3 <= report.saved.count(str((B, H))) <= 4


def outer_products(p, S, x):
    k, v = x @ p["k"], x @ p["v"]
    return 0.9 * S + k[..., :, None] * v[..., None, :], ()


def wide_within(p, carry, x):
    k = x @ p["k"]
    return carry, (jnp.tanh(k[..., :, None] * k[..., None, :]) @ p["v"]).sum(-1)


@pytest.mark.parametrize("step, shape", [(outer_products, (32, 32)), (wide_within, None)])
def test_what_is_large_within_a_step_stays_there(step, shape):
    """An outer product for each step is not kept for all steps at once."""
    initial = lambda p, batch=(): () if shape is None else jnp.zeros((*batch, *shape))
    cell = jr.Cell(lambda key: {"k": jnp.ones((32, 32)), "v": jnp.ones((32, 32))}, initial, step)
    params, xs = cell.init(None), jnp.ones((64, 2, 32))
    sizes = []
    for plan in ("auto", "plain"):
        loss = lambda params, xs, plan=plan: sum(
            a.sum() for a in jax.tree.leaves(jr.scan(cell, plan=plan).apply(params, xs))
        )
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, xs).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[0] <= 2 * sizes[1]  # contraction adds the cotangents of k and v, (T, B, 32) each, to these


def test_less_memory_than_the_plain_scan():
    """Without contraction little more than half for gated cells; the Elman network needs h_{t-1} and h_t anyway."""
    for cell, share in ((jr.lstm(I, 64), 0.6), (jr.gru(I, 64), 0.6), (jr.elman(I, 64), 1.05)):
        params, xs = cell.init(jax.random.key(0)), jnp.ones((200, 8, I))
        sizes = [
            jax.jit(gradient(cell, plan)).lower(params, xs).compile().memory_analysis().temp_size_in_bytes
            for plan in (jr.Plan(contract=False), "plain")
        ]
        assert sizes[0] <= share * sizes[1]


# ---- explain, Plan -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jaxlib", "platform", "devices", "least"),
    [("0.11.1", "cpu", 1, 512), ("0.11.1", "cuda", 1, 0), ("0.11.1", "cpu", 2, 0), ("0.12.0.1", "cpu", 1, 0)],
)
def test_when_what_is_stacked_is_padded(jaxlib, platform, devices, least, monkeypatch):
    monkeypatch.setattr("jaxlib.__version__", jaxlib)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert jr.planning._rules.least_bytes_to_stack() == least


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_of_what_is_stacked_changes_no_value(reverse, monkeypatch, x64):
    def step(params, carry, x):
        h, count, key = carry
        h = jnp.tanh(h @ params["W"] + x)
        return (h, count + 1, key), {"h": h[..., :2], "count": count, "positive": h > 0, "key": key}

    def initial_carry(params, batch):
        return jnp.zeros((*batch, I)), jnp.zeros(batch, jnp.int32), jnp.broadcast_to(jax.random.key(3), batch)

    cell = jr.Cell(lambda key: {"W": draw((I, I), 2)}, initial_carry, step)
    params, xs = cell.init(None), draw((T, B, I), 1)

    def outcome(plan):
        run = lambda params, xs: jr.scan(cell, plan=plan, reverse=reverse).apply(params, xs)
        loss = lambda *of: weigh(run(*of)[1]["h"])
        (carry, ys), gradients = run(params, xs), jax.grad(loss, (0, 1))(params, xs)
        ys, carry = ys | {"key": jax.random.key_data(ys["key"])}, carry[:2]
        return carry, ys, gradients

    def stacked():
        jaxpr = jax.make_jaxpr(lambda *of: jr.scan(cell).apply(*of)[1]["h"])(params, xs).jaxpr
        (loop,) = equations(jaxpr, "scan")
        return [out.aval.shape for out in loop.outvars if out.aval.dtype == jnp.float64]

    want = outcome("plain")
    assert stacked() == [(B, I), (T, B, 2)]
    monkeypatch.setattr("jaxrnn.planning._rules.least_bytes_to_stack", lambda: 512)
    assert stacked() == [(B, I), (T, 64)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14), outcome("auto"), want)


def test_explain_says_what_was_done():
    model = jr.stack(jr.bidirectional(jr.lstm(I, H), jr.gru(I, H)), jr.scan(jr.elman(2 * H, H), plan="plain"))
    params = model.init(jax.random.key(0))
    lengths = jnp.array([T, 3])
    said = jr.explain(model, params, jax.ShapeDtypeStruct((T, B, I), jnp.float32), lengths=lengths)
    assert [(report.who, report.steps) for report in said.scans] == [
        ("scan(lstm)", T),
        ("scan(gru)", T),
        ("scan(elman)", T),
    ]
    assert said.scans[2].plan == "plain"
    assert "contracted after the backward loop: (2, 5) @ (5, 20)" in str(said)
    hoisted = jr.explain(jr.scan(jr.lstm(I, H), plan=jr.Plan(hoist=True)), params[0].forward, jnp.ones((T, B, I)))
    assert "before the loop: (2, 3) @ (3, 20)" in str(hoisted)


@pytest.mark.parametrize(
    "act, reason",
    [
        (lambda a: (jax.debug.callback(lambda _: None, a), jnp.tanh(a))[1], "effect"),
        (lambda a: a + jax.lax.stop_gradient(jax.pure_callback(np.sign, a, jax.lax.stop_gradient(a))), "pure_callback"),
        ("custom_vjp", "custom_vjp"),
    ],
    ids=["effect", "callback", "custom_vjp"],
)
def test_explain_says_why_a_step_runs_plainly(act, reason):
    if act == "custom_vjp":
        act = jax.custom_vjp(jnp.sin)
        act.defvjp(lambda a: (jnp.sin(a), a), lambda a, d: (d * jnp.cos(a),))

    def step(p, h, x):
        h = act(jax.lax.stop_gradient(h) @ p + x)
        return h, h

    cell = jr.Cell(lambda key: jnp.ones((H, H)), lambda p, batch: jnp.zeros((*batch, H)), step)
    said = jr.explain(jr.scan(cell), jnp.ones((H, H)), jnp.ones((T, B, H)))
    assert reason in said.scans[0].plain_because
    assert "lax.scan" in str(said)


def test_a_plan_is_kept_in_the_spec():
    layer = jr.scan(jr.lstm(I, H), plan=jr.Plan(hoist=True, fuse=False), checkpoint=jr.Budget(9))
    again = jr.build(json.loads(json.dumps(layer.spec.to_dict())))
    assert again.spec == layer.spec
    params, xs = problem(jr.lstm(I, H))
    assert str(jr.explain(again, params, xs)) == str(jr.explain(layer, params, xs))
    assert "before the loop" in str(jr.explain(again, params, xs))


@pytest.mark.parametrize(
    "plan, message",
    [
        ("fast", "scan: plan must be one of 'auto', 'plain' or a jr.Plan, got 'fast'"),
        ("Auto", "scan: plan must be one of 'auto', 'plain' or a jr.Plan, got 'Auto'; did you mean 'auto'?"),
        (True, "scan: plan must be one of"),
        (jr.Plan(hoist="always"), "scan: Plan.hoist must be True, False or None, got 'always'"),
        (jr.Plan(recompute=None), "scan: Plan.recompute must be True or False, got None"),
        ((True, True), "scan: plan must be one of"),
    ],
)
def test_plans_that_are_none(plan, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        jr.scan(jr.lstm(I, H), plan=plan)


def test_unknown_options_name_the_nearest():
    """The records stay what they were: data, equal and hashed by their fields."""
    for call, message in (
        (lambda: jr.Plan(contrakt=True), "Plan: unknown option 'contrakt'; did you mean 'contract'?"),
        (
            lambda: jr.Plan(x=1),
            "Plan: unknown option 'x'; the options are fuse, hoist, contract, recompute, one_kernel, ",
        ),
        (lambda: jr.Plan()._replace(hoisted=True), "Plan: unknown option 'hoisted'; did you mean 'hoist'?"),
        (lambda: jr.Budget(step=3), "Budget: unknown option 'step'; did you mean 'steps'?"),
        (lambda: jr.Plan(True, fuse=True), "got multiple values for argument 'fuse'"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            call()
    plan = jr.Plan(False, contract=True)
    assert repr(plan).startswith("Plan(fuse=False, hoist=None, contract=True, recompute=True, one_kernel=None, ")
    for again in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan), jr.Plan()._replace(fuse=False, contract=True)):
        assert (again, hash(again), type(again)) == (plan, hash(plan), jr.Plan)


def test_explain_wants_a_layer():
    with pytest.raises(TypeError, match=re.escape("explain: expected a Layer, got Cell; lift it with jr.scan.")):
        jr.explain(jr.lstm(I, H), None, None)


# ---- steps that are hard to take apart ---------------------------------------------------------


@pytest.mark.parametrize("plan", ["auto", "plain", jr.Plan(hoist=True, contract=True)], ids=str)
@pytest.mark.parametrize("checkpoint", [False, 3])
def test_keys_and_integers_in_the_carry(plan, checkpoint):
    """A cell with its own random numbers: the key is split at each step, as in a reference loop."""

    def step(W, carry, x):
        key, count, h = carry
        key, own = jax.random.split(key)
        h = jnp.tanh(h @ W + x + 0.1 * jax.random.normal(own, h.shape) + count)
        return (key, count + 1, h), h

    def initial_carry(W, batch_shape=()):
        return jax.random.key(3), jnp.int32(0), jnp.zeros((*batch_shape, H))

    cell = jr.Cell(lambda key: 0.1 * jnp.ones((H, H)), initial_carry, step)
    W, xs = cell.init(None), draw((T, H)).astype(jnp.float32)

    def loop(W):
        carry, ys = initial_carry(W), []
        for x in xs:
            carry, y = step(W, carry, x)
            ys.append(y)
        return carry, jnp.stack(ys)

    layer = jr.scan(cell, plan=plan, checkpoint=checkpoint)
    (key, count, h), ys = jax.jit(lambda W: layer.apply(W, xs))(W)
    (want_key, _, want_h), want = loop(W)
    assert count == T and (jax.random.key_data(key) == jax.random.key_data(want_key)).all()
    np.testing.assert_allclose((*ys, h), (*want, want_h), rtol=1e-5, atol=1e-6)
    loss = lambda run: lambda W: weigh(run(W)[1])
    got = jax.jit(jax.grad(loss(lambda W: layer.apply(W, xs))))(W)
    np.testing.assert_allclose(got, jax.grad(loss(loop))(W), rtol=1e-4, atol=1e-5)


@pytest.mark.multidevice
@pytest.mark.parametrize("options", [{}, {"plan": "plain"}, {"checkpoint": 3}], ids=str)
def test_collectives_in_the_step(options):
    """A batch norm over devices: the step takes the mean over the mesh, also in the derivative."""
    P = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])

    def cell(mean):
        def step(W, h, x):
            a = h @ W + x
            h = jnp.tanh(a - mean(a))
            return h, h

        return jr.Cell(lambda key: 0.3 * jnp.ones((H, H)), lambda W, batch=(): jnp.zeros((*batch, H)), step)

    W, xs = draw((H, H)).astype(jnp.float32), draw((T, 4, H), 1).astype(jnp.float32)

    def total(mean, combine, **options):
        def loss(W, xs):
            ys = jr.scan(cell(mean), **options).apply(W, xs)[1]
            return combine((jnp.sin(ys) + ys).sum())

        return loss

    over_devices = total(lambda a: jax.lax.pmean(a.mean(0), "data"), lambda s: jax.lax.psum(s, "data"), **options)
    sharded = jax.shard_map(over_devices, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())
    got = jax.jit(jax.value_and_grad(sharded, argnums=(0, 1)))(W, xs)
    want = jax.value_and_grad(total(lambda a: a.mean(0), lambda s: s, plan="plain"), argnums=(0, 1))(W, xs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)
