"""Connectionist temporal classification: labels of a sequence without an alignment."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import select
from jaxrnn._dtypes import accumulator, promoted
from jaxrnn._narrowing import as_lengths
from jaxrnn.running.scan import valid_steps


class CTCDecoded(NamedTuple):
    """What :func:`ctc_decode` returns; with ``n_best`` every field has an axis N more, its last, the likeliest first.

    Fields:
        tokens: (T, *B) integers, the labels; the blank behind them.
        lengths: (*B) integers, the labels of each. 0 where there are fewer than N labellings of a probability above 0:
            their log_probs are -inf.
        log_probs: (*B): greedy, of the likeliest alignment; of a beam, of the labels, all alignments together that the
            beam has kept.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array


@checks_arguments
def ctc_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    lengths: jax.Array | None = None,
    label_lengths: jax.Array | None = None,
    blank: int = 0,
) -> jax.Array:
    """Minus the log-probability of labels, over all their alignments: ``optax.ctc_loss``, time first.

        loss = -log Σ_π Π_t softmax(logits_t)[π_t]    over all π that give the labels: repeats merged, blanks left out

    Args:
        logits: (T, *B, V), the blank among the V.
        labels: (N, *B) integers, none of them the blank.
        lengths: (*B) integers, the valid steps of the logits; label_lengths: (*B), the labels of each. Clamped to T and
            N. What stands behind them, NaN included, reaches neither values nor gradients.
        blank: which of the V is the blank.

    Returns:
        (*B), differentiable. About 1e5 where no alignment is short enough: optax takes that for infinity. NaN where a
        label is the blank, or none of the V.

    Raises:
        ValueError, TypeError: while tracing, for what does not fit: batches that differ, a blank that is none of the V.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> loss = jr.decoding.ctc_loss(jnp.zeros((2, 2)), jnp.array([1]))  # 01, 10 and 11, of four
        >>> jnp.exp(-loss).round(2).item()
        0.75

    Reference:
        Graves et al., "Connectionist temporal classification: labelling unsegmented sequence data with recurrent neural
        networks", ICML 2006.
    """
    import optax  # here: `import jaxrnn` stays light

    who, blank = "ctc_loss", int(blank)
    logits, on = _checked(who, logits, lengths, blank)
    T, batch_shape = logits.shape[0], logits.shape[1:-1]
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape[1:] != batch_shape or not labels.ndim:
        raise ValueError(
            f"{who}: labels must be integers (N, *B), here {('N', *batch_shape)}, got {labels.dtype} {labels.shape}."
        )
    if not T:
        raise ValueError(f"{who}: logits must have a step at least, got shape {logits.shape}; lengths may be 0.")
    N = labels.shape[0]
    if label_lengths is not None:
        label_lengths = as_lengths(f"{who}: label_lengths", label_lengths, batch_shape)
    labelled = valid_steps(jnp.arange(N, dtype=jnp.int32), label_lengths, None)
    labelled = jnp.ones(labels.shape, bool) if labelled is None else labelled
    labels = labels.astype(promoted(labels.dtype, jnp.int32))  # int8 cannot be compared with 200
    is_label = (labels >= 0) & (labels < logits.shape[-1]) & (labels != blank)  # to optax one that is none is certain
    unknown = (labelled & ~is_label).any(0)
    # optax multiplies by one-hot labels: what is -inf in the logits would be NaN there, so it is the least number
    logits = jnp.maximum(logits, jnp.finfo(logits.dtype).min / 4)
    rows = lambda a: jnp.swapaxes(a.reshape(a.shape[0], math.prod(batch_shape), *a.shape[1 + len(batch_shape) :]), 0, 1)
    paddings = (1 - flags.astype(logits.dtype) for flags in (on, labelled))
    of_logits, of_labels = map(rows, paddings)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        labels = jnp.where(labelled, labels, blank)
        loss = optax.ctc_loss(rows(logits), of_logits, rows(labels), of_labels, blank_id=blank)
    return jnp.where(unknown, jnp.nan, loss.reshape(batch_shape).astype(logits.dtype))


