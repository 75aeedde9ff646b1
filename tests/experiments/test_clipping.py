"""The clipping experiment: its data, that its variants clip what they say, and the files of a run."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from experiments import clipping
from experiments.clipping import Config, data
from experiments.runner import training
from experiments.runner.command import main
from experiments.runner.config import ConfigError, load
from tests.experiments.tiny import left_by_a_run

PATH = Path(__file__).parents[2] / "configs/clipping.toml"


def config(**tables):
    train = {"steps": 2, "log_every": 1, "batch_size": 4, "seeds": [0, 1]} | tables.pop("train", {})
    task = {"length": 12, "held_out": 8} | tables.pop("task", {})
    model = {"hidden_size": 6, "gain": 3.0} | tables.pop("model", {})
    return Config.model_validate({"experiment": "clipping", "model": model, "train": train, "task": task, **tables})


# ---- data --------------------------------------------------------------------------------------


def test_waves_have_the_frequency_that_the_input_says():
    levels, waves = (np.asarray(a) for a in data.draw(jax.random.key(0), 30, 200))
    assert (levels == levels[0]).all() and 0.25 <= levels.min() < 0.3 and 1.2 < levels.max() <= 1.25
    for b in range(200):
        omega = 0.1 + 0.2 * (levels[0, b, 0] - 0.25)
        expected = [np.sin(omega * t) for t in range(30)]
        np.testing.assert_allclose(waves[:, b, 0], expected, atol=1e-5)  # float32, angles up to 9


def test_batches_follow_from_key_and_number():
    task = clipping.task(config(), "none")

    def at(seed, number):
        return task.batch(jax.random.key(seed), jnp.asarray(number), ()).levels

    np.testing.assert_array_equal(at(0, 5), at(0, 5))
    assert (at(0, 5) != at(0, 6)).any() and (at(0, 5) != at(1, 5)).any()


# ---- what is clipped ---------------------------------------------------------------------------


def first(members):
    """What is the first member's own."""
    return jax.tree.map(lambda a: a[0], training.hyperparameters(members))


def updates(variant):
    """The first step's gradient, and what it does to the parameters at a learning rate of 1."""
    clip = {"global_norm": 0.01, "value": 0.002, "adaptive": 0.003, "cotangent": 1e-9}
    of = config(clip=clip, train={"steps": 1, "seeds": [0], "learning_rate": 1.0, "schedule": "constant"})
    task, settings = clipping.task(of, variant), clipping.settings(of, variant)
    learn = training.steps_of(task, settings, first(training.members(settings, variant)), ())
    state = learn.init(jax.random.key(0))
    after, measures = jax.jit(lambda state: learn.run(state, lambda key, number: task.batch(key, number, ()), 1))(state)
    moved = jax.tree.map(lambda a, b: np.asarray(b - a), state.params, after.params)
    return moved, measures, state.params, task.batch(state.key, state.step, ())


def test_every_variant_clips_what_it_says():
    moved = {variant: updates(variant) for variant in clipping.Clip().variants}
    plain, measures, params, batch = moved["none"]

    def norm(tree):
        return np.sqrt(sum((a**2).sum() for a in jax.tree.leaves(tree)))

    # Differences of parameters near 1 in float32 are right to about 1e-7.
    near = {"rtol": 1e-3, "atol": 1e-6}
    assert norm(plain) == pytest.approx(float(measures["grad_norm"][0]), rel=1e-3) and norm(plain) > 0.1

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b * 0.01 / norm(plain), **near), moved["global_norm"][0], plain
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.clip(-0.002, 0.002), **near), moved["value"][0], plain)

    W, full, held = (np.asarray(of[0].W_hh) for of in (params, plain, moved["adaptive"][0]))
    limit = 0.003 * np.linalg.norm(W, axis=0)  # of each unit: a column of W (H, H) in h @ W
    scale = np.minimum(1, limit / np.linalg.norm(full, axis=0))
    assert scale.min() < 0.9
    np.testing.assert_allclose(held, full * scale, **near)

    # Next to nothing goes back from step to step: what is left is the gradient within each step. The readout, which
    # nothing goes back through, learns as without.
    cell, readout = moved["cotangent"][0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), readout, plain[1])
    (params, out), (levels, waves) = jax.tree.map(np.asarray, (params, batch))
    h, expected = np.zeros((4, 6)), np.zeros((6, 6))
    for x, wave in zip(levels, waves, strict=True):
        before, h = h, np.tanh(h @ params.W_hh + x @ params.W_xh + params.b)
        d = 2 / waves.size * (h @ out.W_hy + out.b_y - wave) @ out.W_hy.T
        expected -= before.T @ (d * (1 - h**2))
    np.testing.assert_allclose(cell.W_hh, expected, **near)
    assert np.abs(expected - full).max() > 0.1


