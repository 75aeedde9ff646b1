"""The adding problem: its data, what its models read, when training ends, and what a run leaves behind."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import adding
from experiments.adding import Config, data, solved_at
from experiments.runner import report
from experiments.runner.command import main
from experiments.runner.models import RECURRENCES, reader
from jaxrnn.training import BlockResult

ROOT = Path(__file__).parents[2]


# ---- data --------------------------------------------------------------------------------------


def test_each_half_has_one_marker_and_the_target_is_the_sum_of_the_marked():
    length = 13
    xs, sums = map(np.asarray, data.draw(jax.random.key(0), length, 500))
    values, markers = xs[..., 0], xs[..., 1]
    assert xs.shape == (length, 500, data.FEATURES) and set(np.unique(markers)) == {0, 1}
    halves = markers[: length // 2], markers[length // 2 :]
    for half in halves:
        assert (half.sum(0) == 1).all()
        assert (half.sum(1) > 0).all()  # of 500 draws every step gets one: a miss has probability below 1e-30
    for column, total in enumerate(sums):
        first, second = np.flatnonzero(markers[:, column])
        assert total == pytest.approx(values[first, column] + values[second, column])
    assert (values >= 0).all() and (values < 1).all()
    # Means of 6000 uniform numbers: the bound is more than five standard errors.
    assert values.mean() == pytest.approx(1 / 2, abs=0.02) and values.var() == pytest.approx(1 / 12, abs=0.01)


def test_baseline_is_the_error_of_always_answering_1():
    sums = data.draw(jax.random.key(1), 10, 20_000).sums
    # The standard error of this mean is 0.0014: four of them.
    assert np.mean((1 - np.asarray(sums)) ** 2) == pytest.approx(data.BASELINE, abs=0.0056)


# ---- the model ---------------------------------------------------------------------------------


def test_answer_is_read_from_the_state_after_the_last_step():
    cell = RECURRENCES["irnn"](2, 4, 7, None)
    model = reader(cell, 1)
    params, readout = model.init(jax.random.key(0))
    xs = jax.random.uniform(jax.random.key(1), (7, 3, 2))
    carry = cell.initial_carry(params, (3,))
    step = jax.jit(cell.step)
    for x in xs:
        carry, h = step(params, carry, x)
    # Both sum 4 products in float32, in an order that may differ.
    np.testing.assert_allclose(model.apply((params, readout), xs), h @ readout.W_hy + readout.b_y, atol=1e-6)


def test_irnn_holds_its_state_at_first_and_chrono_forgets_within_t():
    irnn = RECURRENCES["irnn"](2, 4, 30, None)
    h = jnp.array([0.0, 1.0, 2.0, 3.0])
    held, _ = irnn.step(irnn.init(jax.random.key(0)), h, jnp.zeros(2))
    np.testing.assert_array_equal(held, h)

    b = RECURRENCES["chrono_lstm"](2, 64, 30, None).init(jax.random.key(0)).b.reshape(4, 64)  # i, f, g, o
    assert (b[1] >= 0).all() and (b[1] <= np.log(29)).all() and b[1].max() > np.log(20)
    np.testing.assert_array_equal(b[0], -b[1])


# ---- training ----------------------------------------------------------------------------------


def config(**task):
    content = {"train": {"batch_size": 4}, "task": {"lengths": [6], "held_out": 16} | task}
    return Config.model_validate({"experiment": "adding", **content})


def asked(**task):
    return adding.task(config(**task), "elman, T = 6")


def test_every_cell_is_trained_for_every_length_at_its_own_rate():
    own = {"cells": ["gru", "lstm"], "learning_rates": {"lstm": 0.5}}
    both = Config.model_validate({"experiment": "adding", "model": own, "task": {"lengths": [6, 4], "held_out": 9}})

    def drawn(title):
        return jax.eval_shape(lambda: adding.held_out(both, title))

    titles = ["gru, T = 6", "lstm, T = 6", "gru, T = 4", "lstm, T = 4"]
    assert list(adding.STUDY.models(both)) == titles
    assert [adding.STUDY.settings(both, title).learning_rate for title in titles] == [3e-3, 0.5] * 2
    assert [drawn(title).xs.shape for title in titles] == [(6, 9, 2)] * 2 + [(4, 9, 2)] * 2


def test_a_batch_depends_on_key_and_number_alone_and_is_never_held_out():
    task = asked()
    batch = jax.jit(lambda seed, number: task.batch(jax.random.key(seed), number, ()))
    sums = np.array([batch(seed, number).sums for seed in (0, 1) for number in (0, 1)])
    np.testing.assert_array_equal(batch(1, 0).sums, sums[2])
    assert sums.shape == (4, 4) and task.shared.sums.shape == (16,)
    assert len({*sums.ravel().tolist(), *task.shared.sums.tolist()}) == 32  # no two alike
    np.testing.assert_array_equal(asked().shared.xs, task.shared.xs)
    assert (asked(held_out_seed=1).shared.xs != task.shared.xs).any()


def test_loss_is_the_mean_squared_error():
    task = asked()
    params = task.init(jax.random.key(0))
    model = reader(RECURRENCES["elman"](2, 64, 6, None), 1)

    @jax.jit
    def everything(params, shared):
        return model.apply(params, shared.xs), task.loss(params, shared, None, ())[0], task.evaluate(params, shared)

    answers, loss, measured = everything(params, task.shared)
    expected = np.mean([(float(y) - float(total)) ** 2 for (y,), total in zip(answers, task.shared.sums, strict=True)])
    assert loss == pytest.approx(expected, rel=1e-5)  # float32
    assert measured == {task.score: pytest.approx(expected, rel=1e-5)} and task.lower


def test_training_ends_when_every_seed_is_below_the_mark():
    stop_when = asked(stop_below=0.004).stop_when

    def block(*errors):
        return BlockResult(1, {"held_out_error": np.array(errors)})

    assert stop_when(block(0.001, 0.003)) is True
    assert [stop_when(block(0.001, other)) for other in (0.004, 0.2, np.nan)] == [False] * 3


def test_solved_is_the_first_block_below_the_mark():
    errors = [(0.2, 0.2), (0.009, 0.2), (0.02, np.nan), (0.001, 0.01)]
    points = [BlockResult(50 * (at + 1), {"held_out_error": np.array(e)}) for at, e in enumerate(errors)]
    assert solved_at(report.Result("lstm", (7, 3), 1, points, 1.0), 0.01) == {7: 100, 3: None}


@pytest.mark.full
def test_a_tiny_run_leaves_files_that_agree(tmp_path):
    settings = ["model.cells=['elman']", "model.hidden_size=4", "task.lengths=[6, 4]", "task.held_out=8"]
    settings += [
        "train.steps=4",
        "train.log_every=2",
        "train.batch_size=4",
        "train.seeds=[5]",
        "task.solved_below=99.0",
    ]
    overrides = [option for setting in settings for option in ("--set", setting)]
    assert main(["run", str(ROOT / "configs/adding.toml"), "--out", str(tmp_path), *overrides]) == 0

    run = tmp_path / "adding-001"
    titles = ["elman, T = 6", "elman, T = 4"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["model"], line["step"]) for line in lines] == [(title, step) for title in titles for step in (2, 4)]
    summary = json.loads((run / "summary.json").read_text())
    last = [line["held_out_error"] for line in lines if line["step"] == 4]
    assert [model["held_out_error"]["each"] for model in summary["models"]] == [[error] for error in last]
    assert summary["solved_at"] == {title: {"5": 2} for title in titles}
    table = (run / "table.md").read_text()
    assert f"| {titles[1]} | 33 | {last[1]:.4f} | 4 |" in table  # 2 × 4 + 4 × 4 + 4 + 5 parameters
    assert f"{titles[1]}: solved by 1 of 1 seeds, after 2 steps." in table
    assert (run / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
