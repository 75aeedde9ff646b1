"""Free running against plain loops, samples against the probabilities that they are drawn from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxrnn as jr
from jaxrnn import decoding
from jaxrnn.decoding.samplers import _pick
from tests.language import CELL, CLOSE, PARAMS, STOP, V, jitted_step, log_softmax, plain_log_probs

STEPS, FIRST = 12, jnp.array([0, 1, 2, 2])
KEY = jax.random.key(3)


def run(cell=CELL, params=PARAMS, carry=None, first=FIRST, *, steps=STEPS, **options):
    traced = {name: options.pop(name) for name in ("key", "prefix", "lengths", "noise_key") if name in options}
    write = jax.jit(functools.partial(jr.generate, cell, steps=steps, **options))
    return write(params, carry, first, **traced)


def greedy_by_hand(carry, first, steps, stop):
    """One sequence at a time, as long as it lasts: ``(tokens, log_probs, carry)``."""
    tokens, log_probs, before = [], [], first
    while len(tokens) < steps and (not tokens or tokens[-1] != stop):
        carry, logits = jitted_step(CELL)(PARAMS, carry, before[None])
        tokens.append(int(np.argmax(logits[0])))
        log_probs.append(log_softmax(logits)[0, tokens[-1]])
        before = jnp.asarray(tokens[-1])
    return tokens, log_probs, carry


def carries(seed=0):
    """A carry for each sequence, so that they end at different steps."""
    zeros = CELL.initial_carry(PARAMS, FIRST.shape)
    return jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(seed).normal(size=a.shape), a.dtype), zeros)


@pytest.mark.parametrize("stop", [STOP, None])
def test_greedy_equals_a_plain_loop(stop):
    start = carries()
    made = run(carry=start, stop=stop, pad=None if stop is None else 7)
    for b, first in enumerate(FIRST):
        own = jax.tree.map(lambda a, b=b: a[b : b + 1], start)
        tokens, log_probs, carry = greedy_by_hand(own, first, STEPS, stop)
        n = len(tokens)
        assert made.lengths[b] == n and made.tokens[:n, b].tolist() == tokens
        assert (made.tokens[n:, b] == 7).all() and not made.log_probs[n:, b].any()
        np.testing.assert_allclose(made.log_probs[:n, b], log_probs, **CLOSE)
        held = jax.tree.map(lambda a, b=b: a[b : b + 1], made.carry)
        jax.tree.map(lambda a, want: np.testing.assert_allclose(a, want, **CLOSE), held, carry)
    assert not made.sampler_log_probs.any()
    if stop is not None:
        assert len(set(made.lengths.tolist())) > 1, "all end together, which tests little"


def test_the_loop_ends_with_the_last_sequence():
    seen = []

    def step(params, carry, x):
        jax.debug.callback(lambda: seen.append(None))
        return CELL.step(params, carry, x)

    made = run(CELL._replace(step=step), carry=carries(), stop=STOP, steps=500, sample="temperature", key=KEY)
    jax.effects_barrier()
    assert len(seen) == made.lengths.max() < 500


def test_log_probs_are_those_of_the_model():
    """Of the tokens drawn, by a plain loop over the same tokens."""
    made = run(carry=carries(), sample=decoding.top_k(3), key=KEY)
    expected, _ = plain_log_probs(CELL, PARAMS, carries(), FIRST, made.tokens)
    np.testing.assert_allclose(made.log_probs, expected, **CLOSE)
    assert (made.sampler_log_probs > made.log_probs).all()  # three of four symbols have it all


def test_each_sequence_goes_on_from_the_end_of_its_own_prefix():
    prefix, lengths = jnp.array([[1, 2, 0, 1], [3, 1, 7, 2], [2, 9, 9, 0]]), jnp.array([3, 2, 1, 0])
    made = run(carry=carries(), prefix=prefix, lengths=lengths)
    for b in range(4):
        n = int(lengths[b])
        carry = jax.tree.map(lambda a, b=b: a[b : b + 1], carries())
        for token in [FIRST[b], *prefix[:n, b]][:-1]:
            carry, _ = jitted_step(CELL)(PARAMS, carry, token[None])
        tokens, log_probs, _ = greedy_by_hand(carry, [FIRST[b], *prefix[:n, b]][-1], STEPS, None)
        assert made.tokens[:, b].tolist() == tokens
        np.testing.assert_allclose(made.log_probs[:, b], log_probs, **CLOSE)


def test_a_run_in_two_parts_is_the_whole():
    options = dict(sample="temperature", key=KEY)
    whole = run(carry=carries(), **options)
    one = run(carry=carries(), steps=5, **options)
    two = run(carry=one.carry, first=one.tokens[-1], steps=STEPS - 5, start=5, **options)
    np.testing.assert_array_equal(np.concatenate([one.tokens, two.tokens]), whole.tokens)
    assert run(carry=carries(), sample="temperature", key=jax.random.key(4)).tokens.tolist() != whole.tokens.tolist()


@pytest.mark.full
def test_batch_axes_agree_with_vmap():
    carry, first = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), (carries(), FIRST))
    together = run(carry=carry, first=first, stop=STOP)
    run_one = functools.partial(jr.generate, CELL, steps=STEPS, stop=STOP)
    apart = jax.jit(jax.vmap(run_one, in_axes=(None, 0, 0)))(PARAMS, carry, first)
    np.testing.assert_array_equal(together.tokens, jnp.moveaxis(apart.tokens, 0, 1))
    np.testing.assert_array_equal(together.lengths, apart.lengths)
    np.testing.assert_allclose(together.log_probs, jnp.moveaxis(apart.log_probs, 0, 1), **CLOSE)


# ---- distributions -------------------------------------------------------------------------------

PROBS = np.array([0.02, 0.3, 0.08, 0.0, 0.25, 0.15, 0.2])
DRAWS = 20_000


FURTHER = ("temperature, cooled", "top_p, all")


def truncated(probs, temperature, keep):
    """By NumPy: p^(1/T), of those kept, over their sum."""
    p = np.where(probs > 0, probs, 0) ** (1 / temperature)
    p /= p.sum()
    p = np.where(keep(p), p, 0)
    return p / p.sum()


def nucleus(p, mass):
    order = np.argsort(-p)
    count = np.searchsorted(np.cumsum(p[order]), mass) + 1
    return np.isin(np.arange(len(p)), order[:count])


SAMPLERS = {
    "temperature": ("temperature", truncated(PROBS, 1.0, lambda p: p > 0)),
    "temperature, cooled": (decoding.temperature(0.7), truncated(PROBS, 0.7, lambda p: p > 0)),
    "top_k": (decoding.top_k(3, temperature=1.5), truncated(PROBS, 1.5, lambda p: p >= np.sort(p)[-3])),
    "top_p": (decoding.top_p(0.7, temperature=1.2), truncated(PROBS, 1.2, lambda p: nucleus(p, 0.7))),
    "top_p, all": (decoding.top_p(1.0), truncated(PROBS, 1.0, lambda p: p > 0)),
}


@pytest.mark.parametrize(
    "name", ["temperature", "top_k", "top_p", *(pytest.param(n, marks=pytest.mark.full) for n in FURTHER)]
)
def test_samples_have_the_probabilities_that_they_should(name):
    """χ² of 20,000 draws: a wrong distribution fails by far, a right one with this key does not."""
    sample, expected = SAMPLERS[name]
    cell = jr.embedding(len(PROBS), len(PROBS))
    params = jr.cells.EmbeddingParams(jnp.broadcast_to(jnp.log(jnp.asarray(PROBS)), (7, 7)))
    made = run(cell, params, (), jnp.zeros(DRAWS, jnp.int32), steps=1, sample=sample, key=jax.random.key(8))
    counts = np.bincount(made.tokens[0], minlength=len(PROBS))
    assert not counts[expected == 0].any() and expected[expected > 0].min() * DRAWS > 5
    found = scipy.stats.chisquare(counts[expected > 0], DRAWS * expected[expected > 0])
    assert found.pvalue > 1e-3, (name, found, counts, DRAWS * expected)
    np.testing.assert_allclose(made.sampler_log_probs[0], np.log(expected[made.tokens[0]]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.log_probs[0], np.log(PROBS[made.tokens[0]]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [17, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 2, 5))])
def test_where_a_number_falls_among_the_sums(n, x64):
    """Against NumPy's search in the sums, over the whole range; nothing of probability 0 is ever taken."""
    rng = np.random.default_rng(n)
    p = rng.dirichlet(np.ones(n), size=3) * (rng.random((3, n)) < 0.7)
    p[:, rng.integers(n)] += 0.1
    u = np.concatenate([[0.0], rng.random(300), [1 - 2**-24]])
    pick = jax.jit(jax.vmap(lambda u, logits: _pick(jnp.full(3, u), logits), in_axes=(0, None)))
    place, log_prob = pick(u, np.log(np.where(p > 0, p, 1)) + np.where(p > 0, 0, -np.inf))
    for row in range(3):
        sums = np.cumsum(p[row])
        np.testing.assert_array_equal(place[:, row], np.searchsorted(sums, u * sums[-1], side="right"))
        chosen = p[row][place[:, row]]
        assert (chosen > 0).all()
        np.testing.assert_allclose(log_prob[:, row], np.log(chosen / sums[-1]), rtol=1e-12, atol=1e-12)


