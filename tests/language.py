"""A small language model, and the probabilities of whole sequences by plain loops: what the tests of decoding share."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from tests.cases import randomised

V, STOP = 4, 1
CELL = jr.chain(jr.embedding(V, 3), jr.gru(3, 5), jr.readout(5, V))
PARAMS = randomised(CELL.init(jax.random.key(0)), scale=1.0)
# float32; a few tens of roundings of 6e-8, of sums of logs of about 10
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def log_softmax(logits):
    """By NumPy, in float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@functools.cache
def jitted_step(cell):
    return jax.jit(cell.step)


def plain_log_probs(cell, params, carry, first, tokens):
    """(T, B): of each token, the ones before it being read, by a Python loop over ``cell.step``."""
    rows, before = [], first
    for token in np.asarray(tokens):
        carry, logits = jitted_step(cell)(params, carry, before)
        rows.append(np.take_along_axis(log_softmax(logits), token[:, None], axis=-1)[:, 0])
        before = jnp.asarray(token)
    return np.stack(rows), carry


@functools.cache
def every_sequence(steps, first=0, cell=CELL):
    """``(tokens, log_probs)``, (steps, V^steps) each, of every sequence."""
    tokens = np.array(list(itertools.product(range(V), repeat=steps)), np.int32).T
    batch = tokens.shape[1:]
    begin = jnp.full(batch, first, jnp.int32)
    return tokens, plain_log_probs(cell, PARAMS, cell.initial_carry(PARAMS, batch), begin, tokens)[0]
