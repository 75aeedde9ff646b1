"""Plan "auto" beside "plain": the interval, a planted slow program, one that is the same, a tiny run, the tables."""

import math

import jax
import numpy as np
import pytest
import scipy.stats

import jaxrnn as jr
from experiments.benchmarks import auto, pairs, pairs_report
from experiments.benchmarks.pairs import CELLS, SHAPES, Found, Pair, Try
from experiments.benchmarks.programs import QUANTITIES
from experiments.benchmarks.timing import Budget

SHAPE = (4, 6, 3, 8)
TINY = Pair("elman", SHAPE, "forward", 1)
ONCE = Budget(seconds=0.0, least=9, most=9, turn=0.0)
PAGE = "before\n<!-- auto:begin, by the command -->\nold\n<!-- auto:end -->\nafter\n"


@pytest.fixture(autouse=True)
def caches(monkeypatch):
    """Those of other tests stay."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def plain_and(change):
    """In place of auto: what plan "plain" does, its outputs changed."""

    def model_of(pair, plan):
        model = pairs.model(pair, "plain")
        return model if plan == "plain" else model._replace(apply=change(model.apply))

    return model_of


# ---------------------------------------------------------------- what is compared


def test_the_problems_are_those_of_the_issue():
    assert len(set(SHAPES)) == 20 and len(CELLS) == 6
    every = list(pairs.pairs(list(CELLS), SHAPES))
    alone = sum(shape[0] == 1 for shape in SHAPES)
    assert len(every) == len(set(every)) == 6 * 2 * (20 + 20 - alone)
    assert {pair.devices for pair in every if pair.shape[0] == 1} == {1}
    assert {shape[0] for shape in SHAPES} >= {1, 2, 8, 32, 128, 512}
    assert {shape[3] for shape in SHAPES} >= {8, 16, 32, 64, 128, 256}


def test_the_cells_are_those_of_their_names():
    made = {name: kind.cell(pairs.problem_of(TINY._replace(cell=name))) for name, kind in CELLS.items()}
    assert made.pop("textbook").spec is None
    assert made == {
        "elman": jr.elman(3, 8),
        "lstm": jr.lstm(3, 8),
        "gru": jr.gru(3, 8, reset="before"),
        "gru after": jr.gru(3, 8, reset="after"),
        "peephole": jr.peephole_lstm(3, 8),
    }


def test_plain_is_plain_and_auto_is_not():
    pair = TINY._replace(cell="gru", quantity="train")
    traced = {plan: QUANTITIES["train"](pairs.problem_of(pair), pairs.model(pair, plan)) for plan in pairs.PLANS}
    jaxprs = {plan: str(jax.make_jaxpr(one.function)(*one.args)) for plan, one in traced.items()}
    layer = jr.scan(jr.gru(3, 8, reset="before"), plan="plain")
    by_hand = pairs.model(pair, "plain")._replace(apply=lambda params, xs, _: layer.apply(params, xs)[1])
    plain = QUANTITIES["train"](pairs.problem_of(pair), by_hand)
    assert jaxprs["plain"] == str(jax.make_jaxpr(plain.function)(*plain.args)) != jaxprs["auto"]


# ---------------------------------------------------------------- the interval


@pytest.mark.parametrize("n", [6, 9, 20, 41, 82])
def test_the_interval_is_that_of_scipy(n):
    ratios = np.random.default_rng(n).lognormal(size=n)
    found = pairs.compared(ratios, np.ones(n))
    interval = scipy.stats.quantile_test(ratios).confidence_interval(0.95)
    assert (found.low, found.high) == (interval.low, interval.high)
    assert (found.ratio, found.rounds) == (np.median(ratios), n)


def test_ratios_are_of_the_same_round():
    """A machine that is slower from the middle on: each round's ratio is 1.2."""
    plain = [1.0] * 5 + [9.0] * 5
    found = pairs.compared([1.2 * seconds for seconds in plain], plain)
    assert (found.low, found.ratio, found.high) == pytest.approx((1.2, 1.2, 1.2))


# ---------------------------------------------------------------- one pair


