"""A recurrence in both directions, the mean of its outputs over a sequence's own steps, a readout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr

Name = Literal["gru", "lstm"]
Scale = tuple[np.ndarray, np.ndarray]  # mean and sd of each feature, (I,)


class Classifier(NamedTuple):
    init: Callable[[jax.Array], Any]
    # (params, xs (T, N, I), lengths (N,), scale, key) -> (N, C)
    apply: Callable[[Any, Any, Any, Scale, jax.Array | None], jax.Array]


@functools.lru_cache(maxsize=4)  # of equal options the very same functions: what trains folds is compiled once
def classifier(
    name: Name,
    features: int,
    hidden_size: int,
    classes: int,
    *,
    dropout: float,
    noise: float,
    dtype: Any,
) -> Classifier:
    """In training, with a key, noise is added to the inputs and units of the mean are dropped.

    y = W_hy 1/T Σ_t [h_t forward, h_t backward] + b_y
    """
    cell = jr.gru if name == "gru" else jr.lstm
    layer = jr.bidirectional(*(cell(features, hidden_size, dtype=dtype) for _ in range(2)))
    readout = jr.readout(2 * hidden_size, classes, dtype=dtype)

    def init(key):
        k_layer, k_readout = jax.random.split(key)
        return layer.init(k_layer), readout.init(k_readout)

    def apply(params, xs, lengths, scale, key):
        mean, sd = scale
        xs = (jnp.asarray(xs) - mean) / sd
        if key is not None:
            k_noise, k_drop = jax.random.split(key)
            xs = xs + noise * jax.random.normal(k_noise, xs.shape)
        ys = layer.apply(params[0], xs, lengths=lengths)[1]
        pooled = jr.mean_pool(ys, lengths=lengths)  # 0 in an empty row
        if key is not None:
            kept = jax.random.bernoulli(k_drop, 1 - dropout, pooled.shape)
            pooled = jnp.where(kept, pooled / (1 - dropout), 0)
        return readout.step(params[1], (), pooled)[1]

    return Classifier(init, apply)
