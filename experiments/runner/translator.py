"""Sequence to sequence: an encoder in both directions, a decoder with attention or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxrnn as jr
from experiments.runner.strings import STOP, Strings, lengths_of, read

Form = Literal["none", "luong", "bahdanau", "location"]


class Params(NamedTuple):
    encoder: Any
    bridge: Any  # from the encoder's final states to the decoder's first
    embedding: Any
    decoder: Any
    readout: Any


class Translator(NamedTuple):
    init: Callable[[jax.Array], Params]
    # (params, strings, valid=None, key=None): teacher forcing, cross entropy in nats a symbol; ``valid`` (B,) leaves
    # rows out, a key drops units
    loss: Callable[..., jax.Array]
    cell: Callable[
        [Params, jax.Array], tuple[jr.Cell, Any, Any]
    ]  # tokens -> from tokens to logits, params, first carry
    answer: Callable[[Params, jax.Array, int], jax.Array]  # tokens (S, B) -> greedy answers (steps, B)
    weights: Callable[[Params, Strings], jax.Array]  # where it looks as it is taught, (N, B, S)


def translator(
    form: Form,
    symbols: tuple[int, int],
    embedding_size: int,
    hidden_size: int,
    *,
    dropout: float = 0.0,
    dtype: Any = None,
) -> Translator:
    """A model whose decoder attends by one of the forms, or reads the encoder's final states alone.

    Args:
        form: of attention.
        symbols: how many are read, and how many are said; STOP is none of them.
        embedding_size: E, of both.
        hidden_size: H, of the decoder, and of the encoder in each direction.
        dropout: in training, of the embeddings, of the encoder's outputs and of what the readout reads.
        dtype: the compute dtype.
    """
    (V_in, V_out), E, H = (count + 1 for count in symbols), embedding_size, hidden_size
    M = 2 * H  # of the memory, both directions
    drop = (jr.dropout(dropout),) if dropout else ()
    both = jr.bidirectional(*(jr.gru(E, H, dtype=dtype) for _ in range(2)))
    encoder = jr.stack(jr.embedding(V_in, E), *drop, both, *drop)
    bridge = jr.dense(M, H, activation="tanh")
    embedding = jr.embedding(V_out, E)
    decoder = _decoder(form, E, H, M, dtype)
    plain = jr.gru(E, H, dtype=dtype)
    recurrent: Any = plain if decoder is None else decoder
    readout = jr.readout(recurrent.output_size, V_out, dtype=dtype)

    def init(key):
        keys = jax.random.split(key, 5)
        parts = (encoder, bridge, embedding, recurrent, readout)
        return Params(*(part.init(k) for part, k in zip(parts, keys, strict=True)))

    def bound(params, tokens, key=None):
        """The recurrent cell of one batch, and its first carry."""
        lengths = lengths_of(tokens)
        ends, memory = encoder.apply(params.encoder, tokens, lengths=lengths, key=key)
        ahead, back = ends[1 + len(drop)]
        state = bridge.step(params.bridge, (), jnp.concatenate([ahead, back], axis=-1))[1]
        cell = plain if decoder is None else decoder.bind(params.decoder, memory, lengths=lengths)
        carry = cell.initial_carry(params.decoder, lengths.shape)
        carry = state if decoder is None else carry._replace(cell=state)
        return cell, carry

    def whole(params, tokens, key=None):
        """A Cell from tokens to logits, its params and its first carry."""
        cell, carry = bound(params, tokens, key)
        empty = ((),) * len(drop)
        own = (params.embedding, *empty, params.decoder, *empty, params.readout)
        return jr.chain(embedding, *drop, cell, *drop, readout), own, ((), *empty, carry, *empty, ())

    def loss(params, strings, valid=None, key=None):
        k_encoder, k_decoder = (None, None) if key is None or not drop else jax.random.split(key)
        cell, own, carry = whole(params, strings.tokens, k_encoder)
        due = lengths_of(strings.targets) + 1  # the end has to be said too
        due = due if valid is None else jnp.where(valid, due, 0)
        logits = jr.scan(cell).apply(own, read(strings.targets), carry, lengths=due, key=k_decoder)[1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), strings.targets)
        return jr.masked_mean(losses, lengths=due)

    def answer(params, tokens, steps):
        cell, own, carry = whole(params, tokens)
        first = jnp.full(tokens.shape[1:], STOP)
        return jr.generate(cell, own, carry, first, steps=steps).tokens

    def weights(params, strings):
        cell, carry = bound(params, strings.tokens)
        embedded = embedding.step(params.embedding, (), read(strings.targets))[1]
        return jr.trace_gates(cell, params.decoder, embedded, carry).weights

    return Translator(init, loss, whole, answer, weights)


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
