"""What a network has to be compared with: the seasonal naive forecast; ARIMA and ETS of statsmodels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.forecast.data import SCALES, Kind, Name, Scale, frame, steps_of
from experiments.forecast.scores import Forecasts

# (values, origin) -> mean and sd, (H,) each, from values[: origin + 1] alone
Forecaster = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class Arima(NamedTuple):
    """ARIMA(order)(seasonal)_m with sines and cosines of the year as regressors."""

    order: tuple[int, int, int]
    seasonal: tuple[int, int, int] = (0, 0, 0)
    harmonics: int = 0
    trend: str = "n"


class Ets(NamedTuple):
    """Additive errors; trend, damping and season of ETSModel."""

    trend: str | None
    damped: bool
    seasonal: str | None


class Linear(NamedTuple):
    """Least squares from the last values, each number of steps ahead by itself: what a network may have below it."""

    lags: int


Model = Literal["naive"] | Arima | Ets | Linear

# Of each family one is chosen for each series, on the validation period.
ARIMAS: Mapping[Name, Sequence[Model]] = {
    "sunspots": [Arima((p, 0, q), trend="c") for p, q in ((2, 0), (3, 0), (9, 0), (2, 1))],
    "co2": [Arima((p, 1, 1), harmonics=3, trend="t") for p in (0, 1)],
    "elnino": [
        Arima((1, 0, 0), (0, 1, 1)),
        Arima((2, 0, 0), harmonics=3, trend="c"),
        Arima((2, 0, 1), harmonics=3, trend="c"),
    ],
}
ETS: Mapping[Name, Sequence[Model]] = {
    "sunspots": [Ets(None, False, None), Ets(None, False, "add"), Ets("add", True, "add")],
    "co2": [Ets("add", False, "add"), Ets("add", True, "add")],
    "elnino": [Ets(None, False, None), Ets(None, False, "add"), Ets("add", True, "add")],
}


def candidates(name: Name, linear: int) -> dict[str, Sequence[Model]]:
    """By family; the linear forecast where the network stands on one."""
    alone = {"linear": [Linear(linear)]} if linear else {}
    return {"seasonal naive": ["naive"], **alone, "ARIMA": ARIMAS[name], "ETS": ETS[name]}


def title(model: Model, scale: Scale, season: int) -> str:
    on = f", {scale.title}" if scale.title and not isinstance(model, str) else ""
    return _title(model, season) + on


def _title(model: Model, season: int) -> str:
    if isinstance(model, str):  # "naive"
        return "seasonal naive"
    if isinstance(model, Linear):
        return f"linear({model.lags})"
    if isinstance(model, Arima):
        order, seasonal = (f"({','.join(map(str, of))})" for of in (model.order, model.seasonal))
        harmonics = f" with {model.harmonics} harmonics" if model.harmonics else ""
        return f"ARIMA{order}" + (f"{seasonal}[{season}]" if any(model.seasonal) else "") + harmonics
    trend = {None: "N", "add": "Ad" if model.damped else "A"}[model.trend]
    return f"ETS(A,{trend},{'A' if model.seasonal else 'N'})"


class Fitted(NamedTuple):
    forecast: Forecaster
    parameters: int
    scale: Scale = SCALES["values"]  # of what it was fitted to, and forecasts


def fit(model: Model, scale: Scale, known: np.ndarray, kind: Kind) -> Fitted:
    """Parameters fitted to what is known, on a scale, once; each origin then has the states of its own past.

    ARIMA takes missing values as missing. ETS cannot: for it alone they lie on a line between their neighbours.
    """
    known = scale.of(known)
    if isinstance(model, str):  # "naive"
        fitted = Fitted(seasonal_naive(known, kind), 0)
    elif isinstance(model, Linear):
        fitted = Fitted(linear(model, known, kind), model.lags * kind.horizon)
    elif isinstance(model, Arima):
        fitted = _arima(model, known, kind)
    else:
        fitted = _ets(model, known, kind)
    return fitted._replace(scale=scale)


def seasonal_naive(known: np.ndarray, kind: Kind) -> Forecaster:
    """The last value that is known of the same season; sd of the seasonal differences, times √ of the seasons between.

    y_{t+h} = y_{t+h-km}        the smallest k ≥ 1 for which that value is known at t
    """
    m = kind.season
    sd = float(np.sqrt(np.nanmean((known[m:] - known[:-m]) ** 2)))

    def forecast(values: np.ndarray, origin: int) -> tuple[np.ndarray, np.ndarray]:
        mean, seasons = np.empty(kind.horizon), np.empty(kind.horizon)
        for h in range(1, kind.horizon + 1):
            k = -(-h // m)
            while np.isnan(values[origin + h - k * m]):
                k += 1
            mean[h - 1], seasons[h - 1] = values[origin + h - k * m], k
        return mean, sd * np.sqrt(seasons)

    return forecast


def linear(model: Linear, known: np.ndarray, kind: Kind) -> Forecaster:
    """That of ``data.frame``; sd of what it left, for each number of steps ahead."""
    to = frame(known, kind, model.lags)
    of_known = steps_of(known, kind, to, model.lags)
    left = np.where(of_known.mask[:, None] & of_known.there, of_known.targets, np.nan)
    sd = to.scale * np.sqrt(np.nanmean(left**2, axis=0))

    def forecast(values: np.ndarray, origin: int) -> tuple[np.ndarray, np.ndarray]:
        return steps_of(values[: origin + 1], kind, to, model.lags).base[-1].astype(float), sd

    return forecast


def _arima(model: Arima, known: np.ndarray, kind: Kind) -> Fitted:
    from statsmodels.tsa.arima.model import ARIMA

    def regressors(first: int, last: int) -> np.ndarray | None:
        angles = 2 * np.pi * np.arange(first, last)[:, None] * np.arange(1, model.harmonics + 1) / kind.per_year
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1) if model.harmonics else None

    seasonal = (*model.seasonal, kind.season if any(model.seasonal) else 0)
    options: dict[str, Any] = {"order": model.order, "seasonal_order": seasonal, "trend": model.trend}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its optimiser; how good the fit is, validation says
        results = ARIMA(known, exog=regressors(0, len(known)), **options).fit()

    def forecast(values: np.ndarray, origin: int) -> tuple[np.ndarray, np.ndarray]:
        end, H = origin + 1, kind.horizon
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ahead = results.apply(values[:end], exog=regressors(0, end)).get_forecast(H, exog=regressors(end, end + H))
        return np.asarray(ahead.predicted_mean), np.asarray(ahead.se_mean)

    return Fitted(forecast, len(results.params))


def _ets(model: Ets, known: np.ndarray, kind: Kind) -> Fitted:
    import pandas
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    def of(values: np.ndarray) -> Any:
        there, at = np.isfinite(values), np.arange(len(values))
        filled = pandas.Series(np.interp(at, at[there], values[there]))
        season = {"seasonal": "add", "seasonal_periods": kind.season} if model.seasonal else {}
        return ETSModel(
            filled, trend=model.trend, damped_trend=model.damped, initialization_method="heuristic", **season
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = np.asarray(of(known).fit(disp=False).params)

    def forecast(values: np.ndarray, origin: int) -> tuple[np.ndarray, np.ndarray]:
        end = origin + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ahead = of(values[:end]).smooth(params).get_prediction(start=end, end=end + kind.horizon - 1)
        return np.asarray(ahead.predicted_mean), np.sqrt(np.asarray(ahead.var_pred_mean))

    return Fitted(forecast, len(params))


def at_origins(forecast: Forecaster, values: np.ndarray, origins: np.ndarray, scale: Scale) -> Forecasts:
    """From each origin, of the values up to it, by what was fitted to values on the scale."""
    on_scale = scale.of(values)
    made = [forecast(on_scale[: origin + 1], int(origin)) for origin in origins]
    return Forecasts(np.stack([mean for mean, _ in made]), np.stack([sd for _, sd in made]), scale)
