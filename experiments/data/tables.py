"""Text: a table with one row a step and a column that names its sequence; JSON with one line a sequence."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.records import OF_A_SEQUENCE, Content, DataError, Record, matrix, missing, refuse
from jaxrnn._checks import nearest


def text_of(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        refuse(
            path,
            f"row {row}",
            what=f"is not UTF-8: byte 0x{content[error.start]:02x}",
            fix="save the file in UTF-8, with iconv -f latin1 -t utf-8, say",
        )


def read_csv(path: Path) -> Content:
    """Columns: sequence; label, split, group, target… where there are; every other one is a feature, in this order."""
    rows = csv.reader(io.StringIO(text_of(path), newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        header = [name.strip() for name in next(rows, [])]
        columns = _columns(path, header)
        return Content(list(_sequences(path, rows, header, columns)), "x")
    except csv.Error as error:
        refuse(
            path, f"row {rows.line_num}", what=f"is no row of a table: {error}", fix="quote cells as a spreadsheet does"
        )


def _columns(path: Path, header: list[str]) -> dict[str, list[int]]:
    """The places of each kind of column."""
    if not any(header):
        refuse(path, "row 1", what="expected the names of the columns, got nothing", fix="sequence,f1,f2,label, say")
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        refuse(
            path,
            "row 1",
            what=f"the cells are separated by {other!r}",
            fix="separate them by commas, or by tabs in a .tsv",
        )
    for n, name in enumerate(header):
        if not name or name in header[:n]:
            refuse(
                path,
                f"row 1, column {n + 1}",
                what=f"expected a name of its own, got {name!r}",
                fix="rename the column",
            )
    if "sequence" not in header:
        missing(path, "column", "sequence", header, "add one that says to which sequence each row belongs")
    places: dict[str, list[int]] = {"features": [], "target": []}
    for n, name in enumerate(header):
        if name == "sequence" or name in OF_A_SEQUENCE:
            places[name] = [n]
        else:
            places["target" if name.startswith("target") else "features"].append(n)
    if not places["features"]:
        missing(path, "column", "f1", header, "add a column for each feature, of any name")
    return places


def _sequences(path: Path, rows: Any, header: list[str], columns: dict[str, list[int]]) -> Any:
    """A record for each run of rows with the same sequence."""
    seen: set[str] = set()
    first: dict[str, Any] | None = None  # of the sequence that is being read
    xs: list[list[float]] = []
    targets: list[list[float]] = []

    def finished() -> Record:
        assert first is not None
        target = np.array(targets, np.float64) if columns["target"] else None
        own = {name: first[name] for name in OF_A_SEQUENCE}
        return Record(f"row {first['row']}", first["id"], np.array(xs, np.float64), target=target, **own)

    for cells in rows:
        row = rows.line_num
        if not cells:
            continue  # an empty line
        if len(cells) != len(header):
            refuse(
                path,
                f"row {row}",
                what=f"expected {len(header)} cells, as in row 1, got {len(cells)}",
                fix="give every step the same features",
            )
        name = cells[columns["sequence"][0]].strip()
        if not name:
            refuse(path, f"row {row}, column 'sequence'", what="is empty", fix="say to which sequence the row belongs")
        values = {key: cells[columns[key][0]].strip() if key in columns else None for key in OF_A_SEQUENCE}
        if first is None or name != first["id"]:
            if first is not None:
                yield finished()
            if name in seen:
                refuse(
                    path,
                    f"row {row}, column 'sequence'",
                    what=f"{name!r} begins again after other sequences",
                    fix="let the rows of a sequence follow each other, or give each sequence a name of its own",
                )
            seen.add(name)
            first, xs, targets = {"id": name, "row": row, **values}, [], []
        for key, value in values.items():
            if value != first[key]:
                refuse(
                    path,
                    f"row {row}, column {key!r}",
                    what=f"got {value!r}, but {first[key]!r} in row {first['row']} of the same sequence",
                    fix=f"give all rows of a sequence one {key}"
                    + (", or call the column target" if key == "label" else ""),
                )
        xs.append([_number(path, row, header[n], cells[n]) for n in columns["features"]])
        targets.append([_number(path, row, header[n], cells[n]) for n in columns["target"]])
    if first is not None:
        yield finished()


def _number(path: Path, row: int, column: str, cell: str) -> float:
    try:
        number = float(cell) if "_" not in cell else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        came = repr(cell) if cell.strip() else "an empty cell"
        refuse(
            path,
            f"row {row}, column {column!r}",
            what=f"expected a finite number, got {came}",
            fix="correct the cell, or leave the row out",
        )
    return number


def read_jsonl(path: Path) -> Content:
    """A line each: {"x": [[…], …], "id": …, "label": …, "target": [[…], …], "split": …, "group": …}; x must be."""
    known = ("x", "id", "target", *OF_A_SEQUENCE)
    records = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        value = parsed(path, line, place)
        if not isinstance(value, dict):
            refuse(
                path,
                place,
                what=f"expected an object, got {line.strip()!r:.40}",
                fix='write {"x": [[0.1], [0.2]]}, say',
            )
        if "x" not in value:
            missing(path, f"{place}, key", "x", list(value), "give the steps of the sequence there")
        for key in value:
            if key not in known:
                refuse(
                    path,
                    place,
                    f"key {key!r}",
                    what=f"is unknown{nearest(key, known, '')}",
                    fix=f"the keys are {', '.join(known)}",
                )
        for key in ("id", *OF_A_SEQUENCE):
            if isinstance(value.get(key), list | dict):
                refuse(
                    path,
                    place,
                    f"key {key!r}",
                    what="expected one value for the sequence",
                    fix="write a word or a number",
                )
        target = None if value.get("target") is None else matrix(path, place, value["target"], "target")
        own = {key: value.get(key) for key in OF_A_SEQUENCE}
        name = str(number) if value.get("id") is None else str(value["id"])
        records.append(Record(place, name, matrix(path, place, value["x"], "x"), target=target, **own))
    return Content(records)


def parsed(path: Path, text: str, place: str = "") -> Any:
    """What JSON says; NaN and Infinity, which Python reads, are left to the check of the numbers."""
    try:
        return json.loads(text)
    except RecursionError:
        refuse(path, place or "row 1", what="is nested too deeply", fix="write lists of lists of numbers")
    except DataError:
        raise
    except ValueError as error:
        at = f"row {error.lineno}" if isinstance(error, json.JSONDecodeError) and not place else place or "row 1"
        refuse(
            path,
            at,
            what=f"is not JSON: {error}",
            fix="write one JSON object a line" if place else "write one JSON object",
        )
