"""training.bucketed, training.padded and training.prefetch: nothing lost, the order a function of seed and step."""

import itertools
import os
import re
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.training import batches as module
from jaxrnn.training.batches import Padded, bucketed, padded, prefetch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

few = settings(max_examples=30, derandomize=True, deadline=None)
LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=40)
SIZES = {"batch_size": st.integers(1, 8), "seed": st.integers(0, 2**70), "buckets": st.integers(1, 6)}


def epoch_of(batches, epoch=0):
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    return [batches.at(step) for step in steps]


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


# ---- which examples ------------------------------------------------------------------------------


@few
@given(lengths=LENGTHS, **{name: SIZES[name] for name in SIZES})
def test_each_example_once_an_epoch(lengths, batch_size, seed, buckets):
    batches = bucketed(lengths, batch_size=batch_size, seed=seed, buckets=buckets)
    assert batches.steps_per_epoch == -(-len(lengths) // batch_size) and len(batches.shapes) <= buckets
    shapes, steps = set(), 0
    for batch in epoch_of(batches, epoch=1):
        taken = batch.indices[batch.valid]
        longest = max(lengths[index] for index in taken)
        assert batch.length == min(T for T, _ in batches.shapes if longest <= T)
        assert (batch.indices[len(taken) :] == -1).all() and batch.indices.shape == (batch_size,)
        shapes.add((batch.length, batch_size))
        steps += batch.length * batch_size
    assert sorted(shapes) == list(batches.shapes)
    assert batches.padding == pytest.approx(1 - sum(lengths) / steps)
    for epoch in range(2):
        indices = np.concatenate([batch.indices for batch in epoch_of(batches, epoch)])
        assert sorted(indices[indices >= 0]) == list(range(len(lengths)))
        assert sum(not batch.valid.all() for batch in epoch_of(batches, epoch)) <= 1


@few
@given(lengths=LENGTHS, batch_size=st.integers(1, 4), buckets=st.integers(1, 4))
def test_the_least_padding_of_all_boundaries(lengths, batch_size, buckets):
    """No other choice of so many boundaries pads less: all of them are tried where there are few lengths."""
    top, descending = max(1, *lengths), sorted(lengths, reverse=True)

    def steps(bounds):  # full batches from the longest down, each as long as the bucket of its longest
        return batch_size * sum(min(T for T in bounds if length <= T) for length in descending[::batch_size])

    below = sorted({length for length in lengths if 0 < length < top})[-10:]
    least = min(steps((*choice, top)) for k in range(buckets) for choice in itertools.combinations(below, k))
    batches = bucketed(lengths, batch_size=batch_size, seed=0, buckets=buckets)
    got = sum(batch.length * batch_size for batch in epoch_of(batches))
    assert got <= least and got == steps([T for T, _ in batches.shapes])
    assert batches.padding == pytest.approx(1 - sum(lengths) / got)


def test_padding_of_realistic_lengths():
    """The first bound is that of equal shares of examples, which is what quantiles give: 27 %; see 80 % without."""
    lengths = np.random.default_rng(0).lognormal(np.log(60), 0.8, 10000).round().clip(10, 400).astype(int)
    one, eight = (bucketed(lengths, batch_size=32, seed=0, buckets=buckets) for buckets in (1, 8))
    quantiles = np.unique(np.quantile(lengths, np.arange(1, 9) / 8, method="inverted_cdf"))
    equal = bucketed(lengths, batch_size=32, seed=0, buckets=quantiles)
    assert one.padding > 0.75 and eight.padding < 0.18 and eight.padding < 0.7 * equal.padding
    assert len(eight.shapes) == 8


def test_many_different_lengths_are_thinned_out():
    """The search for boundaries takes the square of the number of lengths."""
    lengths = np.arange(5 * module.CANDIDATES - 4)
    batches = bucketed(lengths, batch_size=2, seed=0, buckets=4)
    top = lengths.max()
    assert batches.shapes[-1] == (top, 2)
    # Equal steps are best for equally many of each length: padding of an eighth of top on (about) half of it.
    assert batches.padding == pytest.approx(0.2, abs=0.01)


def test_leftovers_go_up_and_empty_rows_stay_short():
    batches = bucketed([2] * 5 + [4] * 3 + [9] * 3, batch_size=4, seed=3, buckets=[2, 4, 9, 50])
    rows = [[len(sequence) for sequence in b] for b in ([[0] * 2] * 3, [[0] * 2] * 2 + [[0] * 4] * 2)]
    rows.append([4, 9, 9, 9])
    lengths = np.array([2] * 5 + [4] * 3 + [9] * 3)
    got = sorted((b.length, sorted(lengths[b.indices[b.valid]].tolist())) for b in epoch_of(batches))
    assert got == sorted(zip([2, 4, 9], rows, strict=True)) and batches.shapes == ((2, 4), (4, 4), (9, 4))


@few
@given(lengths=LENGTHS, steps=st.lists(st.integers(0, 100), max_size=6), **SIZES)
def test_at_is_pure(lengths, steps, batch_size, seed, buckets):
    """A new object, asked in another order, gives the same: so a restart goes on with the batch that was due."""
    make = lambda: bucketed(np.array(lengths), batch_size=batch_size, seed=seed, buckets=buckets)  # noqa: E731
    asked = make()
    in_order = {step: asked.at(step) for step in sorted(steps)}
    again = make()
    for step in steps:
        assert_same(again.at(step), in_order[step])
        assert_same(make().at(np.int64(step)), in_order[step])


def test_the_order_is_that_of_today():
    """And of all versions and platforms, or a restart after an update of NumPy would see other data."""
    batches = bucketed([3, 9, 2, 8, 3, 2, 9], batch_size=2, seed=7, buckets=2)
    assert [batch.indices.tolist() for batch in epoch_of(batches)] == GOLDEN[0]
    assert [batch.indices.tolist() for batch in epoch_of(batches, 1)] == GOLDEN[1]


GOLDEN = ([[2, 4], [0, 1], [6, 3], [5, -1]], [[3, 6], [0, 1], [2, 5], [4, -1]])


def test_order_differs_between_epochs_and_seeds_and_is_shuffled():
    lengths = np.random.default_rng(0).integers(1, 100, 400)
    order = lambda seed, epoch: np.stack(  # noqa: E731
        [batch.indices for batch in epoch_of(bucketed(lengths, batch_size=8, seed=seed), epoch)]
    )
    orders = [order(0, 0), order(0, 1), order(1, 0), order(2**32, 0)]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).mean() < 0.1
        together = [{frozenset(batch) for batch in rows.tolist()} for rows in (one, other)]
        assert len(together[0] & together[1]) < 5  # not the same batches in another order
    longest = lengths[orders[0]].max(axis=1)
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4  # not bucket after bucket


