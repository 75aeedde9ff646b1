"""What is said of a run: notes under the table, some words, errors by length, where the decoder looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.g2p.data import Dictionary, Words, columns, filled, spoken, unfit
from experiments.g2p.model import Speaker
from experiments.reports import attention_maps
from experiments.reports.samples import Groups, Map, Said
from experiments.reports.samples import Words as Table
from experiments.reports.tables import interval
from experiments.runner import report
from experiments.runner.strings import Strings

SHOWN = 16  # test words in the report
LOOKED_AT = 9  # letters, at least, of the word of the map
# In per cent; of the dictionary without stress marks, split as Chen 2003 did.
PUBLISHED = {
    "Yao & Zweig 2015, bidirectional LSTM": {"per": 5.45, "wer": 23.55},
    "Rao et al. 2015, CTC": {"wer": 25.8},
}
GROUPS = {"up to 4": (1, 4), **{str(n): (n, n) for n in range(5, 12)}, "12 or more": (12, 10**6)}  # letters


class Look(NamedTuple):
    letters: np.ndarray  # (S,)
    said: list[int]  # (n,)
    weights: np.ndarray  # (n + 1, S): of each phoneme, and of the end


def words(dictionary: Dictionary, test: Words, said: Mapping[str, np.ndarray], seed: int) -> Table:
    """Some test words, their pronunciations, and those of one seed of each model."""
    places = np.unique(np.linspace(0, len(test.ids) - 1, min(SHOWN, len(test.ids))).astype(int))
    rows: list[tuple[str | Said, ...]] = []
    for n in places:
        due = [dictionary.said(of) for of in test.phonemes[n]]
        answers = [dictionary.said(of[n]) for of in said.values()]
        rows.append((test.ids[n], " / ".join(due), *(Said(text=answer, right=answer in due) for answer in answers)))
    return Table(
        title=f"Test words, pronounced by seed {seed}",
        header=("word", "in the dictionary", *said),
        rows=tuple(rows),
        note="Evenly spaced in the alphabet.",
    )


def by_length(test: Words, right: Mapping[str, np.ndarray]) -> Groups:
    """The share of wrong words, by their letters; ``right`` (seeds, N)."""
    letters = np.array([len(word) for word in test.ids])
    of_group = {name: (letters >= low) & (letters <= high) for name, (low, high) in GROUPS.items()}
    there = {name: of for name, of in of_group.items() if of.any()}
    return Groups(
        title="Wrong words, by letters",
        axis="letters",
        groups=tuple(there),
        by_model={
            model: tuple(
                tuple(float(1 - of[seed, those].mean()) for those in there.values()) for seed in range(len(of))
            )
            for model, of in right.items()
        },
        note=", ".join(f"{name}: {of.sum():,} words" for name, of in there.items()) + ".",
    )


def look(model: Speaker, params: Any, test: Words, said: np.ndarray) -> Look:
    """Where the decoder looks as it says its answer (N, n) to a test word of many letters."""
    n = next((n for n, word in enumerate(test.ids) if len(word) >= LOOKED_AT), 0)
    letters, answer = test.letters[n], spoken(said[n])
    strings = Strings(columns([letters]), filled(np.array(answer, np.int32), len(answer) + 1)[:, None])  # type: ignore[arg-type]
    assert model.weights is not None
    return Look(letters, answer, np.asarray(jax.jit(model.weights)(params, strings)[:, 0], np.float32))


def named(dictionary: Dictionary, of: Look) -> tuple[list[str], list[str]]:
    """The letters, and the phonemes with the end."""
    return [dictionary.letters[n - 1] for n in of.letters], [*(dictionary.phonemes[p - 1] for p in of.said), "end"]


def map_of(dictionary: Dictionary, of: Look, seed: int) -> Map:
    letters, phonemes = named(dictionary, of)
    title = f"{''.join(letters)}, seed {seed}"
    return attention_maps.part(title, of.weights, phonemes, letters, unit="letter", what="phoneme")


def notes(config: Any, results: Sequence[report.Result]) -> tuple[str, ...]:
    dictionary, train, of = config.words, config.train, config.data
    parts = dictionary.parts
    sizes = ", ".join(f"{number:,} {name}" for name, number in parts.sizes.items())
    stress = "kept" if of.stress else "dropped"
    published = "; ".join(
        f"{who}: {', '.join(f'{name.upper()} {value:g} %' for name, value in figures.items())}, another split"
        for who, figures in PUBLISHED.items()
    )
    lines = [
        f"PER: the edits that make the nearest pronunciation of the dictionary of an answer, by the phonemes of those; "
        f"WER: the share of words answered by none of their pronunciations. Answers: beam search, width "
        f"{config.task.beam}; greedy: of {min(config.task.watched, parts.sizes['validation']):,} validation words, by "
        f"which each seed's parameters were chosen among those after every {train.block} steps. All: "
        f"{report.spread(train.seeds)}. Seconds: all seeds together, compilation and tests included.",
        f"Words: {dictionary.name}; {sizes}, with {parts.train.pairs:,} pronunciations to train on, split by "
        f"{parts.rule}; {len(dictionary.letters)} letters, {len(dictionary.phonemes)} phonemes, stress {stress}; "
        f"{dictionary.left_out:,} lines of words with other signs left out. The test split was read once, at the end.",
    ]
    if "ctc" in config.model.kinds:
        frames = config.model.frames
        short = unfit(parts.train, frames)
        lines.append(
            f"ctc has {frames} frames for each letter; {short} of the pronunciations to train on need more, and are "
            f"left out of its loss."
        )
    if said := intervals(results):
        lines.append(f"95 % intervals (Student's t, of the seeds) of the mean test WER: {said}.")
    lines.append(f"In the literature, without stress: {published}.")
    return tuple(lines)


def intervals(results: Sequence[report.Result]) -> str:
    """Of each model, and of the paired difference of two; nothing of one seed."""
    of_model = {result.model: 100 * result.last("test_wer") for result in results}
    spans = {model: interval(values) for model, values in of_model.items()}
    if len(of_model) == 2:
        (one, of_one), (other, of_other) = of_model.items()
        spans[f"{other} less {one}, seed by seed"] = interval(of_other - of_one)
    return "; ".join(f"{name} {span[0]:.2f} … {span[1]:.2f}" for name, span in spans.items() if span)
