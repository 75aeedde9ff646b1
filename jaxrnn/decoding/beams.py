"""Beam search: the likeliest sequences, several at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree
from jaxrnn._checks import check_carry_kept, check_pair
from jaxrnn.decoding._beginning import as_next_input, begin, check_vocabulary, read_prefix
from jaxrnn.decoding.generating import as_stop, check_stop
from jaxrnn.decoding.samplers import as_logits
from jaxrnn.devices.placement import vary_alike

Score = Callable[[jax.Array, jax.Array], jax.Array]


class Beams(NamedTuple):
    """What :func:`beam_search` returns; N is ``n_best``, the best first.

    Fields:
        tokens: (steps, *B, N); the stop symbol after a hypothesis' end, 0 where there is none.
        lengths: (*B, N) integers, the tokens of each, the stop symbol among them. 0 where there are fewer than N
            hypotheses of a probability above 0: their score is -inf.
        log_probs: (*B, N), the sum over its tokens.
        scores: (*B, N), by which they are ordered: ``log_probs`` after the length penalty.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    scores: jax.Array


class _Open(NamedTuple):
    """The hypotheses that go on, the likeliest first; -inf: none."""

    carry: PyTree  # (*B, W, …)
    token: jax.Array  # (*B, W), its last
    log_prob: jax.Array  # (*B, W)


class _Ended(NamedTuple):
    """The best that have ended, best first; -inf: none."""

    score: jax.Array  # (*B, N) each
    log_prob: jax.Array
    length: jax.Array
    beam: jax.Array  # where it stood among the open ones: before its stop symbol; where it has none, at the last step


@checks_arguments
def wu_2016(alpha: float = 0.6) -> Score:
    """The length penalty of Wu et al., for ``beam_search(length_penalty=…)``.

        score = log p / ((5 + n) / 6)^α

    Args:
        alpha: α; the paper takes 0.6 to 0.7.

    Returns:
        A function of log-probabilities and lengths.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.decoding.wu_2016(1.0)(jnp.array(-4.0), jnp.array(7)).item()
        -2.0

    Reference:
        Wu et al., "Google's neural machine translation system", 2016.
    """

    def score(log_prob, n):
        return log_prob / ((5 + n.astype(log_prob.dtype)) / 6) ** alpha

    return score


