"""Forecasts: sunspots, CO₂ and El Niño many steps ahead, with intervals, beside seasonal naive, ARIMA and ETS.

About 2 minutes on 2 CPU cores.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

import jaxrnn as jr
from experiments.data.records import DataError
from experiments.forecast import classical, data, drawing, scores
from experiments.forecast.data import SCALES, Name, Scale, ScaleName, Series, Steps
from experiments.forecast.scores import Forecasts
from experiments.reports.samples import Groups
from experiments.reports.tables import interval
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Table, Trained
from experiments.runner.models import RECURRENCES, compute_dtype
from jaxrnn.training import BlockResult

Cell = Literal["gru", "lstm"]
Share = Annotated[float, Field(gt=0, lt=0.4)]
NAIVE = "seasonal naive"
COLUMNS = (
    report.Column("validation MASE", "validation_mase", ".3f"),
    report.Column("test MASE", "mase", ".3f"),
    report.Column("in the 80 % interval", "covered_80", "%"),
    report.Column("in the 95 % interval", "covered_95", "%"),
    report.Column("width of the 80 %", "width_80", ".2f"),
)


class Windows(Table):
    """How one series is read."""

    lags: int = Field(gt=0)  # values that a step reads, the last one among them
    window: int = Field(gt=0)  # T: steps of a training sequence
    stride: int = Field(gt=0)  # steps between two origins
    linear: int = Field(default=0, ge=0)  # values of a linear forecast, whose errors the network forecasts; 0: none
    scale: ScaleName = "values"  # on which it is forecast: a Gaussian there, quantiles of the values by going back


class Model(Table):
    cells: Many[Cell] = ("gru",)
    hidden_size: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)  # of what the readout reads
    noise: float = Field(default=0.5, ge=0)  # the sd of what is added to the values in training
    learning_rates: dict[Cell, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Task(Table):
    series: Many[Name] = ("sunspots", "co2", "elnino")
    validation: Share = 0.2  # of the steps: what chooses, before
    test: Share = 0.2  # what is read once, at the end of the series
    warm_up: float = Field(default=0.25, ge=0, lt=1)  # the share of a training sequence that is read, but not scored
    sunspots: Windows = Windows(lags=1, window=66, stride=1, linear=9, scale="roots")
    co2: Windows = Windows(lags=1, window=156, stride=4, linear=9)
    elnino: Windows = Windows(lags=1, window=96, stride=1, linear=2)

    @field_validator("sunspots", "co2", "elnino", mode="before")
    @classmethod
    def what_is_not_given_stays(cls, given: Any, info: ValidationInfo) -> Any:
        default = cls.model_fields[str(info.field_name)].default
        return {**default.model_dump(), **given} if isinstance(given, dict) else given


class Config(Trained):
    experiment: Literal["forecast"]
    model: Model = Model()
    task: Task = Task()
    _series: dict[Name, Series] = PrivateAttr(default_factory=dict)

    def series(self, name: Name) -> Series:
        """That of this run."""
        if name not in self._series:
            self._series[name] = Series(name, data.read(name), self.task.validation, self.task.test)
        return self._series[name]

    def reading(self, name: Name) -> Windows:
        return getattr(self.task, name)

    def scale(self, name: Name) -> Scale:
        return SCALES[self.reading(name).scale]

    def read_data(self) -> None:
        """Read and check the series: the commands call it before a run has a directory.

        Raises:
            DataError: one line that names the key of the config.
        """
        for name in self.task.series:
            series, reading = self.series(name), self.reading(name)
            if reading.window > len(series.train):
                raise DataError(
                    f"task.{name}.window: expected at most {len(series.train)}, the steps of the training period, got "
                    f"{reading.window}"
                )
            most = min(reading.window, len(series.train) - series.kind.horizon) - 1
            for key, given in (("lags", reading.lags), ("linear", reading.linear)):
                if given > most:
                    raise DataError(f"task.{name}.{key}: expected at most {most}, within a sequence, got {given}")


class Judged(NamedTuple):
    """Where forecasts begin and what then came."""

    origins: np.ndarray  # (N,)
    actual: np.ndarray  # (N, H), NaN where missing
    scale: Any  # q of MASE, from all that came before the period


def models(config: Config) -> dict[str, tuple[Name, Cell]]:
    return {f"{name}, {cell}": (name, cell) for name in config.task.series for cell in config.model.cells}


def settings(config: Config, model: str) -> Any:
    return study.own_rate(config, models(config)[model][1])


def network(config: Config, model: str) -> jr.Layer:
    """Features (T, B, I) -> mean and logarithm of the sd of each of the next H steps (T, B, 2H), in z."""
    name, cell = models(config)[model]
    kind, of, dtype = data.KINDS[name], config.model, compute_dtype(config.train)
    features = config.reading(name).lags + 2 * (kind.per_year > 1)
    return jr.stack(
        RECURRENCES[cell](features, of.hidden_size, config.reading(name).window, dtype),
        jr.dropout(of.dropout),
        jr.readout(of.hidden_size, 2 * kind.horizon, dtype=dtype),
    )


def said(layer: jr.Layer, params: Any, xs: Any, mask: Any, key: Any = None) -> tuple[jax.Array, jax.Array]:
    """Mean and sd (T, B, H) in units of z; a masked step holds the state, and says nothing that counts."""
    ys = layer.apply(params, xs, mask=mask, key=key)[1].astype(jnp.float32)
    mean, log_sd = jnp.split(ys, 2, axis=-1)
    return mean, jnp.exp(jnp.clip(log_sd, -5, 3))


def judged(series: Series, values: np.ndarray, steps: Steps, first: int, last: int, stride: int) -> Judged:
    """The period of the steps ``first`` … ``last`` - 1."""
    at = data.origins(steps, first, last, stride)
    actual = values[at[:, None] + np.arange(1, series.kind.horizon + 1)]
    return Judged(at, actual, np.float32(scores.mase_scale(values[:first], series.kind.season)))


def read(config: Config, name: Name, values: np.ndarray, learned: np.ndarray) -> tuple[data.Frame, Steps]:
    """The values as the network reads them; all numbers that z needs are of those that are learned from."""
    kind, scale = config.series(name).kind, config.scale(name)
    frame = data.frame(scale.of(learned), kind, config.reading(name).linear)
    return frame, data.steps_of(scale.of(values), kind, frame, config.reading(name).lags)


def on_validation(config: Config, name: Name, learned: np.ndarray) -> tuple[Steps, Judged]:
    series = config.series(name)
    steps = read(config, name, series.known, learned)[1]
    return steps, judged(series, series.known, steps, series.ends[0], series.ends[1], config.reading(name).stride)


def task(config: Config, model: str) -> training.Task:
    """Parts of the training period, read from a fresh state; the validation period chooses."""
    return task_from(config, model, config.series(models(config)[model][0]).train)


def task_from(config: Config, model: str, values: np.ndarray) -> training.Task:
    """The same with what is learned from: the training period, or all that precedes the test."""
    name, _ = models(config)[model]
    layer, scale, T = network(config, model), config.scale(name), config.reading(name).window
    lags, scored = config.reading(name).lags, np.arange(T) >= round(config.task.warm_up * T)
    frame, learned = read(config, name, values, values)  # whose last steps lack what is after the period
    steps, validation = on_validation(config, name, values)

    def batch(key, number, shared):
        key = jax.random.fold_in(key, number)
        starts = jax.random.randint(key, (config.train.batch_size,), 0, len(learned.xs) - T + 1)
        at = starts + jnp.arange(T)[:, None]  # (T, B)
        return jax.tree.map(lambda a: a[at], shared[0])

    def loss(params, batch, key, shared):
        xs, (k_noise, k_drop) = batch.xs, jax.random.split(key)
        noise = config.model.noise * jax.random.normal(k_noise, (*xs.shape[:2], lags))
        xs = xs.at[..., :lags].add(noise)
        mean, sd = said(layer, params, xs, batch.mask, k_drop)
        nll = 0.5 * jnp.square((batch.targets - mean) / sd) + jnp.log(sd)
        counted = batch.there & batch.mask[..., None] & scored[:, None, None]
        return nll.mean(where=counted), {}

    def evaluate(params, shared):
        steps, validation = shared[1:]
        mean, _ = said(layer, params, steps.xs[:, None], steps.mask[:, None])
        at = validation.origins
        errors = jnp.abs(scale.back(steps.base[at] + frame.scale * mean[at, 0]) - validation.actual)
        known = jnp.isfinite(errors)
        of_origins = jnp.where(known, errors, 0).sum(1) / jnp.maximum(known.sum(1), 1)
        return {"validation_mase": of_origins.mean() / validation.scale}

    shared = learned, steps, validation._replace(actual=validation.actual.astype(np.float32))
    return training.Task(layer.init, batch, loss, evaluate, score="validation_mase", shared=shared)


def forecasts(
    config: Config, model: str, params: Any, values: np.ndarray, origins: np.ndarray, learned: np.ndarray
) -> Forecasts:
    """Of one seed: a single run over the values, of which each origin has seen its own past alone."""
    name, _ = models(config)[model]
    frame, steps = read(config, name, values, learned)
    layer = network(config, model)
    mean, sd = jax.jit(lambda params: said(layer, params, steps.xs[:, None], steps.mask[:, None]))(params)
    z, of_z = (np.asarray(a, float)[origins, 0] for a in (mean, sd))
    return Forecasts(steps.base[origins] + frame.scale * z, frame.scale * of_z, config.scale(name))


def best_step(fit: training.Fit) -> tuple[int, np.ndarray]:
    """After how many steps the mean of the seeds was best on the validation period, and what each measured there."""
    best = min(fit.result.history, key=lambda block: block.values["validation_mase"].mean())
    return best.step, best.values["validation_mase"]


def refitted(config: Config, model: str, steps: int) -> training.Fit:
    """Trained again, for so many steps, on all that precedes the test: what ARIMA and ETS are fitted to as well."""
    known = config.series(models(config)[model][0]).known
    again = task_from(config, model, known)._replace(stop_when=lambda block: block.step >= steps)
    return training.fit(model, again, settings(config, model), mesh=config.mesh)


class Tested(NamedTuple):
    """All models on the test period of one series, the networks first."""

    series: Series
    values: np.ndarray
    period: Judged
    results: dict[str, report.Result]
    forecasts: dict[str, list[Forecasts]]  # by seed; one where nothing is drawn
    steps: dict[str, int]  # for which each network is refitted

    def errors(self, model: str) -> np.ndarray:
        """(N,): MASE of each origin, the mean of the seeds."""
        of = [scores.by_origin(each, self.period.actual, self.period.scale) for each in self.forecasts[model]]
        return np.mean(of, axis=0)


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    """The networks, refitted as the others are, and the others on the test period, which is read here, once."""
    everything = [tested(config, name, fits) for name in config.task.series]
    results = [result._replace(data=of.series.name) for of in everything for result in of.results.values()]
    pairs = {model: beside for of in everything for model, beside in compared(config, of).items()}
    more = {
        "test_reads": {of.series.name: of.series.test_reads for of in everything},
        "origins": {of.series.name: len(of.period.origins) for of in everything},
        "intervals": {result.model: interval(result.last("mase")) for result in results},
        "pairs": pairs,
        "steps": {model: steps for of in everything for model, steps in of.steps.items()},
    }
    drawn = {
        "curves.png": curves([fit.result for fit in fits.values()]),
        "forecasts.png": drawing.forecasts([drawn_from(of) for of in everything]),
    }
    shown = [errors_by_step(of) for of in everything]
    return study.Conclusion(results, notes(config, everything, pairs), drawn, more, shown)


def tested(config: Config, name: Name, fits: Mapping[str, training.Fit]) -> Tested:
    """First everything is chosen and fitted, then the test period is read."""
    series, stride = config.series(name), config.reading(name).stride
    beside = others(config, name)
    again: dict[str, training.Fit] = {}
    steps: dict[str, int] = {}
    results: dict[str, report.Result] = {}
    for model in (m for m, (of_name, _) in models(config).items() if of_name == name):
        clock, (steps[model], there) = report.Clock(), best_step(fits[model])
        again[model] = refitted(config, model, steps[model])
        results[model] = fits[model].result.add({"validation_mase": there})
        results[model] = results[model]._replace(seconds=results[model].seconds + clock.seconds())
    values = series.whole()
    as_read = read(config, name, values, series.known)[1]
    period = judged(series, values, as_read, series.ends[1], series.ends[2], stride)
    made: dict[str, list[Forecasts]] = {}
    for model, fit in again.items():
        each = [member(fit.params, n) for n in range(len(fit.result.seeds))]
        made[model] = [forecasts(config, model, params, values, period.origins, series.known) for params in each]
        measured = [scores.measures(of, period.actual, period.scale) for of in made[model]]
        results[model] = results[model].add({of: np.array([seed[of] for seed in measured]) for of in measured[0]})
    for model, (fitted, validation_mase, seconds) in beside.items():
        clock = report.Clock()
        made[model] = [classical.at_origins(fitted.forecast, values, period.origins, fitted.scale)]
        numbers = scores.measures(made[model][0], period.actual, period.scale)
        numbers |= {"validation_mase": validation_mase, "loss": float("nan")}  # it is not trained by one
        history = [BlockResult(0, {measure: np.array([value]) for measure, value in numbers.items()}, {})]
        results[model] = report.Result(model, (0,), fitted.parameters, history, seconds + clock.seconds())
    return Tested(series, values, period, results, made, steps)


def member(params: Any, place: int) -> Any:
    return jax.tree.map(lambda a: a[place], params)


def others(config: Config, name: Name) -> dict[str, tuple[classical.Fitted, float, float]]:
    """What stands beside the networks: fitted to all that is before the test period; validation MASE, and seconds.

    Of each family the one is taken that, fitted to the training period, has the lowest MASE on the validation period,
    of the values and on the scale of the networks.
    """
    series, validation = config.series(name), on_validation(config, name, config.series(name).train)[1]
    found = {}
    for family, kinds in classical.candidates(name, config.reading(name).linear).items():
        clock = report.Clock()
        scales = [config.scale(name), *([] if family == NAIVE else [SCALES["values"]])]  # the median is any scale's
        candidates = [(kind, scale) for kind in kinds for scale in dict.fromkeys(scales)]
        each = [mase_of(classical.fit(*of, series.train, series.kind), series.known, validation) for of in candidates]
        best = int(np.argmin(each))
        fitted = classical.fit(*candidates[best], series.known, series.kind)
        title = f"{name}, {classical.title(*candidates[best], series.kind.season)}"
        assert title not in found, f"two families have a model called {title}: {family}"
        found[title] = fitted, each[best], clock.seconds()
    return found


def mase_of(fitted: classical.Fitted, values: np.ndarray, period: Judged) -> float:
    made = classical.at_origins(fitted.forecast, values, period.origins, fitted.scale)
    return scores.measures(made, period.actual, period.scale)["mase"]


Pairs = dict[str, dict[str, tuple[float, float, float]]]


def compared(config: Config, of: Tested) -> Pairs:
    """Each network less each other model: the mean difference of MASE at the same origins, and its interval."""
    block = -(-of.series.kind.horizon // config.reading(of.series.name).stride)
    trained = [model for model in of.results if model in models(config)]
    return {
        model: {
            other: scores.paired(of.errors(model) - of.errors(other), block) for other in of.results if other != model
        }
        for model in trained
    }


def columns(config: Config) -> tuple[report.Column, ...]:
    return COLUMNS


def notes(config: Config, everything: Sequence[Tested], pairs: Pairs) -> tuple[str, ...]:
    """Below the table."""
    lines: list[str] = []
    periods: list[str] = []
    roots = ", ".join(name for name in config.task.series if config.reading(name).scale == "roots")
    scaled = f"Of {roots} networks forecast roots, 2 (√(1 + y) - 1), and the others what validation prefers. "
    steps = ", ".join(f"{steps} ({model})" for of in everything for model, steps in of.steps.items())
    for of in everything:
        series, kind = of.series, of.series.kind
        first, last = (series.year(step) for step in (series.ends[1], series.ends[2] - 1))
        missing = int(np.isnan(of.values).sum())
        periods.append(
            f"{series.name}: {kind.horizon} {kind.step}s ahead from {len(of.period.origins)} origins, test "
            f"{first:.0f} to {last:.0f}, validation from {series.year(series.ends[0]):.0f}; seasonal period "
            f"{kind.season} {kind.step}s" + (f"; {missing} of {len(of.values):,} values are missing" if missing else "")
        )
    for model, beside in pairs.items():
        each = "; ".join(
            f"{other.partition(', ')[2]} {d:+.3f} ({a:+.3f} … {b:+.3f})" for other, (d, a, b) in beside.items()
        )
        lines.append(f"{model}, less {each}.")
    return (
        f"Networks: {report.spread(config.train.seeds)}. Validation: learned from the training period, after as many "
        f"steps as had the lowest mean of the seeds, asked every {config.train.block}. Test: after as many steps, "
        f"{steps}, on all before the test period, to which the others are fitted too, ARIMA's orders and ETS' form "
        f"chosen on the validation period. {scaled if roots else ''}MASE: the mean absolute error of the medians over "
        f"the mean |y_t - y_(t-m)| of all before the period, m the seasonal period; widths in the same unit. "
        f"{'. '.join(periods)}. Each test period was read once, at the end. Seconds: all seeds or all candidates "
        f"together, compilation and test included.",
        f"Differences of test MASE at the same origins, the mean of the seeds, with 95 % intervals of a circular "
        f"bootstrap in blocks of a horizon (below 0 the network is better): {' '.join(lines)}",
    )


def errors_by_step(of: Tested) -> Groups:
    """MASE of each part of the horizon."""
    H = of.series.kind.horizon
    ends = np.unique(np.linspace(0, H, 5).round().astype(int))

    def parts(each: Forecasts) -> tuple[float, ...]:
        steps = scores.by_step(each, of.period.actual, of.period.scale)
        return tuple(float(steps[a:b].mean()) for a, b in itertools.pairwise(ends))

    return Groups(
        title=f"{of.series.name}: MASE by {of.series.kind.step}s ahead",
        axis="model",
        groups=tuple(f"{a + 1} to {b}" for a, b in itertools.pairwise(ends)),
        by_model={model.partition(", ")[2]: tuple(map(parts, each)) for model, each in of.forecasts.items()},
        form=".3f",
    )


def drawn_from(of: Tested) -> drawing.Fan:
    """The first seed's forecasts, end to end."""
    apart = [0]
    for n, origin in enumerate(of.period.origins):
        if origin >= of.period.origins[apart[-1]] + of.series.kind.horizon:
            apart.append(n)
    model = next(iter(of.forecasts))
    first, made = of.series.ends[1] - 2 * of.series.kind.horizon, of.forecasts[model][0]
    years = np.array([of.series.year(step) for step in range(len(of.values))])
    ahead = of.period.origins[apart, None] + np.arange(1, of.series.kind.horizon + 1)
    return drawing.Fan(model, years[first:], of.values[first:], years[ahead], made.at(apart))


