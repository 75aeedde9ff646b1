"""A recurrence that reads the notes of a step, and a density of those of the next."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from experiments.music.densities import independent, nade

PyTree = Any
Recurrence = Literal["gru", "lstm"]


class Model(NamedTuple):
    init: Callable[[jax.Array], PyTree]
    # (params, xs (T, B, K), lengths (B), key or None) -> the mean over all steps but the first of every sequence
    nll: Callable[[PyTree, jax.Array, jax.Array, jax.Array | None], jax.Array]
    # (params, first (K), key, steps) -> (steps + 1, K): the first step, and those that are drawn after it
    compose: Callable[[PyTree, jax.Array, jax.Array, int], jax.Array]


def model(
    recurrence: Recurrence,
    hidden_size: int,
    odds: np.ndarray,
    *,
    dropout: float,
    noise: float,
    nade_units: int,
    most: int,
    dtype: Any,
) -> Model:
    """-log p(v_2 … v_T | v_1) = -Σ_t log p(v_t | y_{t-1}),   y_t = W_hy h_t + b_y

    In training, with a key, all weights and biases have Gaussian noise, one draw a batch, and units of h are dropped.

    Args:
        odds: (K,), the log-odds of each note, at which the readout's biases begin.
        dropout: of what the readout reads.
        noise: its standard deviation.
        nade_units: hidden units of a NADE; 0 means independent notes.
        most: notes that one step may have, in what is asked of ``nll``.
    """
    keys = len(odds)
    density = nade(keys, nade_units, most) if nade_units else independent(keys)

    def bias_init(key, shape, dtype):
        return jnp.zeros(shape, dtype).at[:keys].set(odds)

    cell = (jr.gru if recurrence == "gru" else jr.lstm)(keys, hidden_size, dtype=dtype)
    readout = jr.readout(hidden_size, density.size, bias_init=bias_init, dtype=dtype)
    noisy = functools.partial(jr.weight_noise, std=noise)
    layer = jr.stack(noisy(cell), jr.dropout(dropout), noisy(readout))
    log_prob = jr.scan(noisy(density.cell) if nade_units else density.cell, plan="plain")  # weights, to be noisy
    alone = jr.chain(cell, readout)  # to be stepped: no noise

    def init(key):
        k_layer, k_density = jax.random.split(key)
        return layer.init(k_layer), density.cell.init(k_density)

    def nll(params, xs, lengths, key):
        k_layer, k_density = (None, None) if key is None else jax.random.split(key)
        predicted = jnp.maximum(lengths - 1, 0)
        ys = layer.apply(params[0], xs[:-1], lengths=predicted, key=k_layer)[1]
        together = jax.tree.map(lambda a: a[None], (ys, xs[1:]))  # one step, of which every step is a row
        log_probs = log_prob.apply(params[1], together, key=k_density)[1][0]
        return -jr.masked_mean(log_probs, lengths=predicted)

    def compose(params, first, key, steps):
        (of_cell, _, of_readout), of_density = params
        draw = functools.partial(density.sample, of_density)
        drawn = jr.generate(alone, (of_cell, of_readout), None, first, steps=steps, sample=draw, key=key)
        return jnp.concatenate([first[None], drawn.tokens])

    return Model(init, nll, compose)
