"""Polyphonic music: which notes of 88 sound at the next step of a chorale, each by itself or one given the other.

About 10 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from experiments.data import batches
from experiments.data.records import Content, refuse
from experiments.data.source import WithData
from experiments.music import composing, data
from experiments.music.model import Model as Network
from experiments.music.model import Recurrence
from experiments.music.model import model as build
from experiments.reports.tables import interval
from experiments.runner import report, study, training
from experiments.runner.config import Rate, Table, Train
from experiments.runner.models import compute_dtype
from jaxrnn._checks import nearest

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
VALIDATION = report.Column("validation NLL", "validation_nll", ".3f")
TEST = report.Column("test NLL", "test_nll", ".3f")
STEPS = 64  # of the chorales in the report
ROLL = "piano roll"


class Variant(Table):
    """One of the models; the config file names them."""

    cell: Recurrence = "gru"
    hidden_size: int = Field(default=100, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of what the readout reads
    noise: float = Field(default=0.0, ge=0)  # the sd of what is added to all weights in training, drawn for each batch
    steps: int = Field(default=0, ge=0)  # 0: train.steps
    nade: int = Field(default=0, ge=0)  # hidden units of the joint model of a step's notes; 0: each note by itself


class Model(Table):
    variants: dict[Name, Variant] = Field(default={}, validate_default=True)
    only: tuple[str, ...] = Field(default=(), strict=False)  # those that are trained; (): all
    learning_rates: dict[str, Rate] = Field(default={})  # for a variant that wants another than train.learning_rate

    @field_validator("variants")
    @classmethod
    def there_are_some(cls, variants: dict[str, Variant]) -> dict[str, Variant]:
        if not variants:
            raise ValueError("expected a table model.variants.NAME or more, as in configs/music.toml")
        return variants

    @field_validator("only", "learning_rates")
    @classmethod
    def names_are_those_of_variants(cls, names: Any, info: ValidationInfo) -> Any:
        known = info.data.get("variants", names)  # missing where they were wrong themselves
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r} is no variant{nearest(name, known, '')}")
        return names


class Task(Table):
    held_out: Literal["test", "validation"] = "test"  # choose settings on "validation": the test split is not read


class Config(WithData):
    wants: ClassVar[tuple[str, ...]] = ()
    brings: ClassVar[str] = "Bach's chorales in the corpus of the package music21, on a grid of quarter notes"
    experiment: Literal["music"]
    model: Model = Field(default={}, validate_default=True)
    task: Task = Task()

    @model_validator(mode="after")
    def steps_make_whole_blocks(self) -> Config:
        for name, of in self.model.variants.items():
            if of.steps > self.train.log_every and of.steps % self.train.log_every:
                every = f"train.log_every ({self.train.log_every})"
                raise ValueError(f"model.variants.{name}.steps: expected a multiple of {every}, got {of.steps}")
        return self

    @classmethod
    def own(cls) -> Content:
        return data.chorales()

    @classmethod
    def check(cls, path: Path | str, content: Content) -> None:
        if content.x != ROLL:
            refuse(
                path,
                what="holds no piano rolls",
                fix="give a .mat file with traindata, validdata and testdata, or .json with train, valid and test",
            )


def models(config: Config) -> Sequence[str]:
    return config.model.only or tuple(config.model.variants)


def settings(config: Config, name: str) -> Train:
    of = study.own_rate(config, name)
    return of.model_copy(update={"steps": config.model.variants[name].steps or of.steps})


def most_notes(xs: Sequence[np.ndarray] | np.ndarray) -> int:
    """At one step of any of the sequences."""
    return int(max(x.sum(-1).max() for x in xs))


def log_odds(config: Config) -> np.ndarray:
    """(88,) of each note at any step of the training split, half a step with it and half a step without it added."""
    steps = np.concatenate(config.splits.train.xs)
    sounding = steps.sum(0) + 0.5
    return np.log(sounding / (len(steps) + 1 - sounding)).astype(np.float32)


def network(config: Config, name: str, most: int) -> Network:
    """A variant, to be asked about steps of so many notes at the most."""
    of = config.model.variants[name]
    return build(
        of.cell,
        of.hidden_size,
        log_odds(config),
        dropout=of.dropout,
        noise=of.noise,
        nade_units=of.nade,
        most=most,
        dtype=compute_dtype(config.train),
    )


def task(config: Config, name: str) -> training.Task:
    train, validation = config.splits.train, config.splits.validation
    net = network(config, name, max(most_notes(train.xs), most_notes(validation.xs)))

    def loss(params, batch, key, shared):
        return net.nll(params, batch.xs, batch.lengths, key), {}

    def evaluate(params, shared):
        return {VALIDATION.name: net.nll(params, shared.xs, shared.lengths, None)}

    return training.Task(
        net.init,
        None,
        loss,
        evaluate,
        score=VALIDATION.name,
        shared=batches.whole(validation),
        batch_axis=batches.BATCH_AXIS,
        feed=batches.by_length(train, config.train.batch_size, config.data.buckets),
    )


def columns(config: Config) -> tuple[report.Column, ...]:
    return (VALIDATION,) if config.task.held_out == "validation" else (VALIDATION, TEST)


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """The parameters that were best on validation are judged by the test split, which is read here, once."""
    results, intervals, rolls = [], {}, {}
    test = None if config.task.held_out == "validation" else batches.whole(config.splits.test())
    for name, (result, _, best) in fits.items():
        measures = {VALIDATION.name: np.asarray(best.value)}
        if test is not None:
            net = network(config, name, most_notes(test.xs))
            measure = jax.jit(jax.vmap(net.nll, (0, None, None, None)))
            measures[TEST.name] = np.asarray(measure(best.params, test.xs, test.lengths, None))
        intervals[name] = {measure: interval(values) for measure, values in measures.items()}
        rolls[name] = composed(config, name, jax.tree.map(lambda a: a[0], best.params), jax.random.key(0), STEPS)
        results.append(result.add(measures))
    more = {"test_reads": config.splits.test_reads, "interval": intervals}
    trained = [fit.result for fit in fits.values()]  # the results end with the measures of the best parameters
    figures = {"curves.png": curves(trained), "chorales.png": composing.figure(rolls)}
    shown = [
        composing.sample(f"{name} composes", roll, note=BEGINNING, file="chorales.png") for name, roll in rolls.items()
    ]
    return study.Conclusion(results, notes(config, intervals), figures, more, shown)


BEGINNING = "The first step is that of a validation piece; every other is drawn, given those before it."


def composed(config: Config, name: str, params: Any, key: jax.Array, steps: int) -> np.ndarray:
    """(steps, 88): the first step of a validation piece, which the key chooses, and what the model has after it."""
    pieces = config.splits.validation.xs
    k_piece, k_notes = jax.random.split(key)
    first = pieces[int(jax.random.randint(k_piece, (), 0, len(pieces)))][0]
    compose = jax.jit(network(config, name, 0).compose, static_argnums=3)
    return np.asarray(compose(params, jnp.asarray(first), k_notes, steps - 1))


def notes(config: Config, intervals: Mapping[str, Mapping[str, tuple[float, float] | None]]) -> tuple[str, ...]:
    spans = [
        f"{name} {measure.partition('_')[0]} {span[0]:.3f} … {span[1]:.3f}"
        for name, of in intervals.items()
        for measure, span in of.items()
        if span
    ]
    spread = f" 95 % intervals of the mean (Student's t): {'; '.join(spans)}." if spans else ""
    return (
        f"NLL: nats a step, the sum over all steps but the first of each piece, divided by their number; "
        f"{report.spread(config.train.seeds)}, with the parameters that were best on the validation pieces among those "
        f"after every {config.train.block} steps.{spread} {config.about_the_data()} Steps: batches of "
        f"{config.train.batch_size} pieces. Seconds: all seeds together, compilation included.",
    )


def curves(results: Sequence[report.Result]) -> Figure:
    panels = {
        "Training NLL (with noise)": lambda values: values["loss"],
        "Validation NLL": lambda values: values[VALIDATION.name],
    }
    return report.curves(results, panels, title="Polyphonic music, nats a step", yscale="linear")


def predictor(config: Config, name: str) -> study.Predictor:
    """Steps (T, N, 88), NaN after the end of a shorter piece -> nats a step, (N,); and what composes."""

    def examples():
        held_out = batches.whole(config.splits.validation)
        after = np.arange(len(held_out.xs))[:, None] >= held_out.lengths
        return np.where(after[:, :, None], np.nan, held_out.xs), held_out.lengths

    def answer(params, xs):
        net = network(config, name, xs.shape[-1])  # a piece of the user's may have any number of notes

        def of_piece(x):
            there = ~jnp.isnan(x).any(-1)
            return net.nll(params, jnp.where(there[:, None], x, 0)[:, None], there.sum(0, keepdims=True), None)

        return jax.lax.map(of_piece, jnp.moveaxis(xs, 1, 0))

    def say(nll, length):
        return f"{nll:.3f} nats a step" + ("" if length is None else f", {length} steps")

    def compose(params, key, steps, output) -> Iterator[str]:
        composing.check_midi(output)
        roll = composed(config, name, params, key, steps)
        composing.write_midi(output, roll)
        drawing = output.with_suffix(".png")
        composing.figure({f"{name} composes": roll}).savefig(drawing, dpi=150)
        yield f"{output}, drawn in {drawing}: {steps} steps. {BEGINNING}"

    return study.Predictor(examples, answer, say, compose=compose)


STUDY = study.Study(models, task, settings, columns, conclude, predictor)
