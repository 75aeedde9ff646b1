"""How good forecasts with intervals are: MASE, coverage, width; and pairs of models, origin by origin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.stats

from experiments.forecast.data import SCALES, Scale


class Forecasts(NamedTuple):
    """Of N origins, H steps each: Gaussian on a scale."""

    mean: np.ndarray  # (N, H)
    sd: np.ndarray  # (N, H)
    scale: Scale = SCALES["values"]

    @property
    def median(self) -> np.ndarray:
        """(N, H), of the values: whose mean absolute error is least."""
        return self.scale.back(self.mean)

    def interval(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """The ends (N, H) of the central interval that holds a share of the values."""
        half = scipy.stats.norm.ppf((1 + share) / 2) * self.sd
        return self.scale.back(self.mean - half), self.scale.back(self.mean + half)

    def at(self, origins: list[int]) -> Forecasts:
        """Of some origins, by their place."""
        return Forecasts(self.mean[origins], self.sd[origins], self.scale)


def mase_scale(values: np.ndarray, season: int) -> float:
    """q: the mean |y_t - y_{t-m}| where both are known."""
    return float(np.nanmean(np.abs(values[season:] - values[:-season])))


def by_origin(forecasts: Forecasts, actual: np.ndarray, scale: float) -> np.ndarray:
    """(N,): the mean absolute error of each origin over the steps that are known (NaN: missing), in units of q."""
    return np.nanmean(np.abs(forecasts.median - actual), axis=1) / scale


def by_step(forecasts: Forecasts, actual: np.ndarray, scale: float) -> np.ndarray:
    """(H,): the same for each number of steps ahead."""
    return np.nanmean(np.abs(forecasts.median - actual), axis=0) / scale


def measures(forecasts: Forecasts, actual: np.ndarray, scale: float) -> dict[str, float]:
    """MASE, the shares of the values within the central 80 and 95 % intervals, the width of the first in units of q."""
    known = np.isfinite(actual)
    ends = {share: forecasts.interval(share) for share in (0.8, 0.95)}
    within = {share: ((low <= actual) & (actual <= high))[known].mean() for share, (low, high) in ends.items()}
    low, high = ends[0.8]
    return {
        "mase": float(by_origin(forecasts, actual, scale).mean()),
        "covered_80": float(within[0.8]),
        "covered_95": float(within[0.95]),
        "width_80": float((high - low).mean() / scale),
    }


def paired(differences: np.ndarray, block: int, resamples: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """The mean of differences (N,) at successive origins, and its 95 % interval.

    Origins overlap, so they are drawn anew in blocks of neighbours, round the end: a circular block bootstrap.

    Reference:
        Politis & Romano, "A circular block-resampling procedure for stationary data", 1992.
    """
    N = len(differences)
    block = min(block, N)
    starts = np.random.default_rng(seed).integers(0, N, (resamples, -(-N // block)))
    at = (starts[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :N] % N
    low, high = np.quantile(differences[at].mean(1), [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)
