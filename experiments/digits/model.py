"""A sequence classifier: a recurrence, and a readout of its final state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn as jr

PyTree = Any


class Classifier(NamedTuple):
    init: Callable[[jax.Array], PyTree]
    logits: Callable[[PyTree, jax.Array], jax.Array]  # (params, xs (T, *B, I)) -> (*B, classes)


def bidirectional_lstm(input_size: int, hidden_size: int) -> jr.Layer:
    return jr.bidirectional(jr.lstm(input_size, hidden_size), jr.lstm(input_size, hidden_size))


Name = Literal["elman", "gru", "lstm", "peephole_lstm", "bidirectional_lstm"]

# (input_size, hidden_size) -> Cell or Layer
RECURRENCES: dict[Name, Callable[[int, int], jr.Cell | jr.Layer]] = {
    "elman": jr.elman,
    "gru": jr.gru,
    "lstm": jr.lstm,
    "peephole_lstm": jr.peephole_lstm,
    "bidirectional_lstm": bidirectional_lstm,
}


def classifier(recurrence: jr.Cell | jr.Layer, classes: int) -> Classifier:
    """Read a sequence, then classify its final state.

        logits = W_hy h_T + b_y

    The readout reads the final state alone, once, and not the outputs of all T steps.
    """
    layer = jr.scan(recurrence) if isinstance(recurrence, jr.Cell) else recurrence
    assert layer.output_size is not None  # all of RECURRENCES say it
    readout = jr.readout(layer.output_size, classes)

    def init(key):
        k_layer, k_readout = jax.random.split(key)
        return layer.init(k_layer), readout.init(k_readout)

    def logits(params, xs):
        layer_params, readout_params = params
        carry, _ = layer.apply(layer_params, xs)
        return readout.step(readout_params, (), final_state(carry))[1]

    return Classifier(init, logits)


def final_state(carry: Any) -> jax.Array:
    """(*B, H): what a run knows once it has read the whole sequence.

    In both directions that is (*B, 2H), the forward state at step T - 1 and the backward state at step 0: the
    outputs at the last step hold a backward state that has read one pixel only.
    """
    if isinstance(carry, jr.BiCarry):
        return jnp.concatenate([final_state(carry.forward), final_state(carry.backward)], axis=-1)
    return carry.h if isinstance(carry, jr.LSTMCarry) else carry
