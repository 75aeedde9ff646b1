"""What the options of the factories stand for: activations, initialisers, biases; and their checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from jaxrnn._checks import check_choice
from jaxrnn._dtypes import accumulator
from jaxrnn.cells.activations import Activation, activation_of
from jaxrnn.cells.fused import GateOrder

Initializer = Callable[..., jax.Array]

INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": initializers.glorot_uniform(),
    "glorot_normal": initializers.glorot_normal(),
    "lecun_normal": initializers.lecun_normal(),
    "lecun_uniform": initializers.lecun_uniform(),
    "he_normal": initializers.he_normal(),
    "small_normal": initializers.variance_scaling(0.4, "fan_in", "normal"),  # Nguyen & Salazar 2019
    "normal": initializers.normal(0.01),
    "orthogonal": initializers.orthogonal(),
    "zeros": initializers.zeros,
    "identity": lambda key, shape, dtype: jnp.eye(shape[0], shape[1], dtype=dtype),
}

INIT_OPTIONS = ("input_init", "recurrent_init", "bias_init")


def initializer(who: str, option: str, value: str | Initializer, hidden_size: int) -> Initializer:
    """The initialiser ``init(key, shape, dtype)`` that an option names, or is.

    ``"uniform"`` is PyTorch's: U(-1/sqrt(H), 1/sqrt(H)) for every parameter of a recurrent cell.
    """
    check_choice(who, option, value, (*INITIALIZERS, "uniform"), or_function=True)
    if callable(value):
        return value
    bound = hidden_size**-0.5
    known = INITIALIZERS | {"uniform": lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)}
    # Drawn in at least float32 (an orthogonal matrix needs it), then rounded.
    return lambda key, shape, dtype: known[value](key, shape, accumulator(dtype)).astype(dtype)


def cell_options(
    who: str,
    hidden_size: int,
    activations: tuple[str | Activation, ...],
    initializers: tuple[str | Initializer, ...],
) -> tuple[Any, ...]:
    """What the options that recurrent cells share stand for, checked: ``(act, σ, init_x, init_h, init_b)``.

    Args:
        who: the kind of cell, for error messages.
        hidden_size: H.
        activations: ``activation`` and ``gate_activation``; the first alone in cells without gates, which get no σ.
        initializers: ``input_init``, ``recurrent_init`` and ``bias_init``.
    """
    return (
        *(activation_of(who, name, a) for name, a in zip(("activation", "gate_activation"), activations, strict=False)),
        *(initializer(who, name, init, hidden_size) for name, init in zip(INIT_OPTIONS, initializers, strict=True)),
    )


def check_gate_bias(who: str, gate: str, bias: bool, **given: float | None) -> None:
    """At most one option (``forget_bias``, ``T_max``) says how a gate's bias starts, none where there are no biases."""
    T_max = given.get("T_max")
    if T_max is not None and not T_max > 2:
        raise ValueError(
            f"{who}: T_max must be above 2 (time constants are drawn from 1 to T_max - 1 steps), got {T_max!r}."
        )
    settings = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if settings and not bias:
        raise ValueError(f"{who}: {settings[0]} sets the {gate} gate's bias, but bias=False; give one of them.")
    if len(settings) > 1:
        raise ValueError(f"{who}: {' and '.join(settings)} both set the {gate} gate's bias; give one of them.")


def per_gate(init: Initializer, key: jax.Array, shape: tuple[int, ...], order: GateOrder, dtype: Any) -> jax.Array:
    """(…, gates * H): one draw of ``init`` for each gate's block, so that each block is orthogonal, say."""
    keys = jax.random.split(key, len(order))
    return jnp.concatenate([init(k, shape, dtype) for k in keys], axis=-1)


def check_heads(who: str, heads: int, **sizes: int) -> None:
    """Heads share out the units, those that a block-diagonal recurrence reads and those that it makes."""
    for name, size in sizes.items():
        if size % heads:
            raise ValueError(
                f"{who}: heads must divide {name}={size}, got {heads}; 1 is one head of all units, with full matrices."
            )


def per_head(
    init: Initializer, key: jax.Array, shape: tuple[int, int], order: GateOrder, heads: int, dtype: Any
) -> jax.Array:
    """``per_gate`` of recurrent weights (R, gates * H), or a head at a time: (heads, R / heads, gates * H / heads)."""
    if heads == 1:
        return per_gate(init, key, shape, order, dtype)
    (R, H), keys = shape, jax.random.split(key, heads)
    return jnp.stack([per_gate(init, k, (R // heads, H // heads), order, dtype) for k in keys])


def chrono_bias(T_max: float, key: jax.Array, size: int, dtype: Any) -> jax.Array:
    """log U(1, T_max - 1): the forget bias under which time constants spread up to T_max.

    Tallec & Ollivier, "Can recurrent neural networks warp time?", ICLR 2018.
    """
    return jnp.log(jax.random.uniform(key, (size,), dtype, 1.0, T_max - 1.0))
