"""The handwritten digits that ship with scikit-learn, as sequences of pixels."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.data.splits import ReadOnce

CLASSES = 10
SIDE = 8  # pixels

Order = Literal["pixels", "permuted", "rows"]


class Examples(NamedTuple):
    pixels: np.ndarray  # (T=64, N, 1) float32 in [0, 1], row by row from the top left
    labels: np.ndarray  # (N,) int32


class Images(ReadOnce):
    """Three parts, each with every digit in the proportion of the whole. ``test()`` hands out the last, once."""

    def __init__(self, train: Examples, validation: Examples, test: Examples) -> None:
        self.train, self.validation, self._test = train, validation, test

    def test(self) -> Examples:
        """The test images, for the final evaluation.

        Raises:
            TestSplitError: at the second call.
        """
        return self._handed_out("split", self._test)


def split(labels: np.ndarray, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices into ``labels``: train, validation, test; validation is ``test_fraction`` of what the test leaves."""

    def cut(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept, apart = train_test_split(indices, test_size=test_fraction, random_state=seed, stratify=labels[indices])
        return kept, apart

    rest, test = cut(np.arange(len(labels)))
    return *cut(rest), test


def load(test_fraction: float, seed: int) -> Images:
    """The 1797 images of 8 × 8 pixels, 17 grey levels, in three parts."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images / 16).astype(np.float32).T[:, :, None]
    labels = labels.astype(np.int32)
    return Images(*(Examples(pixels[:, part], labels[part]) for part in split(labels, test_fraction, seed)))


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
