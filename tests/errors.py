"""What the tests of error messages share: calls that are all right but for one thing.

A case is ``(call, error, words)``: the words are what the message must say, in this order.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as jr

T, B, I, H = 7, 2, 3, 5
KEY = jax.random.key(0)


def assert_fails(call, error, words):
    """Under ``eval_shape``, where nothing is computed: what fails there fails while tracing."""
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words))) as info:
        jax.eval_shape(call)
    assert not str(info.value).endswith("?."), f"ends twice: {info.value}"
    assert Path(jr.__file__).parent in Path(info.traceback[-1].path).parents, f"raised in {info.traceback[-1].path}"


def xs(*shape, dtype=jnp.float32):
    return jnp.ones(shape or (T, B, I), dtype)


def step(cell, *, params=None, carry=None, x=None, batch_shape=(B,)):
    """One step of a cell, all right but for what is given."""
    params = cell.init(KEY) if params is None else params
    carry = cell.initial_carry(cell.init(KEY), batch_shape) if carry is None else carry
    return cell.step(params, carry, xs(B, I) if x is None else x)


def apply(layer, x=None, carry=None, *, params=None, **options):
    """A run of a layer (a Cell is scanned), all right but for what is given."""
    layer = jr.scan(layer) if isinstance(layer, jr.Cell) else layer
    return layer.apply(layer.init(KEY) if params is None else params, xs() if x is None else x, carry, **options)


def carry_of(cell, batch_shape=(B,), dtype=None):
    carry = cell.initial_carry(cell.init(KEY), batch_shape)
    return carry if dtype is None else jax.tree.map(lambda a: a.astype(dtype), carry)


def user_cell(step, initial_carry=lambda params, batch_shape=(): jnp.zeros(batch_shape), **fields):
    return jr.Cell(lambda key: {"a": jnp.ones(())}, initial_carry, step, **fields)


def widen(size):
    """A user's cell that does not say that it puts out ``size`` features."""
    return user_cell(lambda p, c, x: (c, jnp.ones((*x.shape[:-1], size))))


LSTM, GRU, ELMAN = jr.lstm(I, H), jr.gru(I, H), jr.elman(I, H)
STACK = jr.stack(LSTM, jr.dropout(0.1), jr.gru(H, 4))
CHAIN = jr.chain(LSTM, jr.gru(H, 4))
BI = jr.bidirectional(LSTM, GRU)
EMBEDDING, READOUT, NORM = jr.embedding(9, I), jr.readout(I, 2), jr.layer_norm(I)
