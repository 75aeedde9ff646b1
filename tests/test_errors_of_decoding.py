"""What the closed loop refuses, while tracing."""

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as jr
from jaxrnn import decoding
from tests.errors import KEY, assert_fails
from tests.language import CELL, PARAMS, V

FIRST = jnp.array([0, 1])
TOKENS = jnp.array([[1, 2], [3, 0], [1, 1]])
OTHER = jnp.zeros((3, 5))
WIDE = jr.chain(jr.embedding(200, 2), jr.readout(2, 200))
PARAMS_OF_WIDE = WIDE.init(KEY)


def generate(cell=CELL, params=PARAMS, carry=None, first=FIRST, **options):
    return jr.generate(cell, params, carry, first, **{"steps": 4, **options})


def search(cell=CELL, params=PARAMS, carry=None, first=FIRST, **options):
    return jr.beam_search(cell, params, carry, first, **{"steps": 4, "width": 2, **options})


def scheduled(targets=TOKENS, **options):
    run = decoding.scheduled_sampling
    return run(CELL, PARAMS, targets, **{"first": FIRST, "rate": 0.5, "key": KEY, **options})


def carry_of(batch):
    return CELL.initial_carry(PARAMS, (batch,))


ERRORS = {
    # carries and first samples
    "carry of another batch": (
        lambda: generate(carry=carry_of(3)),
        ValueError,
        ["generate: first has the batch axes (2,), for which carry[1] should have shape (2, 5), got (3, 5)"],
    ),
    "beam, carry of another batch": (
        lambda: search(carry=carry_of(3)),
        ValueError,
        ["beam_search: first has the batch axes (2,)", "got (3, 5)", "one batch"],
    ),
    "carry of another structure": (lambda: generate(carry=OTHER), ValueError, ["generate: carry should be tuple of 3"]),
    "first of another batch": (
        lambda: generate(carry=carry_of(2), first=jnp.zeros((2, 1), int)),
        ValueError,
        ["generate: first has the batch axes (2, 1), for which carry[1] should have shape (2, 1, 5), got (2, 5)"],
    ),
    "one first token for a batch": (
        lambda: generate(carry=carry_of(2), first=0),
        ValueError,
        ["generate: first has the batch axes ()", "a first sample and a carry for each sequence"],
    ),
    "first, floats": (
        lambda: generate(first=jnp.zeros(2)),
        TypeError,
        ["generate: first must be tokens, integers (*B), got float32 (2,)"],
    ),
    "tokens for a cell that reads vectors": (
        lambda: generate(jr.chain(jr.gru(V, 5), jr.readout(5, V)), None),
        TypeError,
        ["generate: first is int32, but chain reads vectors", "jr.embedding", "jax.nn.one_hot(token, 4)"],
    ),
    "first, nothing": (lambda: generate(first=()), ValueError, ["generate: first must be the first sample"]),
    # samplers
    "unknown sampler": (
        lambda: generate(sample="topk"),
        ValueError,
        ["generate: sample must be one of 'greedy', 'temperature', 'top_k', 'top_p' or a function, got 'topk'; did"],
    ),
    **{
        f"{name} without a key": (
            lambda name=name: generate(sample=name),
            ValueError,
            ["generate: drawing at random needs a key; give key=jax.random.key(0)", "sample='greedy'"],
        )
        for name in ("temperature", "top_k", "top_p")
    },
    **{
        f"temperature {t} of {make.__name__}": (
            lambda make=make, t=t: make(temperature=t),
            ValueError,
            [f"{make.__name__}: temperature must be above 0, got {t}", "sample='greedy'"],
        )
        for make in (decoding.temperature, decoding.top_k, decoding.top_p)
        for t in (0.0, -1.0)
    },
    **{
        f"p={p}": (lambda p=p: decoding.top_p(p), ValueError, [f"top_p: p must be above 0 and at most 1, got {p}"])
        for p in (0.0, -0.5, 1.5)
    },
    "k of 0": (lambda: decoding.top_k(0), ValueError, ["top_k: k must be a positive int, got 0"]),
    "k above the vocabulary": (
        lambda: generate(sample=decoding.top_k(5), key=KEY),
        ValueError,
        ["top_k: k=5 is more than the vocabulary of 4 tokens", "sample='temperature'"],
    ),
    "an option of another sampler": (lambda: decoding.temperature(k=3), TypeError, ["unexpected keyword argument 'k'"]),
    "a key that is none": (lambda: generate(sample="top_p", key=3), TypeError, ["generate: key must be"]),
    "noise_key that is none": (lambda: generate(noise_key=3), TypeError, ["generate: noise_key: key must be"]),
    "outputs that are no logits": (
        lambda: generate(jr.branch(CELL, CELL), (PARAMS, PARAMS)),
        TypeError,
        ["greedy: tokens are drawn from logits", "tuple", "jr.readout(H, V)"],
    ),
    "what is drawn is no input": (
        lambda: generate(sample=lambda key, y: y),
        ValueError,
        ["generate: what is drawn, float32 (2, 4), must be of the kind of first, int32 (2,)"],
    ),
    # stop, pad, prefix
    **{
        f"{who}, stop={stop}": (
            lambda run=run, stop=stop: run(stop=stop),
            ValueError,
            [f"{who}: stop must be", f"got {stop}"],
        )
        for who, run in (("generate", generate), ("beam_search", search))
        for stop in (4, -1)
    },
    "stop, a function of something else": (
        lambda: generate(stop=lambda token: token.sum() > 1),
        TypeError,
        ["generate: stop must give booleans (2,)", "got bool of shape ()"],
    ),
    "pad": (lambda: generate(stop=3, pad=1.5), ValueError, ["generate: pad=1.5 does not fit into int32"]),
    "lengths without a prefix": (
        lambda: generate(lengths=jnp.array([1, 2])),
        ValueError,
        ["generate: lengths are those of a prefix, and there is none"],
    ),
    "a prefix of another batch": (
        lambda: generate(prefix=jnp.zeros((4, 3), int)),
        ValueError,
        ["generate: prefix must be samples (T, *B, …)", "int32 (2,), got int32 (4, 3)"],
    ),
    "lengths of another batch": (
        lambda: generate(prefix=TOKENS, lengths=jnp.array([1])),
        ValueError,
        ["generate: lengths must have the batch shape (2,)"],
    ),
    "a Layer": (lambda: generate(jr.scan(CELL)), TypeError, ["generate: expected a Cell, got scan(chain)", "jr.chain"]),
    "params of another cell": (lambda: generate(params=()), ValueError, ["generate: params should be tuple of 3"]),
    "no steps": (lambda: generate(steps=0), ValueError, ["generate: steps must be a positive int, got 0"]),
    # beams
    "width above the tree": (
        lambda: search(width=257),
        ValueError,
        ["beam_search: width=257 is more than the 4^4 = 256 sequences of 4 tokens; give that width at most"],
    ),
    "n_best above the width": (
        lambda: search(n_best=3),
        ValueError,
        ["beam_search: n_best=3 is more than the beam's width=2; give a larger width"],
    ),
    "a penalty by name": (
        lambda: search(length_penalty="wu"),
        TypeError,
        ["beam_search: length_penalty must be a number or a function (log_prob, n) -> score, got 'wu'"],
    ),
    "a penalty of another shape": (
        lambda: search(length_penalty=lambda log_prob, n: log_prob.sum()),
        TypeError,
        ["beam_search: length_penalty must return a score for each", "(2, 4), got float32 of shape ()"],
    ),
    **{
        f"tokens that first does not hold, {run.__name__}": (
            lambda run=run: run(WIDE, PARAMS_OF_WIDE, first=FIRST.astype(jnp.int8)),
            ValueError,
            ["first is int8, which holds tokens up to 127, but the cell puts out 200 logits", "first.astype('int32')"],
        )
        for run in (generate, search)
    },
    "scheduled, tokens that first does not hold": (
        lambda: decoding.scheduled_sampling(
            WIDE, PARAMS_OF_WIDE, jnp.zeros((3, 2), jnp.int8), first=FIRST.astype(jnp.int8), rate=0.5, key=KEY
        ),
        ValueError,
        ["scheduled_sampling: first is int8, which holds tokens up to 127"],
    ),
    # teacher forcing
    "tokens, floats": (
        lambda: jr.log_likelihood(CELL, PARAMS, TOKENS * 1.0, first=FIRST),
        TypeError,
        ["log_likelihood: tokens must be integers (T, *B), got float32"],
    ),
    "first for a score": (
        lambda: jr.log_likelihood(CELL, PARAMS, TOKENS, first=0),
        ValueError,
        ["log_likelihood: first must be one token for each sequence, integers (2,)", "jnp.full((2,), token)"],
    ),
    "no first step": (
        lambda: decoding.perplexity(CELL, PARAMS, TOKENS[:0]),
        ValueError,
        ["perplexity: tokens must have a first step"],
    ),
    "a layer without logits": (
        lambda: jr.log_likelihood(jr.stack(CELL, jr.pointwise(lambda y: y[..., :1, None])), (PARAMS, ()), TOKENS),
        ValueError,
        ["log_likelihood: stack must put out logits (T, *B, V), here (2, 2, 'V'), got (2, 2, 1, 1)"],
    ),
    "rate": (
        lambda: scheduled(rate=1.5),
        ValueError,
        ["scheduled_sampling: rate must be from 0 to 1, a number or one for each step, got 1.5"],
    ),
    "rates of another length": (
        lambda: scheduled(rate=jnp.ones(2)),
        ValueError,
        ["scheduled_sampling: rate must be one number, or (T,) of them, here (3,), got shape (2,)"],
    ),
    "no key": (lambda: scheduled(key=None), ValueError, ["scheduled_sampling: it is random, and needs a key"]),
    "targets of another kind": (
        lambda: scheduled(TOKENS * 1.0),
        ValueError,
        ["scheduled_sampling: targets must be samples (T, *B, …)", "got float32 (3, 2)"],
    ),
    # CTC
    "blank": (
        lambda: jr.decoding.ctc_decode(OTHER, blank=5),
        ValueError,
        ["ctc_decode: blank must be one of the symbols 0 to 4, got 5"],
    ),
    "logits, integers": (
        lambda: jr.decoding.ctc_decode(TOKENS),
        TypeError,
        ["ctc_decode: logits must be floats (T, *B, V), got int32 of shape (3, 2)"],
    ),
    "labels of another batch": (
        lambda: decoding.ctc_loss(jnp.zeros((4, 2, 3)), jnp.ones((2, 3), int)),
        ValueError,
        ["ctc_loss: labels must be integers (N, *B), here ('N', 2), got int32 (2, 3)"],
    ),
    "label lengths": (
        lambda: decoding.ctc_loss(jnp.zeros((4, 2, 3)), jnp.ones((2, 2), int), label_lengths=jnp.array([1])),
        ValueError,
        ["ctc_loss: label_lengths: lengths must have the batch shape (2,)"],
    ),
    "a width of 0": (
        lambda: jr.decoding.ctc_decode(OTHER, width=0),
        ValueError,
        ["ctc_decode: width must be a positive int"],
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error(case):
    call, error, words = ERRORS[case]
    if case == "an option of another sampler":  # Python's own words, raised where it is called
        with pytest.raises(error, match=words[0]):
            call()
    else:
        assert_fails(call, error, words)


def test_what_is_traced_is_not_refused():
    made = jax.eval_shape(lambda t, p: generate(sample=decoding.top_p(p, temperature=t), key=KEY), 1.0, 0.5)
    assert made.tokens.shape == (4, 2)
