"""What seeds say of a measure: as text, with an interval, and one model beside another on the same seeds.

The one place where a number of a run becomes text: tables in Markdown, on the terminal and in reports agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

ALL_PAIRS = 4  # of so many models every pair is shown; of more, each beside the first


class Difference(NamedTuple):
    """One model less another on the seeds that both have."""

    first: str
    second: str
    seeds: int
    mean: float  # of first - second
    low: float  # 95 % confidence of it
    high: float


def shown(value: float, form: str) -> str:
    """A number as its column shows it; a share in per cent, without the sign."""
    return f"{100 * value:.1f}" if form == "%" else f"{value:{form}}"


def unit(form: str) -> str:
    return " %" if form == "%" else ""


def spread(values: np.ndarray, form: str) -> str:
    """``97.4 ± 0.5 %``: mean and sample standard deviation, which a single seed has not; "of": ``3 of 4``."""
    values = np.asarray(values, float)  # of float32 the mean would be rounded otherwise than in a summary
    if form == "of":
        return f"{values.sum():.0f} of {len(values)}"
    with np.errstate(invalid="ignore"):  # of a diverged model: NaN is what the reader must see
        sd = f" ± {shown(float(values.std(ddof=1)), form)}" if len(values) > 1 else ""
        return f"{shown(float(values.mean()), form)}{sd}{unit(form)}"


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % confidence of the mean: Student's t, as if the values were normal; None of one seed, or one that is lost."""
    values = np.asarray(values, float)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def difference(first: str, second: str, a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Of two models, from their values by seed; None where they share fewer than two seeds, or a value is lost."""
    seeds = [seed for seed in a if seed in b]
    paired = np.array([a[seed] - b[seed] for seed in seeds], float)
    ends = interval(paired)
    return None if ends is None else Difference(first, second, len(seeds), float(paired.mean()), *ends)


def differences(by_model: Mapping[str, Mapping[int, float]], data: Mapping[str, str] | None = None) -> list[Difference]:
    """Of the pairs of models that are shown, the later less the earlier; of models on other data none."""
    groups: dict[str, list[str]] = {}
    for name in by_model:
        groups.setdefault((data or {}).get(name, ""), []).append(name)
    found = []
    for names in groups.values():
        all_pairs, with_first = itertools.combinations(names, 2), ((names[0], name) for name in names[1:])
        for earlier, later in all_pairs if len(names) <= ALL_PAIRS else with_first:
            found.append(difference(later, earlier, by_model[later], by_model[earlier]))
    return [one for one in found if one is not None]


def main_measure(names: Sequence[str]) -> str:
    """Of the measures of a table, in their order: that on test data, else the first that is not on training data."""
    tested = [name for name in names if name.startswith("test")]
    held_out = [name for name in names if not name.startswith("train")]
    return (tested or held_out or list(names))[0]


def signed(value: float, form: str) -> str:
    """A difference: with its sign; of shares in percentage points."""
    text = shown(value, form)
    if not float(text):
        return text.lstrip("-")
    return text if text.startswith("-") else f"+{text}"
