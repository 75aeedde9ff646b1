"""The copy memory task: its data, its baseline, when training ends, and what a run leaves behind."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import copy_memory
from experiments.copy_memory import Config, data
from experiments.runner import training
from experiments.runner.command import main
from experiments.runner.models import RECURRENCES
from jaxrnn.training import BlockResult

ROOT = Path(__file__).parents[2]


# ---- data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 7])
def test_symbols_delimiter_and_answer_stand_where_they_should(delay):
    tokens, targets = map(np.asarray, data.draw(jax.random.key(0), delay, 400))
    assert tokens.shape == targets.shape == (delay + 20, 400)
    symbols = tokens[:10]
    assert set(np.unique(symbols)) == set(range(1, 9))
    # Each of eight symbols has 500 of 4000 places, with a standard deviation of 21.
    assert np.abs(np.bincount(symbols.ravel())[1:] - 500).max() < 105
    assert (tokens[10 : delay + 9] == data.BLANK).all()
    assert (tokens[delay + 9] == data.DELIMITER).all()
    assert (tokens[delay + 10 :] == data.BLANK).all()
    assert (targets[: delay + 10] == data.BLANK).all()
    np.testing.assert_array_equal(targets[delay + 10 :], symbols)
    assert tokens.max() < data.TOKENS and targets.max() < data.CLASSES


def test_baseline_is_the_cross_entropy_of_blanks_and_then_a_guess():
    _, targets = data.draw(jax.random.key(0), 5, 3)
    blank = jnp.array([50.0] + [0.0] * 8)
    guess = jnp.array([-50.0] + [0.0] * 8)
    logits = jnp.where(jnp.arange(25)[:, None, None] < 15, blank, guess) + jnp.zeros((25, 3, 9))
    assert training.cross_entropy(logits, targets) == pytest.approx(data.baseline(5), rel=1e-5)  # float32
    assert data.baseline(100) == pytest.approx(20.794415 / 120)  # 10 ln 8 = 20.794415


# ---- training ----------------------------------------------------------------------------------


def asked(**task):
    content = {"train": {"batch_size": 4}, "task": {"delay": 3, "held_out": 16} | task}
    return copy_memory.task(Config.model_validate({"experiment": "copy_memory", **content}), "elman")


def test_a_batch_depends_on_key_and_number_alone_and_is_never_held_out():
    task = asked()
    batch = jax.jit(lambda seed, number: task.batch(jax.random.key(seed), number, ()))
    symbols = [batch(seed, number).targets[-10:] for seed in (0, 1) for number in (0, 1)]
    np.testing.assert_array_equal(batch(1, 0).targets[-10:], symbols[2])
    held_out = task.shared.targets[-10:]
    assert held_out.shape == (10, 16)
    # Eight symbols in ten places: that two of 32 sequences agree has a probability below 1e-6.
    assert len({tuple(sequence) for sequence in np.concatenate([*symbols, held_out], axis=1).T.tolist()}) == 32
    np.testing.assert_array_equal(asked().shared.tokens, task.shared.tokens)


def test_loss_counts_every_step_and_recall_the_last_ten():
    task = asked()
    params = task.init(jax.random.key(0))
    cell, readout = RECURRENCES["elman"](10, 64, 13, None), params[1]
    h, logits = cell.initial_carry(params[0], (16,)), []
    step = jax.jit(cell.step)
    for x in np.eye(10)[task.shared.tokens]:
        h, y = step(params[0], h, x)
        logits.append(y @ readout.W_hy + readout.b_y)
    logits = jnp.stack(logits)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, task.shared.targets)
    right = logits[-10:].argmax(-1) == task.shared.targets[-10:]
    measured, loss = jax.jit(
        lambda params, shared: (task.evaluate(params, shared), task.loss(params, shared, None, ())[0])
    )(params, task.shared)
    assert measured["held_out_loss"] == pytest.approx(float(losses.sum()) / (23 * 16), rel=1e-5)  # float32
    assert measured["recalled"] == pytest.approx(int(right.sum()) / 160)
    assert loss == pytest.approx(float(measured["held_out_loss"]), rel=1e-6)  # the same, of the same batch
    assert task.score == "held_out_loss" and task.lower


def test_training_ends_when_every_seed_is_below_a_share_of_the_baseline():
    stop_when = asked(stop_below=0.1).stop_when
    mark = 0.1 * data.baseline(3)

    def block(*losses):
        return BlockResult(1, {"held_out_loss": np.array(losses)})

    assert stop_when(block(0.5 * mark, 0.99 * mark)) is True
    assert [stop_when(block(0.5 * mark, other)) for other in (1.01 * mark, np.nan)] == [False] * 2


@pytest.mark.full
def test_a_tiny_run_leaves_files_that_agree(tmp_path):
    settings = ["model.cells=['elman', 'chrono_lstm']", "model.hidden_size=4", "task.delay=3", "task.held_out=10"]
    settings += ["train.steps=4", "train.log_every=2", "train.batch_size=4", "train.seeds=[5]"]
    overrides = [option for setting in settings for option in ("--set", setting)]
    assert main(["run", str(ROOT / "configs/copy_memory.toml"), "--out", str(tmp_path), *overrides]) == 0

    run = tmp_path / "copy_memory-001"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["model"], line["step"]) for line in lines] == [
        (name, step) for name in ("elman", "chrono_lstm") for step in (2, 4)
    ]
    summary = json.loads((run / "summary.json").read_text())
    last = [line for line in lines if line["step"] == 4]
    for model, line in zip(summary["models"], last, strict=True):
        assert model["held_out_loss"]["each"] == [line["held_out_loss"]]
        assert model["recalled"]["each"] == [line["recalled"]]
    assert summary["baseline"] == pytest.approx(data.baseline(3))
    table = (run / "table.md").read_text()
    shown = f"{last[1]['held_out_loss']:.4f} | {100 * last[1]['recalled']:.1f} %"
    assert f"| chrono_lstm | 285 | {shown} | 4 |" in table  # 4 (10 × 4 + 4 × 4 + 4) + 4 × 9 + 9 parameters
    assert (run / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