def test_an_epoch_is_planned_once():
    """Also where two take turns, as at the end of an epoch, when prefetch is in the next one already."""
    batches = bucketed(range(6), batch_size=2, seed=0)
    plans = [batches.at(step).indices.base for step in (0, 3, 2, 5, 1)]
    assert plans[0] is plans[2] is plans[4] and plans[1] is plans[3] and plans[0] is not plans[1]


def test_batches_cannot_be_changed_from_outside():
    lengths = np.array([1, 2, 3])
    batches = bucketed(lengths, batch_size=2, seed=0)
    lengths[:] = 0
    assert batches.lengths.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        batches.at(0).indices[:] = 0


# ---- arrays --------------------------------------------------------------------------------------


def examples(lengths, I=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, I)) for length in lengths]


@few
@given(lengths=LENGTHS, per=st.integers(1, 3), processes=st.sampled_from([1, 2, 3]), **SIZES)
def test_parts_of_processes_make_the_batch(lengths, per, processes, batch_size, seed, buckets):
    """Values, padding, dtypes; and the parts put side by side, in order, are the batch of one process."""
    xs = [x.astype(np.float16) for x in examples(lengths)]
    data = {"xs": xs, "tokens": ([np.arange(n, dtype=np.uint8) for n in lengths], np.arange(len(lengths)) + 1.5)}
    batches = bucketed(lengths, batch_size=per * processes, seed=seed, buckets=buckets)
    whole = padded(batches, data, process=(0, 1))
    parts = [padded(batches, data, process=(p, processes)) for p in range(processes)]
    for step in range(batches.steps_per_epoch):
        batch, got = batches.at(step), whole(step)
        T = batch.length
        assert got.data["xs"].shape == (T, len(batch.indices), 2) and got.data["xs"].dtype == np.float16
        assert got.data["tokens"][0].dtype == np.uint8 and got.data["tokens"][1].dtype == np.float64
        assert got.lengths.dtype == np.int32
        for row, index in enumerate(batch.indices):
            n = 0 if index < 0 else lengths[index]
            assert got.lengths[row] == n and got.valid[row] == (index >= 0)
            assert (got.data["xs"][n:, row] == 0).all() and (got.data["tokens"][0][n:, row] == 0).all()
            assert got.data["tokens"][1][row] == index + 1.5 if index >= 0 else got.data["tokens"][1][row] == 0
            if index >= 0:
                np.testing.assert_array_equal(got.data["xs"][:n, row], xs[index])
                assert got.data["tokens"][0][:n, row].tolist() == list(range(n))
        axes = Padded({"xs": 1, "tokens": (1, 0)}, 0, 0)
        assert_same(jax.tree.map(lambda axis, *a: np.concatenate(a, axis), axes, *(part(step) for part in parts)), got)


