"""Handwritten digits, read pixel by pixel and classified from the final state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field

from experiments import report, training
from experiments.config import ConfigError, Many, Rate, Seed, Table, Train, dump
from experiments.digits import data
from experiments.digits.model import RECURRENCES, Name, classifier


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
    directory = report.new_directory(out, config.experiment)
    (directory / "config.toml").write_text(dump(config), encoding="utf-8")
    results = []
    with report.Display(config.train.steps) as display:
        for name in config.model.cells:
            display.start(name)

            def on_block(point: report.Point, name: str = name) -> None:
                display.update(name, point)
                report.append_metrics(directory, name, config.train.seeds, point, config.data.held_out)

            results.append(fit(name, config, train, held_out, on_block))
            display.finish(results[-1])
    report.write(directory, results, config.data.held_out, title="Digits, pixel by pixel")
    display.table(results, config.data.held_out, directory)
    return directory


def fit(
    name: Name,
    config: Config,
    train: data.Examples,
    held_out: data.Examples,
    on_block: Callable[[report.Point], None] = lambda point: None,
) -> report.Result:
    """Train one model from every seed at once, a block of steps at a time."""
    settings = config.train
    model = classifier(RECURRENCES[name](train.pixels.shape[-1], config.model.hidden_size), data.CLASSES)
    learning_rate = config.model.learning_rates.get(name, settings.learning_rate)
    if settings.schedule == "cosine":
        learning_rate = optax.cosine_decay_schedule(learning_rate, settings.steps)
    optimizer = training.adam(learning_rate, settings.clip_norm)

    def block(state, train, held_out):
        def loss(params, batch):
            logits, labels = model.logits(params, train.pixels[:, batch]), train.labels[batch]
            return training.cross_entropy(logits, labels), training.accuracy(logits, labels)

        def batch_at(key, step):
            return training.epoch_batch(len(train.labels), settings.batch_size, key, step)

        state, metrics = training.train(loss, optimizer, batch_at, state, settings.block)
        logits = model.logits(state.params, held_out.pixels)
        return state, jax.tree.map(jnp.mean, metrics), training.accuracy(logits, held_out.labels)

    clock = report.Clock()
    keys = jnp.stack([jax.random.key(seed) for seed in settings.seeds])
    states = jax.jit(training.over_seeds(lambda key: training.init(model.init, optimizer, key)))(keys)
    shared = jax.device_put((train, held_out))
    compiled = jax.jit(training.over_seeds(block)).lower(states, *shared).compile()
    compile_seconds = clock.seconds()

    points = []
    for step in range(settings.block, settings.steps + 1, settings.block):
        states, metrics, correct = jax.block_until_ready(compiled(states, *shared))
        measured = (metrics.loss, metrics.accuracy, metrics.grad_norm, correct)
        points.append(report.Point(step, *map(np.asarray, measured)))
        on_block(points[-1])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(states.params)) // len(settings.seeds)
    return report.Result(name, settings.seeds, parameters, points, compile_seconds, clock.seconds())
