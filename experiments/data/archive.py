"""Files of the UEA and UCR archive of time-series classification: .ts, the features of a sequence one after the other.

Bagnall et al. 2018, "The UEA multivariate time series classification archive".
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.records import Content, Record, refuse
from experiments.data.tables import text_of

TRAIN, TEST = "_TRAIN", "_TEST"


def parts(path: Path) -> dict[str, Path]:
    """The files that belong to one name: beside ``X_TRAIN.ts`` stands ``X_TEST.ts``, as the archive has them."""
    other = path.with_name(path.name.replace(TRAIN, TEST))
    return {"train": path, "test": other} if path.stem.endswith(TRAIN) and other.is_file() else {"": path}


def read_ts(path: Path) -> Content:
    """One sequence a line: its features, apart by ``:``, each a list of the steps; the class last.

    Of ``X_TRAIN.ts`` and ``X_TEST.ts`` beside it, the second is the test split.
    """
    return Content([record for split, file in parts(path).items() for record in _records(file, split)])


def _records(path: Path, split: str) -> list[Record]:
    records: list[Record] = []
    header: dict[str, str] = {}
    in_data = False
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        row = f"row {number}" if not split else f"{path.name}, row {number}"
        if in_data:
            label = None
            *dimensions, last = line.split(":")
            if header.get("classlabel", "false").lower().startswith("true"):
                label = last
            else:
                dimensions.append(last)
            x = _features(path, number, dimensions)
            records.append(Record(row, f"{split}{len(records) + 1}", x, label=label, split=split or None))
        elif line.lower() == "@data":
            in_data = True
        elif line.startswith("@"):
            name, _, value = line[1:].partition(" ")
            header[name.lower()] = value.strip()
            if name.lower() == "timestamps" and value.strip().lower() == "true":
                refuse(
                    path, f"row {number}", what="has times of its own for each step", fix="give steps at equal times"
                )
        else:
            refuse(
                path,
                f"row {number}",
                what=f"expected @data before it, got {line!r:.40}",
                fix="begin with the archive's header",
            )
    return records


def _features(path: Path, row: int, dimensions: list[str]) -> np.ndarray:
    """(T, I)"""
    columns: list[list[float]] = []
    for place, text in enumerate(dimensions, start=1):
        steps: list[Any] = []
        for t, cell in enumerate(text.split(","), start=1):
            try:
                number = float(cell)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                refuse(
                    path,
                    f"row {row}, feature {place}, step {t}",
                    what=f"expected a finite number, got {cell.strip()!r:.40}",
                    fix="fill it in, or leave the sequence out",
                )
            steps.append(number)
        columns.append(steps)
        if len(steps) != len(columns[0]):
            refuse(
                path,
                f"row {row}, feature {place}",
                what=f"has {len(steps)} steps, but feature 1 has {len(columns[0])}",
                fix="give every feature the same steps",
            )
    return np.array(columns).T
