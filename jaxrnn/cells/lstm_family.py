"""What the LSTMs share: their gate order, carry and gates, how their forget gate starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.cells._options import check_gate_bias, chrono_bias
from jaxrnn.cells._products import carry_dtype, initial_state
from jaxrnn.cells.fused import GateOrder, block

GATES = ("i", "f", "g", "o")  # the blocks of W_xh, W_hh and b of those with four


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
    who: str, order: GateOrder, hidden_size: int, bias: bool, forget_bias: float | None, T_max: float | None = None
) -> Callable[[jax.Array, jax.Array], jax.Array | None]:
    """``(key, b) -> b``, its gates in the given order, with the forget gate's bias added; None without biases."""
    check_gate_bias(who, "forget", bias, forget_bias=forget_bias, T_max=T_max)

    def add(key, b):
        if not bias:
            return None
        f = block(order, "f", hidden_size)
        if T_max is None:
            return b.at[f].add(1.0 if forget_bias is None else forget_bias)
        chrono = chrono_bias(T_max, key, hidden_size, b.dtype)
        b = b.at[f].add(chrono)
        return b.at[block(order, "i", hidden_size)].add(-chrono) if "i" in order else b

    return add