def curves(results: Sequence[report.Result]) -> Figure:
    panels = {"Validation MASE": lambda values: values["validation_mase"]}
    return report.curves(results, panels, title="Forecasts", yscale="linear")


def predictor(config: Config, model: str) -> study.Predictor:
    """What is read (T, N, I), NaN where a step is masked -> mean and sd of the next value, (N, 2)."""
    name, _ = models(config)[model]
    series, layer, T = config.series(name), network(config, model), config.reading(name).window
    frame, steps = read(config, name, series.known, series.train)

    def examples():
        origins = on_validation(config, name, series.train)[1].origins
        at = origins - np.arange(T - 1, -1, -1)[:, None]  # (T, N)
        xs = np.where(steps.mask[at][..., None], steps.xs[at], np.nan)
        return xs.astype(np.float32), steps.targets[origins, 0] * frame.scale

    def answer(params, xs):
        mask = ~jnp.isnan(xs).any(-1)
        mean, sd = said(layer, params, jnp.where(mask[..., None], xs, 0), mask)
        return frame.scale * jnp.stack([mean[-1, :, 0], sd[-1, :, 0]], axis=-1)

    base = "the mean of its season" if series.kind.phases else "the value a season before, and the mean growth"
    if linear := config.reading(name).linear:
        base = f"the linear forecast from {linear} values"
    if config.scale(name).title:
        base += f", in {config.scale(name).title}"

    def say(answer, truth):
        came = "" if truth is None else f"; it came to {truth:+.2f}"
        return f"the next {series.kind.step} {answer[0]:+.2f} ± {answer[1]:.2f} beside {base}{came}"

    return study.Predictor(examples, answer, say)


STUDY = study.Study(lambda config: list(models(config)), task, settings, columns, conclude, predictor)
