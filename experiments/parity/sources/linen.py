"""linen's cells in its RNN and Bidirectional."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from experiments.parity.compare import B, Draw, H, I, Make, Source, T, by_jax, in_words
from experiments.parity.flax_carries import back, swapped
from jaxrnn._base import flatten


def linen_source(cell: str, directions: int, draw: Draw) -> Source:
    from flax import linen as nn

    from jaxrnn.interop.flax import from_linen

    dtype = draw(1).dtype

    def one():
        return nn.RNN(getattr(nn, cell)(H, param_dtype=dtype), time_major=True, return_carry=True)

    net = one() if directions == 1 else nn.Bidirectional(one(), one(), time_major=True, return_carry=True)
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((T, B, I), dtype))
    leaves, treedef = flatten(like)

    def run(weights, xs, carry, lengths):
        own = swapped(carry)
        end, ys = net.apply(treedef.unflatten(weights), xs, initial_carry=own, seq_lengths=jnp.asarray(lengths))
        return back(end, carry), ys

    weights = [draw(*a.shape) for a in leaves]

    def read(weights):
        return from_linen(net, treedef.unflatten(weights))

    return Source("Flax linen", cell, in_words(1, directions), weights, read, by_jax(run))


def sources() -> Iterator[Make]:
    for directions in (1, 2):
        for cell in ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell"):
            yield functools.partial(linen_source, cell, directions)
