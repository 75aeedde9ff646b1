"""A measure of several seeds: one text for it everywhere, its interval, models paired by seed."""

import numpy as np
import pytest
import scipy.stats

from experiments import measured
from experiments.reports import pairs, tables
from experiments.runner import report
from jaxrnn.training import BlockResult

# 100 times the mean is 99.95 and a little; the mean of 100 times each is 99.95 and a little less.
EVEN = np.array([0.9995, 0.9995, 0.9995], np.float32)


def result(model, values, seeds=(5, 3, 8)):
    block = BlockResult(10, {"loss": np.ones(len(seeds)), "test_accuracy": np.asarray(values, np.float32)}, {})
    return report.Result(model, tuple(seeds), 7, [block], 1.0)


@pytest.mark.parametrize(
    ("values", "form"),
    [([0.99, 0.98, 0.985], "%"), (EVEN, "%"), ([1e-3, 3e-3], ".1e"), ([0.25], ".3f"), ([1, 0, 1], "of")],
)
def test_markdown_and_report_say_the_same(values, form):
    values = np.asarray(values, np.float32)
    text = report.Column("a", "a", form).shown(values)
    assert tables._measured(tables.of_seeds({"each": values.tolist()}), form).text == text
    if form == "%":
        mean, sd = 100 * values.astype(float).mean(), 100 * values.astype(float).std(ddof=1)
        assert text == f"{mean:.1f} ± {sd:.1f} %"


def test_differences_are_paired_by_seed():
    a, b = {1: 0.5, 2: 0.75, 3: 0.625}, {3: 0.5, 1: 0.25, 2: 0.625, 9: 0.0}
    one = measured.difference("a", "b", a, b)
    pairs_of_seeds = np.array([0.25, 0.125, 0.125])
    expected = scipy.stats.ttest_1samp(pairs_of_seeds, 0).confidence_interval(0.95)
    assert (one.first, one.second, one.seeds) == ("a", "b", 3) and one.mean == pytest.approx(1 / 6)
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high))
    assert measured.difference("a", "b", {1: 0.5}, b) is None  # one seed says nothing of the spread
    assert measured.difference("a", "b", {**a, 2: np.nan}, b) is None


def test_all_pairs_of_a_few_models_and_each_beside_the_first_of_many():
    rng = np.random.default_rng(0)
    models = {name: dict(enumerate(rng.random(3))) for name in "abcde"}
    few = {name: models[name] for name in "abc"}
    assert [(d.first, d.second) for d in measured.differences(few)] == [("b", "a"), ("c", "a"), ("c", "b")]
    assert [(d.first, d.second) for d in measured.differences(models)] == [(name, "a") for name in "bcde"]
    apart = dict(zip("abcde", "xyxyy", strict=True))  # of models on other data none
    found = [(d.first, d.second) for d in measured.differences(models, apart)]
    assert found == [("c", "a"), ("d", "b"), ("e", "b"), ("e", "d")]


def test_the_main_measure_is_that_on_test_data_and_not_on_training_data():
    assert measured.main_measure(["train_accuracy", "validation_accuracy", "test_accuracy"]) == "test_accuracy"
    assert measured.main_measure(["train_accuracy", "error"]) == "error"
    assert measured.main_measure(["train_accuracy"]) == "train_accuracy"


def test_the_line_below_a_table():
    columns = [
        report.Column("train accuracy", "train_accuracy", "%"),
        report.Column("test accuracy", "test_accuracy", "%"),
    ]
    results = [result("gru", [0.5, 0.75, 0.625]), result("lstm", [0.75, 0.875, 0.75])]
    (line,) = report.paired(results, columns)
    low, high = 100 / 6 - 17.93, 100 / 6 + 17.93  # t = 4.3027, s = 0.0722 / √3
    assert line == (
        "Paired differences in test accuracy, in percentage points, of the same seeds, with 95 % intervals of the mean "
        f"(Student's t): lstm less gru +16.7 [{low:+.1f}, {high:+.1f}]."
    )
    assert report.paired(results[:1], columns) == []
    assert report.paired([one._replace(data=one.model) for one in results], columns) == []
    assert report.paired([result("a", [1], [0]), result("b", [0], [0])], columns) == []
    assert report.paired(results, [report.Column("solved", "test_accuracy", "of")]) == []


def test_a_difference_whose_interval_leaves_out_0_is_set_apart():
    columns = [{"name": "e", "title": "error", "form": ".2f"}]
    near, far = (measured.Difference("b", "a", 3, *three) for three in ((0.1, -0.1, 0.3), (-0.5, -0.6, -0.4)))
    (first,), (second,), (none,) = (pairs._cells([one], columns) for one in (near, far, None))
    assert (first.text, first.below, first.is_bold) == ("+0.10", "[-0.10, +0.30]", False)
    assert (second.text, second.below, second.is_bold) == ("-0.50", "[-0.60, -0.40]", True) and none.text == "–"