@checks_arguments
def beam_search(
    cell: Cell,
    params: PyTree,
    carry: PyTree,
    first: jax.Array,
    *,
    width: int,
    steps: int,
    stop: int | None = None,
    length_penalty: float | Score = 0.0,
    n_best: int = 1,
    next_input: Callable[[PyTree], PyTree] | None = None,
    prefix: PyTree = None,
    lengths: jax.Array | None = None,
) -> Beams:
    """The likeliest sequences that a beam finds, for each sequence of a batch.

        log p(v_1 … v_n) = Σ log softmax(y_m)[v_m]
        score = log p / n^length_penalty

    At each step the W likeliest of all continuations by one token stay open, the stop symbol excluded; each of the W
    before, with the stop symbol behind it, is a candidate for the N best that have ended. A hypothesis of ``steps``
    tokens has ended, too. Where W is no less than the open ones that there can be, this is exact.

    It ends for good where no open hypothesis can win any more: its log-probability can only fall, so its score will
    not be above the largest that this log-probability has at any length from here to ``steps``. When that is not above
    the N-th best score that has ended, for every sequence, the loop ends. No heuristic, under any penalty.

    Args:
        cell: a Cell, which puts out logits (*B, V). The beam is an axis that its step does not see (``jax.vmap``, the
            axis after *B of the carry), so a cell that closes over a memory (S, *B, M) shares it among the beam.
        params: of the cell.
        carry: where to start, each leaf (*B, …); None means ``initial_carry``.
        first: (*B), the token that is read first.
        width: W.
        steps: the most tokens of a hypothesis.
        stop: the token with which one ends; None: all have ``steps`` tokens.
        length_penalty: α; 0 scores by log p, 1 by the mean over tokens; below 0 prefers short ones. Or a function
            ``(log_prob, n) -> score`` that does not fall as log_prob rises, such as :func:`wu_2016`. Where it makes
            NaN of a log-probability, that hypothesis comes last, with its NaN.
        n_best: N, W at most. A larger one searches longer.
        next_input, prefix, lengths: as for ``jr.generate``.

    Returns:
        :class:`Beams`. What the carry or the attention of one was, ``jr.scan(cell).apply`` over its tokens tells.

    Raises:
        ValueError, TypeError: while tracing, for what does not fit: a width above V^steps, which no tree fills, a stop
            symbol that is no token, a carry of another batch.

    Example:
        >>> import functools, jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.chain(jr.embedding(10, 4), jr.gru(4, 8), jr.readout(8, 10))
        >>> params = cell.init(jax.random.key(0))
        >>> search = jax.jit(functools.partial(jr.beam_search, cell, width=4, steps=6, stop=9, n_best=2))
        >>> found = search(params, None, jnp.array([0, 5]))
        >>> found.tokens.shape, found.scores.shape, bool((found.scores[:, 0] >= found.scores[:, 1]).all())
        ((6, 2, 2), (2, 2), True)

    Reference:
        Graves, "Sequence transduction with recurrent neural networks", 2012; Sutskever, Vinyals & Le, "Sequence to
        sequence learning with neural networks", NeurIPS 2014.

    Differs from: fairseq and Transformers, where a stop symbol counts only among the best 2W continuations, takes a
    place of the beam, and the search may end before it is decided.
    """
    who, stop = "beam_search", as_stop(stop)
    score = _checked(who, length_penalty if callable(length_penalty) else _power(who, length_penalty))
    if n_best > width:
        raise ValueError(f"{who}: n_best={n_best} is more than the beam's width={width}; give a larger width.")
    beginning = begin(who, cell, params, carry, first, next_input, tokens=True)
    beginning, _ = read_prefix(who, cell, params, beginning, prefix, lengths, next_input, None, 0)
    carry, first, batch_shape = beginning
    axis, to_input = len(batch_shape), as_next_input(next_input)

    def step(carry, token):
        new, y = check_pair(who, cell.step(params, carry, to_input(token)))
        check_carry_kept(who, carry, new)
        return new, as_logits(who, y)

    if any(jax.typeof(first).sharding.spec):
        raise ValueError(
            f"{who}: the batch is sharded over Explicit axes of a mesh, where beams cannot be gathered; use Auto axes, "
            f"or call it inside jax.shard_map."
        )
    logits = jax.eval_shape(step, carry, first)[1]
    V = logits.shape[-1]
    if logits.shape != (*batch_shape, V):
        raise ValueError(f"{who}: the cell must put out logits {(*batch_shape, 'V')}, got {logits.shape}.")
    check_vocabulary(who, V, first)
    if stop is not None:
        check_stop(who, stop, V)
    if width > V**steps:
        raise ValueError(
            f"{who}: width={width} is more than the {V}^{steps} = {V**steps} sequences of {steps} tokens; give that "
            f"width at most."
        )
    beam = (*batch_shape, width)
    spread = lambda a: jnp.broadcast_to(jnp.expand_dims(a, axis), (*a.shape[:axis], width, *a.shape[axis:]))
    only_one = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf).astype(logits.dtype)
    open_ = _Open(jax.tree.map(spread, carry), spread(first), jnp.broadcast_to(only_one, beam))
    none = jnp.full((*batch_shape, n_best), -jnp.inf, logits.dtype)
    zeros = jnp.zeros(none.shape, jnp.int32)
    ended = _Ended(none, none, zeros, zeros)
    history = jnp.zeros((steps, *beam), first.dtype), jnp.zeros((steps, *beam), jnp.int32)  # tokens, and their parents
    step_of_beam = jax.vmap(step, in_axes=axis, out_axes=axis)

    def undecided(state):
        n, open_, ended, _ = state
        best = jnp.broadcast_to(open_.log_prob[..., :1], (*batch_shape, steps))
        length = jax.lax.broadcasted_iota(jnp.int32, best.shape, axis) + 1
        bound = jnp.where(length > n, score(best, length), -jnp.inf).max(-1)
        return (n < steps) & ~(bound <= ended.score[..., -1]).all()  # NaN is not decided, either: it is to be seen

    def body(state):
        n, open_, ended, (tokens, parents) = state
        new, logits = step_of_beam(open_.carry, open_.token)
        log_probs = _continued(open_.log_prob[..., None], logits)
        if stop is not None:
            candidates = _ended(score, log_probs[..., stop], n + 1, jnp.arange(width, dtype=jnp.int32))
            ended = _best(n_best, ended, candidates)
            log_probs = log_probs.at[..., stop].set(-jnp.inf)
        log_probs = log_probs.reshape(*batch_shape, width * V)
        place = _largest(log_probs, width)
        log_prob = jnp.take_along_axis(log_probs, place, axis=-1)
        parent, token = place // V, (place % V).astype(first.dtype)
        gather = functools.partial(_gather, parent, axis=axis)
        put = lambda a, row: jax.lax.dynamic_update_index_in_dim(a, row.astype(a.dtype), n, 0)
        history = put(tokens, token), put(parents, parent)
        return n + 1, _Open(jax.tree.map(gather, new), token, log_prob), ended, history

    open_, ended, history, _ = vary_alike(open_, ended, history, params)
    n, open_, ended, history = jax.lax.while_loop(undecided, body, (jnp.int32(0), open_, ended, history))
    cut = _ended(score, open_.log_prob, jnp.int32(steps), jnp.arange(width, dtype=jnp.int32))
    cut = cut._replace(score=jnp.where(n == steps, cut.score, -jnp.inf), length=cut.length + 1)  # told apart below
    ended = _best(n_best, ended, cut)
    return _traced_back(ended, history, steps, stop)


