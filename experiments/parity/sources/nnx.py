"""nnx's cells in its RNN and Bidirectional."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from experiments.parity.compare import Draw, H, I, Make, Source, by_jax, in_words
from experiments.parity.flax_carries import back, swapped
from jaxrnn._base import flatten


def nnx_source(cell: str, directions: int, draw: Draw) -> Source:
    from flax import nnx

    from jaxrnn.interop.flax import from_nnx

    rngs, dtype = nnx.Rngs(0), draw(1).dtype

    def one(**options):
        return nnx.RNN(getattr(nnx, cell)(I, H, dtype=dtype, param_dtype=dtype, rngs=rngs), rngs=rngs, **options)

    options: dict[str, Any] = {"time_major": True, "return_carry": True}
    net = one(**options) if directions == 1 else nnx.Bidirectional(one(), one(), rngs=rngs, **options)
    graph, params, others = nnx.split(net, nnx.Param, ...)
    leaves, treedef = flatten(params)

    def run(weights, xs, carry, lengths):
        module = nnx.merge(graph, treedef.unflatten(weights), others)
        end, ys = module(xs, initial_carry=swapped(carry), seq_lengths=jnp.asarray(lengths))
        return back(end, carry), ys

    weights = [draw(*a.shape) for a in leaves]

    def read(weights):
        return from_nnx(nnx.merge(graph, treedef.unflatten([*map(jnp.asarray, weights)]), others))

    return Source("Flax nnx", cell, in_words(1, directions), weights, read, by_jax(run))


def sources() -> Iterator[Make]:
    for directions in (1, 2):
        for cell in ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell"):
            yield functools.partial(nnx_source, cell, directions)
