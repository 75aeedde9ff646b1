"""The decisions experiment: its trials, the best observer, and the files of a run of few steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxrnn as jr
from experiments import decisions, fixed_points
from experiments.decisions import data
from experiments.runner.command import main

FEW = [
    *("model.hidden_size=10", "task.held_out=5", "task.stimulus=4", "train.batch_size=4", "search.starts=8"),
    *("search.steps=5", "search.settle=3", "train.steps=4", "train.log_every=2", "train.seeds=[5,3]"),
]
CONFIG = decisions.Config.model_validate({"experiment": "decisions", "model": {"hidden_size": 10}})


def test_evidence_is_for_one_side_and_the_best_observer_sums_it():
    epochs = data.Epochs(3, 30, 2)
    coherence = jnp.repeat(jnp.array([-0.3, -0.1, 0.1]), 4000)
    trials = data.draw(jax.random.key(0), coherence, epochs, 0.5)
    evidence = np.asarray(trials.evidence).reshape(35, 3, 4000, 2)
    assert not evidence[:3].any() and not evidence[33:].any()
    shown = evidence[3:33]
    # Means of 120,000 draws of standard deviation 0.5: 0.0014; four of those.
    np.testing.assert_allclose(shown.mean((0, 2)), [[0.65, 0.35], [0.55, 0.45], [0.45, 0.55]], atol=0.006)
    np.testing.assert_allclose(shown.std((0, 2)), 0.5, rtol=0.02)
    right = (shown[..., 1] - shown[..., 0]).sum(0) > 0
    # A share of 4,000: 0.008.
    np.testing.assert_allclose(right.mean(1), data.ideal(np.array([-0.3, -0.1, 0.1]), epochs, 0.5), atol=0.03)
    np.testing.assert_array_equal(trials.right, np.repeat([0, 0, 1], 4000))


def test_excitatory_units_alone_are_read_out():
    cell, excitatory, readout = decisions.parts(CONFIG, "current")
    params = jr.stack(cell, excitatory, readout).init(jax.random.key(0))
    W = np.asarray(jr.cells.effective_weights(cell, params[0]).W_hh)
    assert (W[:8] >= 0).all() and (W[8:] <= 0).all() and not W.diagonal().any()
    trials = decisions.held_out(CONFIG)._replace(evidence=jnp.ones((6, 2, 2)))
    rates, logits = decisions.answers(CONFIG, "current", params, trials.evidence, None)
    want = np.asarray(rates)[..., :8] @ np.asarray(params[2].W_hy) + np.asarray(params[2].b_y)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)
    _, stacked = jr.stack(cell, excitatory, readout).apply(params, trials.evidence)
    np.testing.assert_allclose(stacked, want, rtol=1e-5, atol=1e-6)


SIGNED = np.array([[1.5, 0, 1], [0, 1.5, 1], [-1, -1, 0]])  # weights, from and to


def winner_takes_all():
    """Two units, each of which excites itself and inhibits the other by a third: either wins, between is a saddle."""
    cell = jr.ctrnn(2, 3, form="current", dale=2 / 3, excitatory_input=True)
    params = cell.init(jax.random.key(0))
    W_hh = jnp.asarray(np.abs(SIGNED), "float32")
    return cell, params._replace(W_hh=W_hh, W_xh=jnp.eye(2, 3), b=jnp.array([1.0, 1.0, 0.0]))


@pytest.mark.full
def test_points_are_those_of_scipy():
    cell, params = winner_takes_all()
    evidence = jnp.array(np.random.default_rng(0).uniform(0, 2, (20, 8, 2)), "float32")
    given = jnp.array([[0.0, 0.0], [0.1, 0.0], [3.0, 0.0]])
    settings = fixed_points.Search(starts=20, settle=300, steps=40)
    found = fixed_points.search(cell, params, evidence, given, settings)

    for number, (x, expected) in enumerate(zip(given, ((2, 1), (2, 1), (1, 0)), strict=True)):
        speed = lambda s, x=x: -s + np.maximum(s, 0) @ SIGNED + [1 + x[0], 1 + x[1], 0]
        solved = [scipy.optimize.root(speed, start) for start in np.random.default_rng(1).uniform(-4, 4, (30, 3))]
        roots = np.unique([np.round(one.x, 5) for one in solved if one.success], axis=0)
        own = found.under(number)
        states = np.asarray(own.points.carry)
        np.testing.assert_allclose(states[np.lexsort(states.T[::-1])], roots, atol=1e-4)  # float32 beside float64
        stable = np.asarray(own.analysis.stable)
        assert (stable.sum(), (~stable).sum()) == expected


def test_starts_that_settle_are_where_the_run_is():
    cell, params = winner_takes_all()
    start, x = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([0.1, 0.0])
    state = np.array([1.0, 0.0, 0.0])
    for _ in range(30):
        state = 0.8 * state + 0.2 * (np.maximum(state, 0) @ SIGNED + [1.1, 1, 0])
    np.testing.assert_allclose(fixed_points.starts_under(cell, params, start, x, 30), [[1, 0, 0], state], atol=1e-5)
    explodes = params._replace(W_hh=3 * jnp.eye(3))
    np.testing.assert_array_equal(fixed_points.starts_under(cell, explodes, start, x, 300), [[1, 0, 0]] * 2)


def test_errors_by_coherence_are_of_both_sides():
    config = decisions.Config.model_validate({"experiment": "decisions", "task": {"coherences": [0.1, 0.5]}})
    shares = np.array([[0.1, 0.4, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0]])  # of right, at -0.5, -0.1, 0.1, 0.5
    errors = decisions.errors_by_coherence(config, {"current": shares})
    assert errors.groups == ("0.1", "0.5") and list(errors.by_model) == ["current", "the best observer"]
    np.testing.assert_allclose(errors.by_model["current"], [[(0.4 + 0.3) / 2, (0.1 + 0.1) / 2], [0, 0]], atol=1e-12)


@pytest.mark.full
def test_a_run_of_few_steps(tmp_path):
    settings = [text for setting in FEW for text in ("--set", setting)]
    assert main(["run", "configs/decisions.toml", "--out", str(tmp_path), *settings]) == 0
    (directory,) = [path.parent for path in tmp_path.rglob("summary.json")]
    summary = json.loads((directory / "summary.json").read_text())
    right = np.array(summary["right"]["current"])  # (seeds, coherences to the left and to the right)
    assert right.shape == (2, 10) and ((right >= 0) & (right <= 1)).all()
    accuracy = np.concatenate([1 - right[:, :5], right[:, 5:]], axis=1).mean(1)
    np.testing.assert_allclose(summary["models"][0]["accuracy"]["each"], accuracy, atol=1e-6)
    assert (directory / "psychometric.png").stat().st_size > 10_000
