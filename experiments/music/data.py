"""Bach's chorales, which ship with music21: four voices, on a grid of quarter notes."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.records import Content, DataError, Record
from experiments.data.rolls import KEYS, LOWEST, PITCHES

EXTRA = "pip install 'jaxrnn[music]', or pip install --no-deps music21: its files alone are read"
OTHER = "install music21 10, or give --set data.path=FILE"
VOICES = ("Soprano", "Alto", "Tenor", "Bass")
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


class Note(NamedTuple):
    start: Fraction  # in quarters from the beginning of the piece
    end: Fraction
    pitch: int  # MIDI number


def chorales() -> Content:
    """All pieces of the corpus that have these four voices, one of each name; the package is found, not imported.

    Other parts are left out, and so are pieces that repeat an earlier one, transposed or not.
    """
    found = importlib.util.find_spec("music21")
    if not found or not found.submodule_search_locations:
        raise DataError(f"data.path: music21, whose chorales the experiment reads, is not installed; {EXTRA}")
    pieces: dict[bytes, Record] = {}
    for file in sorted(Path(found.submodule_search_locations[0], "corpus", "bach").glob("bwv*.mxl")):
        try:
            roll = roll_of(score_of(file))
        except (OSError, zipfile.BadZipFile, ET.ParseError, KeyError, AttributeError, ValueError, TypeError) as error:
            raise DataError(f"data.path: {file.name} of this music21 cannot be read ({error}); {OTHER}") from None
        if roll is not None:
            pieces.setdefault(untransposed(roll), Record(file.name, file.stem, roll))
    if not pieces:
        raise DataError(f"data.path: this music21 has no chorales; {OTHER}")
    return Content(list(pieces.values()), "piano roll")


def untransposed(roll: np.ndarray) -> bytes:
    """The same for all transpositions of a piece."""
    lowest = np.flatnonzero(roll.any(0))[0]
    return np.roll(roll, -lowest, axis=1).astype(bool).tobytes()


def score_of(path: Path) -> ET.Element:
    """The score of a compressed MusicXML file, which its container names."""
    with zipfile.ZipFile(path) as archive:
        container = ET.fromstring(archive.read("META-INF/container.xml"))
        return ET.fromstring(archive.read(container.find(".//rootfile").attrib["full-path"]))  # type: ignore[union-attr]


def roll_of(score: ET.Element) -> np.ndarray | None:
    """(T, 88): which keys sound on each quarter, from the first sound to the last; None without these four voices.

    A note sounds on a quarter if it has begun by then and has not ended. Quarters are counted from the barlines, so
    that an upbeat shorter than one does not shift them.
    """
    names = {part.get("id"): (part.findtext("part-name") or "").strip() for part in score.iter("score-part")}
    voices = [part for part in score.iter("part") if names.get(part.get("id")) in VOICES]
    if sorted(names[part.get("id")] for part in voices) != sorted(VOICES):
        return None
    read = [notes_of(part) for part in voices]
    upbeat = read[0][1][0] % 1
    notes = [note for of_voice, _ in read for note in of_voice if note.pitch in PITCHES]
    if not notes:
        return None
    roll = np.zeros((ceil(max(note.end for note in notes)), KEYS), np.float32)
    for note in notes:
        roll[ceil(note.start - upbeat) : ceil(note.end - upbeat), note.pitch - LOWEST] = 1
    sounding = np.flatnonzero(roll.any(1))
    return roll[sounding[0] : sounding[-1] + 1] if sounding.size else None


def notes_of(part: ET.Element) -> tuple[list[Note], Sequence[Fraction]]:
    """The notes of a part, and where each measure ends; ties need no care, as a note that goes on goes on sounding."""
    notes, ends = [], []
    divisions, start = Fraction(1), Fraction(0)
    for measure in part.iter("measure"):
        now = before = last = start
        for element in measure:
            duration = Fraction(element.findtext("duration") or 0) / divisions
            if element.tag == "attributes":
                divisions = Fraction(element.findtext("divisions") or divisions)
            elif element.tag == "backup":
                now -= duration
            elif element.tag == "forward":
                now += duration
            elif element.tag == "note" and element.find("grace") is None:
                begin = before if element.find("chord") is not None else now
                pitch = element.find("pitch")
                if pitch is not None:  # no rest
                    notes.append(Note(begin, begin + duration, midi_number(pitch)))
                before, now = begin, max(now, begin + duration)
            last = max(last, now)
        ends.append(last)
        start = last
    return notes, ends


def midi_number(pitch: ET.Element) -> int:
    step, octave = pitch.findtext("step"), pitch.findtext("octave")
    return 12 * (int(octave or "") + 1) + SEMITONES[step or ""] + int(float(pitch.findtext("alter") or 0))
