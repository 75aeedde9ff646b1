"""jr.pad, jr.last, jr.mean_pool, jr.max_pool and jr.masked_mean against NumPy loops over the sequences."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

T, B, F = 6, 5, 3
LENGTHS = np.array([T, 0, 2, T + 4, -1])  # whole, none, some, clamped, clamped
# float32 sums of at most 30 numbers of size 1: 1e-6 is some ten units of the last place.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}

POOLS = {
    "mean_pool": (jr.mean_pool, lambda rows: rows.mean(axis=0)),
    "max_pool": (jr.max_pool, lambda rows: rows.max(axis=0)),
}
every_pool = pytest.mark.parametrize("name", POOLS)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def flags(kind):
    """``(options, on)``: what the functions are given, and the valid steps (T, B) that it means."""
    mask = np.random.default_rng(1).random((T, B)) < 0.6
    mask[0, 0], mask[1, 0], mask[2, 0] = True, False, True  # a gap
    mask[:, 2] = [False, True, False, False, True, True]  # padding on the left
    mask[:, 3] = False
    within = np.arange(T)[:, None] < LENGTHS
    return {
        "lengths": ({"lengths": LENGTHS}, within),
        "mask": ({"mask": mask}, mask),
        "both": ({"lengths": LENGTHS, "mask": mask}, within & mask),
    }[kind]


every_flag = pytest.mark.parametrize("kind", ["lengths", "mask", "both"])


def one_by_one(reduce, ys, on):
    """(B, F): each sequence by itself, its valid steps alone; 0 where it has none."""
    rows = [ys[on[:, b], b] for b in range(B)]
    return np.stack([reduce(r) if len(r) else np.zeros(F, np.float32) for r in rows])


# ---- pad -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature_shape", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("length", [None, 7])
def test_pad_values(feature_shape, length):
    sequences = [numbers(n, *feature_shape, seed=n) for n in (3, 0, 5)]
    xs, lengths = jr.pad(sequences, length=length, value=-2)
    assert lengths.dtype == jnp.int32 and lengths.tolist() == [3, 0, 5]
    assert xs.shape == (length or 5, 3, *feature_shape) and xs.dtype == jnp.float32
    for index, sequence in enumerate(sequences):
        np.testing.assert_array_equal(xs[: len(sequence), index], sequence)
        assert (np.asarray(xs[len(sequence) :, index]) == -2).all()


@pytest.mark.parametrize("dtype", ["int32", "bool", "bfloat16", "float16"])
def test_pad_keeps_the_dtype(dtype):
    xs, _ = jr.pad([jnp.ones(2, dtype), jnp.ones(1, dtype)])
    assert xs.dtype == dtype
    np.testing.assert_array_equal(xs, np.array([[1, 1], [1, 0]]).astype(xs.dtype))


def test_pad_takes_sequences_one_by_one():
    xs, lengths = jr.pad([n] * n for n in (1, 3))
    assert xs.T.tolist() == [[1, 0, 0], [3, 3, 3]] and lengths.tolist() == [1, 3]


def test_pad_of_nothing_but_empty_sequences():
    xs, lengths = jr.pad([np.zeros((0, 2)), np.zeros((0, 2))])
    assert xs.shape == (0, 2, 2) and lengths.tolist() == [0, 0]


def test_padded_with_nan_then_run_equals_one_by_one():
    """What ``pad`` puts in never reaches a result."""
    sequences = [numbers(n, 3, seed=n) for n in (4, 1, 6)]
    layer = jr.scan(jr.gru(3, 5))
    params = layer.init(jax.random.key(0))
    xs, lengths = jr.pad(sequences, length=8, value=np.nan)
    _, ys = layer.apply(params, xs, lengths=lengths)
    for got, sequence in zip(jr.last(ys, lengths), sequences, strict=True):
        np.testing.assert_allclose(got, layer.apply(params, sequence)[1][-1], **TOLERANCE)


# ---- last ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True], ids=["op by op", "jit"])
@pytest.mark.parametrize("feature_shape", [(), (F,), (F, 2)], ids=str)
def test_last(feature_shape, jit):
    ys = numbers(T, B, *feature_shape)
    want = np.stack([ys[min(n, T) - 1, b] if n > 0 else np.zeros(feature_shape) for b, n in enumerate(LENGTHS)])
    np.testing.assert_array_equal((jax.jit(jr.last) if jit else jr.last)(ys, LENGTHS), want)


def test_last_without_lengths_and_with_other_batch_shapes():
    ys = numbers(T, 2, 3, F)
    np.testing.assert_array_equal(jr.last(ys), ys[-1])
    lengths = np.array([[1, 2, 3], [4, 5, 6]])
    want = [[ys[lengths[a, b] - 1, a, b] for b in range(3)] for a in range(2)]
    np.testing.assert_array_equal(jr.last(ys, lengths), want)
    np.testing.assert_array_equal(jr.last(ys[:, 0, 0], jnp.asarray(4)), ys[3, 0, 0])  # no batch axes


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int32])
def test_lengths_in_every_integer_dtype(dtype):
    """T = 300 does not fit into 8 bits: nothing may wrap round."""
    ys = np.arange(300, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    lengths = jnp.array([100, 0, 127], dtype)
    assert jr.last(ys, lengths).tolist() == [99, 0, 126]
    assert jr.mean_pool(ys, lengths=lengths).tolist() == [49.5, 0, 63]
    assert jr.max_pool(ys, lengths=lengths).tolist() == [99, 0, 126]


# ---- pooling -------------------------------------------------------------------------------------


@every_flag
@every_pool
def test_pool(name, kind):
    pool, reduce = POOLS[name]
    ys = numbers(T, B, F) - 5  # all negative: a 0 from padding would show in the maximum
    options, on = flags(kind)
    np.testing.assert_allclose(jax.jit(pool)(ys, **options), one_by_one(reduce, ys, on), **TOLERANCE)


@every_pool
def test_pool_without_flags(name):
    pool, reduce = POOLS[name]
    ys = numbers(T, 2, 3, F)
    np.testing.assert_allclose(pool(ys), reduce(ys), **TOLERANCE)
    lengths, mask = np.full((2, 3), T), np.ones((T, 2, 3), bool)
    np.testing.assert_allclose(pool(ys, lengths=lengths, mask=mask), reduce(ys), **TOLERANCE)


def test_max_pool_shares_a_tie():
    """Two valid steps hold the maximum: each gets half of the gradient, and an equal padded one nothing."""
    grads = jax.grad(lambda ys: jr.max_pool(ys, lengths=jnp.asarray(3)))(jnp.array([2.0, 1.0, 2.0, 2.0]))
    assert grads.tolist() == [0.5, 0, 0.5, 0]


@every_flag
def test_masked_mean(kind):
    losses = numbers(T, B)
    options, on = flags(kind)
    np.testing.assert_allclose(jax.jit(jr.masked_mean)(losses, **options), losses[on].mean(), **TOLERANCE)


def test_masked_mean_without_flags_is_the_mean():
    losses = numbers(T, 2, 3)
    np.testing.assert_allclose(jr.masked_mean(losses), losses.mean(), **TOLERANCE)
    np.testing.assert_allclose(jr.masked_mean(losses[:, 0, 0]), losses[:, 0, 0].mean(), **TOLERANCE)


# ---- NaN in the padding, nothing valid, T = 0 ----------------------------------------------------

REDUCTIONS = {
    "last": lambda ys, options: jr.last(ys, options["lengths"]),
    "mean_pool": lambda ys, options: jr.mean_pool(ys, **options),
    "max_pool": lambda ys, options: jr.max_pool(ys, **options),
    "masked_mean": lambda ys, options: jr.masked_mean(ys.sum(-1), **options),
}
CASES = [(n, k) for n in REDUCTIONS for k in ("lengths", "mask", "both") if n != "last" or k == "lengths"]


@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e30], ids=str)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_padding_reaches_neither_values_nor_gradients(name, kind, padding):
    options, on = flags(kind)
    weights = numbers(B, F, seed=9)

    @jax.jit
    def run(ys):
        reduced = REDUCTIONS[name](ys, options)
        return jnp.sum(reduced * weights), reduced

    ys = np.where(on[..., None], numbers(T, B, F), np.float32(0))
    spoilt = np.where(on[..., None], ys, np.float32(padding))
    (_, want), want_grads = jax.value_and_grad(run, has_aux=True)(ys)
    (_, got), grads = jax.value_and_grad(run, has_aux=True)(spoilt)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(grads, want_grads)
    assert not np.asarray(grads)[~on].any()
    assert np.asarray(grads)[on].any()


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("steps", [0, 3])
def test_nothing_valid_is_zero(name, steps):
    """Lengths 0, and no steps at all: 0, with a gradient of 0 even where all is NaN."""
    ys = jnp.full((steps, 2, F), jnp.nan)
    options = {"lengths": jnp.zeros(2, int)}
    value, grads = jax.value_and_grad(lambda ys: REDUCTIONS[name](ys, options).sum())(ys)
    assert value == 0
    np.testing.assert_array_equal(grads, np.zeros((steps, 2, F)))


@pytest.mark.parametrize("pool", [jr.mean_pool, jr.max_pool, jr.masked_mean], ids=lambda f: f.__name__)
def test_no_steps_and_no_flags(pool):
    got = pool(jnp.ones((0, 2)))
    np.testing.assert_array_equal(got, np.zeros(() if pool is jr.masked_mean else 2))


@every_flag
def test_gradients_of_means_are_their_weights(kind):
    """1 / (valid steps of the sequence), and 1 / (all valid steps)."""
    options, on = flags(kind)
    of_pool = jax.grad(lambda ys: jr.mean_pool(ys, **options).sum())(jnp.ones((T, B)))
    np.testing.assert_allclose(of_pool, on / np.maximum(on.sum(axis=0), 1), rtol=1e-6)
    of_loss = jax.grad(lambda losses: jr.masked_mean(losses, **options))(jnp.ones((T, B)))
    np.testing.assert_allclose(of_loss, on / on.sum(), rtol=1e-6)


def test_gradient_of_last_is_one_at_the_last_step():
    grads = jax.grad(lambda ys: jr.last(ys, LENGTHS).sum())(jnp.ones((T, B)))
    want = np.zeros((T, B))
    want[[T - 1, 1, T - 1], [0, 2, 3]] = 1
    np.testing.assert_array_equal(grads, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["mean_pool", "masked_mean"])
def test_means_of_half_precision_do_not_overflow_or_stall(name, dtype):
    """2048 steps of 100: the sum, 204800, is above float16's largest number, as jnp.mean knows."""
    ys = jnp.full((2048, 1), 100, dtype)
    mean = getattr(jr, name)(ys, lengths=jnp.array([2048]))
    assert mean.dtype == dtype
    assert float(mean.sum()) == 100