def test_data_from_a_function():
    """It is asked for the examples of its process alone, and for a stranger's where it has none, for the shapes."""
    lengths = [3, 1, 2]
    xs, asked = examples(lengths), []

    def load(indices):
        asked.append(indices.tolist())
        return [xs[n] for n in indices], indices * 10

    batches = bucketed(lengths, batch_size=8, seed=0)
    want = padded(batches, (xs, np.arange(3) * 10))(0)
    parts = [padded(batches, load, process=(p, 4))(0) for p in range(4)]
    order = batches.at(0).indices[:3].tolist()
    assert asked == [order[:2], order[2:], order[:1], order[:1]]
    assert_same(jax.tree.map(lambda axis, *a: np.concatenate(a, axis), Padded((1, 0), 0, 0), *parts), want)
    assert not parts[3].data[0].any() and parts[3].data[0].shape == (3, 2, 2)


@pytest.mark.multidevice
def test_batches_on_a_mesh():
    lengths = [3, 0, 2, 5, 1]
    batches = bucketed(lengths, batch_size=4, seed=0, buckets=1)
    at, mesh = padded(batches, [x.astype(np.float32) for x in examples(lengths)]), jr.devices.batch_mesh(2)
    put = lambda batch: jr.devices.shard_batch(batch, mesh, batch_axis=Padded(1, 0, 0))  # noqa: E731
    for step, batch in enumerate(prefetch(map(at, range(2)), put=put)):
        assert_same(batch, at(step))
        assert [shard.data.shape for shard in batch.data.addressable_shards] == [(5, 2, 2)] * 2


def test_an_epoch_in_batches_is_one_of_sequences_one_by_one(x64):
    """Loss and gradient; float64, and sums of some 30 terms in another order: 1e-12 is a thousand units of the last."""
    lengths = [3, 1, 0, 3, 5, 1, 5, 3]
    xs, ys = examples(lengths), examples(lengths, I=3, seed=1)
    layer = jr.scan(jr.gru(2, 3, param_dtype=jnp.float64))
    params = layer.init(jax.random.key(0))

    @jax.jit
    def total(params, xs, ys, lengths):
        """The sum over valid steps, as the masked mean times how many they are."""
        errors = ((layer.apply(params, xs, lengths=lengths)[1] - ys) ** 2).sum(-1)
        return jr.masked_mean(errors, lengths=lengths) * lengths.sum()

    both = jax.jit(jax.value_and_grad(total))
    batches = bucketed(lengths, batch_size=3, seed=0, buckets=[3, 5])
    at = padded(batches, (xs, ys))
    assert batches.shapes == ((3, 3), (5, 3))
    in_batches = [both(params, *at(step).data, at(step).lengths) for step in range(3)]
    alone = [both(params, x[:, None], y[:, None], np.array([len(x)])) for x, y in zip(xs, ys, strict=True) if len(x)]
    add = lambda results: jax.tree.map(lambda *a: sum(a), *results)  # noqa: E731
    got, want = add(in_batches), add(alone)
    assert got[0].dtype == jnp.float64 and float(want[0]) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, want)

    # Empty rows: the same gradient whatever stands in them, and none where all are empty. One program, so bitwise.
    (partly,) = (at(step) for step in range(3) if not at(step).valid.all())
    assert partly.valid.tolist() == [True, True, False] and partly.lengths.any()
    junk = (np.where(partly.valid[:, None], partly.data[0], np.nan), partly.data[1])
    value, gradient = both(params, *partly.data, partly.lengths)
    assert_same(both(params, *junk, partly.lengths), (value, gradient))
    value, gradient = both(params, *partly.data, 0 * partly.lengths)
    assert value == 0 and not any(a.any() for a in jax.tree.leaves(gradient))