def _checked(who: str, length_penalty: Score) -> Score:
    """A score; of what is impossible, a log-probability of -inf, it is -inf whatever the penalty makes of that."""

    def score(log_prob, n):
        made = length_penalty(log_prob, n)
        shape, dtype = jnp.shape(made), jnp.result_type(made)
        if shape != log_prob.shape or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{who}: length_penalty must return a score for each log-probability, {log_prob.dtype} of shape "
                f"{log_prob.shape}, got {dtype} of shape {shape}."
            )
        return jnp.where(log_prob != -jnp.inf, made.astype(log_prob.dtype), -jnp.inf)

    return score


def _power(who: str, alpha: Any) -> Score:
    is_number = isinstance(alpha, int | float | np.number) and not isinstance(alpha, bool) and math.isfinite(alpha)
    if not is_number and not (isinstance(alpha, jax.Array) and alpha.ndim == 0):
        raise TypeError(
            f"{who}: length_penalty must be a number or a function (log_prob, n) -> score, got {alpha!r:.80}; "
            f"jr.decoding.wu_2016(0.6) is such a function."
        )
    return lambda log_prob, n: log_prob / n.astype(log_prob.dtype) ** jnp.asarray(alpha, log_prob.dtype)


def _continued(log_prob: jax.Array, logits: jax.Array) -> jax.Array:
    """log p of each hypothesis with one more token; none follows where all logits are -inf, whose softmax is NaN."""
    follows = (log_prob != -jnp.inf) & (logits != -jnp.inf)
    return jnp.where(follows, log_prob + jax.nn.log_softmax(logits), -jnp.inf)


def _ended(score: Score, log_prob: jax.Array, length: jax.Array, beam: jax.Array) -> _Ended:
    """Every member (*B, W) of a beam, ended at a length."""
    length = jnp.broadcast_to(length, log_prob.shape)
    return _Ended(score(log_prob, length), log_prob, length, jnp.broadcast_to(beam, log_prob.shape))


def _best(n_best: int, *those: _Ended) -> _Ended:
    """The best of all; of equal ones the earlier, so that no sequence's result depends on how long the others take."""
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *those)
    score, by_penalty = together.score, ~jnp.isnan(together.log_prob)  # not the model's NaN, which is to be seen
    lowest = jnp.finfo(score.dtype).min
    places = _largest(jnp.where(jnp.isnan(score) & by_penalty, lowest, score), n_best)
    return jax.tree.map(lambda a: jnp.take_along_axis(a, places, axis=-1), together)


def _largest(values: jax.Array, k: int) -> jax.Array:
    """The places of the k largest; NaN before all others, which a sort has first or last by its sign."""
    return jax.lax.top_k(jnp.where(jnp.isnan(values), jnp.inf, values), k)[1]


def _gather(parent: jax.Array, a: jax.Array, *, axis: int) -> jax.Array:
    """Of a leaf (*B, W, …), for each member of the beam its parent's part."""
    index = parent.reshape(parent.shape + (1,) * (a.ndim - parent.ndim))
    return jnp.take_along_axis(a, index, axis=axis)


def _traced_back(ended: _Ended, history: tuple[jax.Array, jax.Array], steps: int, stop: int | None) -> Beams:
    """The tokens of each, from its last to its first.

    A length of steps + 1 is that of one which was cut, without a stop symbol.
    """
    is_there = ended.score != -jnp.inf
    inner = jnp.where(is_there, ended.length - 1, 0)  # tokens that stand in the history
    pad = jnp.asarray(0 if stop is None else stop, history[0].dtype)

    def back(beam, row):
        n, tokens, parents = row
        token, parent = (jnp.take_along_axis(a, beam, axis=-1) for a in (tokens, parents))
        return jnp.where(n < inner, parent, beam), jnp.where(n < inner, token, pad)

    _, tokens = jax.lax.scan(back, ended.beam, (jnp.arange(steps, dtype=jnp.int32), *history), reverse=True)
    lengths = jnp.where(is_there, jnp.minimum(ended.length, steps), 0)
    log_prob = jnp.where(is_there, ended.log_prob, -jnp.inf)
    return Beams(tokens, lengths, log_prob, ended.score)
