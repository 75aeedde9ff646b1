"""A piano roll to be heard and to be seen: a MIDI file, a figure, a part of the report."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.data.rolls import LOWEST
from experiments.reports.samples import Map
from experiments.runner.config import ConfigError

NAMES = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")
TICKS = 480  # of a quarter, in MIDI files
TEMPO = 72  # quarters a minute
ORGAN = 19  # the number of a church organ among General MIDI's programs, from 0


def name_of(key: int) -> str:
    """Of a key of the piano: C4 is the middle one."""
    octave, place = divmod(LOWEST + key, 12)
    return f"{NAMES[place]}{octave - 1}"


def held(roll: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """``(step, key, whether it begins)`` for the ends of all notes, in order, of each step ends before beginnings.

    What sounds in steps that follow each other is one note: a roll does not say where a key is struck again.
    """
    silence = np.zeros((1, roll.shape[1]), int)
    changes = np.diff(np.concatenate([silence, roll.astype(int), silence]), axis=0)
    for step, of_step in enumerate(changes):
        for change in (-1, 1):
            for key in np.flatnonzero(of_step == change):
                yield step, int(key), change > 0


def check_midi(path: Path) -> None:
    """Before anything is computed: what writes the file is there, and the name says what it will be.

    Raises:
        ConfigError: which names the extra.
    """
    if path.suffix.lower() not in (".mid", ".midi"):
        raise ConfigError(f"--output: {path}: expected the name of a MIDI file, such as chorale.mid")
    if importlib.util.find_spec("mido") is None:
        raise ConfigError("--output: mido, which writes MIDI files, is not installed; pip install 'jaxrnn[music]'")


def write_midi(path: Path, roll: np.ndarray) -> None:
    """A quarter note a step, played by an organ."""
    import mido

    file = mido.MidiFile(type=0, ticks_per_beat=TICKS)
    track = file.add_track()
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(TEMPO)))
    track.append(mido.Message("program_change", program=ORGAN))
    now = 0
    for step, key, begins in held(roll):
        kind = "note_on" if begins else "note_off"
        track.append(mido.Message(kind, note=LOWEST + key, velocity=64, time=TICKS * (step - now)))
        now = step
    file.save(path)


def span(rolls: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """The lowest and the highest key that sounds in any; the middle octave where none does."""
    keys = np.flatnonzero(np.concatenate(list(rolls.values())).any(0))
    return (int(keys[0]), int(keys[-1])) if keys.size else (39, 51)


def figure(rolls: Mapping[str, np.ndarray]) -> Figure:
    """A panel for each roll, on the same keys."""
    low, high = span(rolls)
    made = Figure(figsize=(11, 0.8 + 2.2 * len(rolls)), layout="constrained")
    ticks = [key for key in range(low, high + 1) if (LOWEST + key) % 12 == 0]
    panels = made.subplots(len(rolls), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, roll) in zip(panels, rolls.items(), strict=True):
        for step, key in np.argwhere(roll):
            axes.barh(key, 1, left=step, height=0.8, color="#0072B2", linewidth=0)
        axes.set(title=title, xlim=(0, max(map(len, rolls.values()))), ylim=(low - 1, high + 1))
        axes.set_yticks(ticks, [name_of(key) for key in ticks])
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("step, a quarter note")
    return made


def sample(title: str, roll: np.ndarray, *, note: str, file: str) -> Map:
    """For the report: keys from the highest to the lowest, one column a step."""
    low, high = span({title: roll})
    keys = range(high, low - 1, -1)
    return Map(
        title=title,
        values=tuple(tuple(roll[:, key].tolist()) for key in keys),
        rows=tuple(name_of(key) for key in keys),
        ylabel="key",
        xlabel="step, a quarter note",
        note=note,
        figure=file,
    )
