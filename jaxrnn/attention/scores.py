"""Attention by a score: dot, general, additive."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform

from jaxrnn._arguments import checks_arguments
from jaxrnn._dtypes import accumulator, aligned, product
from jaxrnn.attention.attention import Attention, checked, scored
from jaxrnn.attention.weighting import scores_by_product


class GeneralParams(NamedTuple):
    W_a: jax.Array  # (M, Q)


class AdditiveParams(NamedTuple):
    W_a: jax.Array  # (Q, A), of the query
    U_a: jax.Array  # (M, A), of the memory
    b_a: jax.Array  # (A,)
    v_a: jax.Array  # (A,)


@checks_arguments
def dot(size: int, *, scale: float = 1.0) -> Attention:
    """Dot-product attention, without parameters.

        e_s = scale * q · m_s

    Args:
        size: of the query and of the memory, Q = M.
        scale: 1.0 is Luong's; 1/√M that of the transformer.

    Returns:
        An Attention with the params () and no state.

    Raises:
        ValueError, TypeError: a size that is no positive int; while tracing, a memory or query of another size.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> decoder = jr.decoder(jr.gru(3 + 4, 4), attention=jr.attention.dot(4))
        >>> params = decoder.init(jax.random.key(0))
        >>> params.attention
        ()

    Reference:
        Luong, Pham & Manning, "Effective approaches to attention-based neural machine translation", EMNLP 2015.
    """

    def score(params, keys, query):
        e = scores_by_product(query, keys)
        return e if scale == 1.0 else e * jnp.asarray(scale, e.dtype)

    made = scored(lambda key: (), lambda params, memory: memory, score, query_size=size, memory_size=size)
    return checked("dot", made, None)


@checks_arguments
def general(query_size: int, memory_size: int, *, dtype: Any = None, param_dtype: Any = jnp.float32) -> Attention:
    """Luong's "general" attention: a product with a matrix in between, so query and memory may differ in size.

        e_s = q · W_a m_s

    Args:
        query_size: Q, the features of the query.
        memory_size: M, the features of the memory.
        dtype: the compute dtype; None computes in the parameters' own.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        An Attention with GeneralParams and no state. W_a m_s is computed once for a memory.

    Raises:
        ValueError, TypeError: sizes that are not positive ints; while tracing, a memory or query of another size.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> attention = jr.attention.general(4, 6)
        >>> params = attention.init(jax.random.key(0))
        >>> keys = attention.prepare(params, jnp.ones((5, 2, 6)), None)
        >>> state, attended = attention.attend(params, keys, (), jnp.ones((2, 4)))
        >>> attended.context.shape, attended.weights.shape
        ((2, 6), (2, 5))

    Reference:
        Luong, Pham & Manning, "Effective approaches to attention-based neural machine translation", EMNLP 2015.
    """

    def init(key):
        return GeneralParams(drawn(key, (memory_size, query_size), param_dtype))

    def prepare(params, memory):
        return product(jnp.dot, memory, params.W_a, dtype)

    def score(params, keys, query):
        return scores_by_product(query, keys)

    made = scored(init, prepare, score, query_size=query_size, memory_size=memory_size)
    return checked("general", made, dtype)


@checks_arguments
def additive(
    query_size: int, memory_size: int, hidden_size: int, *, dtype: Any = None, param_dtype: Any = jnp.float32
) -> Attention:
    """Additive attention, Bahdanau's: a network with one hidden layer compares query and memory.

        e_s = v_a · tanh(W_a q + U_a m_s + b_a)

    Args:
        query_size: Q, the features of the query.
        memory_size: M, the features of the memory.
        hidden_size: A, the units of the hidden layer.
        dtype: the compute dtype; None computes in the parameters' own.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        An Attention with AdditiveParams and no state. U_a m_s + b_a is computed once for a memory.

    Raises:
        ValueError, TypeError: sizes that are not positive ints; while tracing, a memory or query of another size.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> attention = jr.attention.additive(4, 6, 8)
        >>> params = attention.init(jax.random.key(0))
        >>> keys = attention.prepare(params, jnp.ones((5, 2, 6)), None)
        >>> attention.attend(params, keys, (), jnp.ones((2, 4)))[1].weights[0].tolist()  # all positions are alike
        [0.20000000298023224, 0.20000000298023224, 0.20000000298023224, 0.20000000298023224, 0.20000000298023224]

    Reference:
        Bahdanau, Cho & Bengio, "Neural machine translation by jointly learning to align and translate", ICLR 2015.

    Differs from: Keras' ``AdditiveAttention``, which has a scale in place of v_a and no projections.
    """

    def init(key):
        return additive_params(key, query_size, memory_size, hidden_size, param_dtype)

    def prepare(params, memory):
        return additive_keys(params, memory, dtype)

    def score(params, keys, query):
        q = product(jnp.dot, query, params.W_a, dtype)
        return additive_scores(q[None] + keys, params.v_a, dtype)

    made = scored(init, prepare, score, query_size=query_size, memory_size=memory_size)
    return checked("additive", made, dtype)


def additive_params(key: jax.Array, query_size: int, memory_size: int, hidden_size: int, dtype: Any) -> AdditiveParams:
    k_W, k_U, k_v = jax.random.split(key, 3)
    return AdditiveParams(
        W_a=drawn(k_W, (query_size, hidden_size), dtype),
        U_a=drawn(k_U, (memory_size, hidden_size), dtype),
        b_a=jnp.zeros((hidden_size,), dtype),
        v_a=drawn(k_v, (hidden_size, 1), dtype)[:, 0],
    )


def additive_keys(params: Any, memory: jax.Array, dtype: Any) -> jax.Array:
    """U_a m_s + b_a, (S, *B, A)."""
    keys = product(jnp.dot, memory, params.U_a, dtype)
    return keys + aligned(params.b_a, keys)


def additive_scores(a: jax.Array, v: jax.Array, dtype: Any) -> jax.Array:
    """v_a · tanh(a): (S, *B, A) -> (*B, S)."""
    return jnp.moveaxis(product(jnp.dot, jnp.tanh(a), v, dtype), 0, -1)


def drawn(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """A matrix by Glorot's uniform distribution."""
    return glorot_uniform()(key, shape, accumulator(dtype)).astype(dtype)