def test_a_slow_program_is_told():
    def slow(apply):
        return lambda params, xs, lengths: sum(apply(params, xs * n, lengths) for n in range(4))

    pair = TINY._replace(shape=(4, 100, 3, 8))
    found = pairs.measured(pair, ONCE._replace(turn=0.002), model_of=plain_and(slow))
    assert not found.note and not found.same
    assert [one.rounds for one in found.tries] == [9, 18, 36]
    assert found.best.low > 1.5 and found.time == found.best.low
    assert min(found.compile_seconds) > 0 and min(min(both) for both in found.seconds) > 0


def test_what_looks_bad_once_is_measured_again(monkeypatch):
    asked = []

    def interleaved(calls, budget, seed):
        asked.append((budget.least, seed))
        assert set(calls) == {"auto", "plain"}
        return {"auto": [1.2 if seed == 0 else 1.01] * 9, "plain": [1.0] * 9}

    monkeypatch.setattr(pairs, "interleaved", interleaved)
    found = pairs.measured(TINY, ONCE, model_of=plain_and(lambda apply: lambda *args: 2 * apply(*args)))
    assert asked == [(9, 0), (18, 1)]
    assert [one.low for one in found.tries] == [1.2, 1.01] and found.time == 1.01


def test_the_same_program_is_told_and_not_timed(monkeypatch):
    monkeypatch.setattr(pairs, "interleaved", None)
    found = pairs.measured(TINY._replace(devices=2), ONCE, model_of=plain_and(lambda apply: apply))
    assert (found.same, found.tries, found.time, found.temporaries) == ("lowered", (), 1.0, 1.0)
    twice = plain_and(lambda apply: lambda *args: apply(*args).swapaxes(0, 1).swapaxes(0, 1))
    assert pairs.measured(TINY, ONCE, model_of=twice).same == "optimised"


def test_a_pair_that_fails_is_noted():
    found = pairs.measured(TINY, ONCE, model_of=plain_and(lambda apply: lambda *args: 0 * apply(*args)))
    assert found.note == "failed: ValueError: outputs (6, 4, 8) are wrong in shape, not finite, or all 0"
    assert found.time is None and pairs_report.line(found) == f"{TINY.name}: {found.note}"


def test_instructions_are_compared_without_names_and_places():
    text = """HloModule jit_f

FileNames
1 "f.py"

%{0}.1 ({0}_0.4: f32[2], b: (f32[], s32[])) -> f32[2] {{
  %{0}_0.4 = f32[2]{{0}} parameter(0)
  ROOT %r{0} = f32[2]{{0}} add(%{0}_0.4, %{0}_0.4), metadata={{op_name="{0} \\"}}" stack_frame_id=3}}
}}
"""
    bare = pairs.instructions(text.format("x"))
    assert bare == pairs.instructions(text.format("y").replace('1 "f.py"', '1 "g.py"\n2 "h.py"'))
    assert "%0 (f32[2], (f32[], s32[])) -> f32[2] {" in bare and "ROOT %2 = f32[2]{0} add(%1, %1)\n" in bare
    assert bare != pairs.instructions(text.format("x").replace("add(", "multiply("))


# ---------------------------------------------------------------- a run


def test_a_tiny_run(tmp_path, capsys):
    (page := tmp_path / "page.md").write_text(PAGE)
    words = ["--cells", "elman", "--shapes", "1,4,3,4", "--seconds", "0.001", "--out", str(tmp_path)]
    assert auto.main([*words, "--write", str(page)]) == 0
    run = tmp_path / "auto-001"
    found, summary = pairs_report.load(run)
    assert [one.pair for one in found] == list(pairs.pairs(["elman"], [(1, 4, 3, 4)]))
    assert [one.note for one in found] == ["", ""] and summary["asked"] == 2
    assert all(one.same or len(one.tries[0]) == 4 for one in found)
    out, table = capsys.readouterr().out, (run / "table.md").read_text()
    assert "A batch of 1 cannot be split" in out and "elman 1,4,3,4 train, 1 device: " in out
    assert table.startswith("As run on ") and "| 1,4,3,4 | " in table and table in out
    assert page.read_text() == PAGE.replace("old\n", table)
    (run / "table.md").unlink()
    assert auto.main(["--report", str(run)]) == 0 and (run / "table.md").read_text() == table


