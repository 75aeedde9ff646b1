"""Numbers of the host that JAX's dtypes cannot hold: lengths are clamped, all else is refused; nothing wraps round."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import training
from jaxrnn.combine import BiParams
from tests.cases import B, H, I, T
from tests.faces import CALLS, functions

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
        BiParams(p, p), xs, **options
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


def test_an_empty_list_is_the_lengths_of_no_sequence():
    assert jr.last(np.ones((T, 0, 2)), []).shape == (0, 2) == jr.mean_pool(np.ones((T, 0, 2)), lengths=[]).shape


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


# ---- values --------------------------------------------------------------------------------------

EMBEDDING = jr.embedding(5, I)
TABLE = jax.eval_shape(EMBEDDING.init, jax.random.key(0))
SINGLE = jr.Cell(lambda key: (), lambda p, batch_shape=(): jnp.zeros(batch_shape, int), lambda p, c, x: (c, x))
ONES = np.ones((3, 2), np.float32)


def mesh():
    return jr.devices.batch_mesh(1)


# Every door through which NumPy's arrays come in, and the name by which it calls them.
DOORS = {
    "draw_each_step": (lambda a: jr.draw_each_step(lambda key: 0, jax.random.key(0), a), "draw_each_step: times"),
    "update_best": (
        lambda a: training.update_best(training.init_best(ONES), ONES[0, 0], a[1], ONES),
        "update_best: step",
    ),
    "ensemble": (lambda a: jr.devices.ensemble(jnp.sum)([a, a][:1]), "ensemble: members[0]"),
    "stack_members": (lambda a: jr.devices.stack_members([a * 0, a]), "stack_members: member 1"),
    "prefetch": (lambda a: next(training.prefetch([{"a": a}])), "training.prefetch: items[…]['a']"),
    "pad": (lambda a: jr.pad([a[:1] * 0, a]), "pad: sequence 1"),
    "a cell's step": (lambda a: EMBEDDING.step(TABLE, (), a), "embedding: x"),
    "scan": (lambda a: jr.scan(SINGLE._replace(x_ndim=0)).apply((), {"a": a}), "scan(user cell): xs['a']"),
    "stack": (lambda a: jr.stack(EMBEDDING).apply((TABLE,), a), "scan(embedding): xs"),
    "tbptt": (lambda a: jr.tbptt(EMBEDDING, window=1).apply(TABLE, a), "tbptt: xs"),
    "a carry": (lambda a: jr.scan(SINGLE).apply((), ONES[None], a), "scan(user cell): carry"),
    "stream": (lambda a: jr.stream(EMBEDDING).step(TABLE, (), a), "stream(embedding): x"),
    "stream's carry": (lambda a: jr.stream(SINGLE).step((), a, ONES), "stream(user cell): carry"),
    "shard_batch": (lambda a: jr.devices.shard_batch({"a": a}, mesh(), batch_axis=0), "shard_batch: tree['a']"),
    "replicate": (lambda a: jr.devices.replicate([a], mesh()), "replicate: tree[0]"),
}
WIDE = {"int64": (2**40, "int32"), "uint64": (2**32, "uint32"), "int64 below": (-(2**31) - 1, "int32")}


@pytest.mark.parametrize("kind", WIDE)
def test_values_that_jax_would_wrap_round_are_refused(kind):
    value, narrow = WIDE[kind]
    dtype = kind.split()[0]
    for call, name in DOORS.values():
        words = f"{name} holds {value} in {dtype}, which JAX makes {narrow}, too narrow"
        with pytest.raises(ValueError, match=re.escape(words)):
            jax.eval_shape(lambda call=call: call(np.array([1, value, 2], dtype)))


def test_what_is_finite_is_judged_before_it_is_narrowed():
    values = [
        np.array([1e300, np.nan]),
        [1.0, 2.0],
        jnp.array([1.0, jnp.inf, jnp.nan]),
        np.array([2**40]),
        jnp.zeros(0),
    ]
    assert [int(training.first_nonfinite(a)) for a in values] == [2, 0, 2, 0, 0]


def test_lists_are_judged_as_the_arrays_that_they_become():
    with pytest.raises(ValueError, match=f"mean_pool: ys holds {2**40} in int64, which JAX makes int32"):
        jr.mean_pool([[1], [2**40]])


def too_wide(given):
    """What an argument is, its first array with a number that float32 cannot hold."""
    leaves, treedef = jax.tree.flatten(given)
    shape = np.shape(leaves[0]) or (1,)
    return treedef.unflatten([np.full(shape, 1e300), *leaves[1:]])


def arguments_of_arrays():
    """Every array that a public function takes, by its annotation; integers of any size are lengths and starts."""
    for place, function in functions():
        if place == "training.fetch":  # gives NumPy's arrays as they are
            continue
        for name, parameter in inspect.signature(function).parameters.items():
            kind = str(parameter.annotation).removesuffix(" | None")
            if kind not in ("jax.Array", "ArrayLike", "PyTree") or name in (
                "key",
                "lengths",
                "mask",
                "resets",
                "start",
            ):
                continue
            if not place.startswith(("Cell.", "Layer.")) and jax.tree.leaves(CALLS[place].get(name)):
                yield place, function, name


def test_no_public_function_lets_a_number_become_another():
    found = list(arguments_of_arrays())
    assert len(found) > 40 and {"check_cell", "gates", "mean_pool"} < {place for place, _, _ in found}
    for place, function, name in found:
        with pytest.raises(
            (ValueError, TypeError), match=r"holds 1e\+300 in float64, which JAX makes float32|drop digits"
        ):
            function(**CALLS[place] | {name: too_wide(CALLS[place][name])})


def test_values_that_fit_into_what_jax_makes_of_them_pass(x64):
    for dtype in ("int64", "uint64", "float64"):
        xs, _ = jr.pad([np.array([2**30, 3], dtype), np.array([1], dtype)])
        assert xs.dtype == dtype and xs[0, 0] == 2**30
    with jax.enable_x64(False):
        xs, _ = jr.pad([np.array([2**31 - 1, -(2**31)])])
        assert xs.dtype == jnp.int32 and xs.ravel().tolist() == [2**31 - 1, -(2**31)]
        assert jr.pad([np.array([np.inf, 0.1])])[0].dtype == jnp.float32
        with pytest.raises(ValueError, match=r"pad: sequence 0 holds 1e\+300 in float64, which JAX makes float32"):
            jr.pad([np.array([1e300])])


PADDINGS = [
    ("uint8", -1, "a whole number from 0 to 255"),
    ("uint8", 256, "a whole number from 0 to 255"),
    ("int8", 0.5, "a whole number from -128 to 127"),
    ("int32", np.nan, "a whole number from"),
    ("int64", 2**40, "into int32; give a whole number"),
    ("int32", np.inf, "a whole number from"),
    ("bool", 2, "a whole number from 0 to 1"),
    ("float16", 1e6, "one that float16 holds"),
    ("bfloat16", 1e39, "one that bfloat16 holds"),
    ("float64", 1e300, "into float32; give one that float32 holds"),
    ("float32", 1j, "a real number"),
    ("complex64", 1e300j, "one that complex64 holds"),
]


@pytest.mark.parametrize(("dtype", "value", "words"), PADDINGS, ids=lambda a: str(a))
def test_padding_that_the_dtype_cannot_hold_is_refused(dtype, value, words):
    with pytest.raises(ValueError, match=rf"pad: value={re.escape(repr(value))} does not fit .*{words}"):
        jr.pad([np.ones(2, jnp.dtype(dtype))], value=value)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint8", 255), ("int8", -128.0), ("bool", True), ("float16", np.nan), ("float32", -np.inf), ("complex64", 1j)],
    ids=str,
)
def test_padding_that_the_dtype_holds(dtype, value):
    xs, _ = jr.pad([np.ones(1, jnp.dtype(dtype))], length=2, value=value)
    np.testing.assert_array_equal(xs[1, 0], np.array(value, jnp.dtype(dtype)))
