"""The handwritten digits that ship with scikit-learn, as sequences of pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = 10


class Examples(NamedTuple):
    pixels: np.ndarray  # (T=64, N, 1) float32 in [0, 1], row by row from the top left
    labels: np.ndarray  # (N,) int32


class Split(NamedTuple):
    train: np.ndarray  # indices into the 1797 images
    held_out: np.ndarray


def split(labels: np.ndarray, test_fraction: float, seed: int, held_out: str = "test") -> Split:
    """A fixed, stratified split: each part has every digit in the proportion of the whole.

    ``held_out="validation"`` leaves the test images aside and holds out the same fraction of the others, so
    that settings can be chosen without a look at the test images.
    """
    everything = np.arange(len(labels))
    train, test = _cut(everything, labels, test_fraction, seed)
    return Split(train, test) if held_out == "test" else Split(*_cut(train, labels, test_fraction, seed))


def load(test_fraction: float, seed: int, held_out: str = "test") -> tuple[Examples, Examples]:
    """``(train, held_out)`` of the 1797 images of 8 × 8 pixels, 16 shades of grey."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images / 16).astype(np.float32).T[:, :, None]
    labels = labels.astype(np.int32)
    train, rest = split(labels, test_fraction, seed, held_out)
    return Examples(pixels[:, train], labels[train]), Examples(pixels[:, rest], labels[rest])


def _cut(indices: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = train_test_split(indices, test_size=fraction, random_state=seed, stratify=labels[indices])
    return first, second