def test_a_resume_in_the_middle_of_an_epoch_goes_on_with_the_same_batches():
    lengths = np.random.default_rng(0).integers(0, 9, 50)
    xs = examples(lengths)

    def run(start, stop):  # all made anew, as after a restart
        at = padded(bucketed(lengths, batch_size=4, seed=5), xs)
        return list(prefetch(map(at, range(start, stop)), put=lambda batch: batch))

    whole = run(0, 30)  # 13 an epoch
    assert_same(run(0, 17) + run(17, 30), whole)


# ---- ahead of their use --------------------------------------------------------------------------


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("size", [1, 3])
def test_prefetch_is_ahead_by_size_and_no_more(size):
    taken = [threading.Event() for _ in range(10)]

    def items():
        for n in range(10):
            taken[n].set()
            yield n

    ahead = prefetch(items(), size=size, put=lambda n: (n, threading.current_thread().name))
    assert not taken[0].is_set() and not threads()
    for n in range(10):
        item, name = next(ahead)
        assert item == n and name.startswith("prefetch")
        assert all(event.wait(10) for event in taken[: n + size + 1])  # while this loop does something else
        assert not any(event.is_set() for event in taken[n + size + 1 :])
    assert next(ahead, None) is None and not threads()


def test_prefetch_raises_in_its_place_and_ends():
    def items(bad):
        for n in range(5):
            if n == bad:
                raise OSError(f"file {n}")
            yield n

    for ahead in (prefetch(items(2)), prefetch(range(5), put=lambda n: n if n != 2 else items(0).__next__())):
        assert [int(next(ahead)), int(next(ahead))] == [0, 1]
        with pytest.raises(OSError, match="file") as caught:
            next(ahead)
        assert not threads() and next(ahead, None) is None
        del caught  # until here its traceback has kept alive all that there was


def test_prefetch_stops_when_its_loop_does():
    taken = []
    source = (taken.append(n) or n for n in itertools.count())
    for n in prefetch(source, size=2):
        if n == 3:
            break
    del n
    assert not threads() and len(taken) <= 6
    count = len(taken)
    assert next(source) == count and taken[-1] == count  # nobody else takes from it any more
    ahead = prefetch(itertools.count())
    next(ahead)
    ahead.close()
    assert not threads()


def test_prefetch_lets_python_end():
    """In the middle of its items, and silently."""
    code = "import itertools, jaxrnn.training.batches as b; ahead = b.prefetch(itertools.count()); print(next(ahead))"
    options = {"env": {**os.environ, "JAX_PLATFORMS": "cpu"}, "capture_output": True, "text": True, "timeout": 100}
    ended = subprocess.run([sys.executable, "-c", code], **options)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("0\n", "", 0)


def test_prefetch_puts_on_the_device_in_the_mode_of_its_caller(x64):
    device = jax.devices()[1]
    with jax.default_device(device):
        ahead = prefetch([{"x": np.arange(2.0)}])
    (item,) = ahead
    assert item["x"].dtype == jnp.float64 and item["x"].devices() == {device}


# ---- errors --------------------------------------------------------------------------------------

