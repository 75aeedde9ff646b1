"""Splits by a stated rule, a test split that is handed out once, and batches by length for several seeds."""

import hashlib

import jax
import numpy as np
import pytest

from experiments.data import batches, splits
from experiments.data.records import Content, DataError, Record
from experiments.data.sequences import Sequences
from experiments.runner import config, training
from jaxrnn import training as jr_training

RULE = splits.Rule(validation=0.25, test=0.25, seed=3)


def records(count, **more):
    return [
        Record(f"row {n}", f"s{n}", np.full((1 + n % 4, 2), n), label=n % 2, **{key: of(n) for key, of in more.items()})
        for n in range(count)
    ]


def ids(found):
    return [found.train.ids, found.validation.ids, found.test().ids]


def u(name):
    return int(hashlib.sha256(f"3:{name}".encode()).hexdigest(), 16) / 2**256


def test_the_rule_is_the_hash_of_seed_and_id():
    found = ids(splits.split("f", Content(records(40)), RULE))
    test = [f"s{n}" for n in range(40) if u(f"s{n}") < 0.25]
    validation = [f"s{n}" for n in range(40) if 0.25 <= u(f"s{n}") < 0.5]
    assert list(found[2]) == test and list(found[1]) == validation and len(found[0]) == 40 - len(test) - len(validation)
    # What else is in the file, and in what order, changes no sequence's split.
    fewer = ids(splits.split("f", Content(records(40)[:4:-1]), RULE))
    assert all(set(part) <= set(whole) for part, whole in zip(fewer, found, strict=True))
    assert ids(splits.split("f", Content(records(40)), RULE._replace(seed=4))) != found


def test_a_group_stays_together_and_its_hash_decides():
    found = ids(splits.split("f", Content(records(60, group=lambda n: f"g{n // 3}")), RULE))
    for part, (low, high) in zip(found, ((0.5, 1), (0.25, 0.5), (0, 0.25)), strict=True):
        assert all(low <= u(f"g{int(name[1:]) // 3}") < high for name in part)


def test_validation_is_drawn_within_the_train_of_a_file_that_has_none():
    found = splits.split("f", Content(records(40, split=lambda n: "test" if n > 29 else "train")), RULE)
    assert found.rule == "the file, and within its train the SHA-256 of seed 3 and id or group (0.25 validation)"
    train, validation, test = ids(found)
    assert test == tuple(f"s{n}" for n in range(30, 40))
    assert validation == tuple(f"s{n}" for n in range(30) if u(f"s{n}") < 0.25) and len(train) == 30 - len(validation)


def test_a_class_without_a_training_sequence_is_refused():
    content = Content([r._replace(label="rare" if u(r.id) < 0.25 else "common") for r in records(20)])
    with pytest.raises(
        DataError, match="f, split 'train', key 'label': has no sequence of the class 'rare'; give some"
    ):
        splits.split("f", content, RULE)


def test_the_test_split_is_handed_out_once():
    found = splits.split("f", Content(records(40)), RULE)
    assert found.test_reads == 0 and found.sizes["test"] == len(found.test().ids) and found.test_reads == 1
    with pytest.raises(splits.TestSplitError, match="read already: it is handed to the final evaluation, once"):
        found.test()
    assert found.again().test_reads == 0  # another run


def test_statistics_are_those_of_the_training_steps():
    xs = [np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([[6.0, 5.0]])]
    mean, sd = splits.statistics(Sequences(("a", "b"), xs, None, None))
    np.testing.assert_allclose(mean, [3, 5])
    np.testing.assert_allclose(sd, [np.std([1, 2, 6]), 1])


# ---- batches -----------------------------------------------------------------------------------

N = 11
SEQUENCES = Sequences(
    tuple(f"s{n}" for n in range(N)),
    [np.full((1 + 5 * n % 7, 1), n + 1, np.float32) for n in range(N)],
    np.arange(N, dtype=np.int32),
    [np.full((1 + 5 * n % 7, 2), -n - 1, np.float32) for n in range(N)],
)
SEEDS = (5, 0, 9)


