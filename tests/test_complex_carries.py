"""Carries of every kind of leaf under every wrapper: complex numbers as their real form, other leaves as they are."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import RUNS, WRAPPERS, B, draw

T, I, H = 4, 2, 3
MAX = 0.7
REFUSED = ("normalized", "recurrent_dropout")  # which need one array of floats
OTHERS = ("weight_drop", "weight_noise", "weight_norm", "spectral_norm", "masked_weights", "noisy_state")
# of the weights, or with nothing to do in evaluation
HANDLED = {kind: wrap for kind, (wrap, _) in WRAPPERS.items() if kind not in (*REFUSED, *OTHERS)} | {
    "zoneout": lambda cell: jr.zoneout(cell, rate=0.2),  # without a c
    "clip_state": lambda cell: jr.clip_state(cell, max_value=MAX),
    "cotangent_clip": lambda cell: jr.cotangent_clip(cell, max_norm=MAX),
    "cotangent_clip by value": lambda cell: jr.cotangent_clip(cell, max_value=MAX / 2),
}


# ---- a linear recurrence, with complex numbers and without ---------------------------------------


def linear_recurrence(change=lambda h: h):
    """A diagonal linear recurrence as a user writes it; ``change`` is done to its new state."""

    def step(p, h, x):
        h = change(jnp.exp(-jnp.exp(p["nu"]) + 1j * p["theta"]) * h + x @ (p["B_re"] + 1j * p["B_im"]))
        return h, (h @ (p["C_re"] - 1j * p["C_im"])).real

    return jr.Cell(init, lambda p, batch_shape=(): jnp.zeros((*batch_shape, H), complex), step)


def in_real_numbers(change=lambda h: h):
    """The same with (real, imaginary) as a last axis."""

    def step(p, h, x):
        size, (cos, sin) = jnp.exp(-jnp.exp(p["nu"])), (jnp.cos(p["theta"]), jnp.sin(p["theta"]))
        re, im = h[..., 0], h[..., 1]
        turned = jnp.stack([size * (cos * re - sin * im), size * (sin * re + cos * im)], -1)
        h = change(turned + jnp.stack([x @ p["B_re"], x @ p["B_im"]], -1))
        return h, h[..., 0] @ p["C_re"] + h[..., 1] @ p["C_im"]

    return jr.Cell(init, lambda p, batch_shape=(): jnp.zeros((*batch_shape, H, 2)), step)


def init(key):
    shapes = {"nu": (H,), "theta": (H,), "B_re": (I, H), "B_im": (I, H), "C_re": (H, 2), "C_im": (H, 2)}
    return {name: draw(shape, place) for place, (name, shape) in enumerate(shapes.items())}


def modulus_within(limit):
    """By hand, of pairs."""

    def clip(h):
        size = jnp.sqrt((h**2).sum(-1, keepdims=True) + 1e-300)
        return jnp.where(size > limit, h * limit / size, h)

    return clip


@jax.custom_vjp
def with_gradients_within(h):
    return h


with_gradients_within.defvjp(lambda h: (h, None), lambda _, d: (modulus_within(MAX / 2)(d),))


def real_form(kind):
    """What a wrapper of the complex recurrence has to compute."""
    if kind == "clip_state":
        return in_real_numbers(modulus_within(MAX))
    if kind == "cotangent_clip by value":
        inner = in_real_numbers()
        return inner._replace(step=lambda p, h, x: inner.step(p, with_gradients_within(h), x))
    return HANDLED[kind](in_real_numbers()) if kind else in_real_numbers()


def gradients(cell, **options):
    """The loss and the outputs, and the gradients by parameters and inputs, of a run that is masked."""
    xs, weights = 2 * draw((T, B, I), 20), draw((T, B, 2), 21)
    params, lengths = init(None), np.array([T, 2, 1])

    def loss(params, xs):
        _, ys = jr.scan(cell, **options).apply(params, xs, lengths=lengths)
        return (ys * weights).sum(), ys

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, xs)


@functools.cache
def unwrapped():
    """Those of the recurrence itself, in real numbers; float64 is on."""
    return gradients(in_real_numbers(), plan="plain")


def assert_close(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)  # float64, four steps


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.full if kind == "zoneout" else ()) for kind in HANDLED]
)
def test_complex_numbers_are_their_real_form(kind, x64):
    got = gradients(HANDLED[kind](linear_recurrence()), plan="plain")
    assert_close(got, gradients(real_form(kind), plan="plain"))
    by_theta, left_alone = got[1][0]["theta"], unwrapped()[1][0]["theta"]
    assert abs(by_theta - left_alone).max() > 1e-3, "the wrapper had nothing to do"


@pytest.mark.parametrize("run", ["auto", pytest.param("everything", marks=pytest.mark.full)])
def test_plans_of_complex_carries(run, x64):
    assert_close(gradients(linear_recurrence(), **RUNS[run]), unwrapped())


def test_a_clipped_complex_zero_has_a_gradient(x64):
    cell = jr.clip_state(linear_recurrence(), max_value=MAX)
    by_h = jax.jit(jax.grad(lambda h: cell.step(init(None), h, jnp.zeros(I))[1].sum()))(jnp.zeros(H, complex))
    assert np.isfinite(by_h).all() and np.asarray(by_h).all()


@pytest.mark.parametrize("kind", REFUSED)
def test_complex_states_are_refused_by_name(kind):
    wrap, _ = WRAPPERS[kind]
    layer = jr.scan(wrap(linear_recurrence()))
    with pytest.raises(TypeError, match=f"{kind}: the state of .* is complex64, and must be floats; hold its real"):
        layer.apply(layer.init(jax.random.key(0)), jnp.ones((T, I)), key=jax.random.key(0))


def test_what_differentiates_by_the_state_takes_pairs_of_real_numbers(x64):
    """N counts both: what does not depend on the order of the 2 H numbers is that of the cell in real numbers."""
    params, xs = init(None), draw((60, I), 20)
    loss = lambda carry, ys: (ys**2).sum()
    h = jnp.asarray(draw((H, 2), 21))
    starts = {linear_recurrence: h[:, 0] + 1j * h[:, 1], in_real_numbers: h}

    def measured(cell, h):
        values = jr.gradients.log_singular_values(cell, params, xs, lag=3)
        around = jr.gradients.linear_analysis(cell, params, h, xs[0])
        return values, around.eigenvalues, jr.gradients.jacobian_penalty(cell, params, xs, loss)

    got, want = (jax.jit(measured, static_argnums=0)(make(), h) for make, h in starts.items())
    assert got[0].shape == (20, 2 * H)
    for a, b in zip(got, want, strict=True):
        a, b = (np.sort_complex(np.round(np.atleast_1d(c), 9)) for c in (a, b))  # decompositions in float64
        np.testing.assert_allclose(a, b, atol=2e-9)
    J = jr.gradients.step_jacobian(linear_recurrence(), params, starts[linear_recurrence], xs[0])
    turn = np.diag(np.exp(-np.exp(params["nu"]) + 1j * np.asarray(params["theta"])))
    np.testing.assert_allclose(J, np.block([[turn.real, -turn.imag], [turn.imag, turn.real]]), rtol=1e-12)


def test_exponents_of_a_complex_recurrence_are_those_of_its_eigenvalues(x64):
    params = init(None) | {"nu": jnp.log(jnp.array([0.9, 0.2, 1.5]))}
    found = jr.gradients.lyapunov_spectrum(linear_recurrence(), params, draw((100, I), 20), burn_in=60)
    np.testing.assert_allclose(found.exponents, [-0.2, -0.2, -0.9, -0.9, -1.5, -1.5], atol=1e-6)


def test_fixed_points_of_a_complex_recurrence():
    """h = λ h + B x, solved."""
    params, x = init(None), draw((I,), 20)
    cell, p = linear_recurrence(), {name: np.asarray(a, float) for name, a in params.items()}
    starts = cell.initial_carry(params, (3,)) + jnp.array([0.1, 1j, -0.5])[:, None]
    found = jr.gradients.find_fixed_points(cell, params, starts, x, method="newton")
    rest = np.asarray(x) @ (p["B_re"] + 1j * p["B_im"]) / (1 - np.exp(-np.exp(p["nu"]) + 1j * p["theta"]))
    assert found.carry.dtype == starts.dtype and found.hits.tolist() == [3]
    np.testing.assert_allclose(found.carry[0], rest, rtol=1e-4)  # float32, and a q of 1e-14


def test_gradient_flow_takes_the_modulus(x64):
    """Norms over units are those of pairs of real numbers; those of a unit are over its pair."""

    def flow(cell):
        run = lambda p, xs: jr.gradients.gradient_flow(cell, p, xs, lambda carry, ys: (ys**2).sum(), lengths=lengths)
        return jax.jit(run)(init(None), xs)

    xs, lengths = draw((T, B, I), 20), np.array([T, 2, 1])
    got, want = flow(linear_recurrence()), flow(in_real_numbers())
    assert_close((got.loss, got.params, got.states[:3]), (want.loss, want.params, want.states[:3]))
    np.testing.assert_allclose(got.states.per_unit, np.sqrt((want.states.per_unit**2).sum(-1)), rtol=1e-10)


# ---- every kind of leaf --------------------------------------------------------------------------


class Mixed(NamedTuple):
    """Whatever a user may carry, in a tree."""

    h: Any  # a dict of floats and complex numbers
    count: jax.Array
    seen: jax.Array
    key: jax.Array


def mixed():
    def initial_carry(params, batch_shape=()):
        h = {"real": jnp.full((*batch_shape, 2), 2.0), "complex": jnp.full((*batch_shape, 2), 3 - 4j)}
        keys = jnp.broadcast_to(jax.random.key(1), batch_shape)
        return Mixed(h, jnp.full(batch_shape, 7), jnp.zeros(batch_shape, bool), keys)

    def step(params, carry, x):
        h = {"real": 0.5 * carry.h["real"] + params * x, "complex": 1j * carry.h["complex"] + x}
        key = jax.random.wrap_key_data(jax.random.key_data(carry.key) + 1)
        carry = Mixed(h, carry.count + 1, ~carry.seen, key)
        return carry, h["real"] + h["complex"].real + h["complex"].imag

    return jr.Cell(lambda key: jnp.asarray(1.5), initial_carry, step)


def within(a):
    return a * np.minimum(1, MAX / np.maximum(abs(a), 1e-30))


# What a wrapper makes of an old and a new number of the state, real or complex.
CHANGES = {
    "leaky": lambda old, new: 0.7 * old + 0.3 * new,
    "zoneout": lambda old, new: 0.2 * old + 0.8 * new,
    "clip_state": lambda old, new: within(new),
    "cotangent_clip": lambda old, new: new,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_leaf_is_changed_or_left_as_documented(kind):
    cell, x = mixed(), jnp.array([0.1, -0.2])
    params = cell.init(None)
    old = cell.initial_carry(params)
    new, (got, y) = cell.step(params, old, x)[0], jax.jit(HANDLED[kind](cell).step)(params, old, x)
    for name in ("real", "complex"):
        want = CHANGES[kind](np.asarray(old.h[name]), np.asarray(new.h[name]))
        np.testing.assert_allclose(got.h[name], want, rtol=1e-6)  # float32
        assert got.h[name].dtype == new.h[name].dtype
    np.testing.assert_allclose(y, got.h["real"] + got.h["complex"].real + got.h["complex"].imag, rtol=1e-6)
    assert (got.count, got.seen) == (8, True)
    assert (jax.random.key_data(got.key) == jax.random.key_data(new.key)).all()


def test_zoneout_keeps_complex_units_at_random():
    cell, x = mixed(), jnp.ones((B, 2))
    wrapped, params = jr.zoneout(cell, rate=0.5), cell.init(None)
    old = cell.initial_carry(params, (B,))
    (kept, _), new = wrapped.noise(params, jax.random.key(2), jnp.arange(1), x), cell.step(params, old, x)[0]
    kept = [a[0] for a in kept]
    got, _ = jax.jit(wrapped.step)(params, old, x, (kept, None))
    held = kept[[jnp.iscomplexobj(a) for a in jax.tree.leaves(old)].index(True)]
    assert held.any() and not held.all()
    np.testing.assert_array_equal(got.h["complex"], np.where(held, old.h["complex"], new.h["complex"]))
    np.testing.assert_array_equal(got.count, new.count)


def test_the_norm_counts_complex_numbers_with_the_real_ones():
    """√(Σ real² + Σ |complex|²) of the whole carry is held; a gradient below the limit is left alone."""
    params, x, old = jnp.asarray(1.5), jnp.zeros(2), mixed().initial_carry(None)

    def gradient(cell):
        def last(h):
            return cell.step(params, old._replace(h=h), x)[1].sum()

        return jax.tree.leaves(jax.jit(jax.grad(last))(old.h))

    free = np.concatenate(gradient(mixed()))
    size = np.sqrt((abs(free) ** 2).sum())
    for limit, factor in ((MAX, MAX / size), (2 * size, 1)):
        got = np.concatenate(gradient(jr.cotangent_clip(mixed(), max_norm=float(limit))))
        np.testing.assert_allclose(got, free * factor, rtol=1e-6)  # float32