def test_what_the_time_does_not_reach_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "measured", lambda pair, budget, tries=3: Found(pair, same="lowered"))
    asked = list(pairs.pairs(["elman", "lstm"], [SHAPE]))
    run = auto.run(asked, -1.0, ONCE, tmp_path)
    assert "- 8 more were **not reached** in the time given" in (run / "table.md").read_text()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--cells", "elman,lsmt"], f"--cells: 'lsmt' is none of {', '.join(CELLS)}"),
        (["--shapes", "1,2,3"], "--shapes: expected B,T,I,H such as 32,128,128,128, got '1,2,3'"),
    ],
)
def test_wrong_options_are_named(options, message, capsys):
    assert auto.main(options) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- tables


def one(cell, quantity="train", shape=SHAPE, devices=1, **more):
    tries = more.pop("tries", ())
    more = {"temp_bytes": (100, 100), "compile_seconds": (0.5, 0.5)} | more
    return Found(Pair(cell, shape, quantity, devices), tries=tries, seconds=((0.002, 0.001),) * len(tries), **more)


FOUND = [
    one("elman", same="lowered", temp_bytes=(0, 0)),
    one("lstm", tries=(Try(1.3, 1.2, 1.4, 9), Try(1.2, 1.1, 1.3, 18), Try(1.3, 1.15, 1.4, 36))),
    one("gru", tries=(Try(0.5, 0.4, 0.6, 9),), temp_bytes=(8, 0), compile_seconds=(0.7, 0.5)),
    one("elman", "forward", same="optimised", temp_bytes=(200_000, 100_000)),
    one("lstm", "forward", devices=2, tries=(Try(1.1, 1.07, 1.2, 9), Try(1.06, 1.03, 1.1, 18))),
    Found(Pair("gru", SHAPE, "forward", 1), note="failed: ValueError: no"),
]


def test_tables():
    text = "\n\n".join(pairs_report.counts(FOUND, 0))
    assert "6 programs: 2 are the same under both plans (1 as lowered, 1 as compiled), 3 were timed, 2 of them" in text
    assert text.count("in every try") == 1 and "of 1 is above 1.05 in every try, but not its lower bound: lstm" in text
    assert "lstm 4,6,3,8 forward, 2 devices 1.06 [1.03, 1.10]." in text
    assert "- gru 4,6,3,8 forward, 1 device: failed: ValueError: no" in text
    assert pairs_report.targets(FOUND)[1:] == [
        ("time, lower bound", "1.05", "1.00", "1.10", "1 of 5", "**missed**"),
        ("temporaries", "1.1", "1.00", "∞", "2 of 5", "**missed**"),
        ("temporaries, but for 64 KiB", "1.1", "1.00", "2.00", "1 of 5", "**missed**"),
        ("compile time", "1.3", "1.00", "1.40", "1 of 5", "**missed**"),
    ]
    assert {line[-1] for line in pairs_report.targets(FOUND[:1])[1:]} == {"met"}
    assert {line[-1] for line in pairs_report.targets([])[1:]} == {"not measured"}
    times, memory, compiling = (lines for _, lines in pairs_report.worst(FOUND))
    assert times[1] == ("lstm 4,6,3,8 train, 1 device", "2 / 1", "1.20 [1.10, 1.30]", "1.30 (9), 1.20 (18), 1.30 (36)")
    assert memory[1:3] == [
        ("gru 4,6,3,8 train, 1 device", "8 / 0", "∞"),
        ("elman 4,6,3,8 forward, 1 device", "200,000 / 100,000", "2.00"),
    ]
    assert compiling[1] == ("gru 4,6,3,8 train, 1 device", "700 / 500", "1.40")
    assert pairs_report.grid(FOUND[:3]) == [
        ("B, T, I, H", "elman", "lstm", "gru"),
        ("4,6,3,8", "=", "**1.20**", "0.50"),
    ]
    assert pairs_report.line(FOUND[0]) == (
        "elman 4,6,3,8 train, 1 device: the same program, as lowered; temporaries 1.00, compile 1.00"
    )
    assert pairs_report.line(FOUND[2]) == (
        "gru 4,6,3,8 train, 1 device: 2 / 1 ms, 0.50 [0.40, 0.60]; temporaries ∞, compile 1.40  ABOVE"
    )


def test_rows_survive_their_file(tmp_path):
    for row in FOUND:
        pairs_report.append(tmp_path, row)
    pairs_report.keep(tmp_path, {"asked": 7})
    assert pairs_report.load(tmp_path) == (FOUND, {"asked": 7})
    assert pairs_report.load(tmp_path)[0][2].temporaries == math.inf