def test_no_draw_of_many_symbols_is_impossible():
    """In float32, where sums are rounded: symbols of probability 0 stand at the ends of their blocks."""
    logits = np.where(np.arange(1000) % 32 > 28, np.sin(np.arange(1000)), -np.inf).astype(np.float32)
    u = np.float32([*np.linspace(0, 1, 2001)[:-1], 1 - 2**-23])
    place, log_prob = jax.jit(_pick)(u, np.broadcast_to(logits, (*u.shape, 1000)))
    assert np.isfinite(log_prob).all() and np.isfinite(logits[place]).all()


def test_equal_logits():
    samplers = decoding.greedy(), decoding.top_k(2), decoding.top_p(0.45)
    u, logits = np.linspace(0, 0.999, 50, dtype=np.float32), np.zeros((50, 6), np.float32)
    first, two, three = jax.jit(lambda u, logits: [sampler.draw(u, logits)[0] for sampler in samplers])(u, logits)
    assert first.tolist() == [0] * 50
    assert set(two.tolist()) == {0, 1}  # two, not all that are as likely
    assert set(three.tolist()) == {0, 1, 2}


@pytest.mark.full
def test_options_may_be_traced():
    def draw(t, p):
        cool = decoding.top_p(p, temperature=t)
        return jr.generate(CELL, PARAMS, None, FIRST, steps=8, sample=cool, key=KEY).tokens

    for t, p in ((0.5, 0.9), (2.0, 0.4)):
        fixed = run(steps=8, sample=decoding.top_p(p, temperature=t), key=KEY).tokens
        np.testing.assert_array_equal(jax.jit(draw)(t, p), fixed)


