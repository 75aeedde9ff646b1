"""Closed loops of a decoder bound to padded memories, against every sequence of 3 symbols and 3 steps, in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import randomised
from tests.language import log_softmax
from tests.test_decoder import BAHDANAU, LENGTHS, LUONG, MEMORY, B, H, I, M, S, loops

V, STEPS, STOP = 3, 3, 1
FIRST = np.array([0, 2])
EVERY = np.array(list(itertools.product(range(V), repeat=STEPS)))  # (27, 3)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # float32, of sums of logs
PADDED = jnp.where((np.arange(S)[:, None] < LENGTHS)[..., None], MEMORY, jnp.nan)


@functools.cache
def model(decoder):
    """``(bind, params)``; bind(params) is the cell with its memory, as a user writes it in a loss."""
    size = H if decoder is LUONG else H + M
    ends = jr.embedding(V, I), jr.readout(size, V)
    params = [randomised(m.init(jax.random.key(0)), n + 2, 1.5) for n, m in enumerate((ends[0], decoder, ends[1]))]

    def bind(params, memory):
        return jr.chain(ends[0], decoder.bind(params[1], memory, lengths=LENGTHS), ends[1])

    return bind, tuple(params)


@functools.cache
def by_hand(decoder):
    """(B, 27, 3): of each token of each sequence, the ones before it being read."""
    _, (table, of_decoder, out) = model(decoder)
    table, of_decoder, out = jax.tree.map(np.asarray, (table.table, of_decoder, out))
    found = np.zeros((B, len(EVERY), STEPS))
    for b, (row, tokens) in itertools.product(range(B), enumerate(EVERY)):
        xs = table[[FIRST[b], *tokens[:-1]]]
        ys, *_ = loops(decoder, of_decoder, np.asarray(MEMORY)[:, b], xs, LENGTHS[b])
        logits = np.asarray(ys) @ out.W_hy + out.b_y
        found[b, row] = log_softmax(logits)[range(STEPS), tokens]
    return found


def run(decoder, loop, **options):
    bind, params = model(decoder)
    write = lambda params, memory: loop(bind(params, memory), params, None, jnp.asarray(FIRST), steps=STEPS, **options)
    return write, params


DECODERS = pytest.mark.parametrize("decoder", [LUONG, BAHDANAU], ids=["luong", "bahdanau"])


@DECODERS
def test_log_likelihood_of_every_sequence(decoder, traced):
    bind, params = model(decoder)
    tokens = jnp.broadcast_to(jnp.asarray(EVERY.T)[:, None], (STEPS, B, len(EVERY)))
    first = jnp.broadcast_to(FIRST[:, None], (B, len(EVERY)))
    score = lambda params, memory: jr.log_likelihood(bind(params, memory), params, tokens, first=first)
    np.testing.assert_allclose(traced(score)(params, PADDED), by_hand(decoder).sum(-1), **CLOSE)


@DECODERS
def test_greedy_takes_the_likeliest_at_each_step(decoder, traced):
    write, params = run(decoder, jr.generate)
    made = traced(write)(params, PADDED)
    for b in range(B):
        rows = np.arange(len(EVERY))  # those that begin as what is written
        for n in range(STEPS):
            best = rows[by_hand(decoder)[b, rows, n].argmax()]
            rows = rows[EVERY[rows, n] == EVERY[best, n]]
            assert made.tokens[n, b] == EVERY[best, n]
            np.testing.assert_allclose(made.log_probs[n, b], by_hand(decoder)[b, best, n], **CLOSE)
    assert made.tokens[:, 0].tolist() != made.tokens[:, 1].tolist()


@DECODERS
@pytest.mark.parametrize("stop", [STOP, pytest.param(None, marks=pytest.mark.full)])
def test_a_full_beam_is_exact(decoder, stop, traced):
    """8 open hypotheses of two symbols, 27 of three: all that there are, the best first."""
    write, params = run(decoder, jr.beam_search, width=27 if stop is None else 8, stop=stop, n_best=8)
    made = traced(write)(params, PADDED)
    for b in range(B):
        totals = {}
        for tokens, row in zip(EVERY.tolist(), by_hand(decoder)[b], strict=True):
            n = STEPS if stop not in tokens else tokens.index(stop) + 1
            totals[tuple(tokens[:n])] = row[:n].sum()
        best = sorted(totals, key=lambda tokens: -totals[tokens])[:8]
        lengths, tokens = made.lengths[b], np.asarray(made.tokens)[:, b].T.tolist()
        assert [tuple(row[:n]) for row, n in zip(tokens, lengths, strict=True)] == best
        np.testing.assert_allclose(made.log_probs[b], [totals[tokens] for tokens in best], **CLOSE)
