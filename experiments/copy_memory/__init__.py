"""The copy memory task: ten symbols, a wait of T steps, and the ten symbols again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
from matplotlib.figure import Figure
from pydantic import Field

import jaxrnn as jr
from experiments import report, training
from experiments.config import Many, Rate, Seed, Table, Train, dump
from experiments.copy_memory import data
from experiments.models import RECURRENCES, Name

COLUMNS = (
    report.Column("held-out loss", "held_out_loss"),
    report.Column("symbols recalled", "recalled", "%"),
)


class Model(Table):
    cells: Many[Name] = ("elman", "irnn", "gru", "lstm", "chrono_lstm")
    hidden_size: int = Field(default=64, gt=0)
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Task(Table):
    delay: int = Field(default=50, gt=0)  # T
    held_out: int = Field(default=1000, gt=0)  # sequences
    held_out_seed: Seed = 2**31  # draws them, and nothing else
    stop_below: float = Field(
        default=0.01, ge=0
    )  # training ends when all seeds' loss is below this share of the baseline


class Config(Table):
    experiment: Literal["copy_memory"]
    model: Model = Model()
    train: Train = Train()
    task: Task = Task()


def run(config: Config, out: Path) -> Path:
    """Train every model of the config; returns the run directory."""
    directory = report.new_directory(out, config.experiment, dump(config))
    fits = {name: functools.partial(fit, name, config) for name in config.model.cells}
    results = report.train_each(directory, config.train.steps, config.train.seeds, COLUMNS[1], fits)
    figures = {"curves.png": curves(results, config.task.delay)}
    report.conclude(directory, results, COLUMNS, notes(config), figures, baseline=data.baseline(config.task.delay))
    return directory


def fit(name: Name, config: Config, on_block: Callable[[report.Point], None] = lambda point: None) -> report.Result:
    """Train one model from every seed until all copy without a fault."""
    delay, hidden_size = config.task.delay, config.model.hidden_size
    cell = RECURRENCES[name](data.TOKENS, hidden_size, delay + data.COPIED)  # each symbol is due so much later
    model = jr.stack(cell, jr.readout(hidden_size, data.CLASSES))
    held_out = data.draw(jax.random.key(config.task.held_out_seed), delay, config.task.held_out)

    def batch(key, step, shared):
        return data.draw(jax.random.fold_in(key, step), delay, config.train.batch_size)

    def logits(params, tokens):
        return model.apply(params, jax.nn.one_hot(tokens, data.TOKENS))[1]

    def evaluate(params, shared):
        said = logits(params, shared.tokens)
        return {
            "held_out_loss": training.cross_entropy(said, shared.targets),
            "recalled": training.accuracy(said[-data.COPIED :], shared.targets[-data.COPIED :]),
        }

    def loss(params, batch, shared):
        return training.cross_entropy(logits(params, batch.tokens), batch.targets), {}

    below = config.task.stop_below * data.baseline(delay)
    return training.fit(
        name,
        training.Task(model.init, batch, loss, evaluate, held_out),
        config.train,
        learning_rate=config.model.learning_rates.get(name),
        on_block=on_block,
        enough=lambda point: bool((point.values["held_out_loss"] < below).all()),
    )[0]


def notes(config: Config) -> tuple[str, ...]:
    delay = config.task.delay
    return (
        f"Held-out loss: cross entropy in nats, the mean over all {delay + 2 * data.COPIED} steps of "
        f"{config.task.held_out:,} sequences; without memory it is {data.baseline(delay):.4f}. Symbols recalled: the "
        f"share of the last {data.COPIED} answers that is right; a guess has {100 / data.SYMBOLS:.1f} %. All: "
        f"{report.spread(config.train.seeds)}. Training ends once all seeds are below {config.task.stop_below:g} of "
        f"the loss without memory, or after {config.train.steps:,} steps. Seconds: all seeds together, compilation "
        "included.",
    )


def curves(results: Sequence[report.Result], delay: int) -> Figure:
    return report.curves(
        results,
        {"Held-out cross entropy (nats per step)": lambda values: values["held_out_loss"]},
        title=f"Copy memory, T = {delay}",
        baselines={"without memory": data.baseline(delay)},
    )
