"""The Mackey-Glass experiment: its signal beside a plain loop, and a few units that learn it."""

import json

import numpy as np

from experiments import mackey_glass
from experiments.mackey_glass import data
from experiments.runner.command import main

FEW = {
    "model.hidden_sizes": [30],
    "model.ridges": [1e-6, 1e-1],
    "task.steps": 300,
    "task.starts": 3,
    "task.warm_up": 60,
    "task.washout": 50,
    "task.seeds": [0, 1],
}


def test_the_signal_is_that_of_the_equation():
    """One sequence by itself, number by number."""
    drawn = data.draw(np.random.default_rng(3), 20, 2, 17.0)
    history = 1.2 + 0.2 * (np.random.default_rng(3).random((171, 2))[:, 1] - 0.5)
    x = list(history)
    for _ in range((data.TRANSIENT + 20) * 10):
        x.append(x[-1] + 0.1 * (0.2 * x[-171] / (1 + x[-171] ** 10) - 0.1 * x[-1]))
    np.testing.assert_allclose(drawn[:, 1, 0], np.array(x)[171 + data.TRANSIENT * 10 :: 10] - 1, rtol=1e-9)
    assert drawn.shape == (20, 2, 1) and np.abs(drawn[:, 0] - drawn[:, 1]).max() > 0.01


def test_a_median_and_what_holds_it():
    low, high, sure = mackey_glass.interval(np.arange(10.0)[::-1])
    assert (low, high) == (1, 8) and abs(sure - 0.978515625) < 1e-12  # 1 - 2 (1 + 10) / 1024
    assert mackey_glass.interval(np.array([3.0, 1.0]))[:2] == (1, 3)


def test_a_few_units_learn_it(tmp_path):
    settings = [text for key, value in FEW.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    assert main(["run", "configs/mackey_glass.toml", "--out", str(tmp_path), *settings]) == 0
    (directory,) = [path.parent for path in tmp_path.rglob("summary.json")]
    (measured,) = json.loads((directory / "summary.json").read_text())["measured"]
    assert measured["ridge"] == 1e-6
    ahead = np.array(measured["ahead"])
    assert ahead.shape == (2, 84) and max(measured["one_step"]) < 0.02  # answering the last value has 0.15
    assert (ahead[:, 0] < 0.02).all() and (ahead[:, 0] < ahead[:, -1]).all()
    assert (directory / "errors.png").stat().st_size > 10_000