# ---- what is no token ----------------------------------------------------------------------------

POINTS = jr.chain(jr.gru(2, 4), jr.readout(4, 3))
OF_POINTS = POINTS.init(jax.random.key(2))


def pen(key, y):
    """A move, and whether the pen is lifted: a pytree of a sample."""
    move, lift = y[..., :2], y[..., 2]
    return {"move": move + 0.1 * jax.random.normal(key, move.shape), "lift": lift > 0.02}


def test_pytrees_are_drawn_and_end_by_a_function():
    first = {"move": jnp.ones((3, 2)) * jnp.array([[0.1], [1.0], [-1.0]]), "lift": jnp.zeros(3, bool)}
    options = dict(sample=pen, key=KEY, next_input=lambda s: s["move"], steps=9)
    made = run(POINTS, OF_POINTS, None, first, stop=lambda s: s["lift"], **options)
    whole = run(POINTS, OF_POINTS, None, first, **options)
    ends = [int(np.argmax(lift)) + 1 if lift.any() else 9 for lift in np.asarray(whole.tokens["lift"]).T]
    assert made.lengths.tolist() == ends and len(set(ends)) > 1
    for b, n in enumerate(ends):
        np.testing.assert_allclose(made.tokens["move"][:n, b], whole.tokens["move"][:n, b], **CLOSE)
        assert not made.tokens["move"][n:, b].any()
    assert made.log_probs is None and made.sampler_log_probs is None


