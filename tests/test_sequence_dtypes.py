"""Reductions over steps in every dtype, against NumPy in float64: means are fractions, the rest keeps its dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

T, B, F = 5, 3, 2
LENGTHS = np.array([T, 2, 0])
ON = np.arange(T)[:, None] < LENGTHS

DTYPES = ["bool", "int8", "uint8", "int32", "float16", "bfloat16", "float32", "complex64"]
DTYPES_OF_64_BITS = ["int64", "float64"]
# Units of the last place of the result's dtype, of sums of at most 30 numbers up to 100.
ROUNDING = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6, "complex64": 1e-6, "float64": 1e-14}


def numbers(dtype, *shape, seed=0):
    """Of a dtype's whole kind: negative ones where it has them, and none above 100, whose sums leave 8 bits."""
    drawn = np.random.default_rng(seed).integers(-100, 101, shape)
    if dtype == "bool":
        return drawn > 0
    if dtype.startswith("u"):
        return abs(drawn).astype(dtype)
    if dtype == "complex64":
        return (drawn / 8 + 1j * np.roll(drawn, 1)).astype(dtype)
    return (drawn if dtype.startswith("int") else drawn / 8).astype(jnp.dtype(dtype))


def wide(a):
    return np.asarray(a).astype(complex if np.iscomplexobj(a) else float)


def by_sequence(reduce, ys):
    """(B, …): each sequence's valid steps alone; 0 where there are none."""
    rows = [wide(ys)[ON[:, b], b] for b in range(B)]
    return np.stack([reduce(r) if len(r) else np.zeros(ys.shape[2:]) for r in rows])


def by_lag(ys):
    """(T,): the mean over sequences of what stands so many steps before their ends."""
    rows = [[wide(ys)[LENGTHS[b] - 1 - lag, b] for b in range(B) if LENGTHS[b] > lag] for lag in range(T)]
    return np.array([np.mean(row) for row in rows])


def emitter(dtype):
    """Outputs as they come in, in a dtype of its own."""
    return jr.Cell(lambda key: (), lambda params, batch_shape=(): (), lambda params, carry, x: (carry, x))


# By name: of ys (T, B, F), what the library makes of it, what NumPy does, and whether it is a mean.
REDUCTIONS = {
    "last": (lambda ys: jr.last(ys, LENGTHS), lambda ys: by_sequence(lambda r: r[-1], ys), False),
    "mean_pool": (lambda ys: jr.mean_pool(ys, lengths=LENGTHS), lambda ys: by_sequence(lambda r: r.mean(0), ys), True),
    "mean_pool of all": (jr.mean_pool, lambda ys: wide(ys).mean(0), True),
    "max_pool": (lambda ys: jr.max_pool(ys, lengths=LENGTHS), lambda ys: by_sequence(lambda r: r.max(0), ys), False),
    "max_pool of all": (jr.max_pool, lambda ys: wide(ys).max(0), False),
    "masked_mean": (
        lambda ys: jr.masked_mean(ys[..., 0], lengths=LENGTHS),
        lambda ys: wide(ys)[..., 0][ON].mean(),
        True,
    ),
    "masked_mean of all": (jr.masked_mean, lambda ys: wide(ys).mean(), True),
    "norm_by_lag": (
        lambda ys: jr.gradients.norm_by_lag(ys[..., 0], lengths=LENGTHS),
        lambda ys: by_lag(ys[..., 0]),
        True,
    ),
    "bidirectional mean": (lambda ys: both_ways(ys, "mean"), lambda ys: by_step(ys), True),
}


def both_ways(ys, merge):
    layer = jr.bidirectional(emitter(ys.dtype), emitter(ys.dtype), merge=merge)
    return layer.apply(layer.init(jax.random.key(0)), ys, lengths=LENGTHS)[1]


def by_step(ys):
    """The mean of equal numbers is that number; outputs are 0 where a step is not valid."""
    return np.where(ON[..., None], wide(ys), 0)


@pytest.mark.parametrize("dtype", DTYPES + DTYPES_OF_64_BITS)
def test_reductions(dtype):
    with jax.enable_x64(dtype in DTYPES_OF_64_BITS):
        ys = jnp.asarray(numbers(dtype, T, B, F))
        assert ys.dtype == dtype
        chosen = {name: r for name, r in REDUCTIONS.items() if not (dtype == "complex64" and "max" in name)}
        got = jax.jit(lambda ys: {name: ours(ys) for name, (ours, _, _) in chosen.items()})(ys)
    of_mean = dtype if jnp.issubdtype(ys.dtype, jnp.inexact) else "float32"
    for name, (_, numpys, is_mean) in chosen.items():
        assert got[name].dtype == (of_mean if is_mean else dtype), name
        rtol = ROUNDING[of_mean] if is_mean else 0
        np.testing.assert_allclose(wide(got[name]), numpys(ys), rtol=rtol, atol=16 * rtol, err_msg=name)


def test_means_of_large_integers_do_not_wrap_round():
    """Four times 2**30 is beyond int32."""
    ys = jnp.full((4, 1), 2**30)
    assert jr.mean_pool(ys).tolist() == [2**30] and float(jr.masked_mean(ys)) == 2**30


LEAST = [("bool", False), ("int8", -128), ("uint32", 0), ("float16", -np.inf)]


@pytest.mark.parametrize(("dtype", "least"), LEAST, ids=[dtype for dtype, _ in LEAST])
def test_the_least_number_is_a_maximum_too(dtype, least):
    assert jr.max_pool(jnp.full((3, 2), least, dtype), lengths=jnp.array([2, 3])).tolist() == [least, least]


def test_sums_of_booleans_count_and_those_of_integers_keep_their_dtype():
    spikes = jnp.ones((T, B, F), bool)
    count = jax.jit(lambda ys: both_ways(ys, "sum"))(spikes)
    np.testing.assert_array_equal(count, by_step(2 * wide(spikes)))
    assert count.dtype == jnp.int32
    assert jax.eval_shape(lambda ys: both_ways(ys, "sum"), spikes.astype(jnp.int8)).dtype == jnp.int8


def test_complex_numbers_have_no_maximum():
    with pytest.raises(TypeError, match=r"max_pool: ys must be real, got complex64, .* take jnp\.abs\(ys\)"):
        jr.max_pool(jnp.ones((3, 2), complex))


@pytest.mark.parametrize(
    ("x", "y"), [("float32", "int32"), ("complex64", "float32"), ("float32", "bool"), ("bool", "bool")]
)
def test_a_residual_sum_that_its_dtype_cannot_hold_is_refused(x, y):
    cell = jr.Cell(lambda key: (), lambda p, batch_shape=(): (), lambda p, carry, x: (carry, jnp.ones(x.shape, y)))
    with pytest.raises(TypeError, match=f"residual: user cell turned {x} into {y}, which cannot hold x"):
        jax.eval_shape(lambda: jr.residual(cell).step((), (), jnp.ones(2, x)))


@pytest.mark.parametrize(("x", "y"), [("bool", "int8"), ("int32", "bfloat16"), ("float32", "complex64")])
def test_other_residual_sums_have_the_dtype_of_the_output(x, y):
    cell = jr.Cell(lambda key: (), lambda p, batch_shape=(): (), lambda p, carry, x: (carry, jnp.ones(x.shape, y)))
    assert jax.eval_shape(lambda: jr.residual(cell).step((), (), jnp.ones(2, x)))[1].dtype == y
