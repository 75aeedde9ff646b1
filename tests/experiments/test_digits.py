"""The digits experiment: its data, what its models read, and that its training is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxrnn as jr
from experiments import digits
from experiments.data.splits import TestSplitError
from experiments.digits import Config, data, model
from experiments.runner import training
from experiments.runner.models import reader

LABELS = load_digits().target
EVERYTHING = data.load  # the fixture below takes fewer images


# ---- data --------------------------------------------------------------------------------------


def test_the_parts_are_disjoint_fixed_and_stratified():
    parts, again, other = (data.split(LABELS, 0.2, seed) for seed in (0, 0, 1))
    assert [len(part) for part in parts] == [1149, 288, 360]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    assert all((part == same).all() for part, same in zip(parts, again, strict=True))
    assert all(set(part) != set(drawn) for part, drawn in zip(parts, other, strict=True))
    for part in parts:  # a digit's share is that of the whole, to the nearest image
        shares = np.bincount(LABELS[part]) / len(part) - np.bincount(LABELS) / 1797
        assert np.abs(shares).max() < 1 / len(part)


def test_pixels_are_rows_of_the_images_from_0_to_1():
    images, parts = EVERYTHING(0.2, 0), data.split(LABELS, 0.2, 0)
    stored = load_digits().images
    for part, indices in zip((images.train, images.validation, images.test()), parts, strict=True):
        assert part.pixels.shape == (64, len(indices), 1)
        assert part.pixels.min() == 0 and part.pixels.max() == 1
        np.testing.assert_array_equal(part.pixels[:, 5, 0].reshape(8, 8), stored[indices[5]] / 16)
        np.testing.assert_array_equal(part.labels, LABELS[indices])


@pytest.mark.parametrize(("order", "T", "I"), [("pixels", 64, 1), ("permuted", 64, 1), ("rows", 8, 8)])
def test_images_are_read_in_the_order_of_the_config(order, T, I):
    pixels = EVERYTHING(0.2, 0).train.pixels
    image = pixels[:, 5, 0]
    read = np.asarray(data.arranged(pixels, order, 3))
    assert read.shape == (T, 1149, I) and data.features(order) == I
    if order == "rows":
        np.testing.assert_array_equal(read[:, 5], image.reshape(8, 8))  # a row a step, from the top
    elif order == "permuted":
        place = np.random.default_rng(3).permutation(64)
        np.testing.assert_array_equal(read[:, 5, 0], [image[pixel] for pixel in place])
        np.testing.assert_array_equal(read[np.argsort(place), 7, 0], pixels[:, 7, 0])  # the same for all images
        assert (data.permutation(4) != place).any()
    else:
        np.testing.assert_array_equal(read, pixels)


# ---- models ------------------------------------------------------------------------------------

XS = jax.random.uniform(jax.random.key(1), (7, 3, 1))


def final_h(cell, params, xs):
    """The last output of a plain Python loop over ``step``."""
    carry = cell.initial_carry(params, xs.shape[1:-1])
    step = jax.jit(cell.step)
    for x in xs:
        carry, h = step(params, carry, x)
    return h


@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "peephole_lstm"])
def test_logits_read_the_state_after_the_last_step(name):
    cell = model.RECURRENCES[name](1, 4)
    classifier = reader(cell, 10)
    params, readout = classifier.init(jax.random.key(0))
    expected = final_h(cell, params, XS) @ readout.W_hy + readout.b_y
    # Both sum 4 products in float32, in an order that may differ.
    np.testing.assert_allclose(classifier.apply((params, readout), XS), expected, atol=1e-6)


def test_bidirectional_logits_read_the_backward_state_at_step_0():
    classifier = reader(model.bidirectional_lstm(1, 4), 10)
    params, readout = classifier.init(jax.random.key(0))
    cell = jr.lstm(1, 4)
    ahead, back = final_h(cell, params.forward, XS), final_h(cell, params.backward, XS[::-1])
    expected = jnp.concatenate([ahead, back], axis=-1) @ readout.W_hy + readout.b_y
    logits = classifier.apply((params, readout), XS)
    np.testing.assert_allclose(logits, expected, atol=1e-6)

    # The usual mistake: the outputs at the last step, where the backward state has seen one pixel only.
    _, ys = model.bidirectional_lstm(1, 4).apply(params, XS)
    assert jnp.abs(logits - (ys[-1] @ readout.W_hy + readout.b_y)).max() > 1e-3


def test_the_network_takes_images_as_stored_and_reads_them_in_order():
    images, expected = jax.random.uniform(jax.random.key(1), (64, 3, 1)), {}
    for order in ("pixels", "permuted", "rows"):
        of = Config.model_validate(
            {"experiment": "digits", "model": {"hidden_size": 4}, "data": {"order": order, "permutation_seed": 3}}
        )
        network = digits.network(of, "elman")
        params = network.init(jax.random.key(0))
        read = data.arranged(images, order, 3)
        expected[order] = final_h(jr.elman(read.shape[-1], 4), params[0], read) @ params[1].W_hy + params[1].b_y
        np.testing.assert_allclose(network.apply(params, images), expected[order], atol=1e-6)
    assert np.abs(expected["pixels"] - expected["permuted"]).max() > 1e-3


# ---- training ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def few():
    """96 images in each of the three parts."""

    def shorten(part):
        return data.Examples(part.pixels[:, :96], part.labels[:96])

    def fewer(*how):
        images = EVERYTHING(*how)
        return data.Images(shorten(images.train), shorten(images.validation), shorten(images.test()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", fewer)
        yield


def config(cells=("elman", "gru"), **train):
    settings = {"steps": 8, "log_every": 4, "batch_size": 16, "seeds": [0, 1]} | train
    model = {"hidden_size": 6, "cells": cells}
    return Config.model_validate({"experiment": "digits", "model": model, "train": settings})


def fit(name, config):
    return training.fit(name, digits.STUDY.task(config, name), digits.STUDY.settings(config, name)).result


def numbers(result):
    """(points, measures, seeds)"""
    names = ("loss", "train_accuracy", "grad_norm", "validation_accuracy")
    return np.array([[block.values[name] for name in names] for block in result.history])


@pytest.fixture(scope="module")
def both_seeds():
    return fit("elman", config())


def test_same_seed_same_result_bit_by_bit(both_seeds):
    again = numbers(fit("elman", config()))
    np.testing.assert_array_equal(again, numbers(both_seeds))
    assert (again[:, 0, 0] != again[:, 0, 1]).all()  # and another seed gives another loss


def test_seeds_in_blocks_equal_a_seed_alone_in_one_block(both_seeds):
    (alone,) = numbers(fit("elman", config(seeds=[1], log_every=8)))[..., 0]
    blocks = numbers(both_seeds)[..., 1]
    # Another program may add in another order: 8 steps keep float32 rounding below 1e-4 of these numbers.
    np.testing.assert_allclose(alone[:3], blocks[:, :3].mean(0), rtol=1e-4)  # means over the steps of a block
    np.testing.assert_allclose(alone[3], blocks[-1, 3], rtol=1e-4)  # held-out accuracy, after the block


def test_training_learns_and_divergence_is_seen():
    learned = fit("gru", config(steps=240, log_every=24, seeds=[0], learning_rate=0.03))
    losses = numbers(learned)[:, 0, 0]
    assert losses[-1] < 0.7 * losses[0]
    assert learned.diverged() == {}
    assert learned.parameters == 3 * (6 + 36 + 6) + 60 + 10

    # A step of 1e38 leaves float32: at the next one nothing is a number, nor right by chance.
    lost = fit("elman", config(learning_rate=1e38, nonfinite="record"))
    assert lost.diverged() == {0: ("gradient", 2), 1: ("gradient", 2)}
    assert lost.last("validation_accuracy").tolist() == [0.0, 0.0]


def test_the_test_images_are_handed_out_once_and_not_for_training():
    of = config(cells=["elman"])
    trained = training.fit("elman", digits.task(of, "elman"), of.train)
    assert "test_accuracy" not in trained.result.history[-1].values and of.images.test_reads == 0
    (result,) = digits.conclude(of, {"elman": trained}).results
    test, classify = data.load(0.2, 0).test(), jax.vmap(digits.network(of, "elman").apply, (0, None))
    right = np.asarray(classify(trained.params, test.pixels)).argmax(-1) == test.labels
    np.testing.assert_allclose(result.last("test_accuracy"), right.mean(1), atol=1e-6)
    assert of.images.test_reads == 1
    with pytest.raises(TestSplitError, match="the test split was read already"):
        of.images.test()
