"""mytask: which class a sequence is of, read from the final state of a recurrent network.

About 1 minute on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax
import numpy as np
from pydantic import Field

from experiments.data import batches, splits
from experiments.data.records import Content, Record
from experiments.data.source import WithData
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Table
from experiments.runner.models import RECURRENCES, Name, Reader, compute_dtype, reader


class Model(Table):
    cells: Many[Name] = ("gru", "lstm")
    hidden_size: int = Field(default=16, gt=0)
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Config(WithData):
    experiment: Literal["mytask"]
    model: Model = Model()

    @classmethod
    def own(cls) -> Content:
        """What is learned without data.path: noisy waves of three frequencies. Put your own in their place."""
        rng = np.random.default_rng(0)
        records = []
        for n in range(240):
            steps, frequency = np.arange(rng.integers(12, 40)), n % 3
            wave = 0.4 * (frequency + 1) * steps + rng.uniform(0, 2 * np.pi)
            x = np.stack([np.sin(wave), np.cos(wave)], axis=1) + rng.normal(0, 0.7, (len(steps), 2))
            records.append(Record(f"sequence {n + 1}", str(n), x, label=("slow", "middle", "fast")[frequency]))
        return Content(records)


def network(config: Config, name: Name) -> Reader:
    """A readout of the state after each sequence's own last step; what it reads has mean 0 and sd 1 in training."""
    data = config.splits
    mean, sd = splits.statistics(data.train)
    longest = int(data.train.lengths.max())
    cell = RECURRENCES[name](data.features, config.model.hidden_size, longest, compute_dtype(config.train))
    plain = reader(cell, len(data.classes))
    return Reader(plain.init, lambda params, xs, lengths=None: plain.apply(params, (xs - mean) / sd, lengths))


def task(config: Config, name: Name) -> training.Task:
    """What is trained, and what is measured on the validation split after every block of steps."""
    model, data = network(config, name), config.splits

    def loss(params, batch, key, shared):
        logits = model.apply(params, batch.xs, batch.lengths)
        losses = jax.vmap(lambda a, label: training.cross_entropy(a[None], label[None]))(logits, batch.labels)
        return losses.mean(where=batch.valid), {}

    def evaluate(params, held_out):
        logits = model.apply(params, held_out.xs, held_out.lengths)
        return {"validation_accuracy": training.accuracy(logits, held_out.labels)}

    return training.Task(
        model.init,
        None,
        loss,
        evaluate,
        score="validation_accuracy",
        lower=False,
        shared=batches.whole(data.validation),
        batch_axis=batches.BATCH_AXIS,
        feed=batches.by_length(data.train, config.train.batch_size, config.data.buckets),
    )


def columns(config: Config) -> tuple[report.Column, ...]:
    return (
        report.Column("validation accuracy", "validation_accuracy", "%"),
        report.Column("test accuracy", "test_accuracy", "%"),
    )


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """The parameters that were best on the validation split answer the test split, which is read here, once."""
    test = batches.whole(config.splits.test())
    results = []
    for name, (result, _, best) in fits.items():
        model = network(config, name)  # type: ignore[arg-type]  # the models are the cells
        logits = jax.jit(jax.vmap(lambda params, model=model: model.apply(params, test.xs, test.lengths)))(best.params)
        measures = {
            "validation_accuracy": best.value,
            "test_accuracy": jax.vmap(training.accuracy, (0, None))(logits, test.labels),
        }
        results.append(result.add({key: np.asarray(value) for key, value in measures.items()}))
    notes = (
        f"Accuracies: {report.spread(config.train.seeds)}, of the parameters with the best validation accuracy after a "
        f"block of {config.train.block} steps. {config.about_the_data()}",
    )
    curves = report.curves(
        results,
        {
            "Training loss": lambda values: values["loss"],
            "Validation error (1 - accuracy)": lambda values: 1 - values["validation_accuracy"],
        },
        title="mytask",
        yscale="linear",
    )
    return study.Conclusion(results, notes, {"curves.png": curves}, {"test_reads": config.splits.test_reads})


def predictor(config: Config, name: Name) -> study.Predictor:
    """Steps (T, N, I), NaN after the end of a shorter sequence -> the probabilities of the classes, (N, C)."""
    model, data = network(config, name), config.splits

    def examples():
        held_out = batches.whole(data.validation)
        after = np.arange(len(held_out.xs))[:, None] >= held_out.lengths
        return np.where(after[:, :, None], np.nan, held_out.xs), held_out.labels

    def answer(params, xs):
        there = ~jax.numpy.isnan(xs).any(-1)
        xs = jax.numpy.where(there[:, :, None], xs, 0)
        return jax.nn.softmax(model.apply(params, xs, there.sum(0)))

    def say(probabilities, label):
        likeliest = probabilities.argmax()
        truth = "" if label is None else f", is {data.classes[label]}" + ("" if label == likeliest else " (WRONG)")
        return f"{data.classes[likeliest]} ({100 * probabilities[likeliest]:.1f} %){truth}"

    return study.Predictor(examples, answer, say)


STUDY = study.Study(lambda config: config.model.cells, task, study.own_rate, columns, conclude, predictor)
