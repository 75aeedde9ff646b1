"""Many parameter sets in one program: each member's result is that of a run of its own, and devices do not talk."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxrnn as jr
from tests.cases import draw, randomised
from tests.programs import COLLECTIVE, collectives_in_loops, computations_of

pytestmark = pytest.mark.multidevice

T, B, I, H = 5, 2, 3, 4
LAYER = jr.scan(jr.lstm(I, H))
XS = draw((T, B, I), 1)


def members_of(N):
    return jr.devices.stack_members([randomised(LAYER.init(jax.random.key(0)), seed) for seed in range(N)])


def member(tree, n):
    return jax.tree.map(lambda a: a[n], tree)


def loss(params, xs):
    return (LAYER.apply(params, xs)[1] ** 2).mean()


def assert_each_equals(outputs, function, members, N, *shared):
    alone = jax.jit(function)
    for n in range(N):
        # The same products in the same order: map gives the same bits; vmap batches them, so a few roundings.
        want = alone(member(members, n), *shared)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), member(outputs, n), want)


def sizes(layout):
    return layout.mesh.size, layout.how


@pytest.mark.parametrize(
    "N, how, devices", [(4, "auto", 2), (4, "vmap", 2), (3, "map", 1), (1, "auto", 1)], ids=lambda value: str(value)
)
def test_gradients_equal_those_of_separate_runs(N, how, devices):
    members = members_of(N)
    run = jr.devices.ensemble(jax.value_and_grad(loss), how=how)
    assert sizes(run.describe(members)) == (devices, "map" if how == "auto" else how)
    outputs = run(members, XS)
    assert_each_equals(outputs, jax.value_and_grad(loss), members, N, XS)
    assert len(outputs[1].b.devices()) == devices


def test_training_steps_of_several_learning_rates(x64):
    """Seeds as keys, learning rates, counters: three Adam steps from each, twice, and compiled once."""
    traces = []

    def train(state, xs):
        traces.append(1)
        optimiser = optax.inject_hyperparams(optax.adam)(learning_rate=state["rate"])

        def step(carry, _):
            params, opt_state, key = carry
            key, own = jax.random.split(key)
            value, gradient = jax.value_and_grad(loss)(params, xs + 0.1 * jax.random.bits(own) / 2**32)
            updates, opt_state = optimiser.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, key), value

        params, steps = state["params"], state["steps"]
        carry, losses = jax.lax.scan(step, (params, optimiser.init(params), state["key"]), length=3)
        return state | {"params": carry[0], "key": carry[2], "steps": steps + 3}, losses

    N = 4
    members = {
        "params": members_of(N),
        "rate": np.array([0.001, 0.01, 0.1, 1.0]),
        "key": jax.random.split(jax.random.key(3), N),
        "steps": jnp.zeros(N, int),
    }
    run = jr.devices.ensemble(train)
    after, losses = run(members, XS)
    again, _ = run(after, XS)
    assert len(traces) == 1
    assert again["steps"].tolist() == [6] * N and again["steps"].dtype == members["steps"].dtype
    alone = jax.jit(train)
    for n in range(N):
        own, own_losses = alone(member(members, n), XS)
        np.testing.assert_allclose(losses[n], own_losses, rtol=1e-12)
        assert (jax.random.key_data(after["key"][n]) == jax.random.key_data(own["key"])).all()
        own, _ = alone(own, XS)
        # Adam divides by the root of small second moments, which widens the roundings of float64.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), member(again["params"], n), own["params"]
        )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["Auto", "Explicit"])
def test_devices_exchange_nothing(kind):
    mesh = jax.make_mesh((2,), ("anything",), axis_types=(kind,), devices=jax.devices()[:2])
    run = jr.devices.ensemble(jax.grad(loss), mesh=mesh)
    members = members_of(2)
    compiled = jax.jit(run).lower(members, XS).compile()
    assert "while" in compiled.as_text() and re.findall(COLLECTIVE, compiled.as_text()) == []
    assert_each_equals(jax.device_get(run(members, XS)), jax.grad(loss), members, 2, XS)
    times = jr.devices.ensemble(lambda member, xs: member * xs.sum(), mesh=mesh)
    assert times(jnp.ones(2), jr.devices.shard_batch(jnp.ones((2, 4)), mesh)).tolist() == [8, 8]


def collectives_in_time_loops(program):
    """Those of the innermost loops: over time, not over members."""
    computations = computations_of(program)
    bodies = set(re.findall(r"body=%?([\w.\-]+)", program))

    def reached_from(name):
        callees = set(re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", computations[name]))
        return callees.union(*map(reached_from, callees))

    for body in bodies:
        if reached_from(body) & bodies:
            program = re.sub(rf"body=%?{re.escape(body)}(?![\w.\-])", "", program)
    return collectives_in_loops(program)


@pytest.mark.parametrize("groups, how", [(1, "vmap"), (1, "map"), (2, "map")])
def test_members_over_one_axis_and_their_batches_over_another(groups, how, x64):
    lengths, xs = jnp.array([5, 3]), XS.astype(float)

    def gradient(params, xs, lengths):
        loss = lambda params: (LAYER.apply(params, xs, lengths=lengths)[1] ** 2).mean()
        return jax.value_and_grad(loss)(params)

    def divided(params, xs, lengths):
        spread = jax.lax.with_sharding_constraint
        return gradient(params, spread(xs, PartitionSpec(None, "batch")), spread(lengths, PartitionSpec("batch")))

    members = jax.tree.map(lambda a: a.astype(float), members_of(2))
    run = jr.devices.ensemble(divided, mesh=jr.devices.batch_mesh(2 // groups, members=groups), how=how, axes="member")
    program = jax.jit(run).lower(members, xs, lengths).compile().as_text()
    assert collectives_in_time_loops(program) == [] and ("all-reduce" in program) == (groups == 1)
    got, alone = run(members, xs, lengths), jax.jit(gradient)
    for n in range(2):
        want = alone(member(members, n), xs, lengths)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), member(got, n), want)
    assert {a.sharding.shard_shape(a.shape)[0] for a in jax.tree.leaves(got)} == {2 // groups}


def test_a_batch_that_is_divided_already_stays_so():
    """Though the function does not ask for it: each device computes the outputs of its own part."""
    mesh, members = jr.devices.batch_mesh(2, members=1), members_of(2)
    outputs = lambda params, xs: LAYER.apply(params, xs)[1]
    run = jr.devices.ensemble(outputs, mesh=mesh, axes="member")
    apart = run(members, jr.devices.shard_batch(XS, mesh, axes="batch"))
    assert [shard.data.shape for shard in apart.addressable_shards] == [(2, T, B // 2, H)] * 2
    assert run(members, XS).sharding.is_fully_replicated
    assert_each_equals(apart, outputs, members, 2, XS)


def test_gradient_through_an_ensemble():
    """By what all members share: the sum over members, which does cross devices."""
    members = members_of(2)
    run = jr.devices.ensemble(loss)
    got = jax.jit(jax.grad(lambda xs: run(members, xs).sum()))(XS)
    want = jax.jit(jax.grad(lambda xs: loss(member(members, 0), xs) + loss(member(members, 1), xs)))(XS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_describe_says_what_and_why():
    describe = lambda N, **options: str(jr.devices.ensemble(loss, **options).describe(jnp.ones((N, 2))))
    assert re.search(r"6 members on 2 cpu devices, 3 on each, .*lax\.map.*: a CPU runs batched", describe(6))
    assert re.search(r"4 members on 2 cpu devices, 2 on each, batched \(vmap\): how='vmap'", describe(4, how="vmap"))
    assert re.search(r"3 members on 1 cpu device, 3 on each.*3 members cannot be divided among all 2", describe(3))
    group = describe(3, mesh=jr.devices.batch_mesh(2, members=1), axes="member")
    assert re.search(r"3 members on 1 group of 2 cpu devices, 3 on each, .*sharing what .* divides over 'batch'", group)
    assert "2 members on 2 cpu devices, 1 on each" in describe(
        2, mesh=jr.devices.batch_mesh(1, members=2), axes=["member"]
    )


def test_stack_members_stacks():
    trees = [{"a": np.full(2, n, np.float32), "key": jax.random.key(n), "rate": 0.1 * n} for n in range(3)]
    stacked = jr.devices.stack_members(trees)
    assert stacked["a"].tolist() == [[0, 0], [1, 1], [2, 2]] and stacked["a"].dtype == np.float32
    np.testing.assert_allclose(stacked["rate"], [0, 0.1, 0.2], rtol=1e-6)
    assert (jax.random.key_data(stacked["key"][2]) == jax.random.key_data(jax.random.key(2))).all()


def in_mesh(call):
    with jax.set_mesh(jax.make_mesh((2,), ("other",), axis_types=(AxisType.Auto,))):
        return call()


RUN = jr.devices.ensemble(lambda member, *shared: member)
PARAMS = jr.elman(I, H).init(jax.random.key(0))
ERRORS = {
    "how": (
        lambda: jr.devices.ensemble(loss, how="vmpa"),
        ["ensemble: how must be one of", "'vmpa'", "did you mean 'vmap'"],
    ),
    "different N": (
        lambda: RUN({"a": jnp.ones((4, 2)), "b": jnp.ones(3)}),
        ["lead with the same N", "4 in members['a'] and 3 in members['b']", "jr.devices.stack_members"],
    ),
    "scalar": (
        lambda: RUN({"a": jnp.ones(4), "rate": 0.1}),
        ["members['rate'] is a scalar", "lead with N", "as a further argument"],
    ),
    "no members": (lambda: RUN(jnp.ones((0, 2))), ["at least one member, got none"]),
    "no arrays": (lambda: RUN({}), ["at least one member, got no array"]),
    "mesh": (
        lambda: jr.devices.ensemble(loss, mesh=jr.devices.batch_mesh(2)).describe(jnp.ones((5, 2))),
        ["ensemble: the members, 5, cannot be divided among 2 devices", "such as 6", "a mesh of 1 device"],
    ),
    "groups of a mesh": (
        lambda: jr.devices.ensemble(loss, mesh=jr.devices.batch_mesh(1, members=2), axes="member").describe(
            jnp.ones((5, 2))
        ),
        ["ensemble: the members, 5, cannot be divided among 2 devices"],
    ),
    "axis": (
        lambda: jr.devices.ensemble(loss, mesh=jr.devices.batch_mesh(1, members=2), axes="members"),
        ["ensemble: axes must name", "the mesh, which has 'member', 'batch', got 'members'; did you mean 'member'?"],
    ),
    "no axis": (
        lambda: jr.devices.ensemble(loss, mesh=jr.devices.batch_mesh(2), axes=()),
        ["ensemble: axes must name one", "got ()"],
    ),
    "axes of no mesh": (
        lambda: jr.devices.ensemble(loss, axes="member"),
        ["ensemble: axes='member' needs the mesh", "mesh=jr.devices.batch_mesh(members="],
    ),
    "another mesh is set": (
        lambda: in_mesh(lambda: RUN(jnp.ones((4, 2)))),
        ["ensemble: jax.set_mesh has set a mesh of other devices or axes, ('other',)", "pass that one as mesh="],
    ),
    "stack nothing": (lambda: jr.devices.stack_members([]), ["stack_members: needs at least one member, got none"]),
    "stack different trees": (
        lambda: jr.devices.stack_members([{"a": jnp.ones(2)}, {"b": jnp.ones(2)}]),
        ["member 1 should be {'a': array (2,)}, got {'b': array (2,)}", "all members must be of one model"],
    ),
    "stack different shapes": (
        lambda: jr.devices.stack_members([PARAMS, PARAMS, jr.elman(I, H + 1).init(jax.random.key(0))]),
        ["member 2.W_xh should have shape (3, 4), got (3, 5)", "one model"],
    ),
    "stack different dtypes": (
        lambda: jr.devices.stack_members([jnp.ones(2), jnp.ones(2, jnp.bfloat16)]),
        ["member 1 is bfloat16 but that of member 0 is float32", ".astype('float32')"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, words = ERRORS[name]
    with pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, words))):
        call()


def test_a_mesh_that_is_none():
    with pytest.raises(
        TypeError,
        match=r"ensemble: mesh must be a jax\.sharding\.Mesh, got 2 \(int\); jr\.devices\.batch_mesh makes one",
    ):
        jr.devices.ensemble(lambda member: member, mesh=2)
