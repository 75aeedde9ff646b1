"""JapaneseVowels, which ships with aeon: 270 sequences to learn from, 370 to be judged by, of 9 speakers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold

from experiments import measured
from experiments.data import files
from experiments.data.records import Content, DataError
from experiments.data.sequences import Sequences

EXTRA = "pip install 'jaxrnn[vowels]', or pip install --no-deps aeon: its files alone are read"


def japanese_vowels() -> Content:
    """As published: Kudo, Toyama & Shimbo 1999. The package is not imported, only found."""
    found = importlib.util.find_spec("aeon")
    if not found or not found.submodule_search_locations:
        raise DataError(f"data.path: aeon, whose JapaneseVowels the experiment reads, is not installed; {EXTRA}")
    name = Path(found.submodule_search_locations[0], "datasets", "data", "JapaneseVowels", "JapaneseVowels_TRAIN.ts")
    if not name.is_file():
        raise DataError(f"data.path: this aeon has no {name.name}; install aeon 1.6, or give --set data.path=FILE")
    return files.read(name)


def joined(first: Sequences, second: Sequences) -> Sequences:
    """Both, in the order of their ids."""
    assert first.labels is not None and second.labels is not None
    both = Sequences(
        first.ids + second.ids, first.xs + second.xs, np.concatenate([first.labels, second.labels]), targets=None
    )
    return both.of(np.argsort(both.ids, kind="stable"))


def folds(sequences: Sequences, count: int, seed: int) -> list[np.ndarray]:
    """The places of the sequences of each fold, every class in the proportion of the whole."""
    cut = StratifiedKFold(count, shuffle=True, random_state=seed)
    return [held_out for _, held_out in cut.split(np.zeros(len(sequences.ids)), sequences.labels)]


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % confidence of the mean of the seeds: Student's t, as if they were normal; of one seed, that seed."""
    return measured.interval(values) or (float(values.mean()), float(values.mean()))
