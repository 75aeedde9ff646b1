"""How good forecasts with Gaussian intervals are: MASE, coverage, width; and pairs of models, origin by origin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.stats


class Forecasts(NamedTuple):
    """Of N origins, H steps each."""

    mean: np.ndarray  # (N, H)
    sd: np.ndarray  # (N, H)


def mase_scale(values: np.ndarray, season: int) -> float:
    """q: the mean |y_t - y_{t-m}| where both are known."""
    return float(np.nanmean(np.abs(values[season:] - values[:-season])))


def by_origin(forecasts: Forecasts, actual: np.ndarray, scale: float) -> np.ndarray:
    """(N,): the mean absolute error of each origin over the steps that are known (NaN: missing), in units of q."""
    return np.nanmean(np.abs(forecasts.mean - actual), axis=1) / scale


def by_step(forecasts: Forecasts, actual: np.ndarray, scale: float) -> np.ndarray:
    """(H,): the same for each number of steps ahead."""
    return np.nanmean(np.abs(forecasts.mean - actual), axis=0) / scale


def measures(forecasts: Forecasts, actual: np.ndarray, scale: float) -> dict[str, float]:
    """MASE, the shares of the values within the central 80 and 95 % intervals, the width of the first in units of q."""
    known = np.isfinite(actual)
    z = np.abs(forecasts.mean - actual)[known] / forecasts.sd[known]
    q80, q95 = scipy.stats.norm.ppf([0.9, 0.975])
    return {
        "mase": float(by_origin(forecasts, actual, scale).mean()),
        "covered_80": float((z <= q80).mean()),
        "covered_95": float((z <= q95).mean()),
        "width_80": float(2 * q80 * forecasts.sd.mean() / scale),
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
