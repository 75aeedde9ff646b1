"""Haiku's cores, unrolled."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

import jaxrnn as jr
from experiments.parity.compare import B, Draw, H, I, Make, Source, T, by_jax
from jaxrnn._base import flatten


def haiku_source(core: str, draw: Draw) -> Source:
    import haiku as hk

    from jaxrnn.interop.haiku import from_haiku

    def unroll(xs, state):
        return hk.dynamic_unroll(getattr(hk, core)(H), xs, state)

    def state_of(carry):
        return hk.LSTMState(carry.h, carry.c) if core == "LSTM" else carry

    net = hk.without_apply_rng(hk.transform(unroll))
    zeros = jnp.zeros((B, H), draw(1).dtype)
    like = jax.eval_shape(
        net.init,
        jax.random.key(0),
        jnp.zeros((T, B, I), zeros.dtype),
        hk.LSTMState(zeros, zeros) if core == "LSTM" else zeros,
    )
    leaves, treedef = flatten(like)

    def run(weights, xs, carry, lengths):
        ys, end = net.apply(treedef.unflatten(weights), xs, state_of(carry))
        return jr.LSTMCarry(end.hidden, end.cell) if core == "LSTM" else end, ys

    weights = [draw(*a.shape) for a in leaves]

    def read(weights):
        return from_haiku(core, treedef.unflatten([*map(jnp.asarray, weights)]))

    return Source("Haiku", core, "", weights, read, by_jax(run), lengths=False)


def sources() -> Iterator[Make]:
    for core in ("VanillaRNN", "LSTM", "GRU"):
        yield functools.partial(haiku_source, core)
