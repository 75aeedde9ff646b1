"""The Mackey-Glass equation, a chaotic delay equation, in steps of one unit of time."""

from __future__ import annotations

import numpy as np

PER_UNIT = 10  # Euler steps in a unit of time, as Jaeger & Haas have them
TRANSIENT = 1000  # units of time before what is kept
CENTRE = 1.0  # which is taken off: the signal lies between 0.4 and 1.3


def draw(rng: np.random.Generator, steps: int, count: int, delay: float) -> np.ndarray:
    """(steps, count, 1): sequences of their own, each from a random history, less CENTRE.

    dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x(t)
    """
    lag = round(delay * PER_UNIT)
    total = (TRANSIENT + steps) * PER_UNIT
    x = np.empty((lag + 1 + total, count))
    x[: lag + 1] = 1.2 + 0.2 * (rng.random((lag + 1, count)) - 0.5)
    for n in range(lag, lag + total):
        late = x[n - lag]
        x[n + 1] = x[n] + (0.2 * late / (1 + late**10) - 0.1 * x[n]) / PER_UNIT
    return x[lag + 1 + TRANSIENT * PER_UNIT :: PER_UNIT, :, None] - CENTRE
