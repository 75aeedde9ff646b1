"""What every reader makes of a file: a record for each sequence; and the one line that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from jaxrnn._checks import nearest

OF_A_SEQUENCE = ("label", "split", "group")  # one value for each sequence, in every format


class DataError(ValueError):
    """Why a file cannot be used, in one line: file, key, row, what came, the fix."""


class Record(NamedTuple):
    """One sequence, as it stands in the file."""

    row: str  # where: "row 7", "line 3", "sequence 4", counted from 1
    id: str
    x: np.ndarray  # (T, I)
    label: Any = None
    target: np.ndarray | None = None  # (T, O)
    split: Any = None
    group: Any = None


class Content(NamedTuple):
    """What a file holds."""

    records: list[Record]
    x: str = "x"  # what the inputs are called in the file, for messages


def refuse(path: Path | str, *places: str, what: str, fix: str) -> NoReturn:
    """Raise a DataError: ``digits.csv, row 7, column 'f2': expected a number, got 'abc'; correct the cell``."""
    one_line = " ".join(f"{', '.join([str(path), *places])}: {what}; {fix}".split())
    raise DataError(one_line)


def missing(path: Path | str, kind: str, name: str, there: Sequence[str], fix: str) -> NoReturn:
    """Refuse a file that lacks a key or column."""
    held = ", ".join(map(repr, there)) or "none"
    refuse(path, f"{kind} {name!r}", what=f"is missing{nearest(name, there, '')}; there are {held}", fix=fix)


def matrix(path: Path, place: str, value: Any, key: str) -> np.ndarray:
    """A list of steps, each a list of numbers, or an array -> (T, I); what is none is refused at its step.

    Args:
        path, key: for the message, as ``place``, which says where in the file the sequence stands.
        value: what JSON, NumPy or MATLAB gave.
    """
    if isinstance(value, list) and not value:
        return np.zeros((0, 0), np.float32)
    try:
        array = np.array(value) if isinstance(value, list) else np.asarray(value)
    except ValueError:  # steps of unequal lengths
        array = np.empty(0, object)
    if array.dtype.kind in "iuf" and array.ndim == 2:
        return array
    example = "such as [[0.1, 2.0], [0.3, 1.0]] for two steps of two features"
    if isinstance(value, list):
        for t, step in enumerate(value, start=1):
            if not isinstance(step, list):
                refuse(
                    path,
                    place,
                    f"key {key!r}, step {t}",
                    what=f"expected a list of numbers, got {step!r:.40}",
                    fix=f"write every step as a list, {example}",
                )
            for i, cell in enumerate(step, start=1):
                if isinstance(cell, bool) or not isinstance(cell, int | float):
                    refuse(
                        path,
                        place,
                        f"key {key!r}, step {t}, feature {i}",
                        what=f"expected a number, got {cell!r:.40}",
                        fix="write a number there, or leave the step out",
                    )
            if len(step) != len(value[0]):
                refuse(
                    path,
                    place,
                    f"key {key!r}, step {t}",
                    what=f"expected {len(value[0])} features, as at step 1, got {len(step)}",
                    fix="give every step the same features",
                )
    came = f"{array.dtype} {array.shape}" if array.dtype != object else f"{type(value).__name__}"
    refuse(
        path,
        place,
        f"key {key!r}",
        what=f"expected numbers (T, I), got {came}",
        fix=f"steps first, then features, {example}",
    )
