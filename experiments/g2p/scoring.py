"""How wrong an answer is, beside the nearest of several references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.g2p.data import spoken


class Rates(NamedTuple):
    phonemes: float  # edits by phonemes of the nearest references
    words: float  # the share of words that are none of their references
    right: np.ndarray  # (N,) booleans


def distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein 1966: the least number of insertions, deletions and substitutions that make b of a."""
    row = list(range(len(b) + 1))
    for i, of_a in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, of_b in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (of_a != of_b))
    return row[-1]


def nearest(answer: Sequence[int], references: Sequence[Sequence[int]]) -> tuple[int, int]:
    """``(edits, phonemes)`` of the reference that takes the fewest edits, the first of several."""
    return min(((distance(answer, reference), len(reference)) for reference in references), key=lambda found: found[0])


def rates(answers: np.ndarray, references: Sequence[Sequence[np.ndarray]]) -> Rates:
    """Of answers (N, n), each read up to its STOP, and the references of each of the N words."""
    found = [
        nearest(spoken(answer), [reference.tolist() for reference in of])
        for answer, of in zip(answers, references, strict=True)
    ]
    edits, lengths = np.array(found).T
    return Rates(float(edits.sum() / lengths.sum()), float((edits > 0).mean()), edits == 0)