def test_growth_is_that_of_back_propagation_by_hand():
    of = config()
    task, sequences = clipping.task(of, "none"), jax.tree.map(np.asarray, clipping.held_out(config().task))
    for member, growth in zip(training.members(of.train, "none"), clipping.growth(of), strict=True):
        state = training.start(task, of.train, first([member]), task.shared).train
        params, readout = jax.tree.map(np.asarray, state.params)
        hs = [np.zeros((8, 6))]
        for x in sequences.levels:
            hs.append(np.tanh(hs[-1] @ params.W_hh + x @ params.W_xh + params.b))
        d = 2 / 8 * (hs[-1] @ readout.W_hy + readout.b_y - sequences.waves[-1]) @ readout.W_hy.T  # ∂L/∂h at the end
        last = np.linalg.norm(d, axis=-1).mean()
        for h in hs[:1:-1]:
            d = (d * (1 - h**2)) @ params.W_hh.T
        assert growth == pytest.approx(np.linalg.norm(d, axis=-1).mean() / last, rel=1e-3)


def test_baseline_is_the_error_of_zeros():
    waves = data.draw(jax.random.key(2**31), 12, 8).waves
    assert clipping.baseline(config().task) == pytest.approx(float(np.mean(np.asarray(waves) ** 2)))


# ---- a run -------------------------------------------------------------------------------------


def test_the_variants_are_not_chosen_in_train():
    with pytest.raises(ConfigError, match=r"--set: train.clip: expected 'none', got 'value'"):
        load(PATH, ["train.clip=value"], lambda name: Config)


@pytest.mark.full
def test_a_tiny_run_counts_what_diverged(tmp_path):
    settings = ["clip.variants=['none', 'cotangent']", "model.hidden_size=4", "task.length=5", "task.held_out=4"]
    settings += ["train.steps=6", "train.log_every=3", "train.batch_size=2", "train.seeds=[5, 3]"]
    settings += ["train.learning_rate=1e30", "train.schedule='constant'"]  # too much for any network
    overrides = [option for setting in settings for option in ("--set", setting)]
    assert main(["run", str(PATH), "--out", str(tmp_path), *overrides]) == 0
    run = tmp_path / "clipping-001"
    files = left_by_a_run("curves") | {"metrics.jsonl", "checkpoints"}
    assert {path.name for path in run.iterdir()} == files
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["model"], line["step"], line["seed"]) for line in lines] == [
        (variant, 3, seed) for variant in ("none", "cotangent") for seed in (5, 3)
    ]
    assert {line["loss"] for line in lines} == {None}  # JSON has no NaN
    summary = json.loads((run / "summary.json").read_text())
    assert [model["model"] for model in summary["models"]] == ["none", "cotangent"]
    for model in summary["models"]:
        told = {line["seed"]: line["not_finite"] for line in lines if line["model"] == model["model"]}
        assert set(model["diverged"]) == {"5", "3"}
        assert all(told[int(seed)][quantity] == step for seed, (quantity, step) in model["diverged"].items())
        assert model["learned"]["each"] == [False, False]
    assert len(summary["growth"]) == 2 and min(summary["growth"]) > 0
    assert (run / "table.md").read_text().count("| 2 of 2 | 0 of 2 |") == 2
    assert jr.__version__ == summary["environment"]["jaxrnn"]
