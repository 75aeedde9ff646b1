"""Arrays by name: NumPy's .npz and MATLAB's .mat."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import rolls
from experiments.data.records import OF_A_SEQUENCE, Content, DataError, Record, matrix, missing, refuse
from jaxrnn._checks import nearest

KNOWN = ("x", "lengths", "target", "id", *OF_A_SEQUENCE)
LAYOUTS = "x is (N, T, I), with lengths (N,) where it is padded, or (all steps, I) with lengths"


def read_npz(path: Path) -> Content:
    """Arrays x, lengths, target, id, label, split, group; x alone must be, where all sequences are as long."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            refuse(path, what="holds one array without a name", fix="write it by np.savez(file, x=x, lengths=lengths)")
        with loaded:
            arrays = {name: _array(path, loaded, name) for name in loaded.files}
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError) as error:
        refuse(path, what=f"is not a readable .npz file: {error}", fix="write it by np.savez")
    except DataError:
        raise
    except ValueError as error:
        refuse(path, what=f"is not a readable .npz file: {error}", fix="write it by np.savez")
    return of_arrays(path, arrays)


def _array(path: Path, loaded: Any, name: str) -> np.ndarray:
    try:
        return loaded[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        refuse(
            path,
            f"key {name!r}",
            what="is an array of objects, which a file can make run anything",
            fix="store all steps in one: np.savez(file, x=np.concatenate(xs), lengths=[len(x) for x in xs])",
        )


def read_mat(path: Path) -> Content:
    """Cell arrays or arrays of those names, or the piano rolls of the field."""
    try:
        from scipy.io import loadmat
    except ImportError:
        refuse(path, what="scipy, which reads .mat files, is not installed", fix="pip install 'jaxrnn[train]'")
    try:
        loaded = loadmat(path, chars_as_strings=True)
    except NotImplementedError:
        refuse(path, what="is a MATLAB 7.3 file, which is HDF5", fix="save(file, …, '-v7') in MATLAB")
    except MemoryError:
        refuse(path, what="is larger than the memory", fix="take fewer sequences")
    except Exception as error:  # of a damaged file scipy's reader may raise anything
        refuse(path, what=f"is not a readable .mat file: {error}", fix="save(file, …, '-v7') in MATLAB")
    arrays = {name: value for name, value in loaded.items() if not name.startswith("__")}
    if set(rolls.MAT_KEYS) & set(arrays):
        return rolls.of_cells(path, arrays)
    return of_arrays(path, {name: _cells(value) for name, value in arrays.items()})


def _cells(value: np.ndarray) -> Any:
    """A cell array as a list; what MATLAB makes (1, N) or (N, 1) of N numbers or words as (N,)."""
    if value.dtype == object:
        inner = [cell.item() if cell.size == 1 and cell.dtype.kind in "US" else cell for cell in value.ravel()]
        return np.array(inner) if inner and all(isinstance(cell, str) for cell in inner) else inner
    return value


def of_arrays(path: Path, arrays: Mapping[str, Any]) -> Content:
    """The sequences of arrays by name; where those of one sequence stand is said by its number, from 1."""
    if "x" not in arrays:
        missing(path, "key", "x", list(arrays), LAYOUTS)
    for name in arrays:
        if name not in KNOWN:
            refuse(
                path,
                f"key {name!r}",
                what=f"is unknown{nearest(name, KNOWN, '')}",
                fix=f"the keys are {', '.join(KNOWN)}",
            )
    xs = _split_up(path, "x", arrays["x"], arrays.get("lengths"))
    targets = [None] * len(xs)
    if "target" in arrays:
        targets = _split_up(path, "target", arrays["target"], arrays.get("lengths"))
        _as_many(path, "target", len(targets), len(xs))
    own = {}
    for name in ("id", *OF_A_SEQUENCE):
        own[name] = [None] * len(xs) if name not in arrays else _entries(path, name, arrays[name])
        _as_many(path, name, len(own[name]), len(xs))
    records = []
    for n, (x, target) in enumerate(zip(xs, targets, strict=True)):
        name = str(n + 1) if own["id"][n] is None else str(own["id"][n])
        records.append(
            Record(f"sequence {n + 1}", name, x, target=target, **{key: own[key][n] for key in OF_A_SEQUENCE})
        )
    return Content(records)


def _entries(path: Path, key: str, value: Any) -> list[Any]:
    """Numbers or words, one for each sequence."""
    try:
        array = np.asarray(value)
    except ValueError:  # cells of unequal sizes
        array = np.empty(0, object)
    if array.dtype.kind not in "biufUS":
        refuse(path, f"key {key!r}", what="expected numbers or words", fix="give one value for each sequence")
    return array.ravel().tolist()


def _split_up(path: Path, key: str, value: Any, lengths: Any) -> list[Any]:
    """The array of each sequence."""
    if isinstance(value, list):
        return [matrix(path, f"sequence {n}", cell, key) for n, cell in enumerate(value, start=1)]
    if value.dtype.kind not in "iuf":
        refuse(path, f"key {key!r}", what=f"expected numbers, got {value.dtype}", fix=f"{key} = {key}.astype(float)")
    if value.ndim not in (2, 3):
        refuse(path, f"key {key!r}", what=f"expected 2 or 3 axes, got {value.shape}", fix=LAYOUTS)
    if lengths is None:
        if value.ndim == 2:
            refuse(path, "key 'lengths'", what=f"is missing, and {key} is {value.shape}", fix=LAYOUTS)
        return list(value)
    counts = np.asarray(lengths).ravel()
    whole = counts.dtype.kind in "iuf" and np.isfinite(counts).all() and (counts == np.floor(counts)).all()
    if not whole or (counts < 0).any():
        refuse(path, "key 'lengths'", what="expected whole numbers from 0", fix="give the steps of each sequence")
    counts = counts.astype(np.int64)
    if value.ndim == 3:
        _as_many(path, "lengths", len(counts), len(value))
        if counts.size and counts.max() > value.shape[1]:
            n = int(counts.argmax())
            refuse(
                path,
                f"key 'lengths', sequence {n + 1}",
                what=f"expected at most {value.shape[1]}, the steps of {key}, got {counts[n]}",
                fix="give the steps of each sequence, without the padding",
            )
        return [a[:count] for a, count in zip(value, counts, strict=True)]
    if counts.sum() != len(value):
        refuse(
            path,
            "key 'lengths'",
            what=f"add up to {counts.sum()}, but {key} has {len(value)} steps",
            fix="give the steps of each sequence in the order of the rows",
        )
    return np.split(value, np.cumsum(counts)[:-1]) if counts.size else []


def _as_many(path: Path, key: str, came: int, wanted: int) -> None:
    if came != wanted:
        refuse(
            path, f"key {key!r}", what=f"has {came} entries for {wanted} sequences", fix="give one for each sequence"
        )
