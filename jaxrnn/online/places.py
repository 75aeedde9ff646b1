"""Numbers at places that are known while tracing: by slices where the places run evenly, which costs no gather."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RUNS = 32  # slices that are put side by side, at most


class Numbers:
    """Arrays, seen as one row of numbers; behind the last stands a 0."""

    def __init__(self, arrays: Sequence[Any], dtype: Any):
        self.parts = [*(jnp.reshape(a, -1).astype(dtype) for a in arrays), jnp.zeros(1, dtype)]
        self.ends = np.cumsum([a.size for a in self.parts])

    def take(self, places: np.ndarray) -> Any:
        """The numbers at these places, in their shape."""
        flat = places.ravel()
        if not flat.size:
            return jnp.zeros(places.shape, self.parts[-1].dtype)
        part = np.searchsorted(self.ends, flat, side="right")
        found = runs(flat, part)
        if found is None:
            return jnp.concatenate(self.parts)[places]
        taken = []
        for index, count, stride in found:
            a = self.parts[part[index]]
            first = int(flat[index] - self.ends[part[index]]) + a.size
            if stride:
                taken.append(jax.lax.slice(a, (first,), (first + (count - 1) * stride + 1,), (stride,)))
            else:
                taken.append(jnp.broadcast_to(jax.lax.slice(a, (first,), (first + 1,)), (count,)))
        return (jnp.concatenate(taken) if len(taken) > 1 else taken[0]).reshape(places.shape)


def runs(places: np.ndarray, part: np.ndarray) -> list[tuple[int, int, int]] | None:
    """``(index, count, stride)`` of each run of places with one stride in one part; None where they are many."""
    found: list[tuple[int, int, int]] = []
    strides, same_part = np.diff(places), np.diff(part) == 0
    index = 0
    while index < len(places):
        if len(found) == RUNS:
            return None
        count, stride = 1, 1
        if index + 1 < len(places) and same_part[index] and strides[index] >= 0:
            stride = int(strides[index])
            goes_on = same_part[index:] & (strides[index:] == stride)
            count = 1 + (len(goes_on) if goes_on.all() else int(np.argmin(goes_on)))
        found.append((index, count, stride))
        index += count
    return found
