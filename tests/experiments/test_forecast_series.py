"""The forecasts: what a network reads and says, masked steps, the seasonal naive forecast and the scores by hand."""

import importlib.util
import json

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LinearRegression

from experiments import forecast
from experiments.data import splits
from experiments.data.records import DataError
from experiments.forecast import classical, data, scores
from experiments.forecast.data import KINDS, SCALES, Kind
from experiments.forecast.scores import Forecasts
from experiments.reports import samples
from experiments.runner.command import main
from tests.cases import randomised
from tests.documents import ROOT
from tests.experiments import tiny

WEEKS = Kind("week", 3, 2, 0, 2000, 52)  # a season of three weeks, two ahead, with a trend
MONTHS = Kind("month", 3, 2, 3, 2000, 12)
SMALL = ["train.steps=4", "train.log_every=2", "train.seeds=[5,3]", "train.batch_size=2", "model.hidden_size=3"]
SMALL += [f"task.{name}.{setting}" for name in KINDS for setting in ("window=60", "stride=20")]
SMALL_ON_PACKAGE = [*SMALL, "task.series=['sunspots','co2']"]


def statsmodels_with_data_alone(folder):
    """A package of that name with the three files, short ones, and nothing else."""
    rng = np.random.default_rng(0)
    lines = {
        "sunspots": ['"YEAR","SUNACTIVITY"', *(f"{1700 + n},{abs(rng.normal()):.2f}" for n in range(150))],
        "co2": ["date,co2", *(f"{n},{'' if n % 41 == 7 else f'{300 + 0.03 * n:.2f}'}" for n in range(600))],
        "elnino": [
            "YEAR,JAN",
            *(f"{1950 + n},{','.join(f'{20 + a:.2f}' for a in rng.normal(size=12))}" for n in range(20)),
        ],
    }
    for name, rows in lines.items():
        place = folder / "statsmodels" / "datasets" / name
        place.mkdir(parents=True)
        (place / f"{name}.csv").write_text("\n".join(rows) + "\n")
    (folder / "statsmodels" / "__init__.py").write_text("raise ImportError('only found')")


@pytest.fixture
def statsmodels(tmp_path, monkeypatch):
    statsmodels_with_data_alone(tmp_path)
    found = importlib.util.spec_from_file_location(
        "statsmodels", tmp_path / "statsmodels/__init__.py", submodule_search_locations=[str(tmp_path / "statsmodels")]
    )
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "statsmodels" else real(name))


def config(**task):
    task = {name: {"lags": 1, "window": 60, "stride": 20} for name in KINDS} | task
    train = {"steps": 2, "log_every": 1, "batch_size": 2}
    return forecast.Config.model_validate(
        {"experiment": "forecast", "train": train, "task": task, "model": {"hidden_size": 3}}
    )


def series(seed=0, length=24):
    values = np.random.default_rng(seed).normal(size=length).cumsum() + 5
    values[[4, 11]] = np.nan
    return values


@pytest.mark.parametrize("kind", [WEEKS, MONTHS])
@pytest.mark.parametrize("lags", [1, 2])
def test_what_is_read_knows_nothing_of_what_comes_and_fills_nothing_in(kind, lags):
    values = series()
    to = data.frame(values[:16], kind)
    steps = data.steps_of(values, kind, to, lags)
    base = np.array([to.base(values[: t + 1], kind.horizon)[t + 1 :] for t in range(len(values))])
    np.testing.assert_allclose(steps.base, base, rtol=1e-6)  # float32
    ahead = np.stack([np.concatenate([values[t + 1 : t + 3], [np.nan] * 2])[:2] for t in range(len(values))])
    np.testing.assert_array_equal(steps.there, np.isfinite(ahead) & np.isfinite(base))
    made = np.where(steps.there, steps.base + to.scale * steps.targets, 0)
    np.testing.assert_allclose(made, np.where(steps.there, ahead, 0), rtol=1e-5)
    for t in (8, 12, 16):
        other = np.concatenate([values[: t + 1], 100 + values[t + 1 :]])
        again = data.steps_of(other, kind, to, lags)
        for a, b in zip(steps[:3], again[:3], strict=True):
            np.testing.assert_array_equal(a[: t + 1], b[: t + 1])
    before = values if kind is MONTHS else values[3:] - values[:-3]  # what must be known at a step
    known = np.isfinite(before if kind is MONTHS else np.concatenate([[np.nan] * 3, before]))
    each = [known[t - lags + 1 : t + 1].all() if t >= lags - 1 else False for t in range(len(values))]
    np.testing.assert_array_equal(steps.mask, each)
    assert not steps.xs[~steps.mask].any()


