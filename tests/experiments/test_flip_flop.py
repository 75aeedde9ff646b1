"""The flip-flop experiment: its data, how memories are counted, and the files of a run."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from experiments import fixed_points, flip_flop
from experiments.flip_flop import data, points
from experiments.runner.command import main
from tests.cases import draw, randomised
from tests.experiments.tiny import left_by_a_run

CONFIG = str(Path(__file__).parents[2] / "configs/flip_flop.toml")


# ---- data --------------------------------------------------------------------------------------


def test_memories_are_the_last_pulses():
    pulses, memories = (np.asarray(a) for a in data.draw(jax.random.key(0), 40, 20, 3, 0.1))
    assert set(np.unique(pulses)) == {-1.0, 0.0, 1.0} and (pulses[0] != 0).all()
    for b in range(20):
        for channel in range(3):
            memory = 0.0
            for pulse, expected in zip(pulses[:, b, channel], memories[:, b, channel], strict=True):
                memory = pulse or memory
                assert memory == expected
    later = pulses[1:]
    # 2340 draws: the shares are within 4 standard deviations of 0.1 and, of about 234 pulses, of a half.
    assert (later != 0).mean() == pytest.approx(0.1, abs=0.025)
    assert (later > 0).sum() / (later != 0).sum() == pytest.approx(0.5, abs=0.13)


def test_draws_follow_from_the_key():
    first, again = (data.draw(jax.random.key(3), 9, 4, 2, 0.5).pulses for _ in range(2))
    other = data.draw(jax.random.key(4), 9, 4, 2, 0.5).pulses
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# ---- fixed points ------------------------------------------------------------------------------


def test_corners_are_counted_once():
    outputs = [[1.0, 1.1], [0.9, 1.4], [-1.0, 1.0], [0.4, 1.0], [-1.0, -1.6], [0.0, 0.0]]
    assert points.corners(np.array(outputs)) == 2
    assert points.corners(np.zeros((0, 2))) == 0
    cube = np.stack(np.meshgrid(*3 * [[-0.8, 1.2]]), axis=-1).reshape(-1, 3)
    assert points.corners(cube) == 8


def test_measures_of_a_network_that_is_a_flip_flop():
    """h = tanh(2h), each unit for itself: 4 stable points, 4 saddles and 0, which is unstable in both directions."""
    cell, readout = jr.elman(2, 2), jr.readout(2, 2)
    params = cell.init(jax.random.key(0))._replace(W_hh=2 * jnp.eye(2), W_xh=3 * jnp.eye(2))
    direct = readout.init(jax.random.key(0))._replace(W_hy=jnp.eye(2), b_y=jnp.zeros(2))
    pulses = data.draw(jax.random.key(0), 20, 10, 2, 0.2).pulses
    settings = points.Search(starts=100, noise=0.5)
    found = points.find(cell, readout, (params, direct), pulses, settings)
    measures = found.measures()
    assert (measures["stable"], measures["complete"]) == (4, 1.0)
    assert measures["unstable"] == 5 and found.by_directions() == [4, 4, 1]
    root = 0.9575040240772687
    assert measures["slowest"] == pytest.approx(-1 / np.log(2 * (1 - root**2)), rel=1e-4)
    alike = found._replace(outputs=jnp.abs(found.outputs))  # a readout that does not tell the points apart
    assert alike.measures()["complete"] == 0.0

    without = jax.tree.map(lambda a: a[:0], (found.points, found.analysis, found.outputs))
    none = points.Found(*without, found.states)
    assert none.measures() == {"stable": 0, "complete": 0.0, "unstable": 0, "slowest": 0.0}
    assert none.by_directions() == [0, 0, 0]
    config = flip_flop.Config(experiment="flip_flop")
    assert flip_flop.pictures(config, [none]) == {} and len(flip_flop.pictures(config, [found])) == 2


def test_states_are_the_carries_of_a_run_and_starts_lie_near_them():
    cell = jr.lstm(3, 4)
    params, xs = randomised(cell.init(jax.random.key(0)), 1), draw((5, 2, 3), 2)
    states = fixed_points.states_of(cell, params, xs)
    carry = cell.initial_carry(params, (2,))
    for t, x in enumerate(xs):
        carry, _ = cell.step(params, carry, x)
        jax.tree.map(lambda a, b, t=t: np.testing.assert_allclose(a[t], b, rtol=1e-5, atol=1e-6), states, carry)

    exact = fixed_points.near(jax.random.key(0), states, 30, 0.0)
    both = np.concatenate(states, axis=-1).reshape(10, 8)
    assert {tuple(row) for row in np.concatenate(exact, axis=-1)} <= {tuple(row) for row in both}
    noisy = fixed_points.near(jax.random.key(0), states, 30, 0.1)
    noise = np.concatenate([a - b for a, b in zip(noisy, exact, strict=True)], axis=-1)
    assert noise.std() == pytest.approx(0.1, rel=0.2)  # of 240 numbers: 4 standard deviations
    assert abs(np.corrcoef(noise[:, :4].ravel(), noise[:, 4:].ravel())[0, 1]) < 0.4  # h and c have noise of their own


# ---- a run -------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_tiny_run_leaves_its_files(tmp_path):
    settings = ["model.cells=['gru']", "model.hidden_size=4", "train.steps=4", "train.log_every=2", "task.length=6"]
    settings += ["train.batch_size=4", "train.seeds=[5]", "task.held_out=8", "search.starts=8", "search.steps=20"]
    settings += ["train.precision='bfloat16'"]  # of the training; fixed points are looked for in float32
    overrides = [option for setting in settings for option in ("--set", setting)]
    assert main(["run", CONFIG, "--out", str(tmp_path), *overrides]) == 0
    run = tmp_path / "flip_flop-001"
    files = left_by_a_run("curves", "fixed_points", "eigenvalues") | {"metrics.jsonl", "checkpoints"}
    assert {path.name for path in run.iterdir()} == files
    (model,) = json.loads((run / "summary.json").read_text())["models"]
    assert model["stable"]["each"] == [1]  # untrained, a small network forgets: one point, and no memory
    assert model["complete"]["each"] == [0]
    assert "| 0 of 1 |" in (run / "table.md").read_text()
