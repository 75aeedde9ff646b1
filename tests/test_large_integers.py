"""Numbers of the host that JAX's dtypes cannot hold: lengths are clamped, all else is refused; nothing wraps round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import training
from tests.cases import B, H, I, T

CELL = jr.elman(I, H)
LAYER = jr.scan(CELL)
PARAMS = jax.eval_shape(CELL.init, jax.random.key(0))
XS = jax.ShapeDtypeStruct((T, B, I), jnp.float32)


def loss(carry, ys):
    return ys.sum()


def run(layer):
    """Of parameters and xs, with options."""
    return lambda params, xs, **options: layer.apply(params, xs, **options)


# Every function of a run that takes ``lengths`` and, but for the last two, ``start``.
RUNS = {
    "scan": run(LAYER),
    "scan, reversed": run(jr.scan(CELL, reverse=True)),
    "residual": lambda p, xs, **options: jr.residual(jr.scan(jr.elman(I, I))).apply(p, xs, **options),
    "stack": lambda p, xs, **options: jr.stack(CELL).apply((p,), xs, **options),
    "bidirectional": lambda p, xs, **options: jr.bidirectional(CELL, CELL, merge=jnp.subtract).apply(
        jr.BiParams(p, p), xs, **options
    ),
    "tbptt": run(jr.tbptt(CELL, window=2)),
    "trace_gates": lambda p, xs, **options: jr.trace_gates(jr.gru(I, H), p, xs, **options),
    "gradient_flow": lambda p, xs, **options: jr.gradients.gradient_flow(CELL, p, xs, loss, **options),
    "bptt_contributions": lambda p, xs, **options: jr.gradients.bptt_contributions(CELL, p, xs, loss, **options),
    "jacobian_penalty": lambda p, xs, **options: jr.gradients.jacobian_penalty(CELL, p, xs, loss, **options),
}
OTHER_PARAMS = {"residual": jr.elman(I, I), "trace_gates": jr.gru(I, H)}
SEQUENCES = {
    "last": lambda ys, lengths: jr.last(ys, lengths),
    "mean_pool": lambda ys, lengths: jr.mean_pool(ys, lengths=lengths),
    "max_pool": lambda ys, lengths: jr.max_pool(ys, lengths=lengths),
    "masked_mean": lambda ys, lengths: jr.masked_mean(ys[..., 0], lengths=lengths),
    "norm_by_lag": lambda ys, lengths: jr.gradients.norm_by_lag(ys[..., 0], lengths=lengths),
}


def traced(name, **options):
    """The program of a run, and the numbers in it."""
    params = jax.eval_shape(OTHER_PARAMS[name].init, jax.random.key(0)) if name in OTHER_PARAMS else PARAMS
    program = jax.make_jaxpr(lambda params, xs: RUNS[name](params, xs, **options))(params, XS)
    return str(program.jaxpr), [np.asarray(a).tolist() for a in program.consts]


LARGE = {
    "int64": np.array([2**40, 2**32 + 1, -(2**40)]),
    "uint64": np.array([2**63, 2**32, 0], np.uint64),
    "uint32": np.array([2**31, 2**31 + 1, 0], np.uint32),
    "Python": [2**70, 2**40, -(2**70)],
}
CLAMPED = np.array([T, T, 0])


@pytest.mark.parametrize("name", RUNS)
def test_lengths_of_runs_are_clamped_before_they_are_narrowed(name):
    """The same program with other numbers in it: as large as int32 can hold."""
    most = 2**31 - 1
    got, numbers = traced(name, lengths=LARGE["int64"])
    expected, _ = traced(name, lengths=CLAMPED)
    assert got == expected
    assert [most, most, -most] in numbers


@pytest.mark.parametrize("kind", LARGE)
def test_lengths_are_clamped_in_every_dtype(kind):
    lengths = LARGE[kind]
    ys = np.arange(T * B, dtype=np.float32).reshape(T, B, 1)
    for name, function in SEQUENCES.items() if kind == "int64" else [("last", jr.last)]:
        np.testing.assert_array_equal(function(ys, lengths), function(ys, CLAMPED), err_msg=f"{name}, {kind}")
    if kind == "uint32":  # which JAX has
        np.testing.assert_array_equal(jax.jit(jr.last)(ys, lengths), jr.last(ys, CLAMPED))


def test_lengths_of_64_bits_are_clamped_where_jax_has_them(x64):
    ys = np.arange(T * B, dtype=np.float32).reshape(T, B, 1)
    np.testing.assert_array_equal(jax.jit(jr.last)(ys, jnp.asarray(LARGE["int64"])), jr.last(ys, CLAMPED))


STARTS = [2**31, 2**31 - T, np.int64(2**40), np.array(2**40), np.uint32(2**32 - 1), 2**70, -(2**31)]


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_starts_beyond_int32_are_refused(start):
    message = rf": start={start} with T = {T} steps is beyond int32.* count from a later"
    for name in RUNS.keys() - {"jacobian_penalty"}:
        with pytest.raises(ValueError, match=message):
            traced(name, start=start)


@pytest.mark.parametrize("start", [2**31 - 1 - T, np.uint8(200), np.asarray(3), jnp.uint32(5), -4], ids=str)
def test_starts_within_int32_run(start):
    for name in ("scan", "residual", "tbptt"):
        traced(name, start=start, lengths=CLAMPED)


@pytest.mark.parametrize("longest", [2**31, np.uint64(2**63 + 5)], ids=str)
def test_lengths_of_examples_beyond_int32_are_refused(longest):
    lengths = np.array([3, longest], np.uint64)
    with pytest.raises(ValueError, match=rf"bucketed: lengths must be below 2\*\*31, got {longest} for example 1"):
        training.bucketed(lengths, batch_size=2, seed=0)


def test_steps_of_any_size_have_a_batch():
    batches = training.bucketed([3, 1, 2], batch_size=2, seed=0)
    for step in (2**31, 2**40, 2**70):
        epoch_start = step - step % batches.steps_per_epoch
        epoch = [batches.at(epoch_start + n).indices for n in range(batches.steps_per_epoch)]
        assert sorted(np.concatenate(epoch).tolist()) == [-1, 0, 1, 2]