@checks_arguments
def ctc_decode(
    logits: jax.Array,
    lengths: jax.Array | None = None,
    *,
    width: int | None = None,
    n_best: int | None = None,
    blank: int = 0,
) -> CTCDecoded:
    """The labels that a network trained with CTC sees in a sequence.

        greedy: the likeliest symbol of each step; repeats merged, blanks left out
        beam:   argmax_l Σ_π Π_t softmax(logits_t)[π_t]       over all π that give the labels l

    The greedy one is the likeliest alignment, whose labels need not be the likeliest: those have many alignments. The
    beam keeps the ``width`` likeliest prefixes of labels at each step, with the probability of all their alignments so
    far, and is exact where it holds all prefixes.

    Args:
        logits: (T, *B, V), the blank among the V.
        lengths: (*B) integers, the valid steps, clamped to T. What stands behind them does not matter, NaN included.
        width: the prefixes of the beam; None: greedy.
        n_best: N, how many labellings of the beam to return, ``width`` at most; None: the likeliest, without an axis N.
        blank: which of the V is the blank.

    Returns:
        :class:`CTCDecoded`.

    Raises:
        ValueError, TypeError: while tracing, for what does not fit: a blank that is none of the V, integers as logits,
            an n_best above the width or without one.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> logits = jnp.log(jnp.array([[0.6, 0.4], [0.6, 0.4]]))  # blank, blank has 0.36; a in any place 0.64
        >>> greedy, beam = jr.decoding.ctc_decode(logits), jr.decoding.ctc_decode(logits, width=2)
        >>> greedy.lengths.item(), beam.lengths.item(), f"{jnp.exp(beam.log_probs):.2f}"
        (0, 1, '0.64')

    Reference:
        Graves et al., ICML 2006, as for :func:`ctc_loss`; Hannun et al., "First-pass large vocabulary continuous speech
        recognition using bi-directional recurrent DNNs", 2014, for the beam.
    """
    blank = int(blank)
    logits, on = _checked("ctc_decode", logits, lengths, blank)
    log_probs = jax.nn.log_softmax(logits)
    if n_best is not None and n_best > (width or 0):
        having = "greedy decoding has one" if width is None else f"more than the beam's width={width}"
        raise ValueError(f"ctc_decode: n_best={n_best}: {having}; give a width of {n_best} at least.")
    if width is None:
        return _greedy(log_probs, on, blank)
    T, batch_shape = logits.shape[0], logits.shape[1:-1]
    flat = lambda a: a.reshape(T, math.prod(batch_shape), *a.shape[1 + len(batch_shape) :])  # T may be 0
    of_one = lambda log_probs, on: _prefix_beam(log_probs, on, width, n_best or 1, blank)
    tokens, counts, scores = jax.vmap(of_one, in_axes=1, out_axes=(1, 0, 0))(flat(log_probs), flat(on))
    shape = batch_shape if n_best is None else (*batch_shape, n_best)
    return CTCDecoded(tokens.reshape(T, *shape), counts.reshape(shape), scores.reshape(shape))


def _checked(who: str, logits: Any, lengths: Any, blank: Any) -> tuple[jax.Array, jax.Array]:
    """Logits (T, *B, V) in float32 at least, 0 in the padding, and which of the steps are valid, (T, *B)."""
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating) or logits.ndim < 2 or not logits.shape[-1]:
        raise TypeError(f"{who}: logits must be floats (T, *B, V), got {logits.dtype} of shape {logits.shape}.")
    if not 0 <= blank < logits.shape[-1]:
        raise ValueError(f"{who}: blank must be one of the symbols 0 to {logits.shape[-1] - 1}, got {blank!r}.")
    T, batch_shape = logits.shape[0], logits.shape[1:-1]
    if lengths is not None:
        lengths = as_lengths(who, lengths, batch_shape)
    on = valid_steps(jnp.arange(T, dtype=jnp.int32), lengths, None)
    logits = logits.astype(accumulator(logits.dtype))
    if on is None:
        return logits, jnp.ones((T, *batch_shape), bool)
    return select(on, logits, jnp.zeros_like(logits)), on


