"""training.bucketed: nothing left out, little padding, the order a function of seed and step."""

import itertools

import numpy as np
import pytest

from jaxrnn.training import batches as batches_module
from jaxrnn.training import bucketed

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from tests.batching import LENGTHS, SIZES, assert_same, few


def epoch_of(batches, epoch=0):
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    return [batches.at(step) for step in steps]


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
    lengths = np.arange(5 * batches_module.CANDIDATES - 4)
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

    def make():
        return bucketed(np.array(lengths), batch_size=batch_size, seed=seed, buckets=buckets)

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

    def order(seed, epoch):
        batches = bucketed(lengths, batch_size=8, seed=seed)
        return np.stack([batch.indices for batch in epoch_of(batches, epoch)])

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
