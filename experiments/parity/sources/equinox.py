"""Equinox's cells, scanned."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

import jaxrnn as jr
from experiments.parity.compare import Draw, H, I, Make, Source, by_jax
from jaxrnn._base import flatten


def equinox_source(cell: str, draw: Draw) -> Source:
    import equinox as eqx

    from jaxrnn.interop.equinox import from_equinox

    net = getattr(eqx.nn, cell)(I, H, key=jax.random.key(0))
    arrays, rest = eqx.partition(net, eqx.is_array)
    leaves, treedef = flatten(arrays)

    def run(weights, xs, carry, lengths):
        step = eqx.combine(treedef.unflatten(weights), rest)

        def body(state, x):
            new = jax.vmap(step)(x, tuple(state) if cell == "LSTMCell" else state)
            return (jr.LSTMCarry(*new), new[0]) if cell == "LSTMCell" else (new, new)

        return jax.lax.scan(body, carry, xs)

    weights = [draw(*a.shape) for a in leaves]

    def read(weights):
        return from_equinox(eqx.combine(treedef.unflatten([*map(jnp.asarray, weights)]), rest))

    return Source("Equinox", cell, "", weights, read, by_jax(run), lengths=False)


def sources() -> Iterator[Make]:
    for cell in ("LSTMCell", "GRUCell"):
        yield functools.partial(equinox_source, cell)
