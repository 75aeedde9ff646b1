"""training.padded: values, padding, the parts of processes, and a loss in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.training import Padded, bucketed, padded, prefetch

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from tests.batching import LENGTHS, SIZES, assert_same, few


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

    def put(batch):
        return jr.devices.shard_batch(batch, mesh, batch_axis=Padded(1, 0, 0))

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

    def add(results):
        return jax.tree.map(lambda *a: sum(a), *results)

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
