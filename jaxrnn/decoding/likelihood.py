"""Teacher forcing: what a model thinks of sequences that are given."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree, name_of
from jaxrnn._dtypes import promoted
from jaxrnn._narrowing import as_lengths
from jaxrnn.decoding._beginning import as_next_input, shifted
from jaxrnn.decoding.samplers import as_logits, log_prob_of_token
from jaxrnn.running.scan import as_layer, valid_steps


@checks_arguments
def log_likelihood(
    layer: Cell | Layer,
    params: PyTree,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    *,
    first: jax.Array | None = None,
    carry: PyTree = None,
    next_input: Callable[[PyTree], PyTree] | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The log-probability of each sequence, the model being given the tokens before each.

        log p(v_1 … v_L) = Σ_{n=1…L} log softmax(y_n)[v_n]        y_n: the output after first, v_1, …, v_{n-1}

    Args:
        layer: a Cell or a Layer that puts out logits (T, *B, V). One that reads the future, as ``jr.bidirectional``
            does, gives no probability.
        params: of the layer.
        tokens: (T, *B) integers.
        lengths: (*B) integers, the tokens of each sequence, its stop symbol among them; clamped to T. What stands
            behind them does not matter. None means T.
        first: (*B), the token that is read before the first, as ``jr.generate`` has it. None: ``tokens[0]`` is that
            one, and is not scored itself.
        carry: where to start, as for ``apply``.
        next_input: from tokens to inputs (*B, …), as ``jr.generate`` has it.
        key: of the noise (dropout …); None means evaluation.

    Returns:
        (*B) floats, float32 at least; 0 for a sequence of length 0. A token that is none of the V gives NaN. Of what
        ``jr.generate`` drew it is the sum of its ``log_probs``. Minus its mean is the loss of a language model.

    Raises:
        ValueError, TypeError: while tracing, for what does not fit: outputs that are no logits, tokens that are no
            integers, lengths of another batch.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> model = jr.stack(jr.embedding(10, 4), jr.gru(4, 8), jr.readout(8, 10))
        >>> params = model.init(jax.random.key(0))
        >>> tokens = jnp.array([[3, 1], [4, 9], [9, -1]])  # time first; the second sequence has two
        >>> jr.log_likelihood(model, params, tokens, jnp.array([3, 2]), first=jnp.array([0, 0])).shape
        (2,)

    Reference:
        Williams & Zipser, "A learning algorithm for continually running fully recurrent neural networks", Neural
        Computation 1, 1989, for teacher forcing.
    """
    scores, on = _scores("log_likelihood", layer, params, tokens, lengths, first, carry, next_input, key)
    return jnp.where(on, scores, 0).sum(0)


@checks_arguments
def perplexity(
    layer: Cell | Layer,
    params: PyTree,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    *,
    first: jax.Array | None = None,
    carry: PyTree = None,
    next_input: Callable[[PyTree], PyTree] | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The perplexity of a batch: over how many tokens the model hesitates, on the average.

        exp(-Σ log p(v) / N)        over all N tokens that are scored, of all sequences

    Args:
        layer, params, tokens, lengths, first, carry, next_input, key: as for :func:`log_likelihood`.

    Returns:
        A scalar; NaN where no token is scored. Over several batches take ``log_likelihood``, and divide the sums.

    Raises:
        ValueError, TypeError: as :func:`log_likelihood`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> model = jr.stack(jr.embedding(10, 4), jr.readout(4, 10))
        >>> params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))  # it knows nothing
        >>> jr.decoding.perplexity(model, params, jnp.array([[3, 1], [4, 9], [9, 5]])).round(3).item()
        10.0

    Reference:
        Jelinek et al., "Perplexity: a measure of the difficulty of speech recognition tasks", JASA 62, 1977.
    """
    scores, on = _scores("perplexity", layer, params, tokens, lengths, first, carry, next_input, key)
    return jnp.exp(-jnp.where(on, scores, 0).sum() / on.sum().astype(scores.dtype))


def _scores(who, layer, params, tokens, lengths, first, carry, next_input, key):
    """``(scores, on)``: (T, *B) log-probabilities, and which of them count."""
    layer = as_layer(f"{who}: layer", layer)
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.ndim == 0:
        raise TypeError(f"{who}: tokens must be integers (T, *B), got {tokens.dtype} of shape {tokens.shape}.")
    batch_shape = tokens.shape[1:]
    if lengths is not None:
        lengths = as_lengths(who, lengths, batch_shape)
    if first is None:
        if not tokens.shape[0]:
            raise ValueError(f"{who}: tokens must have a first step, which is read, got shape {tokens.shape}.")
        first, tokens = tokens[0], tokens[1:]
        lengths = None if lengths is None else lengths - 1
    first = jnp.asarray(first)
    if first.shape != batch_shape or not jnp.issubdtype(first.dtype, jnp.integer):
        raise ValueError(
            f"{who}: first must be one token for each sequence, integers {batch_shape}, got {first.dtype} of shape "
            f"{first.shape}; give jnp.full({batch_shape}, token)."
        )
    dtype = promoted(first.dtype, tokens.dtype)  # that holds both
    xs = jax.vmap(as_next_input(next_input))(shifted(first.astype(dtype), tokens.astype(dtype)))
    _, ys = layer.apply(params, xs, carry, lengths=lengths, key=key)
    logits = as_logits(who, ys)
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"{who}: {name_of(layer)} must put out logits (T, *B, V), here {(*tokens.shape, 'V')}, got {logits.shape}; "
            f"end it with jr.readout(H, V)."
        )
    on = valid_steps(jnp.arange(tokens.shape[0], dtype=jnp.int32), lengths, None)
    on = jnp.ones(tokens.shape, bool) if on is None else on
    return log_prob_of_token(logits, jnp.where(on, tokens, 0)), on