# ---- errors --------------------------------------------------------------------------------------

ERRORS = {
    "pad nothing": (lambda: jr.pad([]), ValueError, "pad: needs at least one sequence"),
    "pad features": (
        lambda: jr.pad([np.ones((3, 2)), np.ones((4, 1))]),
        ValueError,
        "pad: sequence 1 is .* (4, 1) but sequence 0 is .* (3, 2); all must agree",
    ),
    "pad dtypes": (
        lambda: jr.pad([np.ones(3), np.ones(3, np.float32)]),
        ValueError,
        "pad: sequence 1 is float32 .* sequence 0 is float64",
    ),
    "pad keys": (
        lambda: jr.pad([jax.random.split(jax.random.key(0), 3)]),
        TypeError,
        "pad: sequence 0 must be an array of numbers, got key<fry>; pad jax.random.key_data of keys",
    ),
    "pad dates": (
        lambda: jr.pad([np.ones(2), np.array(["2026-01-01"], "M8[D]")]),
        TypeError,
        "pad: sequence 1 must be an array of numbers, got array",
    ),
    "pad records": (
        lambda: jr.pad([np.zeros(3, [("a", float)])]),
        TypeError,
        "pad: sequence 0 must be an array of numbers, got array",
    ),
    "pad while tracing": (
        lambda: jax.jit(lambda x: jr.pad([x, x[:1]]))(jnp.ones((2, 3))),
        TypeError,
        "pad: sequence 0 is traced and has no value yet; pad outside of jit",
    ),
    "pad beyond the memory": (
        lambda: jr.pad([np.zeros((0, 2**40), np.int8)], length=2**20),
        MemoryError,
        "pad: xs, int8 (1048576, 1, 1099511627776), needs 1,152,921,504,606,846,976 bytes, .* give a smaller length",
    ),
    "pools of keys": (
        lambda: jr.max_pool(jax.random.split(jax.random.key(0), 3)),
        TypeError,
        "max_pool: ys must be numbers or booleans, got key<fry>; keys have neither order nor mean",
    ),
    "pools of ragged lists": (
        lambda: jr.mean_pool([[1.0, 2.0], [3.0]]),
        ValueError,
        "mean_pool: ys must be an array, got lists of unequal lengths.* jr.pad makes one array",
    ),
    "pad scalars": (lambda: jr.pad([1.0, 2.0]), ValueError, "pad: sequence 0 is a scalar"),
    "pad too long": (
        lambda: jr.pad([np.ones(3), np.ones(9)], length=5),
        ValueError,
        "pad: sequence 1 has 9 steps, more than length=5; nothing is cut",
    ),
    "last without steps": (
        lambda: jr.last(jnp.ones((0, 2))),
        ValueError,
        "last: ys .* at least one step.* (0, 2)",
    ),
    "last of a scalar": (lambda: jr.last(jnp.asarray(1.0)), ValueError, "last: ys must be .*got shape ()"),
    "last shape": (
        lambda: jr.last(jnp.ones((3, 2)), jnp.array([1, 2, 3])),
        ValueError,
        "last: lengths must have the batch shape (2,).*got (3,)",
    ),
    "last floats": (
        lambda: jr.last(jnp.ones((3, 2)), jnp.ones(2)),
        TypeError,
        "last: lengths must be integers, got float32; use .*astype",
    ),
    "loss with features": (
        lambda: jr.masked_mean(jnp.ones((3, 2, 4)), lengths=jnp.ones(2, int)),
        ValueError,
        "masked_mean: losses must be (T, *B).* (3, 2, 4) .*reduce the feature axes",
    ),
}
for name in ("mean_pool", "max_pool", "masked_mean"):
    ERRORS |= {
        f"{name} lengths' shape": (
            lambda name=name: getattr(jr, name)(jnp.ones((3, 2)), lengths=jnp.array([1, 2, 3])),
            ValueError,
            f"{name}: lengths must have the batch shape (2,).*got (3,)",
        ),
        f"{name} lengths' dtype": (
            lambda name=name: getattr(jr, name)(jnp.ones((3, 2)), lengths=jnp.ones(2)),
            TypeError,
            f"{name}: lengths must be integers, got float32",
        ),
        f"{name} mask's shape": (
            lambda name=name: getattr(jr, name)(jnp.ones((3, 2)), mask=jnp.ones((2, 3), bool)),
            ValueError,
            f"{name}: mask must have shape (3, 2).*got (2, 3)",
        ),
        f"{name} mask's dtype": (
            lambda name=name: getattr(jr, name)(jnp.ones((3, 2)), mask=jnp.ones((3, 2))),
            TypeError,
            f"{name}: mask must be boolean .*got float32; use mask.astype(bool)",
        ),
        f"{name} scalar mask": (
            lambda name=name: getattr(jr, name)(jnp.ones((3, 2)), mask=jnp.asarray(True)),
            ValueError,
            f"{name}: mask must have shape .*got ()",
        ),
    }


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=".*".join(map(re.escape, message.split(".*")))):
        jax.eval_shape(call)
