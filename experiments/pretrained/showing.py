"""What a run shows: speech over time, letters and phonemes, fixed points in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.pretrained.explaining import Point, Saliency
from experiments.pretrained.silero import Theirs
from experiments.pretrained.sounds import FRAME, RATE, Sound
from experiments.reports.samples import Map, Sample, Words


def by_frame(sound: Sound, T: int) -> np.ndarray:
    """(T,): the share of each frame in which someone speaks."""
    voiced = np.zeros(T * FRAME)
    voiced[: len(sound.voiced)] = sound.voiced
    return voiced.reshape(T, FRAME).mean(1)


def speech(sound: Sound, theirs: Theirs) -> Figure:
    """The sound, and below it the probability of speech."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(np.arange(len(sound.samples)) / RATE, sound.samples, linewidth=0.3, color="0.3")
    above.set_ylabel("sound")
    at = (np.arange(len(theirs.speech)) + 1) * FRAME / RATE
    below.step(at, theirs.speech, where="pre", color="#0072B2", label="probability of speech")
    below.fill_between(
        at, by_frame(sound, len(at)), step="pre", color="#E69F00", alpha=0.3, linewidth=0, label="syllables"
    )
    below.set(xlabel="seconds", ylim=(-0.02, 1.02))
    below.legend(loc="lower right", frameon=False, fontsize=8)
    return figure


def shares(saliency: Saliency, b: int, word: str) -> np.ndarray:
    """(phonemes, letters): the gradient by each letter over the largest of its phoneme."""
    of = saliency.gradient[: len(saliency.phonemes[b]), : len(word), b]
    return of / np.maximum(of.max(1, keepdims=True), 1e-30)


def letters(words: Sequence[str], saliency: Saliency) -> Figure:
    """A panel for each of the first words: phonemes by letters."""
    columns = min(3, len(words))
    lines = -(-len(words) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for b, (word, axes) in enumerate(zip(words, panels, strict=False)):
        if not saliency.phonemes[b]:
            continue
        axes.imshow(shares(saliency, b, word), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(word)), list(word))
        axes.set_yticks(range(len(saliency.phonemes[b])), saliency.phonemes[b], fontsize=8)
    for axes in panels[len(words) :]:
        axes.set_axis_off()
    figure.suptitle(
        "Which letters a phoneme hangs on: the gradient of its log probability, over the largest", fontsize=11
    )
    return figure


def samples_of(words: Sequence[str], saliency: Saliency, points: Sequence[Point]) -> list[Sample]:
    shown: list[Sample] = [
        Map(
            title=f"{word}: which letters each phoneme hangs on",
            values=tuple(map(tuple, shares(saliency, b, word).tolist())),
            rows=tuple(saliency.phonemes[b]),
            columns=tuple(word),
            xlabel="letter read",
            ylabel="phoneme said",
            figure="saliency.png",
        )
        for b, word in enumerate(words)
        if saliency.phonemes[b]
    ]
    header = ("reads", "kind", "says", "probability", "slowest mode, steps", "starts", "speed q")
    found = tuple(
        (
            point.input,
            "stable" if point.stable else f"{point.unstable_directions} unstable",
            point.says,
            f"{point.probability:.2f}",
            f"{point.time_constant:.1f}",
            str(point.hits),
            f"{point.speed:.0e}",
        )
        for point in points
    )
    return [
        *shown,
        Words(title="Fixed and slow points of the decoder that reads one phoneme for ever", header=header, rows=found),
    ]


def in_words(inputs: Sequence[str], points: Sequence[Point]) -> str:
    """Of each input how many, and what is said at the stable ones."""
    parts = []
    for name in inputs:
        of = [point for point in points if point.input == name]
        stable = [point for point in of if point.stable]
        said: dict[str, list[Point]] = {}
        for point in stable:
            said.setdefault(point.says, []).append(point)
        says = "; ".join(
            f"{phoneme} with {min(p.probability for p in some):.2f} to {max(p.probability for p in some):.2f}, slowest "
            f"mode {min(p.time_constant for p in some):,.0f} to {max(p.time_constant for p in some):,.0f} steps"
            for phoneme, some in said.items()
        )
        unstable = f" and {len(of) - len(stable)} unstable" if len(of) > len(stable) else ""
        parts.append(f"{name}: {len(stable)} stable{f' ({says})' if says else ''}{unstable}")
    return ". ".join(parts)
