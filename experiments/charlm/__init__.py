"""Characters: an LSTM reads Python's own manual a character at a time, bits per character beside a 5-gram's.

About 9 minutes on 2 CPU cores.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

import jaxrnn as jr
from experiments.charlm import data
from experiments.charlm.data import Alphabet, Texts
from experiments.charlm.ngram import KneserNey
from experiments.data.records import DataError
from experiments.reports.samples import Words
from experiments.reports.tables import interval
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Trained
from experiments.runner.models import RECURRENCES, compute_dtype
from jaxrnn.training import BlockResult

Name = Literal["gru", "lstm"]
Share = Annotated[float, Field(gt=0, lt=0.5)]
COLUMNS = (
    report.Column("validation bits", "validation_bits", ".3f"),
    report.Column("test bits", "test_bits", ".3f"),
)
read = functools.lru_cache(maxsize=2)(data.read)  # the commands make several configs of one text


class Source(Table):
    """``[data]``: which text."""

    path: str = ""  # a file of one's own, in UTF-8; "": what ships with Python
    validation: Share = 0.1  # of the text, which is cut in three: train, validation, test
    test: Share = 0.1
    sha256: str = ""  # of the text, filled in when a run begins; another one is another run

    @model_validator(mode="before")
    @classmethod
    def the_text_is_known_by_its_digest(cls, given: Any) -> Any:
        path = given.get("path", "") if isinstance(given, dict) else None
        if not isinstance(path, str) or given.get("sha256"):
            return given
        try:
            return {**given, "sha256": data.digest(read(path))}
        except DataError:  # which the next check tells, with its key
            return given

    @field_validator("path")
    @classmethod
    def there_is_such_a_text(cls, path: str) -> str:
        if path:
            read(path)
        return path

    @field_validator("sha256")
    @classmethod
    def the_text_is_still_the_same(cls, before: str, info: ValidationInfo) -> str:
        if before and "path" in info.data and (now := data.digest(read(info.data["path"]))) != before:
            raise ValueError(
                f"{info.data['path'] or 'the text that ships with Python'} is not that of the run: it was "
                f"{before:.12}… when it began, and is {now:.12}… now; put the old one back, or start a new run"
            )
        return before


class Model(Table):
    cells: Many[Name] = ("lstm",)
    embedding_size: int = Field(default=32, gt=0)
    hidden_size: int = Field(default=192, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)  # of what the readout reads
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Task(Table):
    window: int = Field(default=64, gt=0)  # T: steps of a batch, which gradients do not reach beyond
    rarest: int = Field(default=5, gt=0)  # characters that the training text has fewer times are one symbol
    order: int = Field(default=5, gt=0)  # n of the n-gram
    streams: int = Field(default=16, gt=0)  # pieces of a held-out text that are read side by side
    lead: int = Field(default=256, ge=0)  # characters that each piece is entered early
    temperatures: Many[Rate] = (0.5, 0.8, 1.0)
    written: int = Field(default=400, gt=0)  # characters of a sample
    prompt: int = Field(default=120, gt=1)  # characters of the validation text that a sample goes on from
    prompt_seed: Seed = 0


class Config(Trained):
    experiment: Literal["charlm"]
    data: Source = Field(default_factory=lambda: Source.model_validate({}))
    model: Model = Model()
    task: Task = Task()
    _texts: Texts | None = PrivateAttr(default=None)

    @property
    def texts(self) -> Texts:
        """Those of this run."""
        if self._texts is None:
            self._texts = data.cut(read(self.data.path), self.data.validation, self.data.test)
        return self._texts

    @property
    def alphabet(self) -> Alphabet:
        return data.alphabet(self.texts.train, self.task.rarest)

    @model_validator(mode="after")
    def the_text_is_long_enough(self) -> Config:
        if self.train.accumulate > 1:
            raise ValueError(
                f"train.accumulate: expected 1, as each batch goes on where the one before ended, got "
                f"{self.train.accumulate}"
            )
        if self.train.steps * self.task.window >= 2**31:
            raise ValueError("task.window: expected less than 2³¹ characters for each reader in all; take fewer steps")
        wanted = max(self.train.batch_size * self.task.window, self.task.lead + 1)
        sizes = self.texts.sizes
        if sizes["train"] < wanted or sizes["validation"] < self.task.prompt or not sizes["test"]:
            raise ValueError(
                f"data.path: the text is too short: {sizes['train']} characters to learn from, {sizes['validation']} "
                f"for validation and {sizes['test']} for the test, where {wanted}, {self.task.prompt} and 1 are "
                f"needed; give a longer text, or a smaller train.batch_size, task.window or task.lead"
            )
        return self


def network(config: Config, name: Name) -> jr.Cell:
    """Characters (*B) -> the logits of the next one (*B, V), as one Cell, to be run over time and to write."""
    of, V, dtype = config.model, len(config.alphabet.characters), compute_dtype(config.train)
    return jr.chain(
        jr.embedding(V, of.embedding_size, table_init=jax.random.normal, dtype=dtype),
        RECURRENCES[name](of.embedding_size, of.hidden_size, config.task.window, dtype),
        jr.dropout(of.dropout),
        jr.readout(of.hidden_size, V, dtype=dtype),
    )


def bits(logits: jax.Array, window: data.Window) -> jax.Array:
    """The mean of -log₂ p over the characters that are scored."""
    nats = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), window.ys)
    return nats.mean(where=window.scored) / np.log(2).astype(np.float32)


def held_out(config: Config, text: str, before: str) -> data.Window:
    """A text as it is scored, entered with what stands before it."""
    encode = config.alphabet.encode
    return data.streams(encode(before), encode(text), config.task.streams, config.task.lead)


def task(config: Config, name: Name) -> training.Task:
    """Readers go round and round in the training text, each batch where the one before has ended, the carry kept."""
    layer = jr.scan(network(config, name))
    readers, texts = config.train.batch_size, config.texts
    text = jnp.asarray(config.alphabet.encode(texts.train))

    def batch(key, number, shared):
        first = jax.random.randint(jax.random.fold_in(key, 0), (), 0, len(text))
        return data.window(shared[0], readers, config.task.window, number, first)

    def loss(params, batch_and_carry, key, shared):
        window, carry = batch_and_carry
        carry, logits = layer.apply(params, window.xs, carry, resets=window.resets, key=key)
        return bits(logits, window), {"carry": carry}

    def evaluate(params, shared):
        return {"validation_bits": bits(layer.apply(params, shared[1].xs)[1], shared[1])}

    return training.Task(
        layer.init,
        batch,
        loss,
        evaluate,
        score="validation_bits",
        shared=(text, held_out(config, texts.validation, texts.train)),
        initial_carry=lambda params: layer.initial_carry(params, (readers,)),
    )


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """The parameters with the fewest validation bits and the n-gram read the test text, which is read here, once."""
    texts, plain = config.texts, config.alphabet.plain
    clock, before = report.Clock(), plain(texts.train)
    ngram = KneserNey(before, config.task.order, config.alphabet.characters)
    of_ngram = {"validation_bits": ngram.bits(plain(texts.validation), before), "loss": float("nan")}  # it has no loss
    test = texts.test()
    of_ngram["test_bits"] = ngram.bits(plain(test), before + plain(texts.validation))
    history = [BlockResult(0, {name: np.array([value]) for name, value in of_ngram.items()}, {})]
    counted = report.Result(f"{config.task.order}-gram", (0,), ngram.parameters, history, clock.seconds())
    scored = held_out(config, test, texts.train + texts.validation)
    results = [tested(config, name, fits[name], scored) for name in config.model.cells]
    more = {
        "test_reads": texts.test_reads,
        "intervals": {result.model: interval(result.last("test_bits")) for result in results},
        "sha256": config.data.sha256,
        "characters": texts.sizes,
        "alphabet": len(config.alphabet.characters),
    }
    figures = {"curves.png": curves([fits[name].result for name in config.model.cells], counted)}
    shown = [written(config, fits[name].best.params, name, ngram) for name in config.model.cells[:1]]
    return study.Conclusion([*results, counted], notes(config, results, counted, test), figures, more, shown)


def tested(config: Config, name: Name, fit: training.Fit, scored: data.Window) -> report.Result:
    """What the best parameters of each seed measure on the test text."""
    clock, layer = report.Clock(), jr.scan(network(config, name))
    measure = jax.jit(lambda params: bits(layer.apply(params, scored.xs)[1], scored))
    of_seeds = [member(fit.best.params, n) for n in range(len(fit.result.seeds))]
    test_bits = np.array([float(measure(params)) for params in of_seeds])
    measured = fit.result.add({"validation_bits": np.asarray(fit.best.value), "test_bits": test_bits})
    return measured._replace(seconds=fit.result.seconds + clock.seconds())


def member(params: Any, place: int) -> Any:
    return jax.tree.map(lambda a: a[place], params)


def written(config: Config, params: Any, name: Name, ngram: KneserNey) -> Words:
    """What the first seed and the n-gram write after the beginning of the validation text, at each temperature."""
    task, alphabet = config.task, config.alphabet
    prompt = alphabet.plain(config.texts.validation[: task.prompt])
    tokens, cell = alphabet.encode(prompt), network(config, name)
    first_seed = jax.tree.map(jnp.asarray, member(params, 0))

    @jax.jit
    def write(temperature):
        sampler, key = jr.decoding.temperature(temperature), jax.random.key(task.prompt_seed)
        return jr.generate(
            cell, first_seed, None, tokens[0], prefix=tokens[1:], steps=task.written, sample=sampler, key=key
        ).tokens

    rows = [("", "the validation text", prompt)]
    for temperature in task.temperatures:
        said = f"{temperature:g}"
        rows.append((said, f"{name}, seed {config.train.seeds[0]}", alphabet.decode(np.asarray(write(temperature)))))
        rows.append((said, f"{task.order}-gram", ngram.generate(prompt, task.written, temperature, task.prompt_seed)))
    return Words(
        title="What they write",
        header=("temperature", "who", "text"),
        rows=tuple(rows),
        note=f"Each goes on after the first {task.prompt} characters of the validation text.",
    )


def notes(config: Config, results: Sequence[report.Result], counted: report.Result, test: str) -> tuple[str, ...]:
    """Below the table."""
    task, texts, alphabet = config.task, config.texts, config.alphabet
    name = f"{Path(config.data.path).name}" if config.data.path else data.TOPICS
    sizes = ", ".join(f"{size:,} {of}" for of, size in texts.sizes.items())
    other = sum(c == data.OTHER for c in alphabet.plain(texts.validation + test))
    lines = []
    for result in results:
        ends = interval(result.last("test_bits"))
        span = "" if ends is None else f" (95 % interval of the mean, Student's t: {ends[0]:.3f} … {ends[1]:.3f})"
        validation, on_test = (
            counted.last(of).item() - result.last(of).mean() for of in ("validation_bits", "test_bits")
        )
        lines.append(
            f"{result.model} beside the {counted.model}: {said_less(validation)} on validation, {said_less(on_test)} "
            f"on the test{span}."
        )
    return (
        f"Bits per character: {report.spread(config.train.seeds)}, of the parameters with the fewest validation bits "
        f"among those after every {config.train.block} steps. {' '.join(lines)} Text: {name} (SHA-256 "
        f"{config.data.sha256}), {sizes} characters, cut in this order; the test text was read once, at the end. "
        f"{len(alphabet.characters) - 1} characters are told apart; all that the training text has fewer than "
        f"{task.rarest} times are one more symbol, {other} of those in validation and test. {counted.model}: "
        f"interpolated Kneser-Ney, counted on the training text; its parameters are its counts. Seconds: all seeds "
        f"together, compilation and test included.",
    )


def said_less(less: float) -> str:
    return f"{less:.3f} bits less" if less >= 0 else f"{-less:.3f} bits MORE"


def curves(results: Sequence[report.Result], counted: report.Result) -> Figure:
    panels = {"Validation bits per character": lambda values: values["validation_bits"]}
    baselines = {counted.model: counted.last("validation_bits").item()}
    return report.curves(results, panels, title="Characters", yscale="linear", baselines=baselines)


def predictor(config: Config, name: Name) -> study.Predictor:
    """Characters by number (T, N) -> the probabilities of the next one, (N, V)."""
    cell, alphabet = network(config, name), config.alphabet
    layer = jr.scan(cell)

    def examples():
        validation = alphabet.encode(config.texts.validation)
        T = min(config.task.prompt, len(validation) - 1)
        starts = np.arange(0, len(validation) - T, T)
        at = starts + np.arange(T)[:, None]
        return validation[at], validation[starts + T]

    def answer(params, xs):
        return jax.nn.softmax(layer.apply(params, xs)[1][-1])

    def say(probabilities, truth):
        likeliest = int(probabilities.argmax())
        was = "" if truth is None else f"; it was {alphabet.characters[truth]!r} ({100 * probabilities[truth]:.1f} %)"
        return f"{alphabet.characters[likeliest]!r} ({100 * probabilities[likeliest]:.1f} %){was}"

    return study.Predictor(examples, answer, say, cell=cell, tokens=len(alphabet.characters))


STUDY = study.Study(
    lambda config: config.model.cells, task, study.own_rate, lambda config: COLUMNS, conclude, predictor
)