def _greedy(log_probs: jax.Array, on: jax.Array, blank: int) -> CTCDecoded:
    path = log_probs.argmax(-1).astype(jnp.int32)
    before = jnp.concatenate([jnp.full_like(path[:1], blank), path[:-1]])
    kept = on & (path != blank) & (path != before)
    place = jnp.where(kept, jnp.cumsum(kept, axis=0, dtype=jnp.int32) - 1, path.shape[0])  # beyond the end: dropped

    def put(places, path):
        return jnp.full_like(path, blank).at[places].set(path, mode="drop")

    flat = lambda a: a.reshape(a.shape[0], math.prod(a.shape[1:]))  # either may be 0
    tokens = jax.vmap(put, in_axes=1, out_axes=1)(flat(place), flat(path)).reshape(path.shape)
    of_path = jnp.where(on, log_probs.max(-1), 0)
    return CTCDecoded(tokens, kept.sum(0, dtype=jnp.int32), of_path.sum(0))


class _Prefixes(NamedTuple):
    """The beam: W prefixes of labels, all different; -inf: none."""

    labels: jax.Array  # (W, T)
    length: jax.Array  # (W,); -2 of none, which so is no neighbour of any
    blank: jax.Array  # (W,): log of the probability of its alignments that end with the blank,
    label: jax.Array  # and of those that end with its last label

    def last(self, otherwise: int) -> jax.Array:
        """The last label of each; of an empty prefix something else."""
        place = jnp.maximum(self.length - 1, 0)[:, None]
        return jnp.where(self.length > 0, jnp.take_along_axis(self.labels, place, axis=1)[:, 0], otherwise)


def _prefix_beam(log_probs: jax.Array, on: jax.Array, width: int, n_best: int, blank: int) -> tuple[jax.Array, ...]:
    """``(labels (T, N), lengths (N,), log_probs (N,))`` of one sequence, log_probs (T, V); the likeliest first."""
    T, V = log_probs.shape
    W, none = width, -jnp.inf
    symbols = jnp.arange(V, dtype=jnp.int32)

    def step(beam, at):
        p, valid = at
        total = jnp.logaddexp(beam.blank, beam.label)
        last = beam.last(blank)
        stay_blank = total + p[blank]
        stay_label = jnp.where(last == blank, none, beam.label + p[last])  # a repeat, merged
        # With one more label; the same label again needs a blank in between.
        again = symbols[None] == last[:, None]
        more = jnp.where(again, beam.blank[:, None], total[:, None]) + jnp.broadcast_to(p[None], (W, V))
        more = more.at[:, blank].set(none)
        # Where a prefix with one more label is in the beam already, all that leads to it is its own: child[w, j] says
        # that j is w with one more. Labels are compared whole, for a prefix that was dropped may come again.
        place = jnp.arange(T, dtype=jnp.int32)[None, None]
        same = (beam.labels[:, None] == beam.labels[None]) | (place >= beam.length[:, None, None])
        child = same.all(-1) & (beam.length[None] == beam.length[:, None] + 1)
        into = jnp.where(child, more[:, last], none)  # (w, j)
        stay_label = jnp.logaddexp(stay_label, jax.nn.logsumexp(into, axis=0))
        taken = (child[..., None] & (last[None, :, None] == symbols[None, None])).any(1)  # (w, v)
        more = jnp.where(taken, none, more)

        scores = jnp.concatenate([jnp.logaddexp(stay_blank, stay_label), more.reshape(-1)])
        best, chosen = jax.lax.top_k(scores, W)
        stays = chosen < W
        parent = jnp.where(stays, chosen, (chosen - W) // V)
        label = ((chosen - W) % V).astype(jnp.int32)
        length = beam.length[parent]
        here = jnp.arange(T, dtype=jnp.int32)[None] == length[:, None]
        labels = jnp.where(here & ~stays[:, None], label[:, None], beam.labels[parent])
        new = _Prefixes(
            labels,
            jnp.where(best > none, length + (~stays).astype(jnp.int32), -2),
            jnp.where(stays, stay_blank[parent], none),
            jnp.where(stays, stay_label[parent], best),
        )
        return jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, beam), None

    first = jnp.arange(W) == 0
    beam = _Prefixes(
        jnp.full((W, T), blank, jnp.int32),
        jnp.where(first, 0, -2).astype(jnp.int32),
        jnp.where(first, 0, none).astype(log_probs.dtype),
        jnp.full(W, none, log_probs.dtype),
    )
    beam, _ = jax.lax.scan(step, beam, (log_probs, on))
    scores, best = jax.lax.top_k(jnp.logaddexp(beam.blank, beam.label), n_best)
    return beam.labels[best].T, jnp.maximum(beam.length[best], 0), scores
