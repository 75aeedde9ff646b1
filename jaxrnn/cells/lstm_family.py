"""What the LSTMs share: their carry, their gates, how their forget gate starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.cells._shared import carry_dtype, check_bias, check_T_max, chrono_bias, initial_state


class LSTMCarry(NamedTuple):
    h: jax.Array  # (*B, H), the output; (*B, R) where it is projected
    c: jax.Array  # (*B, H), the memory


class LSTMGates(NamedTuple):
    i: jax.Array  # (*B, H) each: input gate
    f: jax.Array  # forget gate
    g: jax.Array  # candidate
    o: jax.Array  # output gate
    c: jax.Array  # the new memory
    h: jax.Array  # the new output, (*B, R) where it is projected


def lstm_initial_carry(
    params: Any, batch_shape: tuple[int, ...], hidden_size: int, dtype: Any, output_size: int | None = None
) -> LSTMCarry:
    """Zeros, or what was learned, for every sequence of the batch."""
    h, c = params.initial or (None, None)
    dtype = carry_dtype(params.W_hh, dtype)
    return LSTMCarry(
        h=initial_state(h, batch_shape, output_size or hidden_size, dtype),
        c=initial_state(c, batch_shape, hidden_size, dtype),
    )


def learned_lstm_carry(hidden_size: int, dtype: Any, output_size: int | None = None) -> LSTMCarry:
    return LSTMCarry(h=jnp.zeros((output_size or hidden_size,), dtype), c=jnp.zeros((hidden_size,), dtype))


def forget_bias_of(
    who: str, hidden_size: int, forget_bias: float | None, T_max: float | None, bias: bool, order: str = "ifgo"
) -> Callable[[jax.Array, jax.Array], jax.Array | None]:
    """``(key, b) -> b``, its gates in the given order, with the forget gate's bias added; None without biases."""
    check_bias(who, bias)
    check_T_max(who, T_max)
    given = {"forget_bias": forget_bias, "T_max": T_max}
    given = {name: value for name, value in given.items() if value is not None}
    if not bias and given:
        (name, value), *_ = given.items()
        raise ValueError(f"{who}: {name}={value!r} sets the forget gate's bias, but bias=False; give one of them.")
    if len(given) == 2:
        raise ValueError(
            f"{who}: forget_bias={forget_bias!r} and T_max={T_max!r} both set the forget gate's bias; give one of them."
        )

    def block(gate):
        return slice(order.index(gate) * hidden_size, (order.index(gate) + 1) * hidden_size)

    def add(key, b):
        if not bias:
            return None
        if T_max is None:
            return b.at[block("f")].add(1.0 if forget_bias is None else forget_bias)
        chrono = chrono_bias(T_max, key, hidden_size, b.dtype)
        b = b.at[block("f")].add(chrono)
        return b.at[block("i")].add(-chrono) if "i" in order else b

    return add
