"""The stream: a network with memory, whose weights drift, answers to noise."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Stream(NamedTuple):
    xs: jax.Array  # (T, I), normal numbers
    targets: jax.Array  # (T, 1): what the teacher answers, with noise
    answers: jax.Array  # (T, 1): without


def draw(key: jax.Array, steps: int, *, inputs: int, units: int, slowest: float, drift: float, noise: float) -> Stream:
    """A stream of its own for each key.

        s_t = a s_{t-1} + (1 - a) tanh(W_t s_{t-1} + U_t x_t),  target = V_t s_t / c + noise
        W_t = √(1 - δ²) W_{t-1} + δ ε_t, and U, V alike        δ: the drift; ε like W_0, so that no size changes

    The units' time constants 1 / (1 - a) are spread from 1 to ``slowest`` steps, evenly in the logarithm. c makes the
    answers of the whole stream have variance 1.
    """
    k_weights, k_xs, k_noise, k_drift = jax.random.split(key, 4)
    scales = {"W": units**-0.5, "U": 2 * inputs**-0.5, "V": 1.0}
    shapes = {"W": (units, units), "U": (inputs, units), "V": (units, 1)}

    def weights(key: jax.Array) -> dict[str, Any]:
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
        return {name: scales[name] * jax.random.normal(keys[name], shapes[name]) for name in shapes}

    a = 1 - 1 / jnp.geomspace(1.0, slowest, units)
    xs = jax.random.normal(k_xs, (steps, inputs))

    def step(held, of_step):
        (w, s), (x, t) = held, of_step
        fresh = weights(jax.random.fold_in(k_drift, t))
        w = jax.tree.map(lambda old, new: (1 - drift**2) ** 0.5 * old + drift * new, w, fresh)
        s = a * s + (1 - a) * jnp.tanh(s @ w["W"] + x @ w["U"])
        return (w, s), s @ w["V"]

    _, answers = jax.lax.scan(step, (weights(k_weights), jnp.zeros(units)), (xs, jnp.arange(steps)))
    answers = answers / answers.std()
    return Stream(xs, answers + noise * jax.random.normal(k_noise, answers.shape), answers)