def test_each_seed_sees_every_sequence_once_an_epoch_and_all_seeds_the_same_shapes():
    at = batches.by_length(SEQUENCES, 2, buckets=3)(SEEDS)
    orders, shapes = [], set()
    for epoch in range(2):
        seen = [[] for _ in SEEDS]
        for step in range(6 * epoch, 6 * epoch + 6):
            batch = at(step)
            shapes.add(batch.xs.shape)
            for member, labels in enumerate(batch.labels):
                for b in np.flatnonzero(batch.valid[member]):
                    label, length = labels[b], batch.lengths[member, b]
                    seen[member].append(int(label))
                    assert length == 1 + 5 * label % 7
                    x, target = batch.xs[member, :, b, 0], batch.targets[member, :, b]
                    assert (x[:length] == label + 1).all() and not x[length:].any()
                    assert (target[:length] == -label - 1).all() and not target[length:].any()
        assert all(sorted(order) == list(range(N)) for order in seen)
        orders += seen
    assert len({tuple(order) for order in orders}) == 6  # each seed and epoch an order of its own
    assert len(shapes) == 3 and {shape[0] for shape in shapes} == {3}
    plan = jr_training.bucketed(SEQUENCES.lengths, batch_size=2, seed=5, buckets=3)
    assert [at(step).xs.shape[1] for step in range(12)] == [plan.at(step).length for step in range(12)]


def test_a_whole_split_is_one_batch():
    batch = batches.whole(SEQUENCES)
    assert batch.xs.shape == (7, N, 1) and batch.targets.shape == (7, N, 2) and batch.valid.all()
    assert batch.lengths.tolist() == SEQUENCES.lengths.tolist() and batch.labels.tolist() == list(range(N))
    assert batch.xs[:, 3, 0].tolist() == [4, 4, 0, 0, 0, 0, 0]


def fed(steps, seeds, **more):
    """w learns the mean of what it reads: loss (w - x)² / 2 over the valid steps of a batch, by SGD at rate 0.5."""

    def loss(w, batch, key, shared):
        mean = batch.xs.sum() / batch.lengths.sum()
        return (w - mean) ** 2 / 2, {"mean": mean}

    task = training.Task(
        init=lambda key: jax.numpy.asarray(4.0),
        batch=None,
        loss=loss,
        evaluate=lambda w, shared: {"held_out": w + shared},
        score="held_out",
        shared=jax.numpy.asarray(1.0),
        batch_axis=batches.BATCH_AXIS,
        feed=batches.by_length(SEQUENCES, 2, buckets=2),
    )
    plain = {"optimizer": "sgd", "schedule": "constant", "clip": "none", "learning_rate": 0.5, "log_every": 3}
    settings = config.Train.model_validate({**plain, "seeds": list(seeds), "steps": steps})
    return training.fit("w", task, settings, **more)


def test_fed_batches_train_as_by_hand_and_a_stopped_run_goes_on(tmp_path):
    result, params, best = fed(9, SEEDS)
    at = batches.by_length(SEQUENCES, 2, buckets=2)(SEEDS)
    w, losses = np.full(3, 4.0), []
    for step in range(9):
        batch = at(step)
        mean = batch.xs.sum((1, 2, 3)) / batch.lengths.sum(1)
        losses.append((w - mean) ** 2 / 2)
        w = w - 0.5 * (w - mean)
    np.testing.assert_allclose(params, w, rtol=1e-5)  # float32
    np.testing.assert_allclose(
        [b.values["loss"] for b in result.history], np.reshape(losses, (3, 3, 3)).mean(1), rtol=1e-4
    )
    np.testing.assert_allclose(result.last("held_out"), w + 1, rtol=1e-5)

    class Killed(Exception):
        pass

    def kill(block):
        if block.step == 6:
            raise Killed

    with pytest.raises(Killed):
        fed(9, SEEDS, directory=tmp_path, on_block=kill)
    again = fed(9, SEEDS, directory=tmp_path)
    np.testing.assert_array_equal(again.params, params)
    np.testing.assert_array_equal(again.best.value, best.value)


@pytest.mark.full
def test_fed_batches_are_divided_among_devices():
    """Of each seed the first and the second half of a batch, on a device each."""
    np.testing.assert_allclose(fed(9, SEEDS, mesh=config.Mesh(batch=2)).params, fed(9, SEEDS).params, rtol=1e-5)
