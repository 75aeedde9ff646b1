"""Japanese vowels: which of nine speakers says two vowels, 12 features a step, T from 7 to 29, read in both directions.

About 5 minutes on 2 CPU cores.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from experiments.data import batches, splits
from experiments.data.records import Content
from experiments.data.sequences import Sequences
from experiments.data.source import WithData
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Train
from experiments.runner.models import compute_dtype
from experiments.vowels import data
from experiments.vowels.model import Classifier, Name, Scale, classifier
from jaxrnn.training import bucketed

PUBLISHED = 0.976  # test accuracy of MLSTM-FCN, Karim et al. 2019


class Model(Table):
    cells: Many[Name] = ("gru", "lstm")
    hidden_size: int = Field(default=64, gt=0)  # in each direction
    dropout: float = Field(default=0.3, ge=0, lt=1)  # of what the readout reads
    noise: float = Field(default=0.6, ge=0)  # the sd of what is added to the scaled inputs in training
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Task(Table):
    held_out: Literal["test", "validation"] = "test"  # choose settings on "validation"
    folds: int = Field(default=5, ge=2)  # of the training split, each held out once under "validation"
    folds_seed: Seed = 0


class Config(WithData):
    brings: ClassVar[str] = "JapaneseVowels, of the package aeon"
    experiment: Literal["vowels"]
    model: Model = Model()
    task: Task = Task()

    @classmethod
    def own(cls) -> Content:
        return data.japanese_vowels()


class Part(NamedTuple):
    """What a model learns from and, of the training split, what is held out from it."""

    learned: Sequences
    held_out: Sequences  # under "test" the same: the test split is not looked at while training goes on

    @property
    def scale(self) -> Scale:
        return splits.statistics(self.learned)


def models(config: Config) -> dict[str, tuple[Name, int | None]]:
    """What is trained, by title: every cell on the whole training split, or without each of its folds."""
    if config.task.held_out == "test":
        return {name: (name, None) for name in config.model.cells}
    return {f"{name}, fold {k + 1}": (name, k) for name in config.model.cells for k in range(config.task.folds)}


def part(config: Config, fold: int | None) -> Part:
    """The training split as published; its folds have every class in the proportion of the whole."""
    everything = data.joined(config.splits.train, config.splits.validation)
    if fold is None:
        return Part(everything, everything)
    held_out = data.folds(everything, config.task.folds, config.task.folds_seed)[fold]
    learned = np.setdiff1d(np.arange(len(everything.ids)), held_out)
    return Part(everything.of(learned), everything.of(held_out))


def settings(config: Config, model: str) -> Train:
    return study.own_rate(config, models(config)[model][0])


def network(config: Config, model: str) -> Classifier:
    name, of, dtype = models(config)[model][0], config.model, compute_dtype(config.train)
    sizes = config.splits.features, of.hidden_size, len(config.splits.classes)
    return classifier(name, *sizes, dropout=of.dropout, noise=of.noise, dtype=dtype)


def task(config: Config, model: str) -> training.Task:
    """All folds have the same functions and shapes, and so one program; what differs is in ``shared``."""
    reads, everything = network(config, model), part(config, None).learned
    fold = part(config, models(config)[model][1])
    seen = "train_accuracy" if config.task.held_out == "test" else "validation_accuracy"
    batch_size, (loss, evaluate) = config.train.batch_size, rules(reads, seen)
    shapes = bucketed(everything.lengths, batch_size=batch_size, seed=0, buckets=config.data.buckets).shapes
    return training.Task(
        reads.init,
        None,
        loss,
        evaluate,
        score=seen,
        lower=False,
        shared=(fold.scale, batches.whole(fold.held_out, everything.lengths.max())),
        batch_axis=batches.BATCH_AXIS,
        feed=batches.by_length(fold.learned, batch_size, [length for length, _ in shapes]),
    )


@functools.lru_cache(maxsize=2)
def rules(reads: Classifier, seen: str) -> Any:
    """Loss and evaluation."""

    def loss(params, batch, key, shared):
        logits = reads.apply(params, batch.xs, batch.lengths, shared[0], key)
        losses = jax.vmap(lambda a, label: training.cross_entropy(a[None], label[None]))(logits, batch.labels)
        return losses.mean(where=batch.valid), {}

    def evaluate(params, shared):
        return {seen: accuracy(reads, params, *shared)}

    return loss, evaluate


def columns(config: Config) -> tuple[report.Column, ...]:
    if config.task.held_out == "validation":
        return (report.Column("validation accuracy", "validation_accuracy", "%"),)
    return (
        report.Column("train accuracy", "train_accuracy", "%"),
        report.Column("test accuracy", "test_accuracy", "%"),
    )


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """The parameters after the last step answer the test split, which is read here, once; or the folds are averaged."""
    if config.task.held_out == "validation":
        results = [fit.result._replace(data=f"fold {models(config)[model][1]}") for model, fit in fits.items()]
        return study.Conclusion(results, crossed(config, fits), {"curves.png": curves(results)}, {})
    test = batches.whole(config.splits.test())
    results = []
    for model, fit in fits.items():
        reads, scale = network(config, model), part(config, None).scale
        measure = jax.jit(jax.vmap(lambda params, reads=reads, scale=scale: accuracy(reads, params, scale, test)))
        results.append(fit.result.add({"test_accuracy": np.asarray(measure(fit.params))}))
    intervals = {result.model: data.interval(result.last("test_accuracy")) for result in results}
    more = {"test_reads": config.splits.test_reads, "interval": intervals, "published": PUBLISHED}
    return study.Conclusion(results, notes(config, intervals), {"curves.png": curves(results)}, more)


def accuracy(reads: Classifier, params: Any, scale: Scale, held_out: batches.Batch) -> jax.Array:
    return training.accuracy(reads.apply(params, held_out.xs, held_out.lengths, scale, None), held_out.labels)


def crossed(config: Config, fits: Mapping[str, training.Fit]) -> tuple[str, ...]:
    """A line for each cell: the mean over folds and seeds."""
    lines = []
    for name in config.model.cells:
        of_folds = [fit.result.last("validation_accuracy") for m, fit in fits.items() if models(config)[m][0] == name]
        of_seeds = np.mean(of_folds, axis=0)
        low, high = data.interval(of_seeds)
        lines.append(
            f"{name}: {100 * of_seeds.mean():.2f} %, the mean of {config.task.folds} folds and {len(of_seeds)} seeds "
            f"(95 % interval of the seeds {100 * low:.2f} … {100 * high:.2f})."
        )
    model, train = config.model, config.train
    setting = (
        f"Hidden size {model.hidden_size}, dropout {model.dropout:g}, noise {model.noise:g}, {train.steps:,} steps, "
        f"learning rate {train.learning_rate:g}, batches of {train.batch_size}."
    )
    return (f"Cross-validation within the training split; the test split is not read. {setting}", *lines)


def notes(config: Config, intervals: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    spans = "; ".join(f"{model} {100 * low:.2f} … {100 * high:.2f} %" for model, (low, high) in intervals.items())
    return (
        f"Accuracies: {report.spread(config.train.seeds)}, after the last step. 95 % intervals of the mean test "
        f"accuracy (Student's t): {spans}. {config.about_the_data()} Training is on train and validation together, "
        f"{len(part(config, None).learned.ids)} sequences: settings were chosen by cross-validation within them. "
        f"MLSTM-FCN is quoted with {100 * PUBLISHED:.1f} % on the same split (Karim et al. 2019). Seconds: all seeds "
        "together, compilation included.",
    )


def curves(results: Sequence[report.Result]) -> Figure:
    held_out = next(name for name in results[0].history[0].values if name.endswith("_accuracy"))
    panels = {
        "Training loss": lambda values: values["loss"],
        f"{held_out.partition('_')[0].capitalize()} error (1 - accuracy)": lambda values: 1 - values[held_out],
    }
    return report.curves(results, panels, title="Japanese vowels", yscale="linear")


def predictor(config: Config, model: str) -> study.Predictor:
    """Steps (T, N, 12), NaN after the end of a shorter sequence -> the probabilities of the speakers, (N, 9)."""
    reads, fold = network(config, model), part(config, models(config)[model][1])

    def examples():
        held_out = batches.whole(fold.held_out)
        after = np.arange(len(held_out.xs))[:, None] >= held_out.lengths
        return np.where(after[:, :, None], np.nan, held_out.xs), held_out.labels

    def answer(params, xs):
        there = ~jnp.isnan(xs).any(-1)
        return jax.nn.softmax(reads.apply(params, jnp.where(there[:, :, None], xs, 0), there.sum(0), fold.scale, None))

    def say(probabilities, label):
        likeliest, classes = probabilities.argmax(), config.splits.classes
        truth = "" if label is None else f", is {classes[label]}" + ("" if label == likeliest else " (WRONG)")
        return f"speaker {classes[likeliest]} ({100 * probabilities[likeliest]:.1f} %){truth}"

    return study.Predictor(examples, answer, say)


STUDY = study.Study(lambda config: list(models(config)), task, settings, columns, conclude, predictor)
