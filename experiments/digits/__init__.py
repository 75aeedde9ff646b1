"""Handwritten digits read pixel by pixel, permuted or row by row, and classified from the final state; five cells.

About 7 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, PrivateAttr, model_validator

from experiments.digits import data
from experiments.digits.data import Examples, Images
from experiments.digits.model import RECURRENCES, Name
from experiments.measured import interval
from experiments.reports.samples import Groups, Sample, Tile, Tiles
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Trained
from experiments.runner.models import Reader, compute_dtype, reader


class Model(Table):
    cells: Many[Name] = get_args(Name)
    hidden_size: int = Field(default=64, gt=0)  # in each direction
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Data(Table):
    test_fraction: float = Field(default=0.2, ge=0.05, le=0.5)  # and as much of the others for validation
    seed: Seed = 0  # draws the parts, and nothing else
    order: data.Order = "pixels"  # from the top left; "permuted": in an order drawn once; "rows": eight pixels a step
    permutation_seed: Seed = 0  # draws the order of "permuted", and nothing else


class Config(Trained):
    experiment: Literal["digits"]
    model: Model = Model()
    data: Data = Data()
    _images: Images | None = PrivateAttr(default=None)

    @property
    def images(self) -> Images:
        """Those of this run; the test images are read in ``conclude``, once."""
        if self._images is None:
            self._images = data.load(self.data.test_fraction, self.data.seed)
        return self._images

    @model_validator(mode="after")
    def batches_fit_into_the_training_images(self) -> Config:
        there = len(data.load(self.data.test_fraction, self.data.seed).train.labels)
        if self.train.batch_size > there:
            raise ValueError(
                f"train.batch_size: expected at most {there}, the number of training images, got "
                f"{self.train.batch_size}"
            )
        return self


def columns(config: Config) -> tuple[report.Column, ...]:
    return (
        report.Column("validation accuracy", "validation_accuracy", "%"),
        report.Column("test accuracy", "test_accuracy", "%"),
        report.Column("train accuracy", "train_accuracy", "%"),
    )


def network(config: Config, name: Name) -> Reader:
    """It takes the images as they are stored, and reads them in the order of the config."""
    order, seed = config.data.order, config.data.permutation_seed
    recurrence = RECURRENCES[name](data.features(order), config.model.hidden_size, dtype=compute_dtype(config.train))
    init, apply = reader(recurrence, data.CLASSES)
    return Reader(init, lambda params, pixels: apply(params, data.arranged(pixels, order, seed)))


def task(config: Config, name: Name) -> training.Task:
    model = network(config, name)
    train, validation = config.images.train, config.images.validation

    def batch(key, number, shared):
        chosen = training.epoch_batch(len(train.labels), config.train.batch_size, key, number)
        return shared[0].pixels[:, chosen], shared[0].labels[chosen]

    def loss(params, batch, key, shared):
        pixels, labels = batch
        logits = model.apply(params, pixels)
        return training.cross_entropy(logits, labels), {"train_accuracy": training.accuracy(logits, labels)}

    def evaluate(params, shared):
        logits = model.apply(params, shared[1].pixels)
        return {"validation_accuracy": training.accuracy(logits, shared[1].labels)}

    return training.Task(
        model.init,
        batch,
        loss,
        evaluate,
        score="validation_accuracy",
        lower=False,
        shared=(train, validation),
        batch_axis=(1, 0),
    )


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """The parameters after the last step read the test images, which are handed out here, once."""
    test, results, wrong, logits = config.images.test(), [], {}, {}
    for name in config.model.cells:
        clock, model = report.Clock(), network(config, name)
        logits[name] = np.asarray(jax.jit(jax.vmap(model.apply, in_axes=(0, None)))(fits[name].params, test.pixels))
        wrong[name] = misread(logits[name], test.labels)  # (seeds, N)
        result = fits[name].result.add({"test_accuracy": 1 - wrong[name].mean(-1)})
        results.append(result._replace(seconds=result.seconds + clock.seconds()))
    best = min(wrong, key=lambda name: wrong[name].mean())
    shown = [by_digit(test, wrong), *misread_images(config, best, test, wrong[best][0], logits[best][0])]
    figures = {"curves.png": curves(results, config.data.order)}
    return study.Conclusion(results, notes(config, results), figures, {"test_reads": config.images.test_reads}, shown)


def by_digit(test: Examples, wrong: Mapping[Name, np.ndarray]) -> Groups:
    """The test error of every digit, of each model and seed."""
    return Groups(
        title="Test error of each digit",
        axis="model",
        groups=tuple(map(str, range(data.CLASSES))),
        by_model={
            name: tuple(tuple(float(seed[test.labels == d].mean()) for d in range(data.CLASSES)) for seed in of)
            for name, of in wrong.items()
        },
    )


def misread_images(config: Config, name: Name, test: Examples, wrong: np.ndarray, logits: np.ndarray) -> list[Sample]:
    """Some test images that the first seed of a model misreads, if there are any."""
    shown = np.flatnonzero(wrong)[:12]
    if not len(shown):
        return []
    probabilities = np.asarray(jax.nn.softmax(logits[shown]))
    tiles = tuple(
        Tile(
            values=tuple(map(tuple, test.pixels[:, n, 0].reshape(data.SIDE, data.SIDE).tolist())),
            caption=f"{test.labels[n]}, read as {p.argmax()} ({100 * p.max():.0f} %)",
        )
        for n, p in zip(shown, probabilities, strict=True)
    )
    return [Tiles(title=f"Misread by {name}, seed {config.train.seeds[0]}", tiles=tiles)]


def misread(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(…, N): whether the largest logit (…, N, C) is not the label's; logits that are not finite are wrong."""
    return (logits.argmax(-1) != labels) | ~np.isfinite(logits).all(-1)


