"""Reversed strings: sequence to sequence, with attention and without.

About 4 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from experiments.reports import attention_maps
from experiments.reports.samples import Groups, Map, Said, Sample, Words
from experiments.reverse import data
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Trained
from experiments.runner.models import compute_dtype
from experiments.runner.strings import STOP, Strings, lengths_of
from experiments.runner.strings import exact as without_a_fault
from experiments.runner.translator import Form, Translator, translator

SHOWN = 8  # test strings in the report
VALIDATION = report.Column("validation, exact", "validation_exact", "%")


class Model(Table):
    attention: Many[Form] = ("none", "luong", "bahdanau", "location")
    embedding_size: int = Field(default=32, gt=0)
    hidden_size: int = Field(default=64, gt=0)
    learning_rates: dict[Form, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Task(Table):
    order: data.Order = "reverse"
    symbols: int = Field(default=10, gt=0)
    shortest: int = Field(default=8, gt=0)  # of the strings trained on
    longest: int = Field(default=16, gt=0)
    longer: Many[int] = (24, 32)  # lengths that are never trained on, reported apart
    validation: int = Field(default=500, gt=0)  # strings, which choose the parameters
    test: int = Field(default=2000, gt=0)  # strings of each kind, looked at once
    validation_seed: Seed = 2**31
    test_seed: Seed = 2**31 + 1
    stop_at: float = Field(default=0.998, gt=0)  # training ends when all seeds have so many validation strings exact

    @model_validator(mode="after")
    def lengths_are_in_order(self) -> Task:
        if self.shortest > self.longest:
            raise ValueError(f"task.shortest: expected at most task.longest ({self.longest}), got {self.shortest}")
        if min(self.longer) <= self.longest:
            raise ValueError(f"task.longer: expected lengths above task.longest ({self.longest}), got {self.longer}")
        return self


class Config(Trained):
    experiment: Literal["reverse"]
    model: Model = Model()
    task: Task = Task()


def network(config: Config, form: Form) -> Translator:
    model, symbols = config.model, config.task.symbols
    sizes = model.embedding_size, model.hidden_size
    return translator(form, (symbols, symbols), *sizes, dtype=compute_dtype(config.train))


def validation(config: Config) -> Strings:
    return strings(config.task, jax.random.key(config.task.validation_seed), config.task.validation)


def tests(config: Config) -> dict[str, Strings]:
    """By the name of the measure: strings of the lengths trained on, then of each longer one."""
    task, key = config.task, jax.random.key(config.task.test_seed)
    longer = {
        f"exact_{length}": data.draw(
            jax.random.fold_in(key, length), task.symbols, length, length, task.test, task.order
        )
        for length in task.longer
    }
    return {"exact": strings(task, key, task.test), **longer}


def strings(task: Task, key: jax.Array, number: int) -> Strings:
    """Of the lengths trained on."""
    return data.draw(key, task.symbols, task.shortest, task.longest, number, task.order)


def task(config: Config, form: Form) -> training.Task:
    """A model learns until all its seeds answer nearly every validation string without a fault."""
    model = network(config, form)

    def batch(key, number, shared):
        return strings(config.task, jax.random.fold_in(key, number), config.train.batch_size)

    def evaluate(params, shared):
        return {
            "validation_loss": model.loss(params, shared),
            "validation_exact": exact(model, params, shared),
        }

    return training.Task(
        model.init,
        batch,
        lambda params, batch, key, shared: (model.loss(params, batch), {}),
        evaluate,
        score="validation_exact",
        lower=False,
        shared=validation(config),
        stop_when=lambda block: bool((block.values["validation_exact"] >= config.task.stop_at).all()),
        until=f"all seeds answer {100 * config.task.stop_at:g} % of the validation strings without a fault",
    )


def exact(model: Translator, params: Any, strings: Strings) -> jax.Array:
    """The share of the strings that are answered without a fault."""
    return answered(model, params, strings)[1].mean(dtype=jnp.float32)


def answered(model: Translator, params: Any, strings: Strings) -> tuple[jax.Array, jax.Array]:
    """The answers (S + 1, B), and (B,) whether each is without a fault."""
    answers = model.answer(params, strings.tokens, len(strings.targets))
    return answers, without_a_fault(answers, strings.targets)


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """The parameters that were best on the validation strings answer the test strings, once."""
    results, figures, held_out = [], {}, tests(config)
    said: dict[Form, np.ndarray] = {}  # (S + 1, SHOWN): of the first seed
    right: dict[Form, dict[str, np.ndarray]] = {}  # by kind of test string (seeds, B)
    for form in config.model.attention:
        result, _, best = fits[form]
        model, clock = network(config, form), report.Clock()
        ask = jax.jit(jax.vmap(lambda params, drawn, model=model: answered(model, params, drawn), in_axes=(0, None)))
        answers = {name: jax.device_get(ask(best.params, drawn)) for name, drawn in held_out.items()}
        said[form], right[form] = answers["exact"][0][0, :, :SHOWN], {name: of[1] for name, of in answers.items()}
        measures = {name: of.mean(-1, dtype="float32") for name, of in right[form].items()}
        measures["validation_exact"] = np.asarray(best.value)
        results.append(result.add(measures)._replace(seconds=result.seconds + clock.seconds()))
    attending: list[Form] = [form for form in config.model.attention if form != "none"]
    weights = {form: looks(config, form, fits[form].best.params) for form in attending}
    where = maps(config, weights)
    if where:
        figures[attention_maps.FILE] = attention_maps.figure(where)
    figures["curves.png"] = curves(results, config.task)
    shown: list[Sample] = [errors_by_length(config, right), some_strings(config, said), *where.values()]
    return study.Conclusion(results, notes(config), figures, {}, shown)


def columns(config: Config) -> tuple[report.Column, ...]:
    task = config.task
    trained = report.Column(f"exact, length {task.shortest} to {task.longest}", "exact", "%")
    longer = [report.Column(f"exact, length {length}", f"exact_{length}", "%") for length in task.longer]
    return (VALIDATION, trained, *longer)


def predictor(config: Config, form: Form) -> study.Predictor:
    """Tokens (S, N), 0 in the padding -> the answers, (N, S + 1), 0 from the end on."""
    model = network(config, form)

    def examples():
        drawn = tests(config)["exact"]
        return drawn.tokens, drawn.targets.T

    def say(answer, target):
        said = _written(answer)
        if target is None:
            return said
        return f"{said}, {'right' if said == _written(target) else f'should be {_written(target)}'}"

    def answer(params, tokens):
        return model.answer(params, tokens, len(tokens) + 1).T

    return study.Predictor(examples, answer, say)


def _written(symbols: np.ndarray) -> str:
    """A string up to its end."""
    ends = np.flatnonzero(symbols == STOP)
    return " ".join(map(str, symbols[: ends[0]] if ends.size else symbols))


def notes(config: Config) -> tuple[str, ...]:
    task = config.task
    return (
        f"Exact: the share of {task.test:,} test strings that greedy decoding answers without a fault, the end "
        f"included; validation: of {task.validation:,} others, by which each seed's parameters were chosen among those "
        f"after every {config.train.block} steps. All: {report.spread(config.train.seeds)}. Training ends once all "
        f"seeds have {100 * task.stop_at:g} % of the validation strings, or after {config.train.steps:,} steps. "
        f"Seconds: all seeds together, compilation and tests included.",
    )


def curves(results: Sequence[report.Result], task: Task) -> Figure:
    panels = {
        "Validation cross entropy (nats a symbol)": lambda values: values["validation_loss"],
    }
    return report.curves(results, panels, title=f"{task.order}, strings of {task.shortest} to {task.longest}")


def errors_by_length(config: Config, right: Mapping[Form, Mapping[str, np.ndarray]]) -> Groups:
    """The share of strings with a fault, by their length."""
    lengths = {name: np.asarray(lengths_of(drawn.tokens)) for name, drawn in tests(config).items()}
    every = sorted({int(length) for of in lengths.values() for length in of})

    def of_length(of: Mapping[str, np.ndarray], length: int) -> np.ndarray:
        """(seeds,)"""
        return 1 - np.concatenate([of[name][:, lengths[name] == length] for name in lengths], axis=1).mean(1)

    return Groups(
        title="Strings with a fault, by length",
        axis="attention",
        groups=tuple(map(str, every)),
        by_model={
            form: tuple(zip(*(of_length(of, length).tolist() for length in every), strict=True))
            for form, of in right.items()
        },
        note=f"Trained on lengths {config.task.shortest} to {config.task.longest}.",
    )


def some_strings(config: Config, said: Mapping[Form, np.ndarray]) -> Words:
    """The first test strings, what they should become, and what the first seed of each model says."""
    drawn = tests(config)["exact"]
    rows: list[tuple[str | Said, ...]] = []
    for place in range(min(SHOWN, config.task.test)):
        read, due = (_written(np.asarray(a)[:, place]) for a in drawn)
        answers = [_written(of[:, place]) for of in said.values()]
        rows.append((read, due, *(Said(text=answer, right=answer == due) for answer in answers)))
    return Words(
        title=f"Test strings, answered by seed {config.train.seeds[0]}",
        header=("read", "should be", *(f"attention: {form}" for form in said)),
        rows=tuple(rows),
    )


def looks(config: Config, form: Form, params: Any) -> np.ndarray:
    """Where the first seed looks as it is taught the first test string: (length + 1, length)."""
    drawn = jax.tree.map(lambda a: a[:, :1], tests(config)["exact"])
    length = int(lengths_of(drawn.tokens)[0])
    first = jax.tree.map(lambda a: a[0], params)
    return np.asarray(jax.jit(network(config, form).weights)(first, drawn)[: length + 1, 0, :length], np.float32)


def read_and_said(config: Config, length: int) -> tuple[list[str], list[str]]:
    """The symbols of the first test string, and those of its answer."""
    tokens, targets = (np.asarray(a)[:length, 0].tolist() for a in tests(config)["exact"])
    return list(map(str, tokens)), [*map(str, targets), "end"]


def maps(config: Config, weights: Mapping[Form, np.ndarray]) -> dict[str, Map]:
    """The weights of attention of each model."""
    seed = config.train.seeds[0]
    shown: dict[str, Map] = {}
    for form, of in weights.items():
        read, said = read_and_said(config, of.shape[1])
        shown[form] = attention_maps.part(f"{form}, seed {seed}", of, said, read, unit="symbol", what="symbol")
    return shown


STUDY = study.Study(lambda config: config.model.attention, task, study.own_rate, columns, conclude, predictor)
