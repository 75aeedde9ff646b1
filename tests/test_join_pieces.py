"""Pieces that leave the loop, added to the whole that they meet: where, and that no number changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.planning.planned_scan import PASSES
from tests.cases import draw, randomised
from tests.programs import gradient, loops
from tests.test_passes import Planned, count

T, B, I, H = 7, 2, 3, 5
BEFORE, AFTER = jr.gru(I, H), jr.gru(I, H, reset="after")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


pytestmark = pytest.mark.usefixtures("many_weights")


def crossed(h, x):
    """Of three pieces of h U the last two meet two of x W."""
    U, W = (draw(shape, seed).astype(jnp.float32) for seed, shape in ((5, (H, 3 * H)), (6, (I, 3 * H))))
    a, b, c = jnp.split(h @ U, 3, axis=-1)
    d, e, f = jnp.split(x @ W, 3, axis=-1)
    new = jnp.tanh(a) * jnp.sin(b + e) + jnp.cos(c + f) * d
    return new, new


def twice(h, x):
    """Two pieces of h U meet two of x W, in the other order: each in a sum of its own."""
    U, W = (draw(shape, seed).astype(jnp.float32) for seed, shape in ((5, (H, 2 * H)), (6, (I, 2 * H))))
    a, b = jnp.split(h @ U, 2, axis=-1)
    c, d = jnp.split(x @ W, 2, axis=-1)
    new = jnp.tanh(a + d) * jnp.sin(b + c)
    return new, new


def cell_step(cell):
    params = jax.tree.map(lambda a: a.astype(jnp.float32), randomised(cell.init(jax.random.key(0))))
    return functools.partial(cell.step, params)


@pytest.mark.parametrize(
    "function, apart, joined",
    [
        (cell_step(BEFORE), [H, H, H, 2 * H], [H, 2 * H]),
        (cell_step(AFTER), [H, H, H, 3 * H], [H, 3 * H]),
        (crossed, [H, H, H, 3 * H], [H, 3 * H]),
        (twice, [H, H, 2 * H], [2 * H]),
    ],
    ids=["before", "after", "crossed", "twice"],
)
def test_what_enters_the_loop(function, apart, joined):
    """And that the step and its tangent have the values that JAX finds."""
    of = Planned(function)
    step = of.after("linearize", "save", "spread")
    after = PASSES["join_pieces"](step)
    for given, widths in ((step, apart), (after, joined)):
        tangent = PASSES["hoist"](given).tangent
        assert sorted(tangent.program.kinds[n].shape[-1] for n in tangent.parts().ready) == widths
    for a, b in zip(of.values(PASSES["hoist"](after)), of.expected(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def gates(h, x, *, more=lambda piece: 0.0, of_x=lambda product, x: product, dtype=jnp.float32, axis=-1):
    """Two pieces of h U met by two of x W, changed in one way each."""
    U, W = (draw(shape, seed).astype(dtype) for seed, shape in ((5, (H, 2 * H)), (6, (I, 2 * H))))
    a, b = jnp.split(h.astype(dtype) @ U, 2, axis=-1)
    c, d = jnp.split(of_x(x.astype(dtype) @ W, x), 2, axis=axis)
    new = (jnp.tanh(a + c) * jnp.sin(b + d) + more(a) + more(b)).astype(jnp.float32)
    return new, new


def times_a_scan(product, x):
    """A loop of the user's, which may not leave that of the run."""
    return product * jax.lax.scan(lambda a, b: (a + b, None), jnp.zeros(()), x.reshape(-1))[0]


@pytest.mark.parametrize(
    "options, joined",
    [
        ({}, 1),
        ({"more": jnp.sin}, 0),  # a piece serves twice
        ({"of_x": times_a_scan}, 0),
        ({"dtype": jnp.bfloat16}, 0),
        ({"axis": 0, "of_x": lambda product, x: jnp.concatenate([product[:, :H], product[:, H:]])}, 0),
    ],
    ids=["as it is", "pieces serve twice", "stays in the loop", "narrow", "along another axis"],
)
def test_what_is_left_apart(options, joined):
    step = Planned(functools.partial(gates, **options)).after("linearize", "save", "spread", "join_pieces")
    assert count(step.tangent.program.ops, "add_pieces") == joined


@pytest.mark.parametrize("one_kernel", [False, True])
def test_sums_are_taken_apart_for_several_devices_instead(monkeypatch, one_kernel):
    plan = jr.Plan(contract=True, one_kernel=one_kernel)
    step = Planned(cell_step(BEFORE), plan).after("linearize", "save", "spread")
    assert count(PASSES["join_pieces"](step).tangent.program.ops, "add_pieces") == 1
    assert PASSES["split_sums"](step) is step
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert PASSES["join_pieces"](step) is step
    assert count(PASSES["split_sums"](step).tangent.program.ops, "split") > count(step.tangent.program.ops, "split")


@pytest.mark.parametrize("cell", [BEFORE, AFTER], ids=["before", "after"])
def test_each_cotangent_is_stacked_once(cell):
    """By the backward loop: the gates' together, and what n has beside them."""
    params, xs = randomised(cell.init(jax.random.key(0))), draw((T, B, I), 1).astype(jnp.float32)
    backward = loops(gradient(cell, jr.Plan(contract=True, one_kernel=False)), params, xs)[-1]
    wide = 2 if cell is BEFORE else 3
    of_sums = [v.aval.shape for v in backward.outvars[-2:]]
    assert sorted(of_sums) == [(B, H), (B, wide * H)]


@pytest.mark.parametrize("setting", [{"contract": True}, {"contract": False}, {"contract": True, "one_kernel": True}])
@pytest.mark.parametrize("cell", [BEFORE, AFTER], ids=["before", "after"])
def test_no_number_changes(cell, setting, x64):
    """Gradients, and their derivative in a direction, against the scan of the step as it stands."""
    params, xs = randomised(cell.init(jax.random.key(0))), draw((4, B, I), 1)
    directions = randomised((params, xs), 3)

    def both(plan):
        return jax.jvp(gradient(cell, plan, reverse=True), (params, xs), directions)

    got, want = jax.jit(lambda: [both(plan) for plan in (jr.Plan(**{"one_kernel": False, **setting}), "plain")])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), got, want)
