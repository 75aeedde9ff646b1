"""What the experiments share: recurrences by name, and a readout of their final state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn as jr
from experiments.runner.config import Train

PyTree = Any
Name = Literal["elman", "irnn", "gru", "lstm", "peephole_lstm", "chrono_lstm"]

# Le et al. 2015: rectified units that at first hold their state; "normal" (sd 0.01) keeps what enters small.
IRNN: dict[str, Any] = {"activation": "relu", "recurrent_init": "identity", "input_init": "normal"}

# (input_size, hidden_size, T, compute dtype) -> Cell, where T is how many steps back the task asks.
RECURRENCES: dict[Name, Callable[[int, int, int, Any], jr.Cell]] = {
    "elman": lambda I, H, T, dtype: jr.elman(I, H, dtype=dtype),
    "irnn": lambda I, H, T, dtype: jr.elman(I, H, dtype=dtype, **IRNN),
    "gru": lambda I, H, T, dtype: jr.gru(I, H, dtype=dtype),
    "lstm": lambda I, H, T, dtype: jr.lstm(I, H, dtype=dtype),
    "peephole_lstm": lambda I, H, T, dtype: jr.peephole_lstm(I, H, dtype=dtype),
    "chrono_lstm": lambda I, H, T, dtype: jr.lstm(I, H, dtype=dtype, T_max=T),  # Tallec & Ollivier 2018
}


def compute_dtype(settings: Train) -> Any:
    """What ``train.precision`` says, as the cells want it: None is the parameters' own, float32."""
    return None if settings.precision == "float32" else jnp.bfloat16


class Reader(NamedTuple):
    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., jax.Array]  # (params, xs (T, *B, I), lengths=None) -> (*B, O)


def reader(recurrence: jr.Cell | jr.Layer, output_size: int) -> Reader:
    """Read a sequence, then say one thing about all of it.

        y = W_hy h_T + b_y

    The readout reads the final state alone, once, and not the outputs of all T steps.
    """
    layer = jr.scan(recurrence) if isinstance(recurrence, jr.Cell) else recurrence
    assert layer.output_size is not None  # all recurrences of the experiments say it
    readout = jr.readout(layer.output_size, output_size)

    def init(key):
        k_layer, k_readout = jax.random.split(key)
        return layer.init(k_layer), readout.init(k_readout)

    def apply(params, xs, lengths=None):
        layer_params, readout_params = params
        carry, _ = layer.apply(layer_params, xs, lengths=lengths)
        return readout.step(readout_params, (), final_state(carry))[1]

    return Reader(init, apply)


def final_state(carry: Any) -> jax.Array:
    """(*B, H): what a run knows once it has read the whole sequence.

    In both directions that is (*B, 2H), the forward state at step T - 1 and the backward state at step 0: the
    outputs at the last step hold a backward state that has read one step only.
    """
    if isinstance(carry, jr.BiCarry):
        return jnp.concatenate([final_state(carry.forward), final_state(carry.backward)], axis=-1)
    return carry.h if isinstance(carry, jr.LSTMCarry) else carry