@pytest.mark.full
def test_free_running_of_points_can_be_differentiated(x64):
    """Against finite differences: where nothing is discrete, the scan has a gradient."""
    cell = jr.chain(jr.gru(2, 4, param_dtype=jnp.float64), jr.readout(4, 2, param_dtype=jnp.float64))
    params = cell.init(jax.random.key(0))

    @jax.jit
    def loss(b):
        moved = (params[0], params[1]._replace(b_y=b))
        made = jr.generate(cell, moved, None, jnp.ones(2), steps=4, sample=lambda key, y: y)
        return (made.tokens**2).sum()

    b = params[1].b_y + 0.3
    basis = 1e-6 * np.eye(2)
    numeric = [(loss(b + e) - loss(b - e)) / 2e-6 for e in basis]
    np.testing.assert_allclose(
        jax.jit(jax.grad(loss))(b), numeric, rtol=1e-7
    )  # central differences: 1e-12 of the third derivative


# ---- noise ---------------------------------------------------------------------------------------

NOISY = jr.chain(jr.embedding(V, 3), jr.dropout(0.5), jr.gru(3, 5), jr.readout(5, V))
OF_NOISY = (PARAMS[0], (), *PARAMS[1:])


def test_the_key_of_samples_turns_no_dropout_on():
    quiet, same = run(sample="temperature", key=KEY), run(NOISY, OF_NOISY, sample="temperature", key=KEY)
    np.testing.assert_array_equal(quiet.tokens, same.tokens)


def test_noise_is_that_of_a_run_over_the_same_tokens():
    noise_key, prefix = jax.random.key(7), jnp.array([[1, 2, 0, 1], [2, 1, 0, 2]])
    made = run(NOISY, OF_NOISY, sample="temperature", key=KEY, noise_key=noise_key, prefix=prefix, start=3)
    read = jnp.concatenate([FIRST[None], prefix, made.tokens])[:-1]
    _, logits = jr.scan(NOISY).apply(OF_NOISY, read, key=noise_key, start=3)
    expected = np.take_along_axis(log_softmax(logits[2:]), np.asarray(made.tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(made.log_probs, expected, **CLOSE)
    _, without = jr.scan(NOISY).apply(OF_NOISY, read)
    assert not np.allclose(logits, without)


@pytest.mark.full
def test_one_hot_inputs():
    cell = jr.chain(jr.gru(V, 5), jr.readout(5, V))
    table = PARAMS[0].table @ PARAMS[1].W_xh  # an embedding in front of a product is a product of one-hot vectors
    params = (PARAMS[1]._replace(W_xh=table), PARAMS[2])
    made = run(cell, params, next_input=lambda token: jax.nn.one_hot(token, V), first=FIRST)
    np.testing.assert_array_equal(made.tokens, run().tokens)


# ---- options by their values ---------------------------------------------------------------------


def test_top_k_without_a_k_is_10_or_all(traced):
    u = jnp.asarray(np.random.default_rng(0).random(200, np.float32))
    for size, n in ((4, 4), (12, 10)):
        logits = jnp.zeros((200, size))
        tokens, log_probs = traced(decoding.top_k().draw)(u, logits)
        assert set(np.asarray(tokens).tolist()) == set(range(n))
        np.testing.assert_allclose(log_probs, -np.log(n), rtol=1e-5)


@pytest.mark.parametrize("make", [np.int64, np.asarray, jnp.int32])
def test_a_stop_symbol_may_be_any_integer_whose_value_is_known(make, traced):
    start = carries()
    run = lambda stop, pad: traced(functools.partial(jr.generate, CELL, steps=4, stop=stop, pad=pad))
    made, want = (run(stop, pad)(PARAMS, start, FIRST) for stop, pad in ((make(STOP), make(2)), (STOP, 2)))
    jax.tree.map(np.testing.assert_array_equal, made, want)
    with pytest.raises(ValueError, match="generate: stop must be one of the tokens 0 to 3, got 4"):
        jr.generate(CELL, PARAMS, start, FIRST, steps=4, stop=make(4))
