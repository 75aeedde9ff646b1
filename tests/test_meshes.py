"""Runs on meshes: Auto and Explicit axes, ``shard_map`` with its checks on; no collective inside a time loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn as jr
from tests.cases import CASES, draw, randomised, weigh
from tests.programs import collectives_in_loops
from tests.turns import is_turn

pytestmark = pytest.mark.multidevice

T, B, I, H = 5, 4, 3, 6  # I is that of cases.py; two devices share the batch
LAYERS = {case.name: case.layer for case in CASES}
X_SHAPES = {case.name: case.x_shape for case in CASES}
LAYERS["stack_with_noise"] = jr.stack(
    jr.bidirectional(jr.lstm(I, H), jr.gru(I, H)), jr.dropout(0.5), jr.readout(2 * H, 3)
)


def problem(name, key=None):
    """``(loss, arguments)``: outputs times weights that are sharded as they are."""
    layer = LAYERS[name]
    params = randomised(layer.init(jax.random.key(0)))
    xs = draw((T, B, *X_SHAPES.get(name, (I,))), 1)
    resets = jnp.zeros((T, B), bool).at[2].set(True)
    weights = draw(jax.eval_shape(layer.apply, params, xs)[1].shape, 2)

    def loss(params, xs, lengths, resets, weights):
        ys = layer.apply(params, xs, lengths=lengths, resets=resets, key=key)[1]
        return ((jnp.sin(ys) + ys) * weights).sum()

    return loss, (params, xs, jnp.array([5, 3, 2, 0]), resets, weights)


@functools.cache
def on_one_device(name, noisy=False):
    loss, args = problem(name, jax.random.key(2) if noisy else None)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*args)


def assert_trees_close(got, want):
    """float32 sums in another order over 5 steps."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, want)


def devices():
    if len(jax.devices()) < 2:
        pytest.fail("two devices are needed; tests/conftest.py asks for two CPU devices")
    return jax.devices()[:2]


@pytest.mark.parametrize("kind", ["conv_lstm", "conv_gru"])
def test_convolutions_on_explicit_axes_are_refused(kind):
    loss, args = problem(next(name for name in LAYERS if name.startswith(kind)))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=devices())
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=rf"{kind}: .*AxisType\.Auto, or run inside"):
        xs = jax.device_put(args[1], NamedSharding(mesh, PartitionSpec(None, "data")))
        jax.eval_shape(jax.grad(loss), args[0], xs, *args[2:])


@pytest.mark.parametrize(
    "wrap", [jr.zoneout, jr.recurrent_dropout, pytest.param(jr.weight_drop, marks=pytest.mark.full)]
)
def test_noise_on_explicit_axes(wrap):
    """Drawn alike wherever the batch stands."""
    layer = jr.scan(wrap(jr.lstm(I, H), rate=0.2))
    params, xs = randomised(layer.init(jax.random.key(0))), draw((T, B, I), 1)
    run = jax.jit(jax.value_and_grad(lambda params, xs: layer.apply(params, xs, key=jax.random.key(2))[1].sum()))
    want = run(params, xs)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=devices())
    with jax.set_mesh(mesh):
        put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
        assert_trees_close(run(jax.tree.map(put, params), put(xs, None, "data")), want)


def layer_by_kind():
    """Each layer on one kind of axes, in turn; on both under ``--full``. Convolutions are refused on Explicit ones."""
    kinds = (AxisType.Auto, AxisType.Explicit)
    names = [name for name in LAYERS if not name.startswith("conv_")]
    pairs = [
        (name, kind, i % 2 == j and is_turn(name, i // 2, 0))
        for i, name in enumerate(names)
        for j, kind in enumerate(kinds)
    ]
    pairs += [(name, AxisType.Auto, True) for name in LAYERS if name not in names]
    return [
        pytest.param(name, kind, id=f"{name}-{kind.name}", marks=() if its_turn else pytest.mark.full)
        for name, kind, its_turn in pairs
    ]


@pytest.mark.parametrize(("name", "kind"), layer_by_kind())
def test_sharded_batches(name, kind):
    noisy = name == "stack_with_noise"
    loss, args = problem(name, jax.random.key(2) if noisy else None)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=devices())
    with jax.set_mesh(mesh):
        put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
        params, xs, lengths, resets, weights = args
        args = (
            *(jax.tree.map(put, params), put(xs, None, "data")),
            *(put(lengths, "data"), put(resets, None, "data"), put(weights, None, "data")),
        )
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*args).compile()
        got = compiled(*args)
    assert_trees_close(got, on_one_device(name, noisy))
    assert got[1][1].sharding.spec[1] == "data"
    assert collectives_in_loops(compiled.as_text()) == []


every_other_layer = [pytest.param(n, marks=pytest.mark.full if i % 2 else ()) for i, n in enumerate(LAYERS)]


@pytest.mark.parametrize("name", every_other_layer)
def test_inside_shard_map(name):
    loss, args = problem(name)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=devices())
    P = PartitionSpec
    in_specs = (P(), P(None, "data"), P("data"), P(None, "data"), P(None, "data"))
    with jax.set_mesh(mesh):
        sharded = jax.shard_map(lambda *args: jax.lax.psum(loss(*args), "data"), in_specs=in_specs, out_specs=P())
        compiled = jax.jit(jax.value_and_grad(sharded, argnums=(0, 1))).lower(*args).compile()
        got = compiled(*args)
    assert_trees_close(got, on_one_device(name))
    assert collectives_in_loops(compiled.as_text()) == []


def test_seeds_sharded_by_shard_map():
    """An ensemble: parameters that differ from device to device, one sequence for all."""
    cell = jr.peephole_lstm(I, H, learned_carry=True)
    layer = jr.scan(cell)
    params = jax.vmap(cell.init)(jax.random.split(jax.random.key(0), 2))
    xs = jax.random.normal(jax.random.key(1), (T, B, I))
    loss = lambda params, xs: weigh(layer.apply(params, xs)[1])
    mesh = jax.make_mesh((2,), ("seed",), axis_types=(AxisType.Auto,), devices=devices())
    P = PartitionSpec

    def mine(params, xs):
        return jax.tree.map(lambda a: a[None], jax.grad(loss)(jax.tree.map(lambda a: a[0], params), xs))

    with jax.set_mesh(mesh):
        got = jax.jit(jax.shard_map(mine, in_specs=(P("seed"), P()), out_specs=P("seed")))(params, xs)
    want = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(params, xs)
    assert_trees_close(got, want)


def test_the_check_for_collectives_can_fail():
    """The plain scan does add up its gradients over devices at every step, and the check sees it."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=devices())
    layer = jr.scan(jr.lstm(I, H), plan="plain")
    with jax.set_mesh(mesh):
        params = layer.init(jax.random.key(0))
        xs = jax.device_put(jnp.ones((T, B, I)), NamedSharding(mesh, PartitionSpec(None, "data")))
        compiled = jax.jit(jax.grad(lambda params, xs: layer.apply(params, xs)[1].sum())).lower(params, xs).compile()
    assert "all-reduce" in collectives_in_loops(compiled.as_text())
