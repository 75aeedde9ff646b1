"""Layer normalisation inside the LSTM and the GRU: their records, and what they normalise.

Ba, Kiros & Hinton, "Layer normalization", 2016, normalise W_hh h and W_xh x apart ("ba2016"). Their equations add three
shifts to each gate, those of both normalisations and b; here b is the sum.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.cells._products import plus_bias, times
from jaxrnn.cells.lstm_family import LSTMCarry

EPSILON = 1e-5  # under the square root


class LayerNormLSTMParams(NamedTuple):
    W_xh: jax.Array  # these as in LSTMParams
    W_hh: jax.Array
    b: jax.Array | None
    W_hr: jax.Array | None
    initial: LSTMCarry | None
    scale_xh: jax.Array | None  # (4H,), of W_xh x, for "ba2016"
    scale_hh: jax.Array | None  # (4H,), of W_hh h, for "ba2016"
    scale: jax.Array | None  # (4H,), of each gate's sum, for "per_gate"
    scale_c: jax.Array  # (H,), of the memory
    shift_c: jax.Array | None  # (H,), so too; None without biases


class LayerNormGRUParams(NamedTuple):
    W_xh: jax.Array  # these as in GRUParams
    W_hh: jax.Array
    b: jax.Array | None
    b_hh: jax.Array | None
    h0: jax.Array | None
    scale_xh: jax.Array  # (3H,), of W_xh x
    scale_hh: jax.Array  # (3H,), of W_hh h


def layer_normed_lstm(params: Any, layer_norm: str, hidden_size: int, dtype: Any) -> LayerNormLSTMParams:
    """An LSTM's parameters with those of its normalisations: factors of 1, shifts of 0."""
    apart, of_gates = layer_norm == "ba2016", jnp.ones((4 * hidden_size,), dtype)
    return LayerNormLSTMParams(
        **params._asdict(),
        scale_xh=of_gates if apart else None,
        scale_hh=of_gates if apart else None,
        scale=None if apart else of_gates,
        scale_c=jnp.ones((hidden_size,), dtype),
        shift_c=None if params.b is None else jnp.zeros((hidden_size,), dtype),
    )


def layer_normed_gru(params: Any, hidden_size: int, dtype: Any) -> LayerNormGRUParams:
    """A GRU's parameters with the factors of its normalisations, 1 at first."""
    scale = jnp.ones((3 * hidden_size,), dtype)
    return LayerNormGRUParams(**params._asdict(), scale_xh=scale, scale_hh=scale)


def gru_scales(params: Any) -> tuple[jax.Array | None, ...]:
    """A GRU's factors: of W_xh x, and of W_hh h for all gates, for r and z, for n; None where nothing is normalised."""
    if not isinstance(params, LayerNormGRUParams):
        return None, None, None, None
    scale, H = params.scale_hh, len(params.scale_hh) // 3
    return params.scale_xh, scale, scale[:-H], scale[-H:]


def lstm_sum(params: Any, u: jax.Array, v: jax.Array) -> jax.Array:
    """An LSTM's W_hh h and W_xh x as a sum (*B, 4H), normalised where its parameters say so."""
    if not isinstance(params, LayerNormLSTMParams):
        return u + v
    H = len(params.scale_c)
    if params.scale is None:
        return normalised(u, params.scale_hh, 4 * H) + normalised(v, params.scale_xh, 4 * H)
    return normalised(u + v, params.scale, *[H] * 4)


def lstm_memory(params: Any, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An LSTM's new memory as it is carried, and as its output reads it."""
    if not isinstance(params, LayerNormLSTMParams):
        return c, c
    read = plus_bias(normalised(c, params.scale_c, len(params.scale_c)), params.shift_c)
    return (c if params.scale is None else read), read


def normalised(a: jax.Array, scale: jax.Array | None, *sizes: int) -> jax.Array:
    """``scale`` times the parts of ``a`` (*B, …) of these sizes, each with mean 0 and variance 1; without it ``a``."""
    if scale is None:
        return a
    if len(sizes) == 1:
        return times(_standardised(a), scale)
    if len(set(sizes)) == 1:
        parts = a.reshape(*a.shape[:-1], len(sizes), sizes[0])
        return times(_standardised(parts).reshape(a.shape), scale)
    ends = list(itertools.accumulate(sizes))
    return times(jnp.concatenate([_standardised(part) for part in jnp.split(a, ends[:-1], axis=-1)], axis=-1), scale)


def _standardised(a: jax.Array) -> jax.Array:
    a = a - a.mean(-1, keepdims=True)
    return a * jax.lax.rsqrt(jnp.square(a).mean(-1, keepdims=True) + EPSILON)
