"""Early stopping and the best parameters, by one measure: against brute force over the history."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxrnn import training
from jaxrnn.training.checkpoints import CheckpointError

# What blocks measure, (blocks, members): ties, what is not finite, a member that never is finite.
NAN, INF = np.nan, np.inf
TABLES = {
    "ties": [[3, 1], [2, 1], [2, 2], [1, 0], [1, 0], [4, 0], [2, 3], [2, 2]],
    "not finite": [[NAN, 1], [INF, NAN], [2, -INF], [NAN, 0.5], [3, INF], [1, 1], [NAN, NAN], [2, 2]],
    "never": [[NAN, 3], [NAN, 2], [INF, 1], [-INF, 4], [NAN, 5], [NAN, 6], [NAN, 0], [NAN, 1]],
    "close": [[1, 1], [1 + 1e-7, 1 - 1e-7], [1 - 1e-7, 1], [1, 1], [2, 2], [2, 2], [0, 2], [2, 2]],
    "better and better": [[8 - n, 9 - n] for n in range(8)],
}
BLOCKS = 3
LABELS = [{"seed": 0}, {"seed": 1}]


class Crash(Exception):
    pass


def fit(table, *, members=True, lower=True, keep=lambda state: {"n": state["n"], "w": state["w"]}, **options):
    """Of both members, or of the first; the state counts the blocks."""
    table = np.float32(table if members else np.asarray(table)[:, 0])

    def block(state):
        score = jnp.asarray(table[int(np.ravel(state["n"])[0])])
        return {"n": state["n"] + 1, "w": state["w"] + 10, "rest": state["rest"]}, {"score": score}, {}

    shape = (2,) if members else ()
    state = {"n": jnp.zeros(shape, jnp.int32), "w": jnp.zeros((*shape, 3)), "rest": jnp.zeros(5)}
    stop_when = training.patience("score", BLOCKS, lower=lower, keep=keep)
    given = {"steps": len(table), "block_steps": 1, "stop_when": stop_when, "labels": LABELS if members else None}
    return training.fit(block, state, **(given | options))


def brute_force(table, lower):
    """The blocks that are run, and of each member (block from 1, value): one by one."""
    best, since = [(0, INF if lower else -INF) for _ in table[0]], [0 for _ in table[0]]
    for block, values in enumerate(table, start=1):
        for n, value in enumerate(values):
            if np.isfinite(value) and (value < best[n][1] if lower else value > best[n][1]):
                best[n], since[n] = (block, value), 0
            elif block > 1:
                since[n] += 1
        if min(since) >= BLOCKS:
            break
    return block, best


def assert_kept(fitted, blocks, best):
    assert len(fitted.history) == blocks
    steps, values = (np.array(column) for column in zip(*best, strict=True))
    shape = np.shape(fitted.best.value)
    np.testing.assert_array_equal(fitted.best.step, steps.reshape(shape))
    np.testing.assert_array_equal(np.float32(fitted.best.value), np.float32(values).reshape(shape))
    np.testing.assert_array_equal(np.reshape(fitted.best.params["n"], -1), steps)
    np.testing.assert_array_equal(np.reshape(fitted.best.params["w"], (-1, 3)), 10.0 * steps[:, None] * np.ones(3))


@pytest.mark.parametrize("lower", [True, False], ids=["lower", "higher"])
@pytest.mark.parametrize("members", [True, False], ids=["members", "alone"])
@pytest.mark.parametrize("name", TABLES)
def test_the_best_is_kept_and_the_training_ends(name, members, lower):
    table = np.float32(TABLES[name])
    expected = brute_force(table if members else table[:, :1], lower)
    assert_kept(fit(table, members=members, lower=lower), *expected)


@pytest.mark.parametrize("members", [True, False], ids=["members", "alone"])
def test_it_comes_back_after_a_crash(tmp_path, members):
    def crash(result):
        if result.step == 6:
            raise Crash

    table = np.float32(TABLES["ties"])
    blocks, best = brute_force(table if members else table[:, :1], True)
    with pytest.raises(Crash):
        fit(table, members=members, checkpoint=tmp_path, save_every=5, on_block=crash)
    fitted = fit(table, members=members, checkpoint=tmp_path)
    assert fitted.resumed
    assert_kept(fitted, blocks, best)
    again = fit(table, members=members, checkpoint=tmp_path)
    assert again.already_finished
    assert_kept(again, blocks, best)
    for options, said in [
        ({"keep": None}, "keeps was {'best': 'score', 'lower': True}, is None"),
        ({"lower": False}, "keeps was {'best': 'score', 'lower': True}, is {'best': 'score', 'lower': False}"),
    ]:
        with pytest.raises(CheckpointError, match=f"a training with other settings: {said}"):
            fit(table, members=members, checkpoint=tmp_path, **options)


def test_without_keep_nothing_is_kept(tmp_path):
    fitted = fit(TABLES["ties"], keep=None, checkpoint=tmp_path)
    assert fitted.best is None and len(fitted.history) == brute_force(TABLES["ties"], True)[0]
    assert fit(TABLES["ties"], keep=None, stop_when=None).best is None


def test_update_best_agrees_where_digits_are_rounded(x64):
    """The float32 of 0.1 lies above it, that of 0.7 below: an equal measure is no better one."""
    for number in (0.1, 0.7):
        for lower in (True, False):
            best = training.init_best(jnp.asarray(0.0), lower=lower)
            for step in (1, 2):
                value = jnp.asarray(np.float64(number))
                best = training.update_best(best, value, jnp.asarray(step), jnp.asarray(10.0 * step), lower=lower)
            assert (int(best.step), float(best.params)) == (1, 10.0)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"keep": lambda state: ()}, TypeError, "keep must give arrays of the state, .*; got none"),
        ({"keep": lambda state: {"a": 3, "b": state["w"]}}, TypeError, "got .*int"),
        ({"keep": lambda state: state}, ValueError, r"2 labels, .* shapes \(2,\), \(5,\), \(2, 3\); each must"),
        ({"keep": "params"}, TypeError, r"keep must be a function, got 'params' \(str\); give lambda"),
        ({"labels": None}, ValueError, r"the measure 'score' has the shape \(2,\), expected \(\) to keep the best"),
    ],
)
def test_what_cannot_be_kept_is_told(options, error, message):
    with pytest.raises(error, match=f"training.patience: .*{message}"):
        fit(TABLES["ties"], **options)


def test_a_measure_that_came_later_counts_from_there():
    measured = [{"loss": np.array(1.0)}, {"loss": np.array(1.0), "new": np.array(5.0)}]
    history = [training.BlockResult(n, measured[n > 1]) for n in range(4)]
    assert not training.patience("new", 2)(history[:3]) and not training.patience("new", 2)(history)
    assert training.patience("new", 1)(history)


@pytest.mark.multidevice
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_members_on_several_devices_keep_their_places(axis_type):
    mesh = jax.make_mesh((2,), ("member",), axis_types=(axis_type,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("member"))
    state = jax.device_put(jnp.zeros((2, 3)), place)
    table = np.float32([[1, 2], [2, 1], [3, 3]])

    def block(state):
        return state + 1, {"score": jnp.asarray(table[int(np.asarray(state)[0, 0])])}, {}

    stop_when = training.patience("score", 3, keep=lambda state: state)
    fitted = training.fit(block, state, steps=3, block_steps=1, stop_when=stop_when, labels=LABELS)
    np.testing.assert_array_equal(fitted.best.params, [[1.0] * 3, [2.0] * 3])
    assert fitted.best.params.sharding.is_equivalent_to(place, 2)
