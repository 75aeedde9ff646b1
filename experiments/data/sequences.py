"""Sequences of unequal length with what is to be said of them, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.records import Content, Record, refuse


class Sequences(NamedTuple):
    """N sequences of one split."""

    ids: tuple[str, ...]
    xs: list[np.ndarray]  # (T_n, I) float32 each
    labels: np.ndarray | None  # (N,) int32, a class for each sequence
    targets: list[np.ndarray] | None  # (T_n, O) float32 each, numbers for each step

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(x) for x in self.xs], np.int32)

    def of(self, places: Sequence[int] | np.ndarray) -> Sequences:
        """Those at some places."""
        return Sequences(
            tuple(self.ids[n] for n in places),
            [self.xs[n] for n in places],
            None if self.labels is None else self.labels[np.asarray(places, int)],
            None if self.targets is None else [self.targets[n] for n in places],
        )


def check_numbers(path: Path | str, content: Content) -> None:
    """No sequence is empty, all have the same features, and targets of the same steps; every number is finite."""
    first = content.records[0]
    for record in content.records:
        for key, array in ((content.x, record.x), ("target", record.target)):
            if array is not None:
                _check_finite(path, record, key, array)
        if not len(record.x):
            refuse(path, record.row, f"key {content.x!r}", what="is an empty sequence", fix="leave it out")
        _same_features(path, content, record, content.x, record.x, first.x)
        if (record.target is None) != (first.target is None):
            lacks = record if record.target is None else first
            refuse(
                path, lacks.row, "key 'target'", what="is missing, but other sequences have it", fix="give it for each"
            )
        if record.target is None or first.target is None:
            continue
        if len(record.target) != len(record.x):
            refuse(
                path,
                record.row,
                "key 'target'",
                what=f"has {len(record.target)} steps, but {content.x} has {len(record.x)}",
                fix="give a target for each step",
            )
        _same_features(path, content, record, "target", record.target, first.target)


def _same_features(path: Path | str, content: Content, record: Record, key: str, array: Any, first: Any) -> None:
    if array.shape[1] == first.shape[1]:
        return
    turned = array.shape[0] == first.shape[0] and len({r.x.shape[0] for r in content.records}) == 1
    refuse(
        path,
        record.row,
        f"key {key!r}",
        what=f"expected {first.shape[1]} features, as in {content.records[0].row}, got {array.shape[1]}"
        + (f": all have {array.shape[0]} rows, as if features came first" if turned else ""),
        fix="transpose each to (T, I), time first" if turned else "give every step the same features",
    )


def _check_finite(path: Path | str, record: Record, key: str, array: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32))
    if not finite.all():
        t, i = np.argwhere(~finite)[0]
        refuse(
            path,
            record.row,
            f"key {key!r}, step {t + 1}, feature {i + 1}",
            what=f"expected a finite number in float32, got {array[t, i]}",
            fix="leave such steps out, or fill them in",
        )


def classes_of(path: Path | str, records: Sequence[Record], named: Sequence[int | str]) -> tuple[int | str, ...]:
    """The classes, in order: those that are named, else those that occur, numbers by size and words by letter."""
    labels = [label_of(path, record) for record in records]
    if not named:
        return tuple(sorted(set(labels), key=lambda label: (isinstance(label, str), label)))
    known = set(named)
    for record, label in zip(records, labels, strict=True):
        if label not in known:
            expected = ", ".join(map(repr, named))
            refuse(
                path,
                record.row,
                "key 'label'",
                what=f"expected one of the classes {expected}, got {label!r}",
                fix="correct the label, or add it to data.classes",
            )
    return tuple(named)


def label_of(path: Path | str, record: Record) -> int | str:
    """A class: a word, or a whole number, whether it is written 3, 3.0 or "3"."""
    label = record.label
    if isinstance(label, str):
        label = label.strip()
        if label.lstrip("-").isdecimal() and str(int(label)) == label:
            return int(label)
        if label:
            return label
    if label is None or label == "":
        refuse(
            path,
            record.row,
            "key 'label'",
            what="is missing",
            fix="give each sequence a class, a word or a whole number",
        )
    if isinstance(label, float) and not (math.isfinite(label) and label == math.floor(label)):
        refuse(
            path, record.row, "key 'label'", what=f"expected a class, got {label}", fix="give a whole number or a word"
        )
    return int(label)


def of_records(records: Sequence[Record], classes: Sequence[int | str], path: Path | str) -> Sequences:
    """What was checked, as arrays of one type; without classes there are no labels."""
    place = {label: n for n, label in enumerate(classes)}
    targets = [np.asarray(r.target, np.float32) for r in records if r.target is not None]
    return Sequences(
        tuple(record.id for record in records),
        [np.asarray(record.x, np.float32) for record in records],
        np.array([place[label_of(path, record)] for record in records], np.int32) if classes else None,
        targets if len(targets) == len(records) else None,
    )