def test_numbers_are_taken_off_the_training_period_s_means_or_the_season_before():
    values = np.array([1.0, 5, 9, 3, 7, 11, 2, 6, 10])
    to = data.frame(values, MONTHS)
    assert to.means.tolist() == [2, 6, 10] and to.scale == pytest.approx(np.sqrt(6 * 1 / 9))
    assert to.base(values, 2)[-2:].tolist() == [2, 6]
    to = data.frame(values, WEEKS)
    assert to.growth == pytest.approx(np.mean([2, 2, 2, -1, -1, -1])) and to.scale == pytest.approx(1.5)
    assert to.base(values, 2)[-2:].tolist() == [2.5, 6.5] and np.isnan(to.base(values, 2)[:3]).all()


@pytest.mark.parametrize("kind", [WEEKS, MONTHS])
def test_a_linear_forecast_is_fitted_by_least_squares_where_all_is_known(kind):
    values, end, H = series(length=60), 40, kind.horizon
    to, plain = data.frame(values[:end], kind, linear=2), data.frame(values[:end], kind)
    z = (values - plain.base(values, 0)) / plain.scale
    left = []
    for h in range(1, H + 1):
        known = [t for t in range(1, end - h) if np.isfinite(z[[t, t - 1, t + h]]).all()]
        read, came = np.stack([z[known], z[np.array(known) - 1]], axis=1), z[np.array(known) + h]
        fitted = LinearRegression(fit_intercept=False).fit(read, came)
        np.testing.assert_allclose(to.linear[:, h - 1], fitted.coef_, rtol=1e-9)
        left.append(came - fitted.predict(read))
    steps = data.steps_of(values, kind, to, 1)
    assert steps.xs.shape[0] == 60 and not steps.mask[12]  # the step before is missing
    expected = plain.base(values[:51], H)[51:] + plain.scale * z[[50, 49]] @ to.linear
    np.testing.assert_allclose(steps.base[50], expected, rtol=1e-6)  # float32
    np.testing.assert_allclose(steps.base[50] + to.scale * steps.targets[50], values[51 : 51 + H], rtol=1e-5)
    alone = classical.fit(classical.Linear(2), SCALES["values"], values[:end], kind)
    mean, sd = alone.forecast(values, 50)
    np.testing.assert_array_equal(mean, steps.base[50])
    np.testing.assert_allclose(sd, [plain.scale * np.sqrt(np.mean(of**2)) for of in left], rtol=1e-5)
    assert alone.parameters == 2 * H and classical.title(classical.Linear(2), SCALES["roots"], 3) == "linear(2), roots"


def test_a_masked_step_is_as_if_it_were_not_there(statsmodels):
    """The network on a series with gaps, beside the same network on what is left of it."""
    of = config()
    layer = forecast.network(of, "co2, gru")
    params = randomised(layer.init(jax.random.key(0)), 1)
    xs = np.random.default_rng(0).normal(size=(6, 1, 3)).astype("float32")
    mask = np.array([True, True, False, True, False, True])[:, None]
    there = np.flatnonzero(mask[:, 0])
    alone = np.concatenate([xs[there], np.zeros((2, 1, 3), "float32")])  # as long, so that it is compiled once
    run = jax.jit(lambda xs, mask: forecast.said(layer, params, xs, mask))
    with_gaps, without = (run(a, m) for a, m in ((xs, mask), (alone, np.arange(6)[:, None] < len(there))))
    for a, b in zip(with_gaps, without, strict=True):
        np.testing.assert_allclose(a[there], b[: len(there)], rtol=1e-5, atol=1e-6)  # float32
    assert with_gaps[0].shape == (6, 1, 52) and (np.asarray(with_gaps[1]) > 0).all()


def test_the_seasonal_naive_forecast_goes_back_to_what_is_known():
    values = np.array([1.0, 2, 3, 5, np.nan, 6, 9])
    fitted = classical.fit("naive", SCALES["values"], values, WEEKS)
    mean, sd = fitted.forecast(np.append(values, 100), 6)
    assert mean.tolist() == [2, 6]  # the value three weeks before is missing: that of six weeks before
    one = np.sqrt(np.mean([4**2, 3**2, 4**2]))
    np.testing.assert_allclose(sd, [one * np.sqrt(2), one])
    assert fitted.parameters == 0


