"""Polyphonic music as the field stores it: binary piano rolls (T, 88), already split.

Boulanger-Lewandowski et al. 2012 (ICML): JSB chorales, Nottingham, MuseData, Piano-midi.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.records import Content, Record, missing, refuse
from experiments.data.tables import parsed, text_of

PITCHES = range(21, 109)  # MIDI numbers of a piano's keys, A0 to C8
KEYS, LOWEST = len(PITCHES), PITCHES[0]
REST = -1  # what some files write where a voice is silent
MAT_KEYS = {"traindata": "train", "validdata": "validation", "testdata": "test"}
JSON_KEYS = {"train": "train", "valid": "validation", "test": "test"}


def of_cells(path: Path, arrays: Mapping[str, Any]) -> Content:
    """``traindata``, ``validdata`` and ``testdata``, cell arrays of binary (T, 88)."""
    records = []
    for key, split in MAT_KEYS.items():
        if key not in arrays:
            missing(path, "key", key, list(arrays), "give all three: traindata, validdata, testdata")
        cells = arrays[key]
        if cells.dtype != object:
            refuse(
                path,
                f"key {key!r}",
                what=f"expected a cell array, got {cells.dtype} {cells.shape}",
                fix="one cell a piece",
            )
        for n, roll in enumerate(cells.ravel(), start=1):
            place = f"sequence {n}"
            if roll.dtype.kind not in "iufb" or roll.ndim != 2:
                came = f"{roll.dtype} {roll.shape}"
                refuse(
                    path,
                    f"key {key!r}, {place}",
                    what=f"expected numbers (T, {KEYS}), got {came}",
                    fix="time first, then keys",
                )
            if roll.shape[1] != KEYS:
                turned = roll.shape[0] == KEYS
                refuse(
                    path,
                    f"key {key!r}, {place}",
                    what=f"expected (T, {KEYS}), time first, got {roll.shape}" + (", keys first" if turned else ""),
                    fix="transpose it" if turned else f"give every step {KEYS} keys, from MIDI number {LOWEST} on",
                )
            wrong = np.argwhere((roll != 0) & (roll != 1))
            if len(wrong):
                t, k = wrong[0]
                refuse(
                    path,
                    f"key {key!r}, {place}, step {t + 1}",
                    what=f"expected 0 or 1 for each key, got {roll[t, k]} for key {k + 1}",
                    fix="write 1 where a key sounds",
                )
            records.append(Record(f"key {key!r}, {place}", f"{split}-{n}", roll.astype(np.float32), split=split))
    return Content(records, "piano roll")


def read_json(path: Path) -> Content:
    """``{"train": …, "valid": …, "test": …}``: pieces of steps of the MIDI numbers that sound."""
    pieces = parsed(path, text_of(path))
    if not isinstance(pieces, dict):
        refuse(path, what="expected an object with train, valid and test", fix="for one object a line call it .jsonl")
    records = []
    for key, split in JSON_KEYS.items():
        if key not in pieces:
            missing(path, "key", key, list(pieces), "give all three: train, valid, test")
        if not isinstance(pieces[key], list):
            refuse(path, f"key {key!r}", what="expected a list of pieces", fix="write [[[60, 64], [62]], …]")
        for n, piece in enumerate(pieces[key], start=1):
            place = f"key {key!r}, sequence {n}"
            records.append(Record(place, f"{split}-{n}", _roll(path, place, piece), split=split))
    return Content(records, "piano roll")


def _roll(path: Path, place: str, piece: Any) -> np.ndarray:
    """(T, 88) of the MIDI numbers of each step."""
    if not isinstance(piece, list):
        refuse(path, place, what=f"expected a list of steps, got {piece!r:.40}", fix="write [[60, 64], [62]], say")
    roll = np.zeros((len(piece), KEYS), np.float32)
    for t, step in enumerate(piece):
        if not isinstance(step, list):
            refuse(
                path,
                f"{place}, step {t + 1}",
                what=f"expected a list of MIDI numbers, got {step!r:.40}",
                fix="write [60, 64], or [] for silence",
            )
        for note in step:
            is_number = isinstance(note, int | float) and not isinstance(note, bool)
            if not is_number or not (note in PITCHES or note == REST):
                refuse(
                    path,
                    f"{place}, step {t + 1}",
                    what=f"expected MIDI numbers from {PITCHES[0]} to {PITCHES[-1]}, got {note!r:.40}",
                    fix=f"transpose the piece, or write {REST} for a rest",
                )
            if note != REST:
                roll[t, int(note) - LOWEST] = 1
    return roll
