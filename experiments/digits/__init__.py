"""Handwritten digits, read pixel by pixel and classified from the final state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from matplotlib.figure import Figure
from pydantic import Field

from experiments import report, training
from experiments.config import ConfigError, Many, Rate, Seed, Table, Train, dump
from experiments.digits import data
from experiments.digits.model import RECURRENCES, Name
from experiments.models import reader


class Model(Table):
    cells: Many[Name] = get_args(Name)
    hidden_size: int = Field(default=64, gt=0)  # in each direction
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Data(Table):
    test_fraction: float = Field(default=0.2, ge=0.05, le=0.5)
    seed: Seed = 0  # draws the split, and nothing else
    held_out: Literal["test", "validation"] = "test"  # choose settings on "validation"


class Config(Table):
    experiment: Literal["digits"]
    model: Model = Model()
    train: Train = Train()
    data: Data = Data()


def run(config: Config, out: Path) -> Path:
    """Train every model of the config; returns the run directory."""
    train, held_out = data.load(config.data.test_fraction, config.data.seed, config.data.held_out)
    if config.train.batch_size > len(train.labels):
        raise ConfigError(
            f"train.batch_size: expected at most {len(train.labels)}, the number of training images, "
            f"got {config.train.batch_size}"
        )
    directory = report.new_directory(out, config.experiment, dump(config))
    columns = (
        report.Column("test accuracy", "test_accuracy", "%"),
        report.Column("train accuracy", "train_accuracy", "%"),
    )
    if config.data.held_out == "validation":
        columns = (report.Column("validation accuracy", "validation_accuracy", "%"), columns[1])
    fits = {name: functools.partial(fit, name, config, train, held_out) for name in config.model.cells}
    results = report.train_each(directory, config.train.steps, config.train.seeds, columns[0], fits)
    figures = {"curves.png": curves(results, config.data.held_out)}
    report.conclude(directory, results, columns, notes(config), figures)
    return directory


def fit(
    name: Name,
    config: Config,
    train: data.Examples,
    held_out: data.Examples,
    on_block: Callable[[report.Point], None] = lambda point: None,
) -> report.Result:
    """Train one model from every seed."""
    model = reader(RECURRENCES[name](train.pixels.shape[-1], config.model.hidden_size), data.CLASSES)

    def batch(key, step, shared):
        chosen = training.epoch_batch(len(train.labels), config.train.batch_size, key, step)
        return shared[0].pixels[:, chosen], shared[0].labels[chosen]

    def loss(params, batch, shared):
        pixels, labels = batch
        logits = model.apply(params, pixels)
        return training.cross_entropy(logits, labels), {"train_accuracy": training.accuracy(logits, labels)}

    def evaluate(params, shared):
        logits = model.apply(params, shared[1].pixels)
        return {f"{config.data.held_out}_accuracy": training.accuracy(logits, shared[1].labels)}

    task = training.Task(model.init, batch, loss, evaluate, (train, held_out))
    rate = config.model.learning_rates.get(name)
    return training.fit(name, task, config.train, learning_rate=rate, on_block=on_block)[0]


def notes(config: Config) -> tuple[str, ...]:
    return (
        f"Accuracies: {report.spread(config.train.seeds)}, after the last step; that on training data is of the last "
        "block's batches. Seconds: all seeds together, compilation included. A prediction that is not finite is wrong.",
    )


def curves(results: Sequence[report.Result], held_out: str) -> Figure:
    return report.curves(
        results,
        {
            "Training loss": lambda values: values["loss"],
            f"{held_out.capitalize()} error (1 - accuracy)": lambda values: 1 - values[f"{held_out}_accuracy"],
        },
        title="Digits, pixel by pixel",
    )