def test_forecasts_are_scored_by_hand():
    forecasts = Forecasts(np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 1], [2, 0.5]]))
    actual = np.array([[2.0, np.nan], [3, 5]])
    assert scores.mase_scale(np.array([1.0, 2, 4, np.nan, 5]), 2) == pytest.approx((3 + 1) / 2)
    assert scores.by_origin(forecasts, actual, 2.0).tolist() == [0.5, 0.25]
    assert scores.by_step(forecasts, actual, 2.0).tolist() == [0.25, 0.5]
    of = scores.measures(forecasts, actual, 2.0)
    assert of["mase"] == 0.375 and of["covered_80"] == pytest.approx(2 / 3)  # z = 1, 0 and 2, where 1.28 is the end
    assert of["covered_95"] == pytest.approx(2 / 3)  # 2 > 1.96
    assert of["width_80"] == pytest.approx(2 * 1.2815516 * (4.5 / 4) / 2)


def test_roots_go_back_to_the_quantiles_of_the_values():
    """Beside draws of the Gaussian, each taken back by itself."""
    roots = SCALES["roots"]
    values = np.array([0, 0.5, 3, 120.0])
    np.testing.assert_allclose(roots.of(values), 2 * (np.sqrt(1 + values) - 1))  # Ghaddar & Tong 1981
    np.testing.assert_allclose(roots.back(roots.of(values)), values, atol=1e-12)
    np.testing.assert_allclose(roots.back(jax.numpy.array([-3.0, 4])), [0, 8])
    forecasts = Forecasts(np.array([[1.0, 6]]), np.array([[2.0, 0.5]]), roots)
    drawn = np.random.default_rng(0).normal(forecasts.mean[0], forecasts.sd[0], (100_000, 2))
    drawn = (1 + np.maximum(drawn, 0) / 2) ** 2 - 1
    low, high = forecasts.interval(0.8)
    np.testing.assert_allclose(low[0], np.quantile(drawn, 0.1, axis=0), rtol=0.01)  # of 100,000
    np.testing.assert_allclose(high[0], np.quantile(drawn, 0.9, axis=0), rtol=0.01)
    np.testing.assert_allclose(forecasts.median[0], np.median(drawn, axis=0), rtol=0.01)
    assert low[0, 0] == 0 and scores.measures(forecasts, np.array([[0.0, 30]]), 2.0)["covered_95"] == 0.5
    assert scores.measures(forecasts, np.array([[0.0, 15]]), 2.0)["width_80"] == pytest.approx((high - low).mean() / 2)
    naive = [classical.fit("naive", of, values[:3], MONTHS._replace(season=1, horizon=1)) for of in SCALES.values()]
    for of in naive:
        made = classical.at_origins(of.forecast, values, np.array([2]), of.scale)
        np.testing.assert_allclose(made.median, [[3]])


def test_pairs_are_resampled_in_blocks():
    assert scores.paired(np.full(7, 0.25), 3) == (0.25, 0.25, 0.25)
    drawn = np.random.default_rng(1).normal(1, 2, 400)
    mean, low, high = scores.paired(drawn, 1)
    half = scipy.stats.norm.ppf(0.975) * drawn.std() / 20  # independent: the ordinary interval, 4,000 resamples
    np.testing.assert_allclose([mean, low, high], [drawn.mean(), drawn.mean() - half, drawn.mean() + half], atol=0.02)
    repeated = np.repeat(drawn[:40], 10)  # as origins that overlap: a tenth as many are independent
    _, low_1, high_1 = scores.paired(repeated, 1)
    _, low_10, high_10 = scores.paired(repeated, 10)
    assert high_10 - low_10 > 2 * (high_1 - low_1)


def test_periods_follow_each_other_and_the_test_is_read_once(statsmodels, monkeypatch):
    of = config()
    co2 = of.series("co2")
    assert co2.ends == (360, 480, 600) and len(co2.train) == 360 and len(co2.known) == 480
    assert np.isnan(co2.known[7]) and of.series("elnino").known.shape == (192,)
    with monkeypatch.context() as patch:
        patch.setattr(data.Series, "whole", None)  # whoever chooses cannot read it
        steps, validation = forecast.on_validation(of, "co2", co2.train)
        task = forecast.task(of, "co2, gru")
        again = forecast.task_from(of, "co2, gru", co2.known)  # what is refitted
    assert validation.origins[0] >= 359 and validation.origins[-1] + 52 < 480 and validation.actual.shape[1] == 52
    assert set(np.diff(validation.origins)) <= {20, 40} and steps.mask[validation.origins].all()
    for part in task.shared[:2]:
        assert len(part.xs) <= 480
    assert [len(each.shared[0].xs) for each in (task, again)] == [360, 480]
    frames = [forecast.read(of, "co2", co2.known, learned)[0] for learned in (co2.train, co2.known)]
    assert frames[0].growth != frames[1].growth and frames[0].scale != frames[1].scale
    assert not task.shared[0].there[-1].any() and len(co2.whole()) == 600
    with pytest.raises(splits.TestSplitError, match="handed to the final evaluation, once"):
        co2.whole()


