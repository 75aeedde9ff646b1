"""Beam search against all sequences of 4 symbols and 5 steps; a narrow one against a search in plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import decoding
from tests.language import CELL, CLOSE, PARAMS, STOP, V, every_sequence, jitted_step, log_softmax

STEPS, FIRSTS = 5, (0, 2)
PENALTIES = {
    "none": (0.0, lambda log_p, n: log_p),
    "mean": (1.0, lambda log_p, n: log_p / n),
    "short": (-0.8, lambda log_p, n: log_p * n**0.8),
    "wu": (decoding.wu_2016(0.9), lambda log_p, n: log_p / ((5 + n) / 6) ** 0.9),
    "bonus": (lambda log_p, n: log_p + 0.7 * n.astype(log_p.dtype), lambda log_p, n: log_p + 0.7 * n),
}


def search(cell=CELL, params=PARAMS, carry=None, first=FIRSTS, *, steps=STEPS, **options):
    run = jax.jit(functools.partial(jr.beam_search, cell, steps=steps, **options))
    return run(params, carry, jnp.asarray(first, jnp.int32))


def every_hypothesis(first, stop, score):
    """``{tokens: (score, log_prob)}`` of all that end with the stop symbol or have 5 tokens, by brute force."""
    tokens, log_probs = every_sequence(STEPS, first)
    found = {}
    for sequence, row in zip(tokens.T, log_probs.T, strict=True):
        stops = np.flatnonzero(sequence == stop)
        n = STEPS if stop is None or not len(stops) else stops[0] + 1
        found[tuple(sequence[:n].tolist())] = (score(row[:n].sum(), n), row[:n].sum())
    return found


def hypotheses(beams, b):
    """``[(tokens, score, log_prob)]`` of one sequence of the batch."""
    lengths = np.asarray(beams.lengths)[b]
    tokens = [tuple(np.asarray(beams.tokens)[:n, b, place].tolist()) for place, n in enumerate(lengths)]
    return list(zip(tokens, np.asarray(beams.scores)[b], np.asarray(beams.log_probs)[b], strict=True))


# Without a stop symbol all have one length, so every penalty gives one order.
@pytest.mark.parametrize(
    ("stop", "penalty"),
    [
        *((STOP, name) for name in ("none", "mean", "short")),
        *(pytest.param(STOP, name, marks=pytest.mark.full) for name in ("wu", "bonus")),
        (None, "none"),
        pytest.param(None, "wu", marks=pytest.mark.full),
    ],
)
def test_a_beam_that_covers_the_tree_is_exact(stop, penalty):
    """3^5 = 243 open hypotheses with a stop symbol, 4^5 = 1,024 without."""
    option, score = PENALTIES[penalty]
    found = search(width=243 if stop is not None else 1024, stop=stop, length_penalty=option, n_best=6)
    for b, first in enumerate(FIRSTS):
        expected = every_hypothesis(first, stop, score)
        best = sorted(expected, key=lambda tokens: -expected[tokens][0])[:6]
        own = hypotheses(found, b)
        assert [tokens for tokens, _, _ in own] == best
        for tokens, got, log_prob in own:
            np.testing.assert_allclose((got, log_prob), expected[tokens], **CLOSE)
        if stop is not None:
            padding = np.arange(STEPS)[:, None] >= found.lengths[b][None]
            assert (np.asarray(found.tokens)[:, b][padding] == stop).all()
    assert stop is None or len(set(np.asarray(found.lengths).ravel())) > 1


def by_hand(first, width, steps, stop, score, n_best):
    """A beam of one sequence, in Python: no early end, no arrays, hypotheses as tuples with their own carry."""
    open_ = [((), 0.0, CELL.initial_carry(PARAMS, (1,)))]
    ended = {}
    for n in range(1, steps + 1):
        longer = []
        for tokens, log_p, carry in open_:
            new, logits = jitted_step(CELL)(PARAMS, carry, jnp.array([tokens[-1] if tokens else first]))
            for token, p in enumerate(log_softmax(logits)[0]):
                if token == stop:
                    ended[(*tokens, token)] = score(log_p + p, n)
                else:
                    longer.append(((*tokens, token), log_p + p, new))
        open_ = sorted(longer, key=lambda found: -found[1])[:width]
    ended |= {tokens: score(log_p, steps) for tokens, log_p, _ in open_}
    return sorted(ended.items(), key=lambda item: -item[1])[:n_best]


@pytest.mark.parametrize(
    ("width", "penalty"),
    [(3, "wu"), *(pytest.param(*case, marks=pytest.mark.full) for case in ((1, "none"), (3, "short"), (4, "bonus")))],
)
def test_a_narrow_beam_equals_one_in_python(width, penalty):
    """Which goes on to the last step: what ends early has lost nothing."""
    option, score = PENALTIES[penalty]
    found = search(width=width, stop=STOP, length_penalty=option, n_best=width, steps=9)
    for b, first in enumerate(FIRSTS):
        expected = by_hand(first, width, 9, STOP, score, width)
        own = hypotheses(found, b)
        assert [tokens for tokens, _, _ in own] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose([s for _, s, _ in own], [s for _, s in expected], **CLOSE)
        assert len({tokens for tokens, _, _ in own}) == width  # none twice


def test_width_1_without_a_stop_symbol_is_greedy():
    made = jr.generate(CELL, PARAMS, None, jnp.array(FIRSTS), steps=7)
    found = search(width=1, steps=7)
    np.testing.assert_array_equal(found.tokens[..., 0], made.tokens)
    np.testing.assert_allclose(found.scores[..., 0], made.log_probs.sum(0), **CLOSE)


def test_it_ends_when_nothing_can_win():
    seen = []

    def step(params, carry, token):
        jax.debug.callback(lambda: seen.append(None))
        return carry, jnp.broadcast_to(jnp.log(jnp.array([0.05, 0.03, 0.02, 0.9])), (*token.shape, 4))

    cell = jr.Cell(lambda key: (), lambda params, batch_shape=(): jnp.zeros(batch_shape), step, x_ndim=0)
    turns = {}
    for n_best in (1, 2):
        seen.clear()
        found = search(cell, (), width=2, stop=3, steps=60, n_best=n_best)
        jax.effects_barrier()
        turns[n_best] = len(seen)
        assert found.lengths[0].tolist() == [1, 2][:n_best]
    # Every call of the step is of the whole beam, or (vmap of a callback) one for each member of it.
    assert turns[1] in (1, 2, 4) and turns[1] < turns[2] <= 2 * turns[1]


def test_a_memory_is_shared_among_the_beam():
    """A cell that closes over (S, *B, M), and attends to it: its batch axes are those of the step."""
    memory = jax.random.normal(jax.random.key(5), (6, 2, 5))

    def reading(memory):
        def step(params, carry, token):
            h, _ = carry
            weights = jax.nn.softmax(jnp.einsum("sbm,bm->sb", memory, h[1]), axis=0)
            context = jnp.einsum("sb,sbm->bm", weights, memory)
            new, logits = CELL.step(params, h, token)
            new = (new[0], 0.5 * (new[1] + context), *new[2:])
            return (new, {"weights": jnp.moveaxis(weights, 0, -1), "steps": carry[1]["steps"] + 1}), logits

        def initial_carry(params, batch_shape=()):
            rest = {"weights": jnp.zeros((*batch_shape, 6)), "steps": jnp.zeros(batch_shape, jnp.int32)}
            return CELL.initial_carry(params, batch_shape), rest

        return jr.Cell(CELL.init, initial_carry, step, x_ndim=0)

    first = jnp.array(FIRSTS)

    @jax.jit
    def found_in(memory):
        return jr.beam_search(reading(memory), PARAMS, None, first, width=4, steps=6, stop=STOP, n_best=4)

    @jax.jit
    def score(memory, tokens, lengths):
        return jr.log_likelihood(reading(memory), PARAMS, tokens, lengths, first=first)

    found, of_others = found_in(memory), []
    for place in range(4):  # a carry that came from another hypothesis would give another score
        tokens, lengths = found.tokens[..., place], found.lengths[..., place]
        np.testing.assert_allclose(found.log_probs[..., place], score(memory, tokens, lengths), **CLOSE)
        of_others.append(score(memory[:, ::-1], tokens, lengths))
    assert not np.allclose(found.log_probs, np.stack(of_others, -1), atol=1e-3)  # a longer one has read it


@pytest.mark.full
def test_batch_axes_and_prefixes():
    prefix, lengths = jnp.array([[1, 0], [2, 1]]), jnp.array([2, 0])
    options = dict(width=3, steps=4, stop=STOP, n_best=2)
    run = functools.partial(jr.beam_search, CELL, **options)
    together = jax.jit(run)(PARAMS, None, jnp.array([0, 0]), prefix=prefix, lengths=lengths)
    alone = jax.jit(run)(PARAMS, None, jnp.array(0), prefix=prefix[:, 0])
    np.testing.assert_array_equal(together.tokens[:, 0], alone.tokens)
    np.testing.assert_allclose(together.scores[0], alone.scores, **CLOSE)
    np.testing.assert_array_equal(together.tokens[:, 1], search(first=[0], **options).tokens[:, 0])


def test_what_is_not_there_has_length_0():
    """Of two symbols, one of them the stop symbol, there are 4 hypotheses of 3 steps."""
    cell = jr.Cell(
        lambda key: (), lambda params, batch_shape=(): (), lambda p, c, x: (c, jnp.zeros((*x.shape, 2))), x_ndim=0
    )
    found = search(cell, (), first=0, width=6, steps=3, stop=1, n_best=6)
    assert found.lengths.tolist()[:2] == [1, 2] and sorted(found.lengths.tolist()) == [0, 0, 1, 2, 3, 3]
    assert np.isneginf(found.scores[-2:]).all() and np.isfinite(found.scores[:-2]).all()


def test_the_smallest_of_trees():
    one = search(width=1, steps=1)
    assert one.tokens.shape == (1, 2, 1) and (one.lengths == 1).all() and V == 4


def test_what_cannot_go_on_is_no_hypothesis():
    """A grammar: after 2 nothing may follow, and what is impossible is not drawn in by a penalty, nor by NaN."""
    with np.errstate(divide="ignore"):
        grammar = jnp.log(jnp.array([[0, 0.25, 0.75, 0], [0, 0, 0, 1.0], [0, 0, 0, 0], [0, 0, 0.25, 0.75]]))
    cell = jr.Cell(lambda key: (), lambda params, batch_shape=(): (), lambda _, c, v: (c, grammar[v]), x_ndim=0)
    penalty = lambda log_p, n: jnp.ones_like(log_p)
    for option in (0.0, penalty):
        found = search(cell, (), first=(0,), steps=3, width=4, n_best=4, length_penalty=option)
        assert found.tokens[:, 0, :2].T.tolist() in ([[1, 3, 3], [1, 3, 2]], [[1, 3, 2], [1, 3, 3]])
        assert found.lengths.tolist() == [[3, 3, 0, 0]]
        assert (found.scores[0, 2:] == -jnp.inf).all()
        np.testing.assert_allclose(jnp.sort(jnp.exp(found.log_probs[0])), [0, 0, 1 / 16, 3 / 16], **CLOSE)


def test_nan_is_to_be_seen():
    found = search(params=jax.tree.map(lambda a: a * jnp.nan, PARAMS), width=2, stop=STOP)
    assert jnp.isnan(found.scores).all() and jnp.isnan(found.log_probs).all()


def test_a_stop_symbol_of_an_array(traced):
    run = lambda stop: traced(functools.partial(jr.beam_search, CELL, width=2, steps=3, stop=stop))
    made, want = (run(stop)(PARAMS, None, jnp.array(FIRSTS)) for stop in (jnp.int32(STOP), STOP))
    jax.tree.map(np.testing.assert_array_equal, made, want)
    with pytest.raises(ValueError, match="beam_search: stop must be"):
        run(jnp.int32(-1))(PARAMS, None, jnp.array(FIRSTS))


def test_what_a_penalty_makes_nan_of_comes_last(traced):
    """Of two symbols, one of them the stop symbol; what stops at once is the likeliest, and the penalty overflows."""
    logits = jnp.log(jnp.array([0.3, 0.7]))
    step = lambda p, c, x: (c, jnp.broadcast_to(logits, (*x.shape, 2)))
    cell = jr.Cell(lambda key: (), lambda params, batch_shape=(): (), step, x_ndim=0)
    overflows = lambda log_p, n: jnp.where(n == 1, jnp.inf - jnp.exp(1e3 * n.astype(log_p.dtype)), log_p)
    run = functools.partial(jr.beam_search, cell, width=3, steps=3, stop=1, n_best=4 - 1, length_penalty=overflows)
    found = traced(lambda first: run((), None, first))(jnp.int32(0))
    assert found.lengths.tolist() == [2, 3, 3]
    np.testing.assert_allclose(found.log_probs, np.log([0.3 * 0.7, 0.3 * 0.3 * 0.7, 0.3**3]), rtol=1e-5)
    always = functools.partial(run, length_penalty=lambda log_p, n: jnp.full_like(log_p, jnp.nan))
    found = traced(lambda first: always((), None, first))(jnp.int32(0))
    assert jnp.isnan(found.scores).all() and (found.lengths > 0).all()
    power = functools.partial(run, length_penalty=2000.0)  # n^α is infinite
    found = traced(lambda first: power((), None, first))(jnp.int32(0))
    assert not jnp.isnan(found.scores).any() and jnp.isfinite(found.log_probs).all()
