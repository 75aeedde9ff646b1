"""Runs in parallel over time beside scans: what is compared, a tiny run, the tables by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from experiments.benchmarks import over_time, over_time_report, parallel, report
from experiments.benchmarks.over_time import (
    CASES,
    CHUNKS,
    PARALLEL,
    PLAIN,
    PRODUCTS,
    SCAN,
    Agreement,
    Case,
    Curve,
    Settings,
)
from experiments.benchmarks.report import DASH
from experiments.benchmarks.suites import Row
from experiments.benchmarks.timing import Budget
from jaxrnn.parallel_over_time.convergence import ParallelRun

ONCE = Budget(seconds=0.0, least=2, most=2, turn=0.0)
TINY = Case("GRU-16", over_time.sized(jr.elman, 2), 0.3, steps=64, change=over_time.gain(0.5))
PAGE = "before\n<!-- parallel:begin, by the command -->\nold\n<!-- parallel:end -->\nafter\n"
SHAPE = (1, 65_536, 16, 16)


def test_the_cases_are_those_of_the_issue():
    found = {case.name: (case.limit, case.method, case.rows, case.steps) for case in CASES}
    long = (1, 65_536)
    assert {name: found[name] for name in ("GRU-16", "LSTM-64", "Elman-32, gain 0.9", "minGRU-64")} == {
        "GRU-16": (0.30, CHUNKS, *long),
        "LSTM-64": (0.55, CHUNKS, *long),
        "Elman-32, gain 0.9": (0.40, CHUNKS, *long),
        "minGRU-64": (0.5, "associative", *long),
    }
    for case in CASES:
        size = int(case.name.split("-")[1].split(",")[0])
        assert case.make(3).output_size == size and case.make(3).input_size == 3


def test_cells_that_are_changed():
    change = {case.name: case.change for case in CASES}
    chaotic = change["chaotic: Elman-24, gain 4"](jr.elman(3, 4).init(jax.random.key(0)))
    np.testing.assert_allclose(chaotic.W_hh @ chaotic.W_hh.T, 16 * np.eye(4), atol=1e-4)
    cell = jr.gru(3, 4)
    params = change["remembers: GRU-64"](cell.init(jax.random.key(0)))
    quiet = jr.gates(cell, params, jnp.zeros(4), jnp.zeros(3))
    np.testing.assert_allclose(quiet.z, 1e-3, rtol=1e-4)
    np.testing.assert_allclose(quiet.r, 0.5, rtol=1e-6)


def test_short_runs_take_the_scan_by_shapes_alone():
    short = [case for case in CASES if case.name.startswith(("auto, short", "auto, 32 rows"))]
    assert len(short) == 2
    for case in short:
        cell, params = over_time.model(case)
        (scan,) = jr.explain(jr.parallel(cell), params, jnp.zeros((case.steps, case.rows, 16))).scans
        assert scan.in_parallel is None and scan.not_in_parallel


def test_a_tiny_run(tmp_path, capsys, monkeypatch):
    (page := tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(over_time, "CURVES", [Curve("Elman-2", "T", TINY.make, "forward", (SCAN, CHUNKS))])
    settings = Settings((TINY._replace(devices=(1,)),), ("forward",), ONCE, lengths=(8,), batches=(), points=ONCE)
    went = {"chunks": "8 of 8 steps", "auto": "the scan"}
    monkeypatch.setattr(over_time, "how_it_went", lambda case: went)
    monkeypatch.setattr(parallel, "settings_of", lambda arguments: settings)
    monkeypatch.setattr(jr.devices, "use_cpu_devices", lambda n: None)
    assert parallel.main(["--out", str(tmp_path), "--write", str(page)]) == 0
    run = tmp_path / "parallel-001"
    rows = report.load(run)
    assert [(row.suite, row.contestant) for row in rows] == [
        *(("parallel", who) for who in (SCAN, PLAIN, PARALLEL, PRODUCTS)),
        *(("against T", who) for who in (SCAN, CHUNKS)),
    ]
    assert [row.note for row in rows] == [""] * 6
    assert all(len(row.seconds) == 2 and row.cores > 0 and row.temp_bytes is not None for row in rows)
    table, text = (run / "table.md").read_text(encoding="utf-8"), page.read_text(encoding="utf-8")
    assert text == PAGE.replace("old\n", table) and table in capsys.readouterr().out
    assert f"| GRU-16 | 8 of 8 steps | {DASH} | {DASH} | the scan |" in table
    assert (run / "figure.png").read_bytes() == (tmp_path / "page/figure.png").read_bytes()
    (run / "table.md").unlink()
    assert parallel.main(["--report", str(run)]) == 0 and (run / "table.md").read_text(encoding="utf-8") == table


def test_the_products_are_those_of_the_cell():
    """Of the equations: 3 gates of a GRU, I + H rows each; twice as many again in a training step."""
    params = jr.gru(3, 4).init(jax.random.key(0))
    for quantity, times in (("forward", 1), ("train", 3)):
        traced = over_time.products(quantity, params, 10)
        compiled = jax.jit(traced.function).lower(*traced.args).compile()
        assert compiled.cost_analysis()["flops"] == times * 2 * 10 * (3 + 4) * 3 * 4


def test_how_it_went():
    went = over_time.how_it_went(TINY._replace(method="scan"))
    assert went["auto"].startswith("the scan: ")
    run = ParallelRun("parallel(gru)", "forward", CHUNKS, 64, 8, 5, 1, (0.0,), 0)
    assert over_time.in_short(run) == "warm-up of 5 steps, 1 sweep"
    assert over_time.in_short(run._replace(fell_back=8, iterations=4)) == "step by step, after 4 sweeps"
    assert over_time.in_short(run._replace(fell_back=8, iterations=0)) == "step by step, after the probe"
    assert over_time.in_short(run._replace(method="newton", iterations=5)) == "5 iterations"


@pytest.mark.multidevice
def test_two_devices_share_time():
    (scan, _, one, two) = over_time.contestants_of(TINY, "train")
    ran = over_time.measured(TINY, "train", ONCE, [scan, two], "parallel")
    assert [(row.contestant, row.devices, row.note) for row in ran.rows] == [(SCAN, 1, ""), (PARALLEL, 2, "")]
    assert [one.devices, two.devices] == [1, 2]


def test_a_wrong_result_is_told(monkeypatch):
    wrong = over_time.Run("wrong", 1, lambda cell: jr.scan(cell, reverse=True))
    few = over_time.Run("many", 1 + jax.device_count(), jr.scan)
    scan = over_time.contestants_of(TINY, "forward")[0]
    rows = over_time.measured(TINY, "forward", ONCE, [scan, wrong, few], "parallel").rows
    assert rows[0].note == "" and rows[0].seconds
    assert rows[1].note.startswith("failed: ValueError: results of shape (64, 1, 2) are ") and not rows[1].seconds
    assert rows[1].note.endswith(" off those of the scan, of the largest")
    assert rows[2].note.startswith("not offered: ")


def test_chaotic_runs_agree_at_first_alone():
    ys = np.ones((60, 1, 2), np.float32)
    later, sooner = ys.copy(), ys.copy()
    later[50], sooner[30] = 2, 2
    agrees = Agreement(TINY._replace(chaotic=True))
    agrees(ys)
    agrees(later)
    with pytest.raises(ValueError, match=r"results of shape \(40, 1, 2\) are 1.0e\+00 off"):
        agrees(sooner)
    with pytest.raises(ValueError, match=r"results of shape \(60, 1, 2\)"):
        Agreement(TINY)(ys * np.nan)


# ---------------------------------------------------------------- tables


def row(who, seconds, cell="GRU-16", quantity="train", devices=1, suite="parallel", shape=SHAPE):
    return Row(suite, quantity, cell, shape, CHUNKS, devices, who, seconds, temp_bytes=2_000_000, cores=1.5)


ROWS = [
    row(SCAN, (0.1, 0.2, 0.1)),
    row(PLAIN, (0.4, 0.4, 0.4)),
    row(PARALLEL, (0.02, 0.05, 0.04)),
    row(PARALLEL, (0.01, 0.02, 0.01), devices=2),
    row(PRODUCTS, (0.05, 0.05)),
    row(SCAN, (0.1, 0.1), quantity="forward"),
    row(PARALLEL, (0.2, 0.2), quantity="forward"),
    row(SCAN, (0.1, 0.1), "LSTM-64"),
    row(PARALLEL, (0.06, 0.06), "LSTM-64"),
    row(PLAIN, (), "LSTM-64")._replace(note="failed: E: no"),
]


def test_targets():
    """Ratios of the same rounds: 0.2, 0.25 and 0.4, whose median is not the ratio of the medians."""
    one, two = over_time_report.targets(ROWS)[1:]
    assert one == ("GRU-16", CHUNKS, "≤ 0.3", "0.25 [0.20, 0.40]", "met", "0.10", "0.10", "2.00", DASH)
    assert two[2:5] == ("≤ 0.55", "0.60 [0.60, 0.60]", "**missed**") and set(two[5:]) == {DASH}


def test_times_memory_and_cores():
    text = "\n\n".join(over_time_report.paragraphs(ROWS, {"environment": MACHINE, "went": {"GRU-16": {"auto": "x"}}}))
    assert "| GRU-16, B = 1, T = 65,536 | 40 ± 15 | 10 ± 5 | 100 ± 50 | 400 ± 0 | 50 ± 0 |" in text
    assert "| GRU-16, B = 1, T = 65,536 | 2, 1.50 | 2, 1.50 | 2, 1.50 | 2, 1.50 | 2, 1.50 |" in text
    assert f"| GRU-16 | {DASH} | {DASH} | {DASH} | x |" in text and "Where the lines cross" not in text
    assert text.endswith("- failed: E: no: plain scan (LSTM-64, T = 65,536, train, devices: 1)")


MACHINE = {"date": "d", "cpu": "c", "cores": 2, "devices": "2 × cpu", "python": "3", "jaxrnn": "0"}
MACHINE |= dict.fromkeys(over_time_report.PACKAGES, "1")


def test_crossings():
    """Of lines whose ratio is T / 2,000: from slower to faster and back, and never."""
    crossing = over_time_report.crossing
    assert crossing([(1_000, 2.0), (4_000, 0.5)], "T") == "is faster from T ≈ 2,000 (0.50 times the time at T = 4,000)"
    assert crossing([(1, 0.5), (8, 2.0)], "B") == "is slower from B ≈ 3 (2.00 times the time at B = 8)"
    assert crossing([(1, 3.0), (8, 2.0)], "B") == "is slower everywhere (2.00 times the time at B = 8)"
    points = [row(who, (s,), suite="against T", shape=(1, n, 16, 16)) for who, n, s in POINTS]
    assert over_time_report.crossings(points)[0] == (
        "GRU-16, train: chunks is faster from T ≈ 2,000 (0.50 times the time at T = 4,000) than the scan"
    )
    assert over_time_report.curves(points)[1] == (
        "GRU-16, train",
        "T = 1,000",
        *("10 ± 0", DASH, "20 ± 0", DASH),
    )
    (axes,) = over_time_report.figure(points).axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[1_000, 10], [4_000, 40]],
        [[1_000, 20], [4_000, 20]],
    ]


POINTS = [(SCAN, 4_000, 0.04), (SCAN, 1_000, 0.01), (CHUNKS, 1_000, 0.02), (CHUNKS, 4_000, 0.02)]


def test_what_is_asked_wrongly_is_said(capsys):
    assert parallel.main(["--cases", "GRU-16; GRU-17"]) == 2
    assert capsys.readouterr().err.startswith("--cases: 'GRU-17' is none of GRU-16; LSTM-16; ")


def test_what_is_asked_for():
    ask = lambda *words: parallel.settings_of(parallel.parser().parse_args(words))
    assert ask() == Settings()
    asked = ask("--cases", "LSTM-64; GRU-16", "--quick", "--seconds", "0.1")
    assert [(case.name, case.steps) for case in asked.cases] == [("GRU-16", 4_096), ("LSTM-64", 4_096)]
    assert (asked.lengths, asked.batches, asked.budget.seconds) == ((1_000, 4_000), (1, 4), 0.1)
    assert ask("--no-curves").lengths == ask("--no-curves").batches == ()
