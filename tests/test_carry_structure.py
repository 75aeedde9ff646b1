"""How a new carry depends on the old: what is found in the trace, beside Jacobians by ``jax.jacfwd``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.loops.carry_structure import carry_step, connected, is_affine

SQUARE, OTHER, SHORT = (3, 3), (3, 3), (3,)
W = np.arange(9.0).reshape(3, 3) / 10 - 0.3


def halves_swapped(h):
    return jnp.concatenate([h[:, 2:], h[:, :2]], axis=1)


# The carry is h (3, 3), g (3, 3), s (3,); x is positive, of the shape of h. Here: what h becomes, of (h, g, s, x), the
# leaves that it is grouped with, whether it depends on them number by number, and whether all is affine.
STEPS = {
    "itself": (lambda h, g, s, x: h, {"h"}, True, True),
    "nothing": (lambda h, g, s, x: x, {"h"}, True, True),
    "another": (lambda h, g, s, x: g - h, {"h", "g"}, True, True),
    "square": (lambda h, g, s, x: h * h, {"h"}, True, False),
    "times x": (lambda h, g, s, x: -h * x / 3 + x, {"h"}, True, True),
    "x over h": (lambda h, g, s, x: x / (2 + h), {"h"}, True, False),
    "masked by x": (lambda h, g, s, x: jnp.where(x > 1, h, 0.5 * g), {"h", "g"}, True, True),
    "masked by h": (lambda h, g, s, x: jnp.where(h > 0, h, x), {"h"}, True, False),
    "relu": (lambda h, g, s, x: jax.nn.relu(h), {"h"}, True, False),
    "rounded": (lambda h, g, s, x: jnp.round(h), {"h"}, True, False),
    "narrowed": (lambda h, g, s, x: h.astype(jnp.bfloat16).astype(h.dtype), {"h"}, True, False),
    "through views": (lambda h, g, s, x: jnp.squeeze(h.reshape(3, 1, 3)[None], (0, 2)), {"h"}, True, True),
    "there and back": (lambda h, g, s, x: jnp.sin(h.T).T, {"h"}, True, False),
    "stacked": (lambda h, g, s, x: jnp.stack([h, g, x], axis=-1).sum(-1), {"h", "g"}, True, True),
    "transposed": (lambda h, g, s, x: h.T, {"h"}, False, True),
    "reversed": (lambda h, g, s, x: h[:, ::-1], {"h"}, False, True),
    "mean": (lambda h, g, s, x: h - h.mean(-1, keepdims=True), {"h"}, False, True),
    "largest": (lambda h, g, s, x: h - jnp.broadcast_to(h.max(0), (3, 3)), {"h"}, False, False),
    "sum over time": (lambda h, g, s, x: jnp.cumsum(h, axis=1), {"h"}, False, True),
    "halves swapped": (lambda h, g, s, x: halves_swapped(h), {"h"}, False, True),
    "product": (lambda h, g, s, x: h @ W + x, {"h"}, False, True),
    "product with itself": (lambda h, g, s, x: h @ h, {"h"}, False, False),
    "a short leaf": (lambda h, g, s, x: h + s[:, None], {"h", "s"}, False, True),
    "along both": (lambda h, g, s, x: h + jnp.broadcast_to(g.sum(1), (3, 3)), {"h", "g"}, False, True),
    "held constant": (lambda h, g, s, x: h + jax.lax.stop_gradient(jnp.sin(h)), {"h"}, True, False),
    "branched": (lambda h, g, s, x: jax.lax.cond(x[0, 0] > 0, lambda a: a, lambda a: 2 * a, h), {"h"}, False, False),
}


def drawn(seed):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape)) for shape in (SQUARE, OTHER, SHORT)]


X = jnp.asarray(np.random.default_rng(9).uniform(0.5, 1.5, size=SQUARE))


def of(name):
    new_h = STEPS[name][0]
    return carry_step(lambda c, x: ([new_h(*c, x[0]), 2 * c[1], c[2] + 1], None), drawn(0), [X])


@pytest.fixture(scope="module")
def jacobians():
    """Of h by h, g and s, at two carries, without what a rule holds constant."""

    @jax.jit
    def of_all(carries):
        made = {}
        for name, (new_h, *_) in STEPS.items():
            new_h = (lambda h, g, s, x: h + jnp.sin(h)) if name == "held constant" else new_h
            made[name] = [jax.jacfwd(new_h, (0, 1, 2))(*carry, X) for carry in carries]
        return made

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, of_all([drawn(0), drawn(1)]))


@pytest.mark.parametrize("name", STEPS)
def test_what_is_found(x64, name, jacobians):
    _, leaves, by_number, affine = STEPS[name]
    step = of(name)
    groups = {frozenset("hgs"[i] for i in group): alone for group, alone in connected(step)}
    assert groups[frozenset(leaves)] == by_number
    assert all(alone for group, alone in groups.items() if "h" not in group)
    assert is_affine(step) == affine

    places = np.eye(9, dtype=bool).reshape(3, 3, 3, 3)
    for (by_h, by_g, by_s), other in zip(jacobians[name], jacobians[name][::-1], strict=True):
        assert ("g" in leaves or not by_g.any()) and ("s" in leaves or not by_s.any())
        if by_number:
            assert not by_h[~places].any() and not by_g[~places].any()
        if affine:
            np.testing.assert_allclose(by_h, other[0], rtol=1e-12)


def test_derivatives_are_those_of_the_operations(x64, jacobians):
    for name in ("held constant", "relu", "branched", "product"):
        by_h = jax.jit(jax.jacfwd(lambda h, g, s, name=name: of(name)([h, g, s], [X])[0]))(*drawn(0))
        np.testing.assert_allclose(by_h, jacobians[name][0][0], rtol=1e-12)


def test_cut_where_numbers_meet(x64):
    """z(W h) h with the product for a constant: diag(z); what is left stands number by number."""
    step = carry_step(lambda c, x: ([jax.nn.sigmoid(c[0] @ W) * c[0] + c[0][::-1]], None), [jnp.ones(3)], [])
    assert connected(step) == [([0], False)] and connected(step, cut=True) == [([0], True)]
    h = jnp.asarray([0.3, -1.0, 2.0])
    by_h = jax.jacfwd(lambda h: step([h], [], cut=True)[0])(h)
    np.testing.assert_allclose(by_h, np.diag(1 / (1 + np.exp(-h @ W))), rtol=1e-12)


def test_cut_where_they_stand_elsewhere(x64):
    """A transposed leaf keeps numbers apart, but not at their places; one read by all of another leaf meets it."""

    def step(c, x):
        return [c[0].T, c[1] + jax.lax.broadcast_in_dim(c[2], (3,), (0,)), c[2]], None

    found = carry_step(step, [jnp.ones((2, 2)), jnp.ones(3), jnp.ones(1)], [])
    assert connected(found) == [([0], False), ([1, 2], False)]
    assert connected(found, cut=True) == [([0], True), ([1], True), ([2], True)]
    by_h = jax.jacfwd(lambda h: found([h, jnp.ones(3), jnp.ones(1)], [], cut=True)[0])(jnp.ones((2, 2)))
    assert not by_h.any()


def test_the_coarsest_dtype_on_the_way():
    steps = {
        "float32": lambda h, x: h * x,
        "bfloat16": lambda h, x: (h.astype(jnp.bfloat16) * 2).astype(jnp.float32),
        "of x alone": lambda h, x: h * x.astype(jnp.bfloat16).astype(jnp.float32),
    }
    for name, new in steps.items():
        step = carry_step(lambda c, x, new=new: ([new(c[0], x[0])], None), [jnp.ones(3)], [jnp.ones(3)])
        assert step.eps == float(jnp.finfo(jnp.bfloat16 if name == "bfloat16" else jnp.float32).eps)
