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

from experiments.reverse import data
from experiments.reverse.translator import Form, Translator, translator
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Trained
from experiments.runner.models import compute_dtype

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
    model = config.model
    return translator(form, config.task.symbols, model.embedding_size, model.hidden_size, compute_dtype(config.train))


def validation(config: Config) -> data.Strings:
    return strings(config.task, jax.random.key(config.task.validation_seed), config.task.validation)


def tests(config: Config) -> dict[str, data.Strings]:
    """By the name of the measure: strings of the lengths trained on, then of each longer one."""
    task, key = config.task, jax.random.key(config.task.test_seed)
    longer = {
        f"exact_{length}": data.draw(
            jax.random.fold_in(key, length), task.symbols, length, length, task.test, task.order
        )
        for length in task.longer
    }
    return {"exact": strings(task, key, task.test), **longer}


def strings(task: Task, key: jax.Array, number: int) -> data.Strings:
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
    )


def exact(model: Translator, params: Any, strings: data.Strings) -> jax.Array:
    """The share of the strings that are answered without a fault."""
    answers = model.answer(params, strings.tokens, len(strings.targets))
    return data.exact(answers, strings.targets).mean(dtype=jnp.float32)


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """The parameters that were best on the validation strings answer the test strings, once."""
    results, figures, held_out = [], {}, tests(config)
    for form in config.model.attention:
        result, _, best = fits[form]
        model, clock = network(config, form), report.Clock()
        measure = jax.jit(jax.vmap(lambda params, drawn, model=model: exact(model, params, drawn), in_axes=(0, None)))
        measures = {name: np.asarray(measure(best.params, drawn)) for name, drawn in held_out.items()}
        measures["validation_exact"] = np.asarray(best.value)
        results.append(result.add(measures)._replace(seconds=result.seconds + clock.seconds()))
    looked = [form for form in config.model.attention if form != "none"]
    if looked:
        figures["attention.png"] = looks(config, {form: fits[form].best.params for form in looked})
    figures["curves.png"] = curves(results, config.task)
    return study.Conclusion(results, notes(config), figures, {})


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
    ends = np.flatnonzero(symbols == data.STOP)
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


def looks(config: Config, params: Mapping[Form, Any]) -> Figure:
    """Where the first seed of each model looks as it says the first test string."""
    drawn = jax.tree.map(lambda a: a[:, :1], tests(config)["exact"])
    length = int(data.lengths_of(drawn.tokens)[0])
    tokens, targets = (np.asarray(a)[:, 0] for a in drawn)
    figure = Figure(figsize=(4 * len(params) + 0.5, 4.2), layout="constrained")
    for axes, (form, of_seeds) in zip(figure.subplots(1, len(params), squeeze=False)[0], params.items(), strict=True):
        first = jax.tree.map(lambda a: a[0], of_seeds)
        weights = jax.jit(network(config, form).weights)(first, drawn)[: length + 1, 0, :length]
        image = axes.imshow(np.asarray(weights), cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks(range(length), tokens[:length])
        axes.set_yticks(range(length + 1), [*targets[:length], "end"])
        axes.set(title=form, xlabel="symbol read", ylabel="symbol said")
    figure.colorbar(image, ax=figure.axes, label="weight", shrink=0.8)
    return figure


STUDY = study.Study(lambda config: config.model.attention, task, study.own_rate, columns, conclude, predictor)
