"""Training in blocks: what is recorded, when it stops, and how it goes on."""

import os
import re
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import training
from jaxrnn.training import checkpoints
from jaxrnn.training.records import Records
from tests import killed
from tests.killed import STEPS, numbers


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Eight blocks, undisturbed."""
    directory = tmp_path_factory.mktemp("whole")
    return killed.fit(directory, 8), (directory / "metrics.jsonl").read_bytes()


def assert_same(fitted, directory, whole):
    expected, lines = whole
    assert (directory / "metrics.jsonl").read_bytes() == lines
    for name, values in numbers(expected).items():
        np.testing.assert_array_equal(numbers(fitted)[name], values, err_msg=name)
    assert len(fitted.history) == len(expected.history) == 8
    for a, b in zip(fitted.history, expected.history, strict=True):
        assert a.step == b.step
        jax.tree.map(np.testing.assert_array_equal, a.values, b.values)
        assert {name: values.dtype for name, values in a.values.items()} == dict.fromkeys(a.values, np.dtype("float32"))


class Crash(Exception):
    pass


def crash_at(step):
    def on_block(result):
        if result.step == step:
            raise Crash

    return on_block


@pytest.mark.filterwarnings("ignore:.*half a line")
def test_a_crash_loses_nothing(tmp_path, whole):
    """Before the first block, between a line and its checkpoint, twice in a row."""
    for step in (STEPS, 3 * STEPS, 4 * STEPS):
        with pytest.raises(Crash):
            killed.fit(tmp_path, 8, on_block=crash_at(step))
        saved = checkpoints.note(tmp_path / "checkpoints")
        assert checkpoints.latest(tmp_path / "checkpoints") == step - STEPS and not saved["finished"]
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"seed": 0, "st')  # as a killed process leaves it
    seen = []
    fitted = killed.fit(tmp_path, 8, on_block=lambda result: seen.append(result.step))
    assert seen == [STEPS * n for n in range(3, 9)]  # the last of those restored, and the new ones
    assert_same(fitted, tmp_path, whole)

    # Once it has ended, all is read and nothing computed.
    again = killed.fit(tmp_path, 8, on_block=lambda result: seen.append(result.step))
    assert seen[6:] == [16] and again.seconds == checkpoints.note(tmp_path / "checkpoints")["seconds"]
    assert_same(again, tmp_path, whole)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGTERM])
def test_asked_to_stop_it_saves_and_leaves(tmp_path, whole, number):
    before = signal.getsignal(number)

    def on_block(result):
        if result.step == 3 * STEPS:
            os.kill(os.getpid(), number)

    with pytest.raises(training.Interrupted, match=r"^stopped after step 6, which is saved$"):
        killed.fit(tmp_path, 8, on_block=on_block)
    assert checkpoints.latest(tmp_path / "checkpoints") == 6 and signal.getsignal(number) is before
    assert_same(killed.fit(tmp_path, 8), tmp_path, whole)


def test_asked_twice_it_leaves_at_once(tmp_path):
    def on_block(result):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        killed.fit(tmp_path, 8, on_block=on_block)
    assert checkpoints.latest(tmp_path / "checkpoints") == 0


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.*half a line")
def test_lines_taken_from_the_records_are_missed(tmp_path):
    with pytest.raises(Crash):
        killed.fit(tmp_path, 8, on_block=crash_at(3 * STEPS))
    path = tmp_path / "metrics.jsonl"
    kept = path.read_bytes()
    path.write_bytes(kept[:100])
    with pytest.raises(checkpoints.CheckpointError, match=r"metrics.jsonl: the lines up to step 4, which is saved in"):
        killed.fit(tmp_path, 8)
    path.write_bytes(kept.replace(b'"loss": ', b'"loss": 1', 1))
    with pytest.raises(checkpoints.CheckpointError, match=r"some were changed or removed\. Put them back, or start a"):
        killed.fit(tmp_path, 8)
    path.write_bytes(b"garbage\n" + kept)
    with pytest.raises(checkpoints.CheckpointError, match=r"metrics.jsonl, line 1: expected a row in JSON, got garba"):
        killed.fit(tmp_path, 8)
    path.write_bytes(kept)
    killed.fit(tmp_path, 8)


def test_trainings_that_share_a_file_leave_each_others_rows_alone(tmp_path):
    """One of them starts anew, its checkpoints removed, after the other has written as well."""
    records = Records(tmp_path / "m.jsonl")
    block, state, _ = counting(members=1)

    def fit(name):
        options = {"steps": 15, "block_steps": 5, "save_every": 1, "records": records, "checkpoint": tmp_path / name}
        return training.fit(block, state, **options, labels=[{"model": name, "sizes": (3, 4)}])

    for name in ("a", "b"):
        fit(name)
    rows = list(records.rows())
    shutil.rmtree(tmp_path / "a/15")
    again = fit("a")
    assert [result.step for result in again.history] == [5, 10, 15]
    assert list(records.rows()) == [*rows[:2], *rows[3:], rows[2]]
    shutil.rmtree(tmp_path / "b")
    fit("b")
    assert list(records.rows()) == [*rows[:2], rows[2], *rows[3:]]
    assert [result.step for result in fit("b").history] == [5, 10, 15]


def test_rows_without_labels_are_not_written_over(tmp_path):
    block, state, _ = counting()
    records = Records(tmp_path / "m.jsonl")
    options = {"steps": 10, "block_steps": 5, "records": records}
    training.fit(block, state, **options, checkpoint=tmp_path / "a")
    with pytest.raises(checkpoints.CheckpointError, match=r"m\.jsonl: holds rows of another training, or of one whose"):
        training.fit(block, state, **options, checkpoint=tmp_path / "b")
    assert [row["step"] for row in records.rows()] == [5, 10]


def test_other_settings_are_another_training(tmp_path):
    block, state, _ = counting()
    options = {"steps": 15, "block_steps": 5, "checkpoint": tmp_path, "config": {"rate": 0.1, "sizes": (1, 2)}}
    training.fit(block, state, **options)
    training.fit(block, state, **options)
    for change, said in [
        ({"steps": 20}, "steps was 15, is 20"),
        ({"block_steps": 3}, "block_steps was 5, is 3"),
        ({"config": {"rate": 0.2, "sizes": (1, 2)}}, "rate was 0.1, is 0.2"),
    ]:
        with pytest.raises(checkpoints.CheckpointError, match=rf"belongs to a training with other settings: {said}\."):
            training.fit(block, state, **(options | change))


def test_asked_to_stop_in_the_last_block_it_leaves(tmp_path):
    block, state, calls = counting()

    def pressed(result):
        return os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(training.Interrupted, match="step 5, which is saved"):
        training.fit(block, state, steps=5, block_steps=5, checkpoint=tmp_path, on_block=pressed)
    fitted = training.fit(block, state, steps=5, block_steps=5, checkpoint=tmp_path)
    assert int(fitted.state) == 5 and len(calls) == 1


def test_a_block_that_donates_is_refused():
    block, state, _ = counting()
    donating = jax.jit(lambda state: block(state), donate_argnums=0)
    with pytest.raises(ValueError, match="the block has donated its argument"):
        training.fit(donating, state + 0, steps=5, block_steps=5)


def test_names_that_are_taken_are_refused(tmp_path):
    learn = training.loop(lambda key: jnp.ones(3), lambda w, batch, key: (w.sum(), {"loss": w.sum()}), optax.sgd(0.1))
    with pytest.raises(ValueError, match="the loop measures 'loss' itself"):
        learn.step(learn.init(jax.random.key(0)), None)
    records = Records(tmp_path / "m.jsonl")
    for name, labels in [("step", None), ("not_finite", None), ("seed", [{"seed": 1}])]:
        values = {name: jnp.zeros(() if labels is None else 1)}

        def block(state, values=values):
            return (state, values, {})

        with pytest.raises(ValueError, match=f"'{name}' cannot be the name of a measure"):
            training.fit(block, jnp.zeros(()), steps=1, block_steps=1, records=records, labels=labels)
    with pytest.raises(ValueError, match=r"there is no measure 'los'; the block gives loss; did you mean 'loss'\?$"):
        training.patience("los", 2)([training.BlockResult(1, {"loss": np.array(1.0)})])


def counting(breaks_at=None, members=None):
    """A block that counts, its loss not finite at one step; the state before it, and a list of its calls."""
    shape = () if members is None else (members,)
    calls = []

    def block(state):
        calls.append(state)
        steps = state[..., None] + jnp.arange(1, 6)
        place = jnp.zeros(shape, jnp.int32)
        if breaks_at is not None:
            place = jax.vmap(training.first_nonfinite)(jnp.where(steps == breaks_at, jnp.nan, 1.0).reshape(-1, 5))
            place = place.reshape(shape)
        return state + 5, {"loss": jnp.where(place > 0, jnp.nan, 1.0 / (state + 5))}, {"loss": place}

    return block, jnp.zeros(shape, jnp.int32), calls


def test_a_number_that_is_not_finite_stops_and_says_where(tmp_path):
    block, state, calls = counting(breaks_at=13)
    options = {"steps": 50, "block_steps": 5, "checkpoint": tmp_path / "c", "save_every": 9}
    options["records"] = Records(tmp_path / "r.jsonl")
    with pytest.raises(training.NonFiniteError) as stopped:
        training.fit(block, state, **options)
    assert str(stopped.value) == "the loss is not finite at step 13. The state after step 10 is saved."
    assert checkpoints.restore(tmp_path / "c", state)[:2] == (10, 10)
    assert [row["step"] for row in options["records"].rows()] == [5, 10]
    assert len(calls) == 3
    with pytest.raises(training.NonFiniteError):  # it goes on from there, and comes to the same end
        training.fit(block, state, **options)
    assert len(calls) == 4

    # Of several members each is named; "record" goes on.
    block, state, _ = counting(breaks_at=13, members=2)
    options = {"steps": 20, "block_steps": 5, "labels": [{"model": "gru", "seed": seed} for seed in (4, 7)]}
    with pytest.raises(
        training.NonFiniteError, match=r"^gru, seed 4: the loss is not finite at step 13; gru, seed 7: "
    ):
        training.fit(block, state, **options)
    records = Records(tmp_path / "all.jsonl")
    fitted = training.fit(block, state, **options, nonfinite="record", records=records, checkpoint=tmp_path / "d")
    assert [result.nonfinite["loss"].tolist() for result in fitted.history] == [[0, 0], [0, 0], [13, 13], [0, 0]]
    rows = list(records.rows())
    assert rows[4] == {"model": "gru", "seed": 4, "step": 15, "loss": None, "not_finite": {"loss": 13}}
    again = training.fit(block, state, **options, nonfinite="record", records=records, checkpoint=tmp_path / "d")
    assert [result.nonfinite.get("loss", np.zeros(2)).tolist() for result in again.history] == [
        [0, 0],
        [0, 0],
        [13, 13],
        [0, 0],
    ]
    assert (
        np.isnan(again.history[2].values["loss"]).all()
        and again.history[3].values["loss"].tolist() == [np.float32(1 / 20)] * 2
    )


def test_stop_when_is_asked_after_each_block_with_the_whole_history(tmp_path):
    block, state, calls = counting()

    def ends(points):
        return len(points) == 3 and points[0].step == 5

    options = {"steps": 50, "block_steps": 5, "stop_when": ends, "checkpoint": tmp_path}
    with pytest.raises(Crash):
        training.fit(block, state, **options, on_block=crash_at(10), save_every=1)
    fitted = training.fit(block, state, **options)  # of the first result it knows from the records
    assert int(fitted.state) == 15 and len(calls) == 4 and [result.step for result in fitted.history] == [5, 10, 15]
    again = training.fit(block, state, **options)
    assert int(again.state) == 15 and len(calls) == 4 and len(again.history) == 3  # it had ended
    assert sorted(path.name for path in tmp_path.iterdir()) == ["15", "5", "lock", "metrics.jsonl"]


def test_patience_is_over_when_no_member_gets_better():
    def history(*losses):
        return [training.BlockResult(n, {"loss": np.array(loss)}) for n, loss in enumerate(losses)]

    stop_when = training.patience("loss", 2)
    assert not stop_when(history((3, 1), (2, 2), (1, 3)))  # the first still does
    assert stop_when(history((3, 1), (2, 2), (3, 3), (2, 4)))  # equal is not better
    assert not stop_when(history((np.nan, 1), (-np.inf, 2)))
    assert stop_when(history((np.nan, 1), (np.nan, 2), (np.nan, 3)))  # NaN is never better
    assert training.patience("loss", 2, lower=False)(history(3, 1, 2))
    assert not training.patience("loss", 2)(history(3, 1))


def test_measures_of_every_kind_come_back(tmp_path):
    def block(state):
        return state + 1, {"whole": state, "flag": state > 0, "float": state / 3, "infinite": state * jnp.inf}, {}

    options = {"steps": 3, "block_steps": 1, "checkpoint": tmp_path / "c", "nonfinite": "record"}
    records = Records(tmp_path / "r.jsonl")
    first = training.fit(block, jnp.zeros((), jnp.int32), **options, records=records)
    again = training.fit(block, jnp.zeros((), jnp.int32), **options, records=records)
    for a, b in zip(first.history, again.history, strict=True):
        for name in ("whole", "flag", "float"):
            np.testing.assert_array_equal(a.values[name], b.values[name])
        assert np.isnan(b.values["infinite"])  # JSON has no infinity


def test_bad_arguments_are_told():
    block, state, _ = counting()
    with pytest.raises(ValueError, match="steps must be a multiple of block_steps=5, got 12"):
        training.fit(block, state, steps=12, block_steps=5)
    with pytest.raises(ValueError, match="nonfinite"):
        training.fit(block, state, steps=10, block_steps=5, nonfinite="ignore")
    for wrong, said in [(lambda state: (state, {}), "a tuple of 2"), (lambda state: [state], "list")]:
        with pytest.raises(TypeError, match=rf"to return \(state, measures, nonfinite\), got {said}; with nothing to"):
            training.fit(wrong, state, steps=5, block_steps=5)


# ---- the steps themselves ------------------------------------------------------------------------


def half(w, batch, key):
    return (w - batch) ** 2 / 2, {"seen": batch}  # gradient w - batch


def test_steps_are_those_of_the_optimizer_measured_before_each():
    learn = training.loop(lambda key: jnp.asarray(3.0), half, optax.sgd(0.5))
    state = learn.init(jax.random.key(0))
    run = jax.jit(lambda state: learn.run(state, lambda key, n: 0.0 * n, 3))
    state, measures = run(state)
    np.testing.assert_allclose(measures["loss"], [4.5, 1.125, 0.28125])
    np.testing.assert_allclose(measures["grad_norm"], [3.0, 1.5, 0.75])
    assert (float(state.params), int(state.step), int(state.skipped)) == (0.375, 3, 0)
    one, measured = learn.step(state, jnp.asarray(0.0))
    assert (float(one.params), float(measured["grad_norm"])) == (0.1875, 0.375)
    assert learn.evaluate(jnp.asarray(3.0), jnp.asarray(1.0)) == {"loss": 2.0, "seen": 1.0}


def test_accumulated_batches_make_one_step_on_their_mean():
    options = {"init": lambda key: jnp.asarray(3.0), "loss": half, "optimizer": optax.sgd(0.5)}
    learn = training.loop(**options, accumulate=4)
    state, measures = jax.jit(lambda state: learn.run(state, lambda key, n: 1.0 * n, 2))(learn.init(jax.random.key(0)))
    np.testing.assert_allclose(measures["seen"], [1.5, 5.5])  # batches 0 … 3, then 4 … 7
    np.testing.assert_allclose(measures["grad_norm"], [1.5, 3.25])  # 3 - 1.5; 2.25 - 5.5
    np.testing.assert_allclose(
        measures["loss"], [(9 + 4 + 1 + 0) / 8, np.mean([(2.25 - n) ** 2 / 2 for n in range(4, 8)])]
    )
    assert float(state.params) == 3.875 and int(state.step) == 2


def test_more_batches_than_a_step_can_hold_are_refused():
    """At the factory, before anything is as long as that; and a batch that does not hold as many is named."""
    options = {"init": lambda key: jnp.asarray(3.0), "loss": half, "optimizer": optax.sgd(0.5)}
    with pytest.raises(
        ValueError, match=r"training\.loop: accumulate must be at most 65,536 .* got 1,000,000,000; take"
    ):
        training.loop(**options, accumulate=10**9)
    learn = training.loop(**options, accumulate=2**16)
    state = jax.eval_shape(learn.init, jax.random.key(0))
    for x in (jnp.zeros(4), jnp.zeros(())):
        message = (
            rf"training\.loop: with accumulate=65536 .* got batch\['x'\] of shape {re.escape(str(x.shape))}; stack"
        )
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(learn.step, state, {"x": x})


def test_gradients_of_half_precision_accumulate_in_float32():
    # 256 + 1 is 256 in bfloat16: a sum of 512 ones would stall there.
    learn = training.loop(
        lambda key: jnp.zeros((), jnp.bfloat16), lambda w, batch, key: (w * batch, {}), optax.sgd(1.0), accumulate=512
    )
    state, _ = jax.jit(learn.step)(learn.init(jax.random.key(0)), jnp.ones(512, jnp.bfloat16))
    assert state.params == -1 and state.params.dtype == jnp.bfloat16


def test_noise_and_batches_have_keys_of_their_own():
    def seen(w, batch, key):
        return (w * 0.0, {"batch": batch, "noise": jax.random.uniform(key)})

    learn = training.loop(lambda key: jnp.asarray(1.0), seen, optax.sgd(1.0), accumulate=2)

    def batch(key, n):
        return jax.random.uniform(jax.random.fold_in(key, n))

    _, measures = jax.jit(lambda state: learn.run(state, batch, 8))(learn.init(jax.random.key(0)))
    assert len(set(np.concatenate([measures["batch"], measures["noise"]]).tolist())) == 16
    assert len(jax.tree.leaves(learn.init(jax.random.key(0)))) == 4


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    learn = training.loop(lambda key: jnp.asarray(3.0), half, optax.adam(0.5), nonfinite="skip")

    def bad(key, n):
        return jnp.where(n == 1, jnp.inf, jnp.where(n == 3, jnp.nan, 0.0))

    state, measures = jax.jit(lambda state: learn.run(state, bad, 5))(learn.init(jax.random.key(0)))
    plain = training.loop(lambda key: jnp.asarray(3.0), half, optax.adam(0.5))
    expected, _ = jax.jit(lambda state: plain.run(state, lambda key, n: 0.0 * n, 3))(plain.init(jax.random.key(0)))
    np.testing.assert_allclose(state.params, expected.params, rtol=1e-6)
    assert (int(state.step), int(state.skipped), int(state.opt_state[0].count)) == (5, 2, 3)
    assert np.isfinite(measures["loss"]).tolist() == [True, False, True, False, True]


def test_a_loss_that_is_no_scalar_is_refused():
    learn = training.loop(lambda key: jnp.ones(3), lambda w, batch, key: (w, {}), optax.sgd(0.1))
    with pytest.raises(
        TypeError, match=r"training.loop: loss.* must give one floating-point number, got float32 of sh"
    ):
        learn.step(learn.init(jax.random.key(0)), None)


def test_best_is_kept_where_it_is_strictly_better():
    best = training.init_best(jnp.asarray(0.0), lower=False)
    for step, value in enumerate([jnp.nan, 1.0, 3.0, 3.0, jnp.inf, 2.0], start=1):
        best = training.update_best(best, jnp.asarray(value), jnp.asarray(step), jnp.asarray(10.0 * step), lower=False)
    assert (float(best.value), int(best.step), float(best.params)) == (3.0, 3, 30.0)


def test_tensorboard_files_hold_the_measures(tmp_path):
    """Read by the format: length, its checksum, an event in protobuf, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    records = Records(tmp_path / "m.jsonl", tensorboard=tmp_path / "events")
    for step in (10, 20):
        rows = [{"step": step, "loss": np.float32(step + n)} for n in (0, 1)]
        records.append(rows, [{"model": "gru", "seed": n} for n in (0, 1)])
    again = Records(tmp_path / "m.jsonl", tensorboard=tmp_path / "events")  # as a run that goes on after step 10
    again.append([{"step": 20, "loss": np.float32(0.5)}], [{"model": "gru", "seed": 1}])
    found, starts = {}, []
    for path in sorted((tmp_path / "events").rglob("*tfevents*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            size = int.from_bytes(content[place : place + 8], "little")
            event = Event.FromString(content[place + 12 : place + 12 + size])
            place += size + 16
            found |= {(path.parent.name, v.tag, event.step): v.simple_value for v in event.summary.value}
            starts += (
                [event.step] if event.session_log.status == 1 else []
            )  # START: what was said of later steps is void
    assert found == {
        ("gru seed=0", "loss", 10): 10,
        ("gru seed=0", "loss", 20): 20,
        ("gru seed=1", "loss", 10): 11,
        ("gru seed=1", "loss", 20): 0.5,
    }
    assert 20 in starts


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(ImportError, match=r"needs tensorboardX: pip install 'jaxrnn\[tensorboard\]'"):
        Records(tmp_path / "m.jsonl", tensorboard=tmp_path)
