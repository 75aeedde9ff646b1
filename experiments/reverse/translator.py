"""Sequence to sequence: an encoder in both directions, a decoder with attention or without, greedy decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxrnn as jr
from experiments.reverse import data

Form = Literal["none", "luong", "bahdanau", "location"]


class Params(NamedTuple):
    encoder: Any
    bridge: Any  # from the encoder's final states to the decoder's first
    embedding: Any
    decoder: Any
    readout: Any


class Translator(NamedTuple):
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, data.Strings], jax.Array]  # teacher forcing: cross entropy in nats a symbol
    answer: Callable[[Params, jax.Array, int], jax.Array]  # tokens (S, B) -> greedy answers (steps, B)
    weights: Callable[[Params, data.Strings], jax.Array]  # where it looks as it is taught, (S + 1, B, S)


def translator(form: Form, symbols: int, embedding_size: int, hidden_size: int, dtype: Any = None) -> Translator:
    """A model whose decoder attends by one of the forms, or reads the encoder's final states alone."""
    V, E, H = symbols + 1, embedding_size, hidden_size
    M = 2 * H  # of the memory, both directions
    encoder = jr.stack(jr.embedding(V, E), jr.bidirectional(*(jr.gru(E, H, dtype=dtype) for _ in range(2))))
    bridge = jr.dense(M, H, activation="tanh")
    embedding = jr.embedding(V, E)
    decoder = _decoder(form, E, H, M, dtype)
    plain = jr.gru(E, H, dtype=dtype)
    recurrent: Any = plain if decoder is None else decoder
    readout = jr.readout(recurrent.output_size, V, dtype=dtype)

    def init(key):
        keys = jax.random.split(key, 5)
        parts = (encoder, bridge, embedding, recurrent, readout)
        return Params(*(part.init(k) for part, k in zip(parts, keys, strict=True)))

    def bound(params, tokens):
        """The recurrent cell of one batch, and its first carry."""
        lengths = data.lengths_of(tokens)
        (_, (ahead, back)), memory = encoder.apply(params.encoder, tokens, lengths=lengths)
        state = bridge.step(params.bridge, (), jnp.concatenate([ahead, back], axis=-1))[1]
        cell = plain if decoder is None else decoder.bind(params.decoder, memory, lengths=lengths)
        carry = cell.initial_carry(params.decoder, lengths.shape)
        carry = state if decoder is None else carry._replace(cell=state)
        return cell, carry

    def whole(params, tokens):
        """A Cell from tokens to logits, its params and its first carry."""
        cell, carry = bound(params, tokens)
        return jr.chain(embedding, cell, readout), params[2:], ((), carry, ())

    def loss(params, strings):
        cell, own, carry = whole(params, strings.tokens)
        due = data.lengths_of(strings.targets) + 1  # the end has to be said too
        logits = jr.scan(cell).apply(own, data.read(strings.targets), carry, lengths=due)[1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), strings.targets)
        return jr.masked_mean(losses, lengths=due)

    def answer(params, tokens, steps):
        cell, own, carry = whole(params, tokens)
        first = jnp.full(tokens.shape[1:], data.STOP)
        return jr.generate(cell, own, carry, first, steps=steps).tokens

    def weights(params, strings):
        cell, carry = bound(params, strings.tokens)
        embedded = embedding.step(params.embedding, (), data.read(strings.targets))[1]
        return jr.trace_gates(cell, params.decoder, embedded, carry).weights

    return Translator(init, loss, answer, weights)


def _decoder(form: Form, E: int, H: int, M: int, dtype: Any) -> Any:
    if form == "luong":
        attention = jr.attention.general(H, M, dtype=dtype)
        return jr.decoder(jr.gru(E + H, H, dtype=dtype), attention=attention, dtype=dtype)
    if form == "none":
        return None
    if form == "bahdanau":
        attention = jr.attention.additive(H, M, H, dtype=dtype)
    else:
        attention = jr.attention.location_sensitive(H, M, H, kernel_size=5, dtype=dtype)
    return jr.decoder(jr.gru(E + M, H, dtype=dtype), attention=attention, form="bahdanau")
