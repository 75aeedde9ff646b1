"""Location-sensitive attention, which sees where it looked before."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._checks import check_choice
from jaxrnn._dtypes import product
from jaxrnn.attention.attend import Attended
from jaxrnn.attention.attention import Attention, Keys, checked
from jaxrnn.attention.scores import additive_keys, additive_params, additive_scores, drawn
from jaxrnn.attention.weighting import context_of, normalised


class LocationSensitiveParams(NamedTuple):
    W_a: jax.Array  # (Q, A), of the query
    U_a: jax.Array  # (M, A), of the memory
    b_a: jax.Array  # (A,)
    v_a: jax.Array  # (A,)
    F: jax.Array  # (R, K), a filter a column
    V_a: jax.Array  # (K, A), of what the filters find


@checks_arguments
def location_sensitive(
    query_size: int,
    memory_size: int,
    hidden_size: int,
    *,
    filters: int = 10,
    kernel_size: int = 31,
    normalisation: str = "softmax",
    window: int | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Attention:
    """Location-sensitive attention: an additive score that also sees the weights of the step before.

        f_t   = F * α_{t-1}                                            a convolution over the positions
        e_s   = v_a · tanh(W_a q_t + U_a m_s + V_a f_{t,s} + b_a)
        α_t   = softmax(e)                                             normalisation="softmax"
        α_t,s = σ(e_s) / Σ_r σ(e_r)                                    normalisation="sigmoid", the paper's smoothing

    Args:
        query_size: Q, the features of the query.
        memory_size: M, the features of the memory.
        hidden_size: A, the units that compare them.
        filters: K, how many filters F has.
        kernel_size: R, the positions that a filter sees, an odd number; zeros stand around the memory.
        normalisation: "softmax", or "sigmoid", which spreads attention over more positions.
        window: w, with which only the positions within w of the median of α_{t-1} may be attended to; at the first step
            those within w of the first valid one. None means all.
        dtype: the compute dtype; None computes in the parameters' own.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        An Attention with LocationSensitiveParams. Its state is α (*B, S), zeros before the first step, at least
        float32. U_a m_s + b_a is computed once for a memory.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an even kernel_size, an unknown normalisation; while
            tracing, a memory or query of another size.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> attention = jr.attention.location_sensitive(4, 6, 8, filters=2, kernel_size=3)
        >>> params = attention.init(jax.random.key(0))
        >>> keys = attention.prepare(params, jnp.ones((5, 2, 6)), None)
        >>> state, attended = attention.attend(params, keys, attention.initial_state(params, keys), jnp.ones((2, 4)))
        >>> bool((state == attended.weights).all()), state.shape
        (True, (2, 5))

    Reference:
        Chorowski, Bahdanau, Serdyuk, Cho & Bengio, "Attention-based models for speech recognition", NeurIPS 2015.

    Differs from: the paper's window, which holds p - w to p + w - 1; this one is symmetric.
    """
    check_choice("location_sensitive", "normalisation", normalisation, ("softmax", "sigmoid"))
    if kernel_size % 2 == 0:
        raise ValueError(
            f"location_sensitive: kernel_size must be odd, so that a filter has a middle, got {kernel_size}; give "
            f"{kernel_size + 1}."
        )

    def init(key):
        k_additive, k_F, k_V = jax.random.split(key, 3)
        F, V_a = drawn(k_F, (kernel_size, filters), param_dtype), drawn(k_V, (filters, hidden_size), param_dtype)
        compared = additive_params(k_additive, query_size, memory_size, hidden_size, param_dtype)
        return LocationSensitiveParams(*compared, F, V_a)

    def prepare(params, memory, valid):
        return Keys(additive_keys(params, memory, dtype), memory, valid)

    def initial_state(params, keys):
        return jnp.zeros((*keys.values.shape[1:-1], keys.values.shape[0]), keys.keys.dtype)

    def attend(params, keys, α, query):
        q = product(jnp.dot, query, params.W_a, dtype)
        f = product(jnp.dot, product(_convolved, α, params.F, dtype), params.V_a, dtype)
        e = additive_scores(q[None] + keys.keys + jnp.moveaxis(f, -2, 0), params.v_a, dtype)
        valid = keys.valid if window is None else _near(α, keys.valid, window)
        # log σ under a softmax is σ over its sum, and where every σ underflows still a mean.
        α = normalised(e if normalisation == "softmax" else jax.nn.log_sigmoid(e), valid).astype(α.dtype)
        return α, Attended(context_of(α, keys.values), α)

    made = Attention(init, prepare, attend, initial_state, query_size, memory_size)
    return checked("location_sensitive", made, dtype)


def _convolved(α: jax.Array, F: jax.Array, preferred_element_type: Any) -> jax.Array:
    """(*B, S, K): F * α of α (*B, S) and F (R, K), correlated as networks do it, zeros around α."""
    S, (R, K) = α.shape[-1], F.shape
    found = jax.lax.conv_general_dilated(
        α.reshape(math.prod(α.shape[:-1]), S, 1),
        F[:, None],
        (1,),
        [(R // 2, R // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        preferred_element_type=preferred_element_type,
    )
    return found.reshape(*α.shape, K)


def _near(α: jax.Array, valid: jax.Array | None, window: int) -> jax.Array:
    """(S, *B): the valid positions within the window around the median of the weights."""
    S = α.shape[-1]
    place = jax.lax.broadcasted_iota(jnp.int32, α.shape, α.ndim - 1)
    on = jnp.ones(α.shape, bool) if valid is None else jnp.moveaxis(valid, 0, -1)
    half = α.sum(axis=-1, keepdims=True) / 2
    median = jnp.argmax(jnp.cumsum(α, axis=-1) >= half, axis=-1) if S else jnp.zeros(α.shape[:-1], int)
    first = jnp.argmax(on, axis=-1) if S else median
    centre = jnp.where(half[..., 0] > 0, median, first).astype(jnp.int32)[..., None]
    return jnp.moveaxis(on & (jnp.abs(place - centre) <= window), -1, 0)
