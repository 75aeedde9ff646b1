"""From letters to phonemes: a decoder that attends to the letters, or frames of each letter, aligned by CTC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn as jr
from experiments.runner.strings import STOP, Strings, lengths_of
from experiments.runner.translator import translator

Name = Literal["attention", "ctc"]
FURTHER = 8  # phonemes that the decoder may say beyond two for each letter


class Speaker(NamedTuple):
    """A model of the letters of words, (S, B), 0 behind them, and of their phonemes, 0 from the end on."""

    init: Callable[[jax.Array], Any]
    # (params, strings, valid (B,), key): nats a phoneme, rows that are not valid left out; a key drops units
    loss: Callable[[Any, Strings, jax.Array, jax.Array | None], jax.Array]
    greedy: Callable[[Any, jax.Array, int], jax.Array]  # (params, letters, steps) -> (steps, B)
    search: Callable[[Any, jax.Array, int], jax.Array]  # (params, letters, width of the beam) -> (n, B)
    weights: Callable[[Any, Strings], jax.Array] | None = None  # where a decoder looks, (N, B, S)


def attention(
    symbols: tuple[int, int], embedding_size: int, hidden_size: int, *, dropout: float, dtype: Any
) -> Speaker:
    """Encoder and decoder, GRUs of one layer, Luong's attention; the likeliest sequence that a beam finds."""
    model = translator("luong", symbols, embedding_size, hidden_size, dropout=dropout, dtype=dtype)

    def search(params, tokens, width):
        cell, own, carry = model.cell(params, tokens)
        first = jnp.full(tokens.shape[1:], STOP)
        steps = 2 * len(tokens) + FURTHER
        return jr.beam_search(cell, own, carry, first, width=width, steps=steps, stop=STOP).tokens[..., 0]

    return Speaker(model.init, model.loss, model.answer, search, model.weights)


def ctc(
    symbols: tuple[int, int],
    embedding_size: int,
    hidden_size: int,
    *,
    layers: int,
    frames: int,
    dropout: float,
    dtype: Any,
) -> Speaker:
    """LSTMs in both directions over the letters; each letter has ``frames`` distributions over phonemes and the blank.

        y_{F s + f} = [h_s forward, h_s backward] W_f + b_f        f = 0 … F - 1

    So a word of S letters has F S frames, as if each letter were read F times; the recurrence runs over the letters.
    A pronunciation that has no room in them has no probability: it is left out of the loss.
    """
    (V_in, V_out), E, H, F = (count + 1 for count in symbols), embedding_size, hidden_size, frames
    drop = (jr.dropout(dropout),) if dropout else ()
    sizes = (E, *[2 * H] * (layers - 1))
    both = [jr.bidirectional(*(jr.lstm(I, H, dtype=dtype) for _ in range(2))) for I in sizes]
    deep = [member for layer in both for member in (layer, *drop)]
    network = jr.stack(jr.embedding(V_in, E), *drop, *deep, jr.readout(2 * H, F * V_out, dtype=dtype))

    def logits_of(params, tokens, key=None):
        """(F S, B, V), and how many of them are a word's own, (B,)."""
        lengths = lengths_of(tokens)
        S, B = tokens.shape
        ys = network.apply(params, tokens, lengths=lengths, key=key if drop else None)[1].reshape(S, B, F, V_out)
        return jnp.moveaxis(ys, 2, 1).reshape(F * S, B, V_out), F * lengths

    def loss(params, strings, valid, key=None):
        logits, lengths = logits_of(params, strings.tokens, key)
        labels = lengths_of(strings.targets)
        # The same phoneme twice needs a blank in between.
        repeats = ((strings.targets[1:] == strings.targets[:-1]) & (strings.targets[1:] != STOP)).sum(0)
        fits = valid & (labels + repeats <= lengths)
        losses = jr.decoding.ctc_loss(logits, strings.targets, lengths=lengths, label_lengths=labels, blank=STOP)
        return jnp.where(fits, losses, 0).sum() / jnp.maximum(jnp.where(fits, labels, 0).sum(), 1)

    def greedy(params, tokens, steps):
        logits, lengths = logits_of(params, tokens)
        said = jr.decoding.ctc_decode(logits, lengths, blank=STOP).tokens[:steps]
        return jnp.pad(said, ((0, steps - len(said)), (0, 0)), constant_values=STOP)

    def search(params, tokens, width):
        logits, lengths = logits_of(params, tokens)
        return jr.decoding.ctc_decode(logits, lengths, width=width, blank=STOP).tokens

    return Speaker(network.init, loss, greedy, search)
