"""The handwritten digits that ship with scikit-learn, as sequences of pixels."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = 10
SIDE = 8  # pixels

Order = Literal["pixels", "permuted", "rows"]


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


def permutation(seed: int) -> np.ndarray:
    """(64,): which pixel is read at each step under "permuted", the same for all images (Le et al. 2015)."""
    return np.random.default_rng(seed).permutation(SIDE * SIDE)


def features(order: Order) -> int:
    return SIDE if order == "rows" else 1


def arranged(pixels: Any, order: Order, seed: int) -> Any:
    """Images as they are stored, (64, *B, 1), as a model reads them: (64, *B, 1), or (8, *B, 8), a row a step."""
    if order == "permuted":
        pixels = pixels[permutation(seed)]
    elif order == "rows":
        pixels = jnp.moveaxis(pixels.reshape(SIDE, SIDE, *pixels.shape[1:-1]), 1, -1)
    return pixels


def _cut(indices: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = train_test_split(indices, test_size=fraction, random_state=seed, stratify=labels[indices])
    return first, second
