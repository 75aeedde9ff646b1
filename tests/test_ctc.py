"""CTC against all alignments."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import decoding
from tests.language import log_softmax

T, B, V = 5, 4, 3
LOGITS = 0.7 * np.random.default_rng(1).normal(size=(T, B, V)).astype(np.float32)
LENGTHS = np.array([5, 4, 1, 0])
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32


@functools.cache
def decode(width=None, blank=0):
    return jax.jit(functools.partial(jr.decoding.ctc_decode, width=width, blank=blank))


LOSS = jax.jit(decoding.ctc_loss)


def labels_of(path, blank):
    """Repeats merged, blanks left out."""
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank)


def every_labelling(log_probs, blank):
    """``{labels: probability}``, over all alignments."""
    found = collections.Counter()
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        found[labels_of(path, blank)] += np.exp(sum(log_probs[t, symbol] for t, symbol in enumerate(path)))
    return found


def poisoned(logits):
    logits = np.array(logits)
    for b, n in enumerate(LENGTHS):
        logits[n:, b] = np.nan
    return logits


def unpadded(decoded, b):
    return tuple(np.asarray(decoded.tokens)[: int(decoded.lengths[b]), b].tolist())


@pytest.mark.parametrize("blank", [2, pytest.param(0, marks=pytest.mark.full)])
def test_decoding_equals_brute_force(blank):
    greedy = decode(None, blank)(poisoned(LOGITS), LENGTHS)
    beam = decode(40, blank)(poisoned(LOGITS), LENGTHS)
    differ = 0
    for b, n in enumerate(LENGTHS):
        log_probs = log_softmax(LOGITS[:n, b])
        path = log_probs.argmax(-1).tolist()
        assert unpadded(greedy, b) == labels_of(path, blank)
        np.testing.assert_allclose(greedy.log_probs[b], log_probs.max(-1).sum(), **CLOSE)
        found = every_labelling(log_probs, blank)
        best = max(found, key=found.get)
        assert unpadded(beam, b) == best
        np.testing.assert_allclose(beam.log_probs[b], np.log(found[best]), **CLOSE)
        differ += best != labels_of(path, blank)
        assert (np.asarray(beam.tokens)[int(beam.lengths[b]) :, b] == blank).all()
    assert differ, "the two agree everywhere, which tests little"


def test_the_n_best_equal_brute_force():
    beam = jax.jit(functools.partial(decoding.ctc_decode, width=40, n_best=6))(poisoned(LOGITS), LENGTHS)
    assert beam.tokens.shape == (T, B, 6) and beam.lengths.shape == beam.log_probs.shape == (B, 6)
    for b, n in enumerate(LENGTHS):
        found = every_labelling(log_softmax(LOGITS[:n, b]), 0)
        best = sorted(found, key=found.get, reverse=True)[:6]
        there = len(best)  # no step has one labelling, a single one as many as there are symbols
        those = [tuple(np.asarray(beam.tokens)[: beam.lengths[b, k], b, k].tolist()) for k in range(there)]
        assert those == best
        np.testing.assert_allclose(beam.log_probs[b, :there], np.log([found[labels] for labels in best]), **CLOSE)
        assert (beam.log_probs[b, there:] == -jnp.inf).all() and (beam.lengths[b, there:] == 0).all()
    alone = decode(40)(poisoned(LOGITS), LENGTHS)
    np.testing.assert_array_equal(alone.tokens, beam.tokens[..., 0])
    with pytest.raises(ValueError, match=r"n_best=3: more than the beam's width=2; give a width of 3 at least"):
        decoding.ctc_decode(LOGITS, width=2, n_best=3)
    with pytest.raises(ValueError, match="n_best=1: greedy decoding has one; give a width of 1 at least"):
        decoding.ctc_decode(LOGITS, n_best=1)


def beam_by_hand(log_probs, width, blank):
    """Prefixes in a dictionary, as the papers write it: probabilities that end with the blank, and that do not."""
    beam = {(): (1.0, 0.0)}
    for p in np.exp(log_probs):
        new = collections.defaultdict(lambda: [0.0, 0.0])
        for prefix, (ends_blank, ends_label) in beam.items():
            new[prefix][0] += (ends_blank + ends_label) * p[blank]
            for symbol in range(len(p)):
                if symbol == blank:
                    continue
                if prefix and symbol == prefix[-1]:
                    new[prefix][1] += ends_label * p[symbol]
                    new[(*prefix, symbol)][1] += ends_blank * p[symbol]
                else:
                    new[(*prefix, symbol)][1] += (ends_blank + ends_label) * p[symbol]
        beam = dict(sorted(new.items(), key=lambda item: -sum(item[1]))[:width])
    best = max(beam, key=lambda prefix: sum(beam[prefix]))
    return best, np.log(sum(beam[best]))


@pytest.mark.parametrize("width", [3, pytest.param(1, marks=pytest.mark.full)])
def test_a_narrow_beam_equals_one_in_python(width):
    """Over 12 steps prefixes are dropped and come again."""
    logits = np.random.default_rng(2).normal(size=(12, 6, 4)).astype(np.float32)
    found = decode(width)(logits)
    for b in range(6):
        labels, log_prob = beam_by_hand(log_softmax(logits[:, b]), width, 0)
        assert unpadded(found, b) == labels
        np.testing.assert_allclose(found.log_probs[b], log_prob, **CLOSE)


def test_the_loss_equals_brute_force():
    labels = jnp.array([[1, 2, 1, -1], [1, 7, -1, -1], [2, 7, -1, -1]])  # 1 1 2; 2; 1; none
    label_lengths = jnp.array([3, 1, 1, 0])
    loss = LOSS(poisoned(LOGITS), labels, lengths=LENGTHS, label_lengths=label_lengths)
    for b, (n, m) in enumerate(zip(LENGTHS, label_lengths, strict=True)):
        wanted = tuple(labels[:m, b].tolist())
        probability = every_labelling(log_softmax(LOGITS[:n, b]), 0)[wanted]
        np.testing.assert_allclose(loss[b], -np.log(probability), **CLOSE)

    def total(logits):
        return decoding.ctc_loss(logits, labels, lengths=LENGTHS, label_lengths=label_lengths).sum()

    gradient = np.asarray(jax.jit(jax.grad(total))(poisoned(LOGITS)))
    assert np.isfinite(gradient).all() and np.abs(gradient[0, :3]).min() > 0
    assert all(not gradient[n:, b].any() for b, n in enumerate(LENGTHS))


@pytest.mark.full
def test_a_beam_that_covers_all_gives_the_loss():
    found = decode(40)(LOGITS, np.full(B, T))
    loss = LOSS(LOGITS, found.tokens, label_lengths=found.lengths)
    np.testing.assert_allclose(found.log_probs, -loss, **CLOSE)


@pytest.mark.full
def test_batch_axes():
    logits = LOGITS.reshape(T, 2, 2, V)
    for width in (None, 3):
        together, flat, one = (decode(width)(a) for a in (logits, LOGITS, LOGITS[:, 1]))
        np.testing.assert_array_equal(together.tokens.reshape(T, B), flat.tokens)
        np.testing.assert_allclose(together.log_probs.ravel(), flat.log_probs, **CLOSE)
        np.testing.assert_array_equal(one.tokens, flat.tokens[:, 1])
        assert together.lengths.shape == (2, 2) and one.lengths.shape == ()
    labels = np.ones((1, 2, 2), int)
    np.testing.assert_allclose(LOSS(logits, labels).ravel(), LOSS(LOGITS, labels.reshape(1, B)), **CLOSE)


@pytest.mark.full
def test_impossible_symbols():
    logits = np.where(np.arange(V) == 1, -np.inf, LOGITS)
    found = decode(40)(logits, np.full(B, T))
    assert np.isfinite(found.log_probs).all() and not (found.tokens == 1).any()
    loss = LOSS(logits, found.tokens, label_lengths=found.lengths)
    np.testing.assert_allclose(found.log_probs, -loss, **CLOSE)


def test_labels_that_are_none_give_nan():
    logits, labels = jnp.zeros((3, 4, 200)), jnp.array([[1, -1, 5, 0], [2, 2, 2, 2]], jnp.int8)
    loss = decoding.ctc_loss(logits, labels)
    assert jnp.isnan(loss).tolist() == [False, True, False, True]
    np.testing.assert_array_equal(loss[:1], decoding.ctc_loss(logits[:, :1], labels[:, :1].astype(int)))
    assert jnp.isnan(decoding.ctc_loss(logits, labels.astype(int).at[0, 2].set(200))).tolist() == [0, 1, 1, 1]
    assert jnp.isfinite(decoding.ctc_loss(logits[:, 1], labels[:, 1], label_lengths=jnp.array(0)))


@pytest.mark.parametrize("width", [None, 2])
def test_no_steps_and_no_sequences(width):
    for shape in ((0, 2, 3), (2, 0, 3)):
        found = jr.decoding.ctc_decode(jnp.zeros(shape), width=width)
        assert found.tokens.shape == shape[:2] and found.lengths.tolist() == found.log_probs.tolist() == [0] * shape[1]


def test_a_blank_of_an_array(traced):
    logits = jnp.log(jnp.array([[0.6, 0.4], [0.7, 0.3]]))
    for blank in (0, 1):
        made, want = (
            traced(functools.partial(decoding.ctc_decode, blank=b))(logits) for b in (jnp.int32(blank), blank)
        )
        jax.tree.map(np.testing.assert_array_equal, made, want)
    with pytest.raises(ValueError, match="ctc_decode: blank must be one of the symbols 0 to 1, got 2"):
        decoding.ctc_decode(logits, blank=jnp.int32(2))
