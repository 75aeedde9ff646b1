"""The activations that a cell's options name."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn._checks import check_choice

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
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


def activation_of(who: str, option: str, value: str | Activation) -> Activation:
    """The activation that an option names, or is."""
    check_choice(who, option, value, ACTIVATIONS, or_function=True)
    return value if callable(value) else ACTIVATIONS[value]
