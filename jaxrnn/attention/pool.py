"""A sequence pooled by attention: ``jr.attention_pool``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import InitFn
from jaxrnn._checks import check_features, check_key, check_params, check_real
from jaxrnn._dtypes import aligned, product
from jaxrnn.attention.scores import drawn
from jaxrnn.attention.weighting import as_memory, context_of, normalised, positions, without_padding


class AttentionPoolParams(NamedTuple):
    W: jax.Array | None  # (H, A); None without a hidden layer
    b: jax.Array | None  # (A,)
    q: jax.Array  # (A,), without a hidden layer (H,): the learned query


class AttentionPool(NamedTuple):
    """What ``jr.attention_pool`` returns, as pure functions.

    init(key) -> params
    apply(params, ys, *, lengths=None, mask=None) -> pooled     ys (T, *B, H) -> (*B, H)
    weights(params, ys, *, lengths=None, mask=None) -> α        (*B, T)
    """

    init: InitFn
    apply: Callable[..., jax.Array]
    weights: Callable[..., jax.Array]


@checks_arguments
def attention_pool(
    input_size: int, *, hidden_size: int | None = None, dtype: Any = None, param_dtype: Any = jnp.float32
) -> AttentionPool:
    """The mean of a sequence's outputs by learned weights, where ``jr.mean_pool`` weighs all alike.

        u_t    = tanh(W y_t + b)            without hidden_size: u_t = y_t
        α      = softmax(q · u_t)           over the valid steps
        pooled = Σ_t α_t y_t

    Args:
        input_size: H, the features of the outputs (T, *B, H).
        hidden_size: A, the units of u; None compares the query with the outputs themselves.
        dtype: the compute dtype; None computes in the parameters' own.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        ``AttentionPool(init, apply, weights)``. ``apply(params, ys, *, lengths=None, mask=None)`` takes ys (T, *B, H),
        lengths (*B) and a mask (T, *B) as ``jr.mean_pool`` does, and returns (*B, H) of the dtype of ys, 0 where no
        step is valid; ``weights``, called alike, α (*B, T). What stands in the padding does not matter, NaN included.

    Raises:
        ValueError, TypeError: sizes that are not positive ints; while tracing, outputs, lengths or masks that do not
            fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> pool = jr.attention_pool(4, hidden_size=8)
        >>> params = pool.init(jax.random.key(0))
        >>> pool.apply(params, jnp.ones((7, 2, 4)), lengths=jnp.array([7, 0])).tolist()
        [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]

    Reference:
        Yang et al., "Hierarchical attention networks for document classification", NAACL 2016.
    """
    H, A = input_size, input_size if hidden_size is None else hidden_size

    def init(key):
        check_key("attention_pool", key)
        k_W, k_q = jax.random.split(key)
        W, b = (None, None) if hidden_size is None else (drawn(k_W, (H, A), param_dtype), jnp.zeros((A,), param_dtype))
        return AttentionPoolParams(W, b, drawn(k_q, (A, 1), param_dtype)[:, 0])

    expected = functools.cache(lambda: jax.eval_shape(init, jax.random.key(0)))

    def weighted(params, ys, lengths, mask):
        """(weights, ys without their padding)"""
        check_params("attention_pool", params, expected())
        check_features("attention_pool", ys, H, "(T, *B, {size})")
        check_real("attention_pool", ys, params.q.dtype if dtype is None else dtype, declared=dtype is not None)
        ys = as_memory("attention_pool", "ys", ys)
        valid = positions("attention_pool", ys, lengths, mask)
        ys = without_padding(ys, valid)
        W, b, q = params
        u = ys
        if W is not None:
            a = product(jnp.dot, ys, W, dtype)
            u = jnp.tanh(a + aligned(b, a))
        scores = jnp.moveaxis(product(jnp.dot, u, q, dtype), 0, -1)
        return normalised(scores, valid), ys

    def apply(params, ys, *, lengths=None, mask=None):
        α, ys = weighted(params, ys, lengths, mask)
        return context_of(α, ys).astype(ys.dtype)

    def weights(params, ys, *, lengths=None, mask=None):
        return weighted(params, ys, lengths, mask)[0]

    return AttentionPool(init, apply, weights)