@pytest.mark.parametrize("key", ["lags", "linear"])
def test_what_a_step_reads_fits_into_a_sequence(statsmodels, key):
    of = lambda values: config(elnino={"window": 60, "stride": 20, "lags": 1, key: values})
    of(59).read_data()
    with pytest.raises(DataError, match=rf"task\.elnino\.{key}: expected at most 59, within a sequence, got 60"):
        of(60).read_data()


def test_without_statsmodels_the_extra_is_named(tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "statsmodels" else real(name))
    options = tiny.options(*SMALL)
    assert main(["run", str(ROOT / "configs/forecast.toml"), "--out", str(tmp_path / "runs"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "task.series: statsmodels, whose series and models" in line and "jaxrnn[forecast]" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.full
def test_a_tiny_run_and_a_question(statsmodels, tmp_path, monkeypatch, capsys):
    naive = classical.fit
    monkeypatch.setattr(classical, "fit", lambda model, *of: naive("naive", *of))
    assert main(["run", str(ROOT / "configs/forecast.toml"), "--out", str(tmp_path), *tiny.options(*SMALL)]) == 0
    run = tmp_path / "forecast-001"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_reads"] == {"sunspots": 1, "co2": 1, "elnino": 1} and len(summary["models"]) == 3 * 5
    network, one, _, other, _ = summary["models"][5:10]
    assert (
        network["model"] == "co2, gru" and one["model"] == "co2, seasonal naive" and other["model"][:10] == "co2, ARIMA"
    )
    assert one["mase"] == other["mase"] and len(network["mase"]["each"]) == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    of_co2 = [line for line in lines if line["model"] == "co2, gru"]
    by_step = {step: [line["validation_mase"] for line in of_co2 if line["step"] == step] for step in (2, 4)}
    assert network["validation_mase"]["each"] == min(by_step.values(), key=np.mean)
    mean, *_ = summary["pairs"]["co2, gru"]["co2, seasonal naive"]
    assert mean == pytest.approx(network["mase"]["mean"] - one["mase"]["mean"], abs=1e-6)
    assert "seasonal period 11 years" in (run / "table.md").read_text()
    assert [part.title for part in samples.read(run)][1] == "co2: MASE by weeks ahead"
    capsys.readouterr()
    assert main(["predict", str(run), "--model", "co2, gru", "--count", "2"]) == 0
    assert "beside the linear forecast from 9 values; it came to" in capsys.readouterr().out


@pytest.mark.full
def test_arima_and_ets_forecast_what_their_equations_say():
    pytest.importorskip("statsmodels")
    kind = Kind("year", 3, 3, 1, 2000, 1)
    y = np.zeros(120)
    for t in range(1, 120):
        y[t] = 2 + 0.7 * (y[t - 1] - 2) + np.random.default_rng(t).normal()
    fitted = classical.fit(classical.Arima((1, 0, 0), trend="c"), SCALES["values"], y[:100], kind)
    mean, sd = fitted.forecast(y, 110)
    μ = mean[0] - (mean[0] - mean[1]) / (1 - (mean[1] - mean[2]) / (mean[0] - mean[1]))  # of a geometric approach
    φ = (mean[1] - mean[2]) / (mean[0] - mean[1])
    np.testing.assert_allclose(mean, μ + φ ** np.arange(1, 4) * (y[110] - μ), rtol=1e-6)
    np.testing.assert_allclose(sd / sd[0], np.sqrt(np.cumsum(φ ** (2 * np.arange(3)))), rtol=1e-6)
    fitted = classical.fit(classical.Ets(None, False, None), SCALES["values"], y[:100], kind)
    mean, sd = fitted.forecast(y, 110)
    assert np.ptp(mean) < 1e-9 and fitted.parameters == 1
    α = np.sqrt((sd[1] / sd[0]) ** 2 - 1)
    np.testing.assert_allclose(sd / sd[0], np.sqrt(1 + α**2 * np.arange(3)), rtol=1e-6)
