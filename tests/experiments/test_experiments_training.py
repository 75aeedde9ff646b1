"""The parts of training, and the training of a whole model, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.runner import config, training
from jaxrnn.training import first_nonfinite, loop


def test_run_takes_the_steps_of_the_optimizer_and_measures_before_each():
    # loss = w² / 2 with gradient w: under SGD at 0.5 every step halves w.
    learn = loop(lambda key: jnp.asarray(3.0), lambda w, batch, key: (w**2 / 2, {"seen": batch}), optax.sgd(0.5))
    run = jax.jit(lambda state: learn.run(state, lambda key, number: 10.0 * number, 3))
    state, measures = run(learn.init(jax.random.key(0)))
    np.testing.assert_allclose(measures["loss"], [4.5, 1.125, 0.28125])
    np.testing.assert_allclose(measures["grad_norm"], [3.0, 1.5, 0.75])
    np.testing.assert_allclose(measures["seen"], [0.0, 10.0, 20.0])  # whatever the loss says of the batch
    assert (float(state.params), int(state.step)) == (0.375, 3)
    assert run(state)[1]["seen"][0] == 30.0  # the next block goes on where this one ended


@pytest.mark.parametrize("as_member", [False, True])
@pytest.mark.parametrize(
    ("clip", "afterwards"),
    [
        ("global_norm", [(0.6, 0.8), (0.3, 0.4)]),
        ("value", [(1.0, 1.0), (0.3, 0.4)]),
        # The weights of one unit, (6, 8), have the norm 10; a tenth of it may be the gradient's.
        ("adaptive", [(0.6, 0.8), (0.3, 0.4)]),
        ("none", [(30.0, 40.0), (0.3, 0.4)]),
    ],
)
def test_gradients_are_clipped_before_the_optimizer(clip, afterwards, as_member):
    own = {"learning_rate": 0.1, "clip_at": 0.1 if clip == "adaptive" else 1.0}
    if as_member:  # what a member brings is in place of the table's
        settings = config.Train(clip=clip, clip_at=77.0, learning_rate=77.0, schedule="constant")
        clipped = training.optimizer(settings, **jax.tree.map(jnp.asarray, own))
    else:
        clipped = training.optimizer(config.Train(clip=clip, schedule="constant", **own))
    plain = optax.adam(0.1)
    params = jnp.array([6.0, 8.0])
    ours, theirs = clipped.init(params), plain.init(params)
    for grads, after in zip([(30.0, 40.0), (0.3, 0.4)], afterwards, strict=True):
        step, ours = clipped.update(jnp.array(grads), ours, params)
        expected, theirs = plain.update(jnp.array(after), theirs)
        np.testing.assert_allclose(step, expected, rtol=1e-5)  # float32


def test_sgd_and_the_cosine_schedule():
    settings = config.Train(clip="none", optimizer="sgd", learning_rate=0.1, steps=100, log_every=50)
    rule = training.optimizer(settings)
    state, steps = rule.init(jnp.zeros(())), []
    for _ in range(100):
        step, state = rule.update(jnp.ones(()), state)
        steps.append(-step)
    np.testing.assert_allclose(steps, 0.05 * (1 + np.cos(np.pi * np.arange(100) / 100)), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "place"), [([1.0, 2.0], 0), ([1.0, np.nan, np.inf], 2), ([np.inf, 1.0], 1), ([1.0, -np.inf], 2)]
)
def test_first_nonfinite(values, place):
    assert first_nonfinite(jnp.array(values)) == place


def test_fit_stops_when_it_is_enough():
    task = training.Task(
        init=lambda key: jnp.asarray(4.0),
        batch=lambda key, number, shared: None,
        loss=lambda w, batch, key, shared: (shared * w**2, {}),
        evaluate=lambda w, shared: {"w": w},
        score="w",
        shared=jnp.asarray(0.5),
        stop_when=lambda block: (block.values["w"] < 0.3).all(),
    )
    settings = config.Train(
        clip="none", optimizer="sgd", schedule="constant", learning_rate=0.5, steps=100, log_every=2, seeds=[3, 1]
    )
    seen = []
    result, params, best = training.fit("w", task, settings, on_block=seen.append)
    assert result.history == seen and [block.step for block in seen] == [2, 4]  # w: 4, 2, 1, 0.5, 0.25
    assert params.tolist() == [0.25, 0.25] and result.last("w").tolist() == [0.25, 0.25]
    np.testing.assert_allclose(seen[0].values["loss"], [(8 + 2) / 2] * 2)
    assert result.model == "w" and result.parameters == 1 and result.seeds == (3, 1)
    assert (best.params.tolist(), best.value.tolist(), best.step.tolist()) == ([0.25, 0.25], [0.25, 0.25], [4, 4])


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own():
    batch = jax.jit(lambda seed, number: training.epoch_batch(11, 3, jax.random.key(seed), number))
    epochs = [np.concatenate([batch(0, 3 * epoch + place) for place in range(3)]) for epoch in range(2)]
    for order in epochs:
        assert len(set(order.tolist())) == 9 and set(order.tolist()) < set(range(11))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert batch(0, 4).tolist() == epochs[1][3:6].tolist()
    assert batch(1, 0).tolist() != batch(0, 0).tolist()


def test_cross_entropy_and_accuracy():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    labels = jnp.array([0, 2])
    np.testing.assert_allclose(training.cross_entropy(logits, labels), -np.log([0.5, 0.1]).mean(), rtol=1e-6)
    assert training.accuracy(logits, labels) == 0.5
    # The largest of NaNs is said to be the first: a diverged model must not be right about class 0.
    assert training.accuracy(jnp.full((2, 3), jnp.nan), jnp.array([0, 0])) == 0
