"""Attention, the record that ``jr.decoder`` takes: pure functions, as a Cell is; and how a score makes one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import InitFn, PyTree
from jaxrnn._checks import check_key, check_params
from jaxrnn._dtypes import promoted
from jaxrnn.attention.attend import Attended
from jaxrnn.attention.weighting import as_memory, check_query, context_of, normalised


class Attention(NamedTuple):
    """How a query finds its place in a memory, as pure functions. Three functions make one of your own.

        init(key) -> params                                     any pytree of arrays
        prepare(params, memory, valid) -> keys                  once, outside of the loop
        attend(params, keys, state, query) -> (state, attended)  at each step
        initial_state(params, keys) -> state                    where attention remembers something; None: it does not

    ``jr.attention.scored`` makes one from a score alone.

    Fields:
        prepare: memory (S, *B, M), 0 in its padding; valid (S, *B) booleans, or None where every position is valid.
            ``keys``, any pytree, is whatever ``attend`` is to have of them, projected once.
        attend: query (*B, Q) -> ``Attended(context, weights)``, context (*B, V) and weights (*B, S). The state's leaves
            lead with ``*B`` and keep their shapes and dtypes. ``*B`` is that of the memory: ``jr.decoder`` maps it over
            further axes, of beams say.
        query_size, memory_size: Q and M where known; error messages and the parameters of a decoder need them.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> def prepare(params, memory, valid):  # the mean of everything, whatever is asked
        ...     S, *batch_shape, M = memory.shape
        ...     return jr.mean_pool(memory, mask=valid), jnp.full((*batch_shape, S), 1 / S)
        >>> def attend(params, keys, state, query):
        ...     return state, jr.attention.Attended(*keys)
        >>> same = jr.attention.Attention(lambda key: (), prepare, attend, query_size=4, memory_size=3)
        >>> decoder = jr.decoder(jr.gru(2 + 4, 4), attention=same)
        >>> params = decoder.init(jax.random.key(0))
        >>> cell = decoder.bind(params, jnp.ones((5, 3)))
        >>> jr.scan(cell).apply(params, jnp.ones((7, 2)))[1].shape
        (7, 4)
    """

    init: InitFn
    prepare: Callable[[PyTree, jax.Array, jax.Array | None], PyTree]
    attend: Callable[[PyTree, PyTree, PyTree, jax.Array], tuple[PyTree, Attended]]
    initial_state: Callable[[PyTree, PyTree], PyTree] | None = None
    query_size: int | None = None
    memory_size: int | None = None


class Keys(NamedTuple):
    """What attention by a score has of a memory."""

    keys: PyTree  # what ``prepare`` of the score made
    values: jax.Array  # (S, *B, M)
    valid: jax.Array | None  # (S, *B)


@checks_arguments
def scored(
    init: Callable[..., Any],
    prepare: Callable[..., Any],
    score: Callable[..., Any],
    *,
    query_size: int | None = None,
    memory_size: int | None = None,
) -> Attention:
    """Attention by a score: a softmax over the valid positions, and the sum of the memory by its weights.

        α       = softmax(score(q, m_s))
        context = Σ_s α_s m_s

    Args:
        init: ``init(key) -> params``.
        prepare: ``prepare(params, memory) -> keys``, any pytree, from memory (S, *B, M); computed once.
        score: ``score(params, keys, query) -> e`` (*B, S), from query (*B, Q).
        query_size, memory_size: Q and M where known.

    Returns:
        An Attention without state.

    Raises:
        TypeError: what is no function; while tracing, scores of another shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> def score(params, keys, query):  # minus the squared distance
        ...     return -((keys - query) ** 2).sum(-1).T
        >>> near = jr.attention.scored(lambda key: (), lambda params, memory: memory, score)
        >>> keys = near.prepare((), jnp.array([[[0.0]], [[3.0]]]), None)
        >>> near.attend((), keys, (), jnp.array([[0.0]]))[1].weights.round(3).tolist()
        [[1.0, 0.0]]
    """

    def prepare_all(params, memory, valid):
        return Keys(prepare(params, memory), memory, valid)

    def attend(params, keys, state, query):
        scores = score(params, keys.keys, query)
        expected = (*keys.values.shape[1:-1], keys.values.shape[0])
        if jnp.shape(scores) != expected:
            raise ValueError(
                f"scored: score must return an array (*B, S), here {expected}, got shape {jnp.shape(scores)}."
            )
        weights = normalised(scores, keys.valid)
        return state, Attended(context_of(weights, keys.values), weights)

    return Attention(init, prepare_all, attend, query_size=query_size, memory_size=memory_size)


def checked(who: str, attention: Attention, dtype: Any) -> Attention:
    """An Attention of ours that says what does not fit: memory, query and params. ``dtype`` is the declared one."""
    expected = functools.cache(lambda: jax.eval_shape(attention.init, jax.random.key(0)))

    def init(key):
        check_key(who, key)
        return attention.init(key)

    def prepare(params, memory, valid):
        check_params(who, params, expected())
        memory = as_memory(who, "memory", memory)
        if memory.shape[-1] != attention.memory_size:
            raise ValueError(
                f"{who}: memory must have {attention.memory_size} features, (S, *B, {attention.memory_size}), got "
                f"shape {memory.shape}; build the attention for a memory of {memory.shape[-1]} features."
            )
        weights = [leaf.dtype for leaf in jax.tree.leaves(params)]
        if dtype is None and weights and promoted(memory.dtype, *weights) != weights[0]:
            raise TypeError(
                f"{who}: memory is {memory.dtype} but the parameters are {weights[0]}, and computing would drop "
                f"digits; cast the memory, or build the attention with dtype=… to declare the compute dtype."
            )
        return attention.prepare(params, memory, valid)

    def attend(params, keys, state, query):
        assert attention.query_size is not None  # of all of ours
        check_query(who, query, attention.query_size, f"build the attention for queries of {jnp.shape(query)[-1:]}")
        return attention.attend(params, keys, state, query)

    return attention._replace(init=init, prepare=prepare, attend=attend)
