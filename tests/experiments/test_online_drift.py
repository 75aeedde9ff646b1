"""The online_drift experiment: the teacher by hand, learners that must agree, and the files that a run leaves."""

import json

import jax
import numpy as np
import pytest

from experiments import online_drift
from experiments.online_drift import teacher
from experiments.runner.command import main

TEACHER = {"inputs": 2, "units": 3, "slowest": 4.0, "drift": 0.0, "noise": 0.0}


def config(**tables):
    data = {"steps": 120, "units": 3, **tables.pop("data", {})}
    return online_drift.Config.model_validate({"experiment": "online_drift", "data": data, **tables})


def test_a_teacher_that_stands_still_is_a_leaky_network():
    """Its answers by a loop in NumPy, the weights found from those of the same key."""
    stream = jax.jit(lambda key: teacher.draw(key, 20, **TEACHER))(jax.random.key(3))
    xs, answers = np.asarray(stream.xs, float), np.asarray(stream.answers, float)
    keys = jax.random.split(jax.random.split(jax.random.key(3), 4)[0], 3)
    W, U, V = (np.asarray(jax.random.normal(k, s), float) for k, s in zip(keys, ((3, 3), (2, 3), (3, 1)), strict=True))
    W, U, a = W / np.sqrt(3), 2 * U / np.sqrt(2), 1 - 1 / np.array([1.0, 2.0, 4.0])
    s, want = np.zeros(3), []
    for x in xs:
        s = a * s + (1 - a) * np.tanh(s @ W + x @ U)
        want.append(s @ V)
    np.testing.assert_allclose(answers, want / np.std(want), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stream.targets, stream.answers)


@pytest.mark.full
def test_drift_changes_the_rule_and_no_size():
    still, moving = (
        jax.vmap(lambda key, d=d: teacher.draw(key, 400, **{**TEACHER, "drift": d, "noise": 0.1}))(
            jax.random.split(jax.random.key(0), 64)
        )
        for d in (0.0, 0.1)
    )
    np.testing.assert_array_equal(still.xs, moving.xs)
    early, late = (np.abs(still.answers - moving.answers)[:, part].mean() for part in (slice(0, 5), slice(-200, None)))
    assert early < 0.5 < late
    np.testing.assert_allclose(moving.answers.std(1), 1, rtol=1e-5)
    np.testing.assert_allclose((moving.targets - moving.answers).std(), 0.1, rtol=0.02)


@pytest.mark.full
def test_a_window_over_all_learns_as_rtrl_does_at_first():
    """Before the first update is felt in the influence: the first three losses are the same numbers."""
    of = config()
    stream = online_drift.stream_of(of, 0)
    stream = jax.tree.map(lambda a: a[:3], stream)
    losses = [
        online_drift.run_of(online_drift.Learner("", "gru", rule, window), of)(jax.random.key(0), 1e-3, stream)
        for rule, window in (("rtrl", 0), ("window", 3), ("chunk", 3))
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    np.testing.assert_allclose(losses[0][0], losses[2][0], rtol=1e-5)  # the only one before an update
    assert abs(losses[0][2] - losses[2][2]) > 0


@pytest.mark.full
def test_a_tiny_run_leaves_files_that_agree(tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'experiment = "online_drift"\nmodel = {hidden_size = 3}\ndata = {steps = 120, units = 3}\n'
        'learn = {rules = ["rtrl", "window", "chunk"], windows = [1, 3], chunks = [4], rates = [0.01, 0.001], '
        "validation_seeds = [9], seeds = [0, 1]}\n"
    )
    assert main(["run", str(path), "--out", str(tmp_path)]) == 0
    run = tmp_path / "online_drift-001"
    summary = json.loads((run / "summary.json").read_text())["measured"]
    names = ["rtrl", "window of 1", "window of 3", "chunks of 4", "minGRU, rtrl"]
    assert [m["learner"] for m in summary] == names
    table = (run / "table.md").read_text()
    for m in summary:
        assert f"| {m['learner']} | {m['kept']:,} | " in table and f"{np.mean(m['regret']):.4f}" in table
        assert m["seconds"] > 0 and m["rate"] in (0.01, 0.001)
    assert (run / "regret.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (run / "regret.svg").exists()
