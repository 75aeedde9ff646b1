"""Learning online, steps that users write: each against ``jax.grad`` of a plain loop; derivatives of it; donation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised
from tests.test_online import MASK, RESETS, assert_close, loss, summed
from tests.test_online import run as run_online

T, B, I, H = 5, 2, 3, 4
full = pytest.mark.full


def own(step, shapes, start=lambda p, lead: jnp.zeros((*lead, H))):
    return jr.Cell(
        lambda key: {name: jnp.zeros(shape) for name, shape in shapes.items()},
        lambda params, batch_shape=(): jax.tree.map(lambda a: a.astype(params["W"].dtype), start(params, batch_shape)),
        step,
    )


def transposed_views(p, h, x):
    """``lax.reshape`` that reads its operand in another order."""

    def turned(a):
        square = a.reshape(*a.shape[:-1], 2, 2)
        axes = range(a.ndim - 1)
        return jax.lax.reshape(square, a.shape, dimensions=(*axes, a.ndim, a.ndim - 1))

    h = jnp.tanh(p["W"] * turned(h) + turned(h * p["a"])[..., ::-1] + x[..., [0, 1, 2, 0]])
    return h, h


@jax.custom_vjp
def halved(a):
    return a


halved.defvjp(lambda a: (a, None), lambda _, g: (g / 2,))


def halved_output(p, h, x):
    """A custom_vjp function between carry and output, where no tangent is taken."""
    h = jnp.tanh(h @ p["W"] + x @ p["U"])
    return h, halved(h) @ p["W"]


def spikes(p, carry, x):
    """A custom_jvp function in the carry, a stop_gradient, a carry of two leaves."""
    v, z = carry["v"], carry["z"]
    v = 0.9 * v + x @ p["U"] + z @ p["W"] - jax.lax.stop_gradient(z)
    z = spike(v)
    return {"v": v, "z": z}, z


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


spike.defjvp(lambda primals, tangents: (spike(primals[0]), tangents[0] / (1 + jnp.abs(primals[0])) ** 2))


def inner_control_flow(p, h, x):
    h = jax.lax.fori_loop(0, 2, lambda i, a: jnp.tanh(a @ p["W"] + x @ p["U"]), h)
    h, sums = jax.lax.scan(lambda a, w: (jnp.sin(a * w + h), a.sum(-1)), h, jnp.stack([p["a"], p["b"]]))
    h = jax.lax.cond(p["a"][0] > 0, lambda a: a * p["b"], lambda a: a + p["b"], h)
    return h, h + sums.mean(0)[..., None]


def gathers(p, h, x):
    """At places that are known while tracing, and at some that come with the input."""
    h = jnp.tanh(h[..., jnp.array([2, 0, 3, 1])] * p["a"] + p["U"][jnp.argmax(x, -1)] + x @ p["U"])
    h = h.at[..., 1].add(h[..., 0] * p["W"][0, 0])
    return h, jnp.sort(h, -1)


def tied(p, h, x):
    """A matrix in two products, once transposed, by elements, and in the output."""
    h = jnp.tanh(h @ p["W"] + (h * p["W"][0]) @ p["W"].T + x @ p["U"])
    return h, h @ p["W"] + jnp.diag(p["W"])


def mixed(p, h, x):
    a = jnp.cumsum(h * p["a"], -1) + h.max(-1, keepdims=True) * p["b"] + x[..., [0, 1, 2, 0]]
    h = jnp.sort(jnp.tanh(a), -1) + jnp.prod(a * p["W"][0], -1, keepdims=True)
    return 0.3 * jax.lax.top_k(h, H)[0], jax.nn.logsumexp(h, -1, keepdims=True)


def nested(p, carry, x):
    (h, g), m = carry
    h = jnp.tanh(x @ p["U"] + h @ p["W"])
    m = 0.9 * m + h[..., :, None] * p["a"] * g[..., None, :]
    return ((h + jnp.einsum("...ij,...j->...i", m, g), jax.nn.sigmoid(h * p["b"])), m), h


def nested_start(p, lead):
    h = jnp.broadcast_to(jnp.tanh(p["a"] @ p["W"]), (*lead, H))
    return (h, jnp.broadcast_to(p["b"], (*lead, H))), jnp.broadcast_to(p["W"] * p["a"], (*lead, H, H))


SHAPES = {"W": (H, H), "U": (I, H), "a": (H,), "b": (H,)}
STEPS = {
    "transposed_views": own(transposed_views, {"W": (H,), "a": (H,)}),
    "halved_output": own(halved_output, {"W": (H, H), "U": (I, H)}),
    "spikes": own(spikes, SHAPES, lambda p, lead: {"v": jnp.zeros((*lead, H)), "z": jnp.zeros((*lead, H))}),
    "inner_control_flow": own(inner_control_flow, SHAPES),
    "gathers": own(gathers, SHAPES),
    "tied": own(tied, SHAPES),
    "mixed": own(mixed, SHAPES),
    "nested": own(nested, SHAPES, nested_start),
    "nothing_carried": jr.readout(I, H),
}


def by_loop(cell, params, xs, targets):
    """The gradient of the sum of losses, masks and resets said by hand."""

    def where(flags, a, b):
        return jax.tree.map(lambda a, b: jnp.where(flags.reshape(flags.shape + (1,) * (a.ndim - 1)), a, b), a, b)

    def whole(params):
        fresh, total = cell.initial_carry(params, (B,)), 0.0
        carry = fresh
        for x, target, on, new in zip(xs, targets, jnp.array(MASK), jnp.array(RESETS), strict=True):
            carry = where(new, fresh, carry)
            after, y = cell.step(params, carry, x)
            carry = where(on, after, carry)
            total += loss(where(on, y, jnp.zeros_like(y)), where(on, target, jnp.zeros_like(target)))
        return total

    return jax.grad(whole)(params)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if k < 2 else full) for k, n in enumerate(STEPS)])
def test_rtrl_sums_to_the_gradient_of_a_plain_loop(name, traced, x64):
    cell = STEPS[name]
    params = randomised(jax.eval_shape(cell.init, jax.random.key(0)), 1)
    xs = draw((T, B, I), 2)
    y = jax.eval_shape(lambda p: cell.step(p, cell.initial_carry(p, (B,)), xs[0])[1], params)
    targets = draw((T, *y.shape), 3)
    want = traced(lambda p: by_loop(cell, p, xs, targets))(params)
    got = traced(lambda p: summed(run_online(jr.online(cell, loss), p, xs, targets, MASK, RESETS)[2]))(params)
    assert_close(got, want)
    assert np.abs(np.concatenate([np.ravel(a) for a in jax.tree.leaves(want)])).max() > 1e-2


def test_a_cell_that_carries_nothing_learns_too(traced, x64):
    """Under rules whose trace is empty, or noise."""
    cell = STEPS["nothing_carried"]
    params, xs, targets = (
        randomised(jax.eval_shape(cell.init, jax.random.key(0)), 1),
        draw((T, B, I)),
        draw((T, B, H), 3),
    )
    want = traced(lambda p: by_loop(cell, p, xs, targets))(params)
    for rule, options in (("layerwise", {}), ("uoro", {}), ("kf_rtrl:2", {}), ("tbptt", {"window": 2})):
        learner = jr.online(cell, loss, rule=rule, **options)
        run = functools.partial(run_online, learner, key=jax.random.key(0))
        assert_close(summed(traced(lambda p, run=run: run(p, xs, targets, MASK, RESETS)[2])(params)), want)


def decayed(λ):
    """J = λ D J + I, as docs/learning_online.md has it."""

    def update(step, trace):
        D, direct = jax.vmap(step.pull)(jnp.eye(step.size))
        return [λ * jnp.tensordot(D, J, 1) + I for J, I in zip(trace, direct, strict=True)]

    return jr.gradients.OnlineRule(
        lambda start: jax.vmap(start.pull)(jnp.eye(start.size)),
        update,
        lambda step, trace, u: [jnp.tensordot(u, J, 1) for J in trace],
    )


def test_a_rule_of_ones_own(traced, x64):
    """It is RTRL where nothing is forgotten, with masks, resets and a learned carry; and else another."""
    cell = jr.elman(I, H, learned_carry=True)
    params, xs, targets = (
        randomised(jax.eval_shape(cell.init, jax.random.key(0)), 1),
        draw((T, B, I)),
        draw((T, B, H), 3),
    )

    def under(rule):
        return traced(lambda p: summed(run_online(jr.online(cell, loss, rule=rule), p, xs, targets, MASK, RESETS)[2]))(
            params
        )

    exact = under("rtrl")
    assert_close(under(decayed(1.0)), exact)
    assert np.abs(under(decayed(0.5)).W_hh - exact.W_hh).max() > 1e-2


@pytest.mark.parametrize("rule", ["eprop", pytest.param("layerwise", marks=full), pytest.param("rflo", marks=full)])
def test_products_in_a_branch_are_products(rule, traced, x64):
    """What a rule holds of a step does not depend on whether a part of it stands in a ``cond`` or a loop."""

    def leaky(new):
        def step(p, h, x):
            h = 0.8 * h + 0.2 * new(p, h, x)
            return h, h

        return own(step, {"W": (H, H), "U": (I, H)})

    def plain(p, h, x):
        return jnp.tanh(h @ p["W"] + x @ p["U"])

    def branched(p, h, x):
        def loop(p, h):
            return jax.lax.scan(lambda h, W: (jnp.tanh(h @ W + x @ p["U"]), None), h, p["W"][None])[0]

        return jax.lax.cond(p["U"][0, 0] > 9, lambda p, h: h, loop, p, h)

    params, xs, targets = randomised({"W": jnp.zeros((H, H)), "U": jnp.zeros((I, H))}, 1), draw((T, I)), draw((T, H), 3)

    def under(new):
        learner = jr.online(leaky(new), loss, rule=rule)
        return traced(lambda p: summed(run_online(learner, p, xs, targets, batch_shape=())[2]["W"]))(params)

    got = under(branched)
    np.testing.assert_allclose(got, under(plain), rtol=1e-10, atol=1e-10)
    assert np.abs(got).max() > 1e-2


WIDE = jr.chain(jr.elman(I, 9), jr.readout(9, 1))  # whose step is cut at its products
DEEP = jr.chain(jr.gru(I, H, reset="after", learned_carry=True), jr.min_gru(H, H), jr.readout(H, 1))


@pytest.mark.parametrize(
    ("cell", "rule", "feedback"),
    [
        (WIDE, "rtrl", "symmetric"),
        *(
            pytest.param(DEEP, rule, "symmetric", marks=full)
            for rule in ("rtrl", "snap1", "layerwise", "uoro", "kf_rtrl", "rflo")
        ),
        pytest.param(DEEP, "eprop", "random", marks=full),
    ],
)
def test_what_was_learnt_has_derivatives_by_the_rate(cell, rule, feedback, traced, x64):
    """Of losses after updates, by the rate of these: equal to finite differences."""
    learner = jr.online(cell, loss, rule=rule, feedback=feedback)
    params = randomised(jax.eval_shape(cell.init, jax.random.key(0)), 1)
    xs, targets = draw((3, I), 2), draw((3, 1), 3)

    def trained(rate):
        def step(held, inputs):
            params, state = held
            state, y, grads = learner.step(params, state, *inputs)
            return (jax.tree.map(lambda a, g: a - rate * g, params, grads), state), loss(y, inputs[1])

        held = params, learner.init(params, key=jax.random.key(1))
        return jax.lax.scan(step, held, (xs, targets))[1].sum()

    got = traced(jax.grad(trained))(0.02)
    above, below = (traced(trained)(rate) for rate in (0.02 + 1e-5, 0.02 - 1e-5))
    np.testing.assert_allclose(got, (above - below) / 2e-5, rtol=1e-6)
    assert abs(got) > 1e-2


def test_a_donated_state_takes_nothing_of_the_callers_with_it():
    cell = jr.elman(I, H, learned_carry=True)
    learner, params = jr.online(cell, loss, rule="tbptt", window=1), cell.init(jax.random.key(0))
    mine = params, cell.initial_carry(params), jax.random.key(5), jnp.int32(3)
    state = learner.init(params, carry=mine[1], key=mine[2], start=mine[3])
    step = jax.jit(lambda state, x, target: learner.step(params, state, x, target)[0], donate_argnums=0)
    for _ in range(2):
        state = step(state, jnp.ones(I), jnp.zeros(H))
    assert not any(a.is_deleted() for a in jax.tree.leaves(mine)) and int(state.time) == 5