XS = [np.ones((n, 2)) for n in (3, 1, 2, 2)]
BATCHES = bucketed([3, 1, 2, 2], batch_size=2, seed=0)
ONE = bucketed([3, 1, 2, 2], batch_size=4, seed=0)
MAKE = dict(batch_size=2, seed=0)
ERRORS = {
    "float lengths": (
        lambda: bucketed([1.0, 2.0], **MAKE),
        TypeError,
        ["bucketed: lengths must be integers, got float64", "lengths.astype('int32')"],
    ),
    "negative length": (
        lambda: bucketed([3, -1], **MAKE),
        ValueError,
        ["bucketed: lengths must be 0 or more, got -1 for example 1", "len(sequence)"],
    ),
    "no lengths": (lambda: bucketed([], **MAKE), ValueError, ["at least one example, got none"]),
    "lengths of two axes": (lambda: bucketed([[1]], **MAKE), ValueError, ["must be (N,)", "got shape (1, 1)"]),
    "batch of none": (
        lambda: bucketed([1], batch_size=0, seed=0),
        ValueError,
        ["bucketed: batch_size must be a positive int, got 0"],
    ),
    "half a batch": (lambda: bucketed([1], batch_size=0.5, seed=0), TypeError, ["batch_size must be a positive int"]),
    "seed": (lambda: bucketed([1], batch_size=1, seed=-1), ValueError, ["bucketed: seed must be 0 or more, got -1"]),
    "key as seed": (
        lambda: bucketed([1], batch_size=1, seed="a"),
        TypeError,
        ["bucketed: seed must be an int, got 'a'"],
    ),
    "no buckets": (lambda: bucketed([1], **MAKE, buckets=0), ValueError, ["bucketed: buckets must be a positive int"]),
    "float buckets": (
        lambda: bucketed([7], **MAKE, buckets=[2.5]),
        TypeError,
        ["bucketed: buckets must be a number of buckets, or the T of each as ints, got [2.5]", "[50, 100, 7]"],
    ),
    "descending": (
        lambda: bucketed([1], **MAKE, buckets=np.array([9, 5], np.uint64)),
        ValueError,
        ["bucketed: buckets must ascend from 1 or more, got [9, 5]; give [5, 9]."],
    ),
    "bucket of 0": (
        lambda: bucketed([1], **MAKE, buckets=[0, 9]),
        ValueError,
        ["bucketed: buckets must ascend from 1 or more, got [0, 9]; give [9]."],
    ),
    "too short": (
        lambda: bucketed([8, 2], **MAKE, buckets=[5]),
        ValueError,
        ["the longest example has 8 steps, more than the last bucket, 5", "add 8 to buckets"],
    ),
    "negative step": (lambda: BATCHES.at(-1), ValueError, ["bucketed.at: step must be 0 or more, got -1"]),
    "float step": (lambda: padded(BATCHES, XS)(1.0), TypeError, ["bucketed.at: step must be an int, got 1.0"]),
    "not batches": (lambda: padded([3], XS), TypeError, ["padded: batches must come from training.bucketed, got list"]),
    "processes": (
        lambda: padded(BATCHES, XS, process=(0, 3)),
        ValueError,
        ["padded: batch_size, 2, cannot be divided among 3 processes", "a multiple of 3, such as 3"],
    ),
    "process": (
        lambda: padded(BATCHES, XS, process=(2, 2)),
        ValueError,
        ["0 ≤ p < P, got (2, 2); the first is (0, 2)"],
    ),
    "too few": (lambda: padded(BATCHES, {"y": XS[1:]}), ValueError, ["data['y'] must hold 4 examples", "got 3"]),
    "too many labels": (
        lambda: padded(BATCHES, np.ones(5)),
        ValueError,
        ["padded: data must hold 4 examples", "got 5"],
    ),
    "other lengths": (
        lambda: padded(BATCHES, (XS, XS[::-1])),
        ValueError,
        ["padded: data[1] has 2 steps for example 0, but bucketed was given 3", "the lengths of these sequences"],
    ),
    "other lengths, loaded": (
        lambda: padded(ONE, lambda indices: [XS[n - 1] for n in indices])(0),
        ValueError,
        ["padded: data has", "steps for example", "but bucketed was given"],
    ),
    "too many, loaded": (lambda: padded(ONE, lambda indices: [*XS, XS[0]])(0), ValueError, ["4 examples", "got 5"]),
    "a list of labels": (
        lambda: padded(BATCHES, {"y": [1, 2, 3, 4]}),
        ValueError,
        ["data['y'] must be a list of sequences", "example 0 is a scalar", "np.array(data['y'])"],
    ),
    "a number": (lambda: padded(BATCHES, (XS, 3)), TypeError, ["padded: data[1] must be a list of", "got 3"]),
    "features": (
        lambda: padded(BATCHES, [*XS[:3], np.ones((2, 5))]),
        ValueError,
        ["data is float64 (2, 5) for example 3 but float64 (3, 2) for example 0; all must agree in dtype"],
    ),
    "dtype": (
        lambda: padded(BATCHES, [*XS[:3], np.ones((2, 2), np.int8)]),
        ValueError,
        ["data is int8 (2, 2) for example 3 but float64 (3, 2)"],
    ),
    "size": (lambda: prefetch(XS, size=0), ValueError, ["prefetch: size must be a positive int, got 0"]),
    "put": (lambda: prefetch(XS, put=1), TypeError, ["prefetch: put must be a function of an item, got 1"]),
    "items": (lambda: prefetch(3), TypeError, ["prefetch: items must be iterable, got int; give map(at, range("]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, error, words = ERRORS[name]
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words))):
        call()
