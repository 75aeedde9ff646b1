"""The parts of the training loop, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import training


def test_train_takes_the_steps_of_the_optimizer_and_measures_before_each():
    # loss = w² / 2 with gradient w: under SGD at 0.5 every step halves w.
    optimizer = optax.sgd(0.5)
    state = training.init(lambda key: jnp.asarray(3.0), optimizer, jax.random.key(0))
    seen = jax.jit(
        lambda state: training.train(
            lambda w, batch: (w**2 / 2, batch), optimizer, lambda key, step: 10.0 * step, state, 3
        )
    )
    state, metrics = seen(state)
    np.testing.assert_allclose(metrics.loss, [4.5, 1.125, 0.28125])
    np.testing.assert_allclose(metrics.grad_norm, [3.0, 1.5, 0.75])
    np.testing.assert_allclose(metrics.accuracy, [0.0, 10.0, 20.0])  # whatever the loss says of the batch
    assert (float(state.params), int(state.step)) == (0.375, 3)
    assert seen(state)[1].accuracy[0] == 30.0  # the next block goes on where this one ended


def test_adam_clips_the_global_norm_first():
    clipped, plain = training.adam(0.1, clip_norm=1.0), optax.adam(0.1)
    params = jnp.zeros(2)
    ours, theirs = clipped.init(params), plain.init(params)
    for grads, after in [((30.0, 40.0), (0.6, 0.8)), ((0.3, 0.4), (0.3, 0.4))]:
        step, ours = clipped.update(jnp.array(grads), ours)
        expected, theirs = plain.update(jnp.array(after), theirs)
        np.testing.assert_allclose(step, expected, rtol=1e-5)  # float32


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own():
    batch = jax.jit(lambda seed, step: training.epoch_batch(11, 3, jax.random.key(seed), step))
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
