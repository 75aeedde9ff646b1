"""The activations that a cell's options name."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._checks import check_choice, nearest

Function = Callable[[jax.Array], jax.Array]
Activation = Function | tuple[Any, ...]  # beside a name: a function, or a name with its numbers

ACTIVATIONS: dict[str, Function] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "leaky_relu": jax.nn.leaky_relu,
    "identity": lambda a: a,
}

# Those that take numbers: ("hard_sigmoid", 0.2, 0.5) in an option, which a spec can hold.
WITH_NUMBERS: dict[str, Callable[..., jax.Array]] = {
    "affine": lambda a, alpha, beta: alpha * a + beta,
    "elu": lambda a, alpha: jax.nn.elu(a, alpha),
    "hard_sigmoid": lambda a, alpha, beta: jnp.clip(alpha * a + beta, 0, 1),
    "leaky_relu": lambda a, alpha: jnp.where(a >= 0, a, alpha * a),
    "scaled_tanh": lambda a, alpha, beta: alpha * jnp.tanh(beta * a),
    "thresholded_relu": lambda a, alpha: jnp.where(a >= alpha, a, 0),
}


def activation_of(who: str, option: str, value: str | Activation) -> Function:
    """The activation that an option names, or is."""
    if isinstance(value, tuple | list):
        return _with_numbers(who, option, tuple(value))
    check_choice(who, option, value, ACTIVATIONS, or_function=True)
    return value if callable(value) else ACTIVATIONS[value]


def _with_numbers(who: str, option: str, value: tuple[Any, ...]) -> Function:
    name, *given = value or (None,)
    if not isinstance(name, str) or name not in WITH_NUMBERS:
        known = ", ".join(map(repr, WITH_NUMBERS))
        raise ValueError(
            f"{who}: {option} with numbers must begin with one of {known}, got {value!r}{nearest(name, WITH_NUMBERS)}"
        )
    compute = WITH_NUMBERS[name]
    wanted = list(inspect.signature(compute).parameters)[1:]
    real = all(isinstance(n, numbers.Real) and not isinstance(n, bool) and math.isfinite(n) for n in given)
    if len(given) != len(wanted) or not real:
        raise ValueError(
            f"{who}: {option} must be ({name!r}, {', '.join(wanted)}) with finite numbers, got {value!r}; "
            f"{name!r} alone is {'the usual one' if name in ACTIVATIONS else 'not known'}."
        )
    plain = [float(n) for n in given]  # which take the dtype of a
    return lambda a: compute(a, *plain)
