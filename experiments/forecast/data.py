"""Three series that ship with statsmodels, their periods, and what a network reads of them and is to say."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.data import splits
from experiments.data.records import DataError

EXTRA = "pip install 'jaxrnn[forecast]'"
Name = Literal["sunspots", "co2", "elnino"]
ScaleName = Literal["values", "roots"]


class Kind(NamedTuple):
    """What is known of a series before it is looked at."""

    step: str  # in words
    season: int  # m: the lag of the seasonal naive forecast, and of MASE's scale
    horizon: int  # H: steps that are forecast at once
    phases: int  # of the year, each with a mean of its own, off which the network's numbers are taken; 0: see ``frame``
    begins: float  # when, in years
    per_year: float  # steps


KINDS: dict[Name, Kind] = {
    "sunspots": Kind("year", 11, 11, 1, 1700, 1),  # a cycle takes 9 to 14 years, about 11
    "co2": Kind("week", 52, 52, 0, 1958 + 87 / 365, 365.25 / 7),  # with a trend: no mean would last
    "elnino": Kind("month", 12, 12, 12, 1950, 12),
}


class Scale(NamedTuple):
    """What is forecast in the place of the values: y = of(value), value = back(y), both of NumPy's arrays and JAX's."""

    title: str
    of: Callable[[Any], Any]
    back: Callable[[Any], Any]  # never falls as y grows, so that quantiles stay quantiles


# Counts vary the more the larger they are, and none is below 0.
SCALES: dict[ScaleName, Scale] = {
    "values": Scale("", lambda value: value, lambda y: y),
    # Ghaddar & Tong, "Data transformation and self-exciting threshold autoregression", 1981, of sunspots
    "roots": Scale("roots", lambda value: 2 * ((1 + value) ** 0.5 - 1), lambda y: (1 + y.clip(0) / 2) ** 2 - 1),
}


class Series(splits.ReadOnce):
    """One series, cut in three by time. ``known`` ends where the test period begins; ``whole()`` is handed out once."""

    def __init__(self, name: Name, values: np.ndarray, validation: float, test: float) -> None:
        self.name, self.kind = name, KINDS[name]
        self.ends = tuple(round(len(values) * share) for share in (1 - validation - test, 1 - test, 1))
        self.known = values[: self.ends[1]]  # NaN: missing
        self._whole = values

    @property
    def train(self) -> np.ndarray:
        return self.known[: self.ends[0]]

    def whole(self) -> np.ndarray:
        """The test period too, for the final evaluation.

        Raises:
            TestSplitError: at the second call.
        """
        return self._handed_out("period", self._whole)

    def year(self, step: int) -> float:
        return self.kind.begins + step / self.kind.per_year


def folder() -> Path:
    """Where statsmodels keeps its data; it is found, not imported.

    Raises:
        DataError: it is not installed.
    """
    found = importlib.util.find_spec("statsmodels")
    if not found or not found.submodule_search_locations:
        raise DataError(f"task.series: statsmodels, whose series and models the experiment takes, is missing; {EXTRA}")
    return Path(found.submodule_search_locations[0], "datasets")


def read(name: Name) -> np.ndarray:
    """(T,) float64, NaN where a value is missing.

    Raises:
        DataError: statsmodels is missing, or has no such file.
    """
    path = folder() / name / f"{name}.csv"
    if not path.is_file():
        raise DataError(f"task.series: this statsmodels has no {path.name}; install statsmodels 0.14 or later")
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    cells = [cell for row in rows for cell in row[1:]]  # the first column is the date
    return np.array([float(cell) if cell.strip() else math.nan for cell in cells])


class Frame(NamedTuple):
    """How values become a network's numbers and back: z = (y - base) / scale, all of it from the training period.

    The base of a step is the mean of its phase, or of a series with a trend the value a season before plus the mean
    growth over a season. A step to come may have a linear forecast from the last p of these numbers on top of it.
    """

    season: int
    means: np.ndarray  # (phases,); () where the value a season before is the base
    growth: float
    scale: float
    linear: np.ndarray  # (p, H): of z_{t+h} from z_t … z_{t-p+1}; p = 0: there is none

    def base(self, values: np.ndarray, steps: int) -> np.ndarray:
        """(T + steps,): of the steps of the values and of those after them, as far as a season before is known."""
        at = np.arange(len(values) + steps)
        if len(self.means):
            return self.means[at % len(self.means)]
        before = at - self.season
        there = (before >= 0) & (before < len(values))
        return np.where(there, values[np.clip(before, 0, len(values) - 1)], np.nan) + self.growth


def frame(train: np.ndarray, kind: Kind, linear: int = 0) -> Frame:
    """Of what is learned from; with a linear forecast from so many values, fitted by least squares."""
    means, growth = np.empty(0), 0.0
    if kind.phases:
        means = np.array([np.nanmean(train[phase :: kind.phases]) for phase in range(kind.phases)])
        left = train - means[np.arange(len(train)) % kind.phases]
    else:
        left = train[kind.season :] - train[: -kind.season]
        growth = float(np.nanmean(left))
    to = Frame(kind.season, means, growth, float(np.nanstd(left)), np.empty((0, kind.horizon)))
    return to._replace(linear=_least_squares(to, train, linear, kind.horizon)) if linear else to


def _least_squares(to: Frame, train: np.ndarray, p: int, H: int) -> np.ndarray:
    """(p, H): each number of steps ahead by itself, from where the p values and what came are known."""
    z = (train - to.base(train, 0)) / to.scale
    read, each = _lagged(z, p), []
    for h in range(1, H + 1):
        came = np.concatenate([z[h:], np.full(h, np.nan)])
        known = np.isfinite(read).all(1) & np.isfinite(came)
        each.append(np.linalg.lstsq(read[known], came[known], rcond=None)[0])
    return np.stack(each, axis=1)


def _lagged(z: np.ndarray, lags: int) -> np.ndarray:
    """(T, lags): the last values at each step, the last one first; NaN before the first."""
    return np.stack([np.concatenate([np.full(k, np.nan), z[: len(z) - k]]) for k in range(lags)], axis=1)


class Steps(NamedTuple):
    """A series as a network reads it: at step t the values up to t, and what it should say of t + 1 … t + H."""

    xs: Any  # (T, I): z of the last values, and where in the year t is; 0 where masked
    mask: Any  # (T,): False where one of these values, or of the linear forecast's, is missing: the state is held
    base: Any  # (T, H), with the linear forecast
    targets: Any  # (T, H): z of the steps to come, 0 where unknown
    there: Any  # (T, H): where they are known


def steps_of(values: np.ndarray, kind: Kind, to: Frame, lags: int) -> Steps:
    """Read ``lags`` values at each step; nothing is filled in."""
    T, H = len(values), kind.horizon
    base = to.base(values, H)
    z = (values - base[:T]) / to.scale
    p = len(to.linear)
    lagged = _lagged(z, max(lags, p))
    mask = np.isfinite(lagged).all(1)
    features = [lagged[:, :lags]]
    if kind.per_year > 1:
        angle = 2 * np.pi * np.arange(T) / kind.per_year
        features.append(np.stack([np.sin(angle), np.cos(angle)], axis=1))
    xs = np.where(mask[:, None], np.concatenate(features, axis=1), 0)
    ahead = np.arange(T)[:, None] + np.arange(1, H + 1)
    to_come = np.concatenate([values, np.full(H, np.nan)])[ahead]
    base = base[ahead] + to.scale * np.where(mask[:, None], lagged[:, :p], 0) @ to.linear
    targets = (to_come - base) / to.scale
    there = np.isfinite(targets)
    as_floats = (a.astype(np.float32) for a in (xs, base, np.where(there, targets, 0)))
    xs, bases, targets = as_floats
    return Steps(xs, mask, bases, targets, there)


def origins(steps: Steps, first: int, last: int, stride: int) -> np.ndarray:
    """The steps t from which ``first`` … ``last`` - 1 are forecast, all H of them within; none that is masked."""
    H = steps.targets.shape[1]
    at = np.arange(first - 1, last - H, stride)
    return at[np.asarray(steps.mask)[at]]
