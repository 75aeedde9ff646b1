"""Teacher forcing and what lies between it and free running: against plain loops, and against generate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from jaxrnn import decoding
from tests.language import CELL, CLOSE, PARAMS, STOP, V, plain_log_probs

T, B = 6, 3
FIRST = jnp.array([0, 1, 2])
TOKENS = jnp.asarray(np.random.default_rng(0).integers(V, size=(T, B)), jnp.int32)
LENGTHS = jnp.array([6, 2, 0])
ON = np.arange(T)[:, None] < np.asarray(LENGTHS)
KEY = jax.random.key(1)


def expected_rows(tokens=TOKENS, first=FIRST):
    return plain_log_probs(CELL, PARAMS, CELL.initial_carry(PARAMS, (B,)), first, tokens)[0]


def test_log_likelihood_equals_a_plain_loop():
    padded = jnp.where(ON, TOKENS, -1)
    rows = np.where(ON, expected_rows(), 0)
    score = jax.jit(functools.partial(jr.log_likelihood, CELL))
    np.testing.assert_allclose(score(PARAMS, padded, LENGTHS, first=FIRST), rows.sum(0), **CLOSE)
    of_layer = jr.log_likelihood(jr.scan(CELL), PARAMS, TOKENS, first=FIRST)
    np.testing.assert_allclose(of_layer, expected_rows().sum(0), **CLOSE)
    found = decoding.perplexity(CELL, PARAMS, padded, LENGTHS, first=FIRST)
    np.testing.assert_allclose(found, np.exp(-rows.sum() / ON.sum()), rtol=1e-5)


def test_without_a_first_token_the_first_is_read_and_not_scored():
    whole, lengths = jnp.concatenate([FIRST[None], TOKENS]), LENGTHS + 1
    expected = jr.log_likelihood(CELL, PARAMS, TOKENS, LENGTHS, first=FIRST)
    np.testing.assert_allclose(jr.log_likelihood(CELL, PARAMS, whole, lengths), expected, **CLOSE)
    one = decoding.perplexity(CELL, PARAMS, TOKENS, LENGTHS, first=FIRST)
    np.testing.assert_allclose(decoding.perplexity(CELL, PARAMS, whole, lengths), one, rtol=1e-5)


def test_the_score_of_what_was_generated_is_the_sum_of_its_log_probs():
    @jax.jit
    def written(key):
        made = jr.generate(CELL, PARAMS, None, FIRST, steps=9, stop=STOP, sample="temperature", key=key)
        return made, jr.log_likelihood(CELL, PARAMS, made.tokens, made.lengths, first=FIRST)

    made, score = written(KEY)
    np.testing.assert_allclose(score, made.log_probs.sum(0), **CLOSE)
    assert made.lengths.min() < 9


def test_a_token_that_is_none_gives_nan():
    for wrong in (V, -1):
        score = jr.log_likelihood(CELL, PARAMS, TOKENS.at[1, 0].set(wrong), first=FIRST)
        assert jnp.isnan(score).tolist() == [True, False, False]


# ---- scheduled sampling --------------------------------------------------------------------------


def scheduled(rate, **options):
    run = jax.jit(functools.partial(decoding.scheduled_sampling, CELL, first=FIRST, key=KEY, **options))
    return run(PARAMS, TOKENS, rate=rate)


def test_rate_0_is_teacher_forcing():
    read = jnp.concatenate([FIRST[None], TOKENS[:-1]])
    want, want_ys = jr.scan(CELL).apply(PARAMS, read, lengths=LENGTHS)
    carry, ys = scheduled(0.0, lengths=LENGTHS)
    np.testing.assert_allclose(ys, want_ys, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), carry, want)


def test_rate_1_is_free_running():
    _, k_samples = jax.random.split(KEY)
    for sample in ("greedy", "temperature"):
        made = jr.generate(CELL, PARAMS, None, FIRST, steps=T, sample=sample, key=k_samples)
        carry, ys = scheduled(1.0, sample=sample)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(ys), made.tokens[..., None], -1)[..., 0]
        np.testing.assert_allclose(chosen, made.log_probs, **CLOSE)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), carry, made.carry)


def test_each_coin_decides_what_is_read():
    """A cell that puts out what it reads: targets are 0, its own samples 1, the first 2."""

    def step(params, carry, token):
        return carry, {"read": token, "logits": jax.nn.one_hot(jnp.ones_like(token), 3) * 50.0}

    cell = jr.Cell(lambda key: (), lambda params, batch_shape=(): (), step, x_ndim=0)
    T, B = 400, 25
    rates = jnp.linspace(0.0, 1.0, T)
    run = jax.jit(
        lambda rate: decoding.scheduled_sampling(
            cell,
            (),
            jnp.zeros((T, B), jnp.int32),
            first=jnp.full(B, 2),
            rate=rate,
            key=KEY,
            sample=lambda key, y: y["logits"].argmax(-1),
        )[1]["read"]
    )
    read = np.asarray(run(jnp.broadcast_to(0.3, (T,))))
    assert (read[0] == 2).all() and set(read[1:].ravel()) == {0, 1}
    n = (T - 1) * B
    assert abs(read[1:].mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)  # four standard deviations of 9,975 coins
    assert abs(np.corrcoef(read[1:-1].ravel(), read[2:].ravel())[0, 1]) < 4 / np.sqrt(n)  # each step has its own
    growing = np.asarray(run(rates))[1:].mean(1)
    assert np.polyfit(np.linspace(0, 1, T - 1), growing, 1)[0] > 0.9


def test_scheduled_sampling_can_be_differentiated():
    """By the parameters, the samples being what they are: against a run over what was read."""

    def loss(params, logits):
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[..., None], -1)
        return -chosen.sum()

    def by_schedule(params):
        run = decoding.scheduled_sampling
        return loss(params, run(CELL, params, TOKENS, first=FIRST, rate=1.0, sample="greedy", key=KEY)[1])

    own = jr.generate(CELL, PARAMS, None, FIRST, steps=T).tokens
    read = jnp.concatenate([FIRST[None], own[:-1]])
    found = jax.jit(jax.grad(by_schedule))(PARAMS)
    expected = jax.jit(jax.grad(lambda params: loss(params, jr.scan(CELL).apply(params, read)[1])))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)  # float32 sums
    assert all(jnp.abs(a).max() > 1e-3 for a in jax.tree.leaves(found))


def test_tokens_of_a_narrow_dtype():
    """int8 holds no 200: neither the number of tokens nor, beside a first of int32, all of them."""
    model = jr.chain(jr.embedding(200, 2), jr.readout(2, 200))
    params = model.init(KEY)
    tokens, first = jnp.array([[100, 5], [127, 0]]), jnp.array([0, 150])
    expected = jr.log_likelihood(model, params, tokens, first=first)
    np.testing.assert_array_equal(jr.log_likelihood(model, params, tokens.astype(jnp.int8), first=first), expected)
    assert jnp.isfinite(expected).all()
