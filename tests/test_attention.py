"""Attention against NumPy: attend, the scores, the pool; padding, nothing to attend to, dtypes, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxrnn as jr
from tests.cases import draw, randomised

S, B, Q, M, A = 5, 3, 4, 6, 7
LENGTHS = np.array([5, 2, 0])
MASK = np.array([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool).T  # a gap; with the lengths one position
ON = MASK & (np.arange(S)[:, None] < LENGTHS)
CLOSE = {"rtol": 2e-5, "atol": 1e-6}  # float32, sums of a few numbers

SCORES = {
    "dot": jr.attention.dot(M),
    "scaled dot": jr.attention.dot(M, scale=0.3),
    "general": jr.attention.general(Q, M),
    "additive": jr.attention.additive(Q, M, A),
    "location": jr.attention.location_sensitive(Q, M, A, filters=2, kernel_size=3),
    "smoothed": jr.attention.location_sensitive(Q, M, A, filters=2, kernel_size=5, normalisation="sigmoid"),
    "window": jr.attention.location_sensitive(Q, M, A, filters=2, kernel_size=3, window=1),
}


def softmax(e, on):
    """Of one sequence, over the positions that are on."""
    α = np.zeros(len(e))
    if on.any():
        risen = np.exp(e[on] - e[on].max())
        α[on] = risen / risen.sum()
    return α


def by_hand(name, params, memory, on, query, before):
    """(weights, context) of one sequence, in float64: memory (S, M), query (Q,), before (S,) the last weights."""
    memory = np.where(on[:, None], memory, 0)
    if name in ("dot", "scaled dot"):
        e = memory @ query * (0.3 if name == "scaled dot" else 1.0)
    elif name == "general":
        e = np.array([query @ (m @ params.W_a) for m in memory])
    else:
        W, U, b, v, *location = params
        e = np.zeros(len(memory))
        for s, m in enumerate(memory):
            a = query @ W + m @ U + b
            if location:
                F, V = location
                R = len(F)
                seen = [before[s + r - R // 2] if 0 <= s + r - R // 2 < len(memory) else 0.0 for r in range(R)]
                a = a + np.array(seen) @ F @ V
            e[s] = v @ np.tanh(a)
    if name == "window" and before.sum():
        median = int(np.argmax(np.cumsum(before) >= before.sum() / 2))
        on = on & (np.abs(np.arange(len(e)) - median) <= 1)
    elif name == "window" and on.any():
        on = on & (np.abs(np.arange(len(e)) - np.argmax(on)) <= 1)
    if name == "smoothed":
        σ = np.where(on, 1 / (1 + np.exp(-e)), 0)
        α = σ / max(σ.sum(), 1e-300)
    else:
        α = softmax(e, on)
    return α, α @ memory


QUICK = ("general", "additive", "window")  # which between them run every line; the others are variants of these


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in SCORES])
def test_scores_are_those_of_the_papers(name):
    """Three steps, each with its own query: the later ones see where the earlier ones looked."""
    attention = SCORES[name]
    params = randomised(attention.init(jax.random.key(0)), 1)
    memory, queries = draw((S, B, M), 2), 2 * draw((3, B, attention.query_size), 3)

    def run(params, memory, queries):
        keys = attention.prepare(params, jnp.where(ON[..., None], memory, 0), jnp.asarray(ON))
        state = attention.initial_state(params, keys) if attention.initial_state else ()
        found = []
        for query in queries:
            state, attended = attention.attend(params, keys, state, query)
            found.append(attended)
        return found

    found = jax.jit(run)(params, memory, queries)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, memory, queries))
    for b in range(B):
        α = np.zeros(S)
        for t in range(3):
            α, context = by_hand(name, exact[0], exact[1][:, b], ON[:, b], exact[2][t, b], α)
            np.testing.assert_allclose(found[t].weights[b], α, **CLOSE)
            np.testing.assert_allclose(found[t].context[b], context, **CLOSE)
    assert not found[0].weights[2].any() and not found[0].context[2].any()  # length 0


def test_attend_is_a_softmax_over_the_valid_positions():
    """Values of their own, further axes in front of the query, lengths and mask together; scale or 1/√M."""
    query, memory, values = draw((2, B, M), 1), draw((S, B, M), 2), draw((S, B, 2), 3)
    for scale in (None, 0.7):
        context, weights = jr.attend(query, memory, values=values, lengths=LENGTHS, mask=MASK, scale=scale)
        for t in range(2):
            for b in range(B):
                e = np.asarray(memory[:, b] @ query[t, b], np.float64) * (M**-0.5 if scale is None else scale)
                α = softmax(e, ON[:, b])
                np.testing.assert_allclose(weights[t, b], α, **CLOSE)
                np.testing.assert_allclose(context[t, b], α @ np.asarray(values[:, b]), **CLOSE)
    alone = jr.attend(query[0, 0], memory[:, 0])
    np.testing.assert_allclose(alone.context, jr.attend(query[0], memory).context[0], **CLOSE)
    np.testing.assert_allclose(alone.weights.sum(), 1, **CLOSE)


@functools.cache
def through_all_of_them():
    """A loss of attend, the pool and decoders by several scores, with its gradients; and their params."""
    pool = jr.attention_pool(M, hidden_size=A)
    pool_params = randomised(pool.init(jax.random.key(0)), 1)
    attentions = [SCORES[name] for name in ("general", "additive", "window")]
    params = [randomised(attention.init(jax.random.key(0)), 1) for attention in attentions]
    decoders = [jr.decoder(jr.gru(2 + Q, Q), attention=attention) for attention in attentions]
    cell = jr.gru(2 + Q, Q).init(jax.random.key(2))

    def loss(memory, pool_params, params):
        query = draw((B, M), 5)
        found = [jr.attend(query, memory, lengths=LENGTHS, mask=MASK).context]
        found.append(pool.apply(pool_params, memory, lengths=LENGTHS, mask=MASK))
        for decoder, p in zip(decoders, params, strict=True):
            own = jr.attention.DecoderParams(cell, p, 0.3 * jnp.ones((M + Q, Q)))
            bound = decoder.bind(own, memory, lengths=LENGTHS, mask=MASK)
            found.append(bound.step(own, bound.initial_carry(own, (B,)), draw((B, 2), 6))[1])
        return sum((a**2).sum() for a in found)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    return lambda memory: both(memory, pool_params, params)


@pytest.mark.parametrize("filling", [1e30, np.inf, np.nan])
def test_padding_never_leaks(filling):
    """Into what is found or into any gradient, in attend, in the pool, and in every score."""
    memory = draw((S, B, M), 2)
    clean, padded = (through_all_of_them()(jnp.where(ON[..., None], memory, a)) for a in (0.0, filling))
    jax.tree.map(np.testing.assert_array_equal, padded, clean)
    of_memory = np.asarray(padded[1][0])
    assert not of_memory[~ON].any() and np.isfinite(of_memory).all() and (of_memory[ON] != 0).all()


def test_nothing_to_attend_to():
    """S = 0: zeros, and gradients of zeros."""

    def loss(query, memory):
        context, weights = jr.attend(query, memory)
        assert weights.shape == (B, 0)
        return (context + 1).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.ones((B, M)), jnp.ones((0, B, M)))
    assert value == B * M and not gradient.any()
    pool = jr.attention_pool(M)
    assert not pool.apply(pool.init(jax.random.key(0)), jnp.ones((0, B, M))).any()


def test_gradients_by_finite_differences():
    """Float64, where a mask hides some of the memory."""
    with jax.enable_x64(True):
        query, memory = (jnp.asarray(draw(shape, 1), jnp.float64) for shape in ((B, M), (S, B, M)))

        def loss(query, memory):
            return (jr.attend(query, memory, mask=jnp.asarray(ON)).context ** 2).sum()

        check_grads(jax.jit(loss), (query, memory), order=2, modes=("rev",), eps=1e-5)


def test_pool_is_attention_by_a_learned_query():
    ys = draw((S, B, M), 1)
    for hidden_size in (None, A):
        pool = jr.attention_pool(M, hidden_size=hidden_size)
        params = randomised(pool.init(jax.random.key(0)), 2)
        pooled = pool.apply(params, ys, lengths=LENGTHS, mask=MASK)
        weights = pool.weights(params, ys, lengths=LENGTHS, mask=MASK)
        W, b, q = (None if a is None else np.asarray(a, np.float64) for a in params)
        for n in range(B):
            y = np.asarray(ys[:, n], np.float64)
            α = softmax((y if W is None else np.tanh(y @ W + b)) @ q, ON[:, n])
            np.testing.assert_allclose(weights[n], α, **CLOSE)
            np.testing.assert_allclose(pooled[n], α @ y, **CLOSE)
    assert pool.apply(params, ys[:, 0]).shape == (M,)  # one sequence


def test_narrow_dtypes():
    """bfloat16: the softmax is float32, the context as the values; params stay float32 in a compute dtype."""
    memory, query = draw((S, B, M), 1).astype(jnp.bfloat16), draw((B, M), 2).astype(jnp.bfloat16)
    context, weights = jr.attend(query, memory)
    assert (context.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(weights.sum(-1), 1, **CLOSE)
    wide = jr.attend(query.astype(jnp.float32), memory.astype(jnp.float32))
    np.testing.assert_allclose(weights, wide.weights, **CLOSE)  # products are summed in float32
    np.testing.assert_allclose(context.astype(jnp.float32), wide.context, rtol=0, atol=2**-7)
    attention = jr.attention.additive(M, M, A, dtype=jnp.bfloat16)
    params = attention.init(jax.random.key(0))
    keys = attention.prepare(params, memory, None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"} and keys.keys.dtype == jnp.float32
    exact = jr.attention.additive(M, M, A)
    expected = exact.attend(params, exact.prepare(params, memory, None), (), query)[1].weights
    found = attention.attend(params, keys, (), query)[1].weights
    assert (found != expected).any()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2)  # bfloat16 has 8 bits


def test_a_score_of_ones_own():
    def score(params, keys, query):  # minus the squared distance, sharpened by a parameter
        return -params * ((keys - query[None]) ** 2).sum(-1).T

    near = jr.attention.scored(lambda key: jnp.float32(2.0), lambda p, m: m, score, query_size=M, memory_size=M)
    memory = draw((S, B, M), 1)
    keys = near.prepare(2.0, memory, jnp.asarray(ON))
    attended = near.attend(2.0, keys, (), memory[1])[1]
    for b in range(B):
        e = -2.0 * ((np.asarray(memory[:, b]) - np.asarray(memory[1, b])) ** 2).sum(-1)
        np.testing.assert_allclose(attended.weights[b], softmax(e, ON[:, b]), **CLOSE)
    wrong = near._replace(attend=jr.attention.scored(near.init, lambda p, m: m, lambda *_: memory[..., 0]).attend)
    with pytest.raises(ValueError, match=r"scored: score must return an array \(\*B, S\), here \(3, 5\), got shape"):
        wrong.attend(2.0, keys, (), memory[1])


MEMORY = jnp.ones((S, B, M))
ERRORS = {
    "query of another batch": (
        lambda: jr.attend(jnp.ones((B + 1, M)), MEMORY),
        r"attend: query must be \(\*B, M\) as the memory, .* here \(…, 3, 6\), got shape \(4, 6\); a memory that all",
    ),
    "query of another size": (
        lambda: jr.attend(jnp.ones((B, M + 1)), MEMORY),
        r"attend: query must have 6 features, \(\*B, 6\), got shape \(3, 7\); project one of the two",
    ),
    "values of another length": (
        lambda: jr.attend(jnp.ones((B, M)), MEMORY, values=jnp.ones((S + 1, B, M))),
        r"attend: values must lead with the axes \(S, \*B\) of memory, \(5, 3\), got shape \(6, 3, 6\)",
    ),
    "lengths of another batch": (
        lambda: jr.attend(jnp.ones((B, M)), MEMORY, lengths=jnp.array([3])),
        r"attend: lengths must have the batch shape \(3,\)",
    ),
    "mask of another length": (
        lambda: jr.attend(jnp.ones((B, M)), MEMORY, mask=jnp.ones((S + 1, B), bool)),
        r"attend: mask must have shape \(5, 3\), that is \(S, \*B\), got \(6, 3\)",
    ),
    "an even kernel": (
        lambda: jr.attention.location_sensitive(Q, M, A, kernel_size=4),
        "location_sensitive: kernel_size must be odd, so that a filter has a middle, got 4; give 5",
    ),
    "memory of another size": (
        lambda: jr.attention.general(Q, M).prepare(
            jr.attention.general(Q, M).init(jax.random.key(0)), MEMORY[..., 1:], None
        ),
        r"general: memory must have 6 features, .* got shape \(5, 3, 5\); build the attention for a memory of 5",
    ),
    "params of another": (
        lambda: jr.attention.general(Q, M).prepare((), MEMORY, None),
        "general: params should be GeneralParams",
    ),
    "pooled features": (
        lambda: jr.attention_pool(M + 1).apply(jr.attention_pool(M + 1).init(jax.random.key(0)), MEMORY),
        r"attention_pool: expected x of shape \(T, \*B, 7\), got 6 features",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, message = ERRORS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
