"""Sounds to listen to: syllables from a source and three resonances that glide, with pauses of noise between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.signal

RATE = 16_000  # samples a second
FRAME, CONTEXT = 512, 64  # what the network reads at a time, and what it sees again of the frame before
BLOCK = 160  # samples for which the resonances stay
# The first three resonances of a man's vowels, Hz (Peterson & Barney 1952), and their bandwidths.
VOWELS = {"i": (270, 2290, 3010), "a": (730, 1090, 2440), "u": (300, 870, 2240), "e": (530, 1840, 2480)}
BANDWIDTHS = (60, 90, 150)


class Sound(NamedTuple):
    samples: np.ndarray  # (N,) float32 from -1 to 1
    voiced: np.ndarray  # (N,) bool: where someone speaks


def syllables(seconds: float, seed: int) -> Sound:
    """Four to eight syllables, half a second of noise alone, and so on; all that differs between them is drawn."""
    rng, total = np.random.default_rng(seed), round(seconds * RATE)
    parts: list[np.ndarray] = []
    voiced: list[np.ndarray] = []
    while sum(map(len, parts)) < total:
        said = utterance(int(rng.integers(4, 9)), rng)
        parts += [said, np.zeros(RATE // 2)]
        voiced += [np.ones(len(said), bool), np.zeros(RATE // 2, bool)]
    samples = 0.4 * np.concatenate(parts)[:total] + 0.001 * rng.normal(size=total)
    return Sound(samples.astype(np.float32), np.concatenate(voiced)[:total])


def utterance(count: int, rng: np.random.Generator) -> np.ndarray:
    """Syllables: resonances glide from those of a closed mouth to a vowel's and back; the pitch falls (Klatt 1980)."""
    resonances, loudness = [], []
    for _ in range(count):
        n, closed = round(RATE * rng.uniform(0.12, 0.22)), round(RATE * rng.uniform(0.04, 0.08))
        t = np.arange(n) / n
        consonant, vowel = np.array([250, rng.uniform(900, 2000), 2500]), np.array(VOWELS[rng.choice(list(VOWELS))])
        opened = np.minimum(1, np.minimum(t, 1 - t) / 0.35)[:, None]
        resonances += [consonant * (1 - opened) + vowel * opened, np.repeat(consonant[None], closed, axis=0)]
        loudness += [0.1 + 0.9 * np.minimum(1, np.minimum(t, 1 - t) / 0.15), np.full(closed, 0.05)]
    amplitude = np.concatenate(loudness)
    t = np.arange(len(amplitude)) / RATE
    pitch = 130 * (1.15 - 0.3 * t / t[-1]) * (1 + 0.02 * np.sin(2 * np.pi * 4.5 * t))
    source = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0.0)  # one sample at the beginning of each period
    source = scipy.signal.lfilter([1.0], [1.0, -0.97], source)  # which falls with frequency
    sound = resonated(source * amplitude + 0.01 * rng.normal(size=len(t)), np.concatenate(resonances))
    return sound / np.abs(sound).max()


def resonated(sound: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """The sound (N,) through a resonator for each of the frequencies (N, 3), one after the other."""
    for of, width in zip(frequencies.T, BANDWIDTHS, strict=True):
        through, state = np.zeros_like(sound), np.zeros(2)
        radius = np.exp(-np.pi * width / RATE)
        for start in range(0, len(sound), BLOCK):
            block = slice(start, start + BLOCK)
            b, c = 2 * radius * np.cos(2 * np.pi * of[start] / RATE), -(radius**2)
            through[block], state = scipy.signal.lfilter([1 - b - c], [1.0, -b, -c], sound[block], zi=state)
        sound = through
    return sound


def frames(samples: np.ndarray) -> np.ndarray:
    """(T, 576): each frame of 512 after the last 64 samples before it; the last is filled up with zeros."""
    T = -(-len(samples) // FRAME)
    padded = np.zeros(CONTEXT + T * FRAME, np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME].copy()
