"""Sounds to listen to: vowels from a source and three resonances, with pauses of noise between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.signal

RATE = 16_000  # samples a second
FRAME, CONTEXT = 512, 64  # what the network reads at a time, and what it sees again of the frame before
# The first three resonances of a man's vowels, Hz (Peterson & Barney 1952), and their bandwidths.
VOWELS = {"i": (270, 2290, 3010), "a": (730, 1090, 2440), "u": (300, 870, 2240), "e": (530, 1840, 2480)}
BANDWIDTHS = (60, 90, 150)


class Sound(NamedTuple):
    samples: np.ndarray  # (N,) float32 from -1 to 1
    voiced: np.ndarray  # (N,) bool: where a vowel sounds


def vowels(seconds: float, seed: int) -> Sound:
    """Half a second of a vowel, a third of a second of noise alone, and so on; pitch and order are drawn."""
    rng, parts, voiced = np.random.default_rng(seed), [], []
    total = round(seconds * RATE)
    while sum(map(len, parts)) < total:
        name = rng.choice(list(VOWELS))
        n = round(RATE * rng.uniform(0.3, 0.7))
        parts += [vowel(VOWELS[name], n, rng), np.zeros(round(RATE * rng.uniform(0.2, 0.5)))]
        voiced += [np.ones(n, bool), np.zeros(len(parts[-1]), bool)]
    samples = np.concatenate(parts)[:total] + 0.003 * rng.normal(size=total)
    return Sound(samples.astype(np.float32), np.concatenate(voiced)[:total])


def vowel(resonances: tuple[int, ...], n: int, rng: np.random.Generator) -> np.ndarray:
    """Pulses at a pitch that wavers and falls, through a resonator for each resonance (Klatt 1980)."""
    t = np.arange(n) / RATE
    pitch = rng.uniform(95, 140) * (1 - 0.15 * t / t[-1]) * (1 + 0.02 * np.sin(2 * np.pi * 5 * t))
    phase = np.cumsum(pitch) / RATE
    sound = np.diff(np.floor(phase), prepend=0.0)  # one sample at the beginning of each period
    sound = scipy.signal.lfilter([1.0], [1.0, -0.97], sound)  # the source falls with frequency
    for frequency, width in zip(resonances, BANDWIDTHS, strict=True):
        radius, angle = np.exp(-np.pi * width / RATE), 2 * np.pi * frequency / RATE
        b, c = 2 * radius * np.cos(angle), -(radius**2)
        sound = scipy.signal.lfilter([1 - b - c], [1.0, -b, -c], sound)
    return 0.3 * np.hanning(n) ** 0.3 * sound / np.abs(sound).max()


def frames(samples: np.ndarray) -> np.ndarray:
    """(T, 576): each frame of 512 after the last 64 samples before it; the last is filled up with zeros."""
    T = -(-len(samples) // FRAME)
    padded = np.zeros(CONTEXT + T * FRAME, np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME].copy()
