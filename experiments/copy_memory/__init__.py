"""The copy memory task: ten symbols, a wait of T = 30 steps, and the ten symbols again.

About 4 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from matplotlib.figure import Figure
from pydantic import Field

import jaxrnn as jr
from experiments.copy_memory import data
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Trained
from experiments.runner.models import RECURRENCES, Name, compute_dtype

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
    # Training ends when the loss of all seeds is below this share of the baseline.
    stop_below: float = Field(default=0.01, ge=0)


class Config(Trained):
    experiment: Literal["copy_memory"]
    model: Model = Model()
    task: Task = Task()


def parts(config: Config, name: Name) -> tuple[jr.Cell, jr.Cell]:
    """The recurrent cell and the readout."""
    due = config.task.delay + data.COPIED  # each symbol is due so much later
    cell = RECURRENCES[name](data.TOKENS, config.model.hidden_size, due, compute_dtype(config.train))
    return cell, jr.readout(config.model.hidden_size, data.CLASSES)


def network(config: Config, name: Name) -> jr.Layer:
    return jr.stack(*parts(config, name))


def logits(model: jr.Layer, params: Any, tokens: jax.Array) -> jax.Array:
    return model.apply(params, jax.nn.one_hot(tokens, data.TOKENS))[1]


def held_out(config: Config) -> data.Copies:
    return data.draw(jax.random.key(config.task.held_out_seed), config.task.delay, config.task.held_out)


def task(config: Config, name: Name) -> training.Task:
    """A model learns until all its seeds copy without a fault."""
    model, delay = network(config, name), config.task.delay

    def batch(key, number, shared):
        return data.draw(jax.random.fold_in(key, number), delay, config.train.batch_size)

    def evaluate(params, shared):
        predicted = logits(model, params, shared.tokens)
        return {
            "held_out_loss": training.cross_entropy(predicted, shared.targets),
            "recalled": training.accuracy(predicted[-data.COPIED :], shared.targets[-data.COPIED :]),
        }

    def loss(params, batch, key, shared):
        return training.cross_entropy(logits(model, params, batch.tokens), batch.targets), {}

    below = config.task.stop_below * data.baseline(delay)
    return training.Task(
        model.init,
        batch,
        loss,
        evaluate,
        score="held_out_loss",
        shared=held_out(config),
        stop_when=lambda block: bool((block.values["held_out_loss"] < below).all()),
        until=f"the held-out loss of all seeds is below {below:.3g}",
    )


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    results, delay = [fit.result for fit in fits.values()], config.task.delay
    figures = {"curves.png": curves(results, delay)}
    return study.Conclusion(results, notes(config), figures, {"baseline": data.baseline(delay)})


def predictor(config: Config, name: Name) -> study.Predictor:
    """Tokens (T + 20, N) -> the likeliest symbol at every step, (N, T + 20)."""
    delay = config.task.delay + data.COPIED

    def examples():
        tokens, targets = held_out(config)
        return tokens, targets.T

    def say(symbols, targets):
        recalled = " ".join(map(str, symbols[delay:]))
        if targets is None:
            return recalled
        right = int((symbols[delay:] == targets[delay:]).sum())
        return f"{recalled}, were {' '.join(map(str, targets[delay:]))} ({right} of {data.COPIED})"

    model = network(config, name)
    return study.Predictor(
        examples,
        lambda params, tokens: logits(model, params, tokens).argmax(-1).T,
        say,
        jr.chain(*parts(config, name)),
        lambda tokens: jax.nn.one_hot(tokens, data.TOKENS),
        data.TOKENS,
    )


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


STUDY = study.Study(
    lambda config: config.model.cells, task, study.own_rate, lambda config: COLUMNS, conclude, predictor
)