def predictor(config: Config, name: Name) -> study.Predictor:
    """Pixels (64, N, 1) -> the probabilities of the ten digits, (N, 10)."""

    def examples():
        return config.images.validation.pixels, config.images.validation.labels

    def say(probabilities, digit):
        likeliest = probabilities.argmax()
        truth = "" if digit is None else f", is {digit}" + ("" if digit == likeliest else " (WRONG)")
        return f"{likeliest} ({100 * probabilities[likeliest]:.1f} %){truth}"

    model = network(config, name)
    return study.Predictor(examples, lambda params, pixels: jax.nn.softmax(model.apply(params, pixels)), say)


def notes(config: Config, results: Sequence[report.Result]) -> tuple[str, ...]:
    ends = {result.model: interval(result.last("test_accuracy")) for result in results}
    spans = [f"{model} {100 * of[0]:.1f} … {100 * of[1]:.1f} %" for model, of in ends.items() if of]
    spread = f" 95 % intervals of the mean test accuracy (Student's t): {'; '.join(spans)}." if spans else ""
    return (
        f"Read {in_words(config.data)}. Accuracies: {report.spread(config.train.seeds)}, after the last step; that on "
        f"training data is of the last block's batches. The test images were read once, at the end.{spread} Seconds: "
        "all seeds together, compilation included. A prediction that is not finite is wrong.",
    )


def in_words(settings: Data) -> str:
    """The order in which an image is read."""
    if settings.order == "permuted":
        return f"pixel by pixel in one order for all images, drawn by NumPy's default_rng({settings.permutation_seed})"
    return {"pixels": "pixel by pixel from the top left", "rows": "row by row, eight pixels a step"}[settings.order]


def curves(results: Sequence[report.Result], order: data.Order) -> Figure:
    return report.curves(
        results,
        {
            "Training loss": lambda values: values["loss"],
            "Validation error (1 - accuracy)": lambda values: 1 - values["validation_accuracy"],
        },
        title=f"Digits, {'row by row' if order == 'rows' else 'pixel by pixel'}{', permuted' * (order == 'permuted')}",
    )


STUDY = study.Study(lambda config: config.model.cells, task, study.own_rate, columns, conclude, predictor)
