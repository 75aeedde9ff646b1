"""Handwritten digits read pixel by pixel, permuted or row by row, and classified from the final state; five cells.

About 4 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from experiments.digits import data
from experiments.digits.model import RECURRENCES, Name
from experiments.reports.samples import Groups, Sample, Tile, Tiles
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Trained
from experiments.runner.models import Reader, compute_dtype, reader


class Model(Table):
    cells: Many[Name] = get_args(Name)
    hidden_size: int = Field(default=64, gt=0)  # in each direction
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Data(Table):
    test_fraction: float = Field(default=0.2, ge=0.05, le=0.5)
    seed: Seed = 0  # draws the split, and nothing else
    held_out: Literal["test", "validation"] = "test"  # choose settings on "validation"
    order: data.Order = "pixels"  # from the top left; "permuted": in an order drawn once; "rows": eight pixels a step
    permutation_seed: Seed = 0  # draws the order of "permuted", and nothing else


class Config(Trained):
    experiment: Literal["digits"]
    model: Model = Model()
    data: Data = Data()

    @model_validator(mode="after")
    def batches_fit_into_the_training_images(self) -> Config:
        images = len(examples(self)[0].labels)
        if self.train.batch_size > images:
            raise ValueError(
                f"train.batch_size: expected at most {images}, the number of training images, "
                f"got {self.train.batch_size}"
            )
        return self


def examples(config: Config) -> tuple[data.Examples, data.Examples]:
    """(train, held_out)"""
    return data.load(config.data.test_fraction, config.data.seed, config.data.held_out)


def columns(config: Config) -> tuple[report.Column, ...]:
    held_out = config.data.held_out
    return (
        report.Column(f"{held_out} accuracy", f"{held_out}_accuracy", "%"),
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
    train, held_out = examples(config)
    accuracy = f"{config.data.held_out}_accuracy"

    def batch(key, number, shared):
        chosen = training.epoch_batch(len(train.labels), config.train.batch_size, key, number)
        return shared[0].pixels[:, chosen], shared[0].labels[chosen]

    def loss(params, batch, key, shared):
        pixels, labels = batch
        logits = model.apply(params, pixels)
        return training.cross_entropy(logits, labels), {"train_accuracy": training.accuracy(logits, labels)}

    def evaluate(params, shared):
        logits = model.apply(params, shared[1].pixels)
        return {accuracy: training.accuracy(logits, shared[1].labels)}

    return training.Task(
        model.init, batch, loss, evaluate, accuracy, lower=False, shared=(train, held_out), batch_axis=(1, 0)
    )


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    results = [fit.result for fit in fits.values()]
    figures = {"curves.png": curves(results, config.data.held_out, config.data.order)}
    return study.Conclusion(results, notes(config), figures, {}, samples(config, fits))


def samples(config: Config, fits: Mapping[str, training.Fit]) -> list[Sample]:
    """The error of every digit, and some images that the first seed of the best model misreads."""
    held_out = examples(config)[1]
    logits = {}
    for name in config.model.cells:
        model = network(config, name)
        logits[name] = np.asarray(jax.jit(jax.vmap(model.apply, in_axes=(0, None)))(fits[name].params, held_out.pixels))
    wrong = {name: misread(of, held_out.labels) for name, of in logits.items()}  # (seeds, N)
    errors = Groups(
        title=f"{config.data.held_out.capitalize()} error of each digit",
        axis="model",
        groups=tuple(map(str, range(data.CLASSES))),
        by_model={
            name: tuple(tuple(float(seed[held_out.labels == d].mean()) for d in range(data.CLASSES)) for seed in of)
            for name, of in wrong.items()
        },
    )
    best = min(wrong, key=lambda name: wrong[name].mean())
    shown = np.flatnonzero(wrong[best][0])[:12]
    if not len(shown):
        return [errors]
    probabilities = np.asarray(jax.nn.softmax(logits[best][0, shown]))
    tiles = tuple(
        Tile(
            values=tuple(map(tuple, held_out.pixels[:, n, 0].reshape(8, 8).tolist())),
            caption=f"{held_out.labels[n]}, read as {p.argmax()} ({100 * p.max():.0f} %)",
        )
        for n, p in zip(shown, probabilities, strict=True)
    )
    return [errors, Tiles(title=f"Misread by {best}, seed {config.train.seeds[0]}", tiles=tiles)]


def misread(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(…, N): whether the largest logit (…, N, C) is not the label's; logits that are not finite are wrong."""
    return (logits.argmax(-1) != labels) | ~np.isfinite(logits).all(-1)


def predictor(config: Config, name: Name) -> study.Predictor:
    """Pixels (64, N, 1) -> the probabilities of the ten digits, (N, 10)."""

    def held_out():
        chosen = examples(config)[1]
        return chosen.pixels, chosen.labels

    def say(probabilities, digit):
        likeliest = probabilities.argmax()
        truth = "" if digit is None else f", is {digit}" + ("" if digit == likeliest else " (WRONG)")
        return f"{likeliest} ({100 * probabilities[likeliest]:.1f} %){truth}"

    model = network(config, name)
    return study.Predictor(held_out, lambda params, pixels: jax.nn.softmax(model.apply(params, pixels)), say)


def notes(config: Config) -> tuple[str, ...]:
    return (
        f"Read {in_words(config.data)}. Accuracies: {report.spread(config.train.seeds)}, after the last step; that on "
        "training data is of the last block's batches. Seconds: all seeds together, compilation included. A prediction "
        "that is not finite is wrong.",
    )


def in_words(settings: Data) -> str:
    """The order in which an image is read."""
    if settings.order == "permuted":
        return f"pixel by pixel in one order for all images, drawn by NumPy's default_rng({settings.permutation_seed})"
    return {"pixels": "pixel by pixel from the top left", "rows": "row by row, eight pixels a step"}[settings.order]


def curves(results: Sequence[report.Result], held_out: str, order: data.Order = "pixels") -> Figure:
    return report.curves(
        results,
        {
            "Training loss": lambda values: values["loss"],
            f"{held_out.capitalize()} error (1 - accuracy)": lambda values: 1 - values[f"{held_out}_accuracy"],
        },
        title=f"Digits, {'row by row' if order == 'rows' else 'pixel by pixel'}{', permuted' * (order == 'permuted')}",
    )


STUDY = study.Study(lambda config: config.model.cells, task, study.own_rate, columns, conclude, predictor)
