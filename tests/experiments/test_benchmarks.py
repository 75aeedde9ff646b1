"""The benchmark at tiny shapes, from the command line to the files; ratios and verdicts on made-up figures."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import ours, report, suites, targets
from experiments.benchmarks.__main__ import main
from experiments.benchmarks.contestants import BY_NAME
from experiments.benchmarks.every_suite import measurements
from experiments.benchmarks.measuring import measure
from experiments.benchmarks.problems import NotOffered, Problem, check_train, check_weights, data
from experiments.benchmarks.programs import Model, Program, compiled, forward, train
from experiments.benchmarks.suites import Entry, Group, Loops, Row, Settings
from experiments.benchmarks.timing import Budget, interleaved
from jaxrnn.commands.other_work import OtherWork

SHAPE = (4, 6, 3, 8)
TINY = Problem("lstm", *SHAPE)


def row(contestant, seconds, devices=1, cell="lstm", shape=SHAPE, suite="cells", quantity="train", **more):
    times = () if seconds is None else (seconds * 0.9, seconds, seconds * 1.2)
    return Row(suite, quantity, cell, shape, more.pop("variant", ""), devices, contestant, times, **more)


def verdict(rows, start):
    (found,) = [line for line in targets.verdicts(rows) if line.target.startswith(start)]
    return found


# ---------------------------------------------------------------- the whole way


def test_a_tiny_run_leaves_files_that_agree(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "haiku", None)  # as if it were not installed
    words = ["--only", "elman,train,cells", "--shapes", "4,6,3,8", "1,6,3,8", "--seconds", "0.01"]
    names = "jaxrnn,jaxrnn plain,haiku,floor"
    assert main([*words, "--contestants", names, "--out", str(tmp_path)]) == 0

    run = tmp_path / "benchmarks-001"
    assert {path.name for path in run.iterdir()} == {"rows.jsonl", "summary.json", "table.md", "figure.png"}
    rows = report.load(run)
    here = [(row.shape[0], row.contestant, row.devices) for row in rows if row.seconds]
    one = [(4, name, 1) for name in ("jaxrnn", "jaxrnn plain", "floor")]
    alone = [(1, *rest) for _, *rest in one]  # a batch of one cannot be split
    assert here == [*one, *((B, name, 2) for B, name, _ in one), *alone]
    assert {row.note for row in rows if not row.seconds} == {
        "not offered: a batch of 1 cannot be split over 2 devices",
    }
    assert all(min(row.seconds) > 0 and row.compile_seconds > 0 for row in rows if row.seconds)

    summary = json.loads((run / "summary.json").read_text())
    median = {(row.shape[0], row.contestant, row.devices): row.median for row in rows}
    (line,) = [line for line in summary["targets"] if line["target"].startswith('plan "auto"')]
    places = ((4, 1), (4, 2), (1, 1))
    ratios = [median[B, "jaxrnn", devices] / median[B, "jaxrnn plain", devices] for B, devices in places]
    assert line["value"] == pytest.approx(max(ratios))
    assert summary["environment"]["jax"] == jax.__version__ and summary["environment"]["cores"] >= 1

    out = capsys.readouterr().out
    table = (run / "table.md").read_text()
    assert "haiku is not installed: left out" in out and f"written to {run}" in out and "\x1b" not in out
    assert "| elman 4,6,3,8 | " in table and "a batch of 1 cannot be split over 2 devices" in table
    assert (run / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    (run / "table.md").unlink()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmarks:begin, by make bench -->\nold\n<!-- benchmarks:end -->\nafter\n")
    assert main(["--report", str(run), "--write", str(page)]) == 0
    assert (run / "table.md").read_text() == table
    assert page.read_text() == (
        f"before\n<!-- benchmarks:begin, by make bench -->\n{table}<!-- benchmarks:end -->\nafter\n"
    )


def test_a_page_without_markers_is_said_before_anything_is_measured(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    assert main(["--quick", "--out", str(tmp_path / "runs"), "--write", str(page)]) == 2
    assert "--write: " in (said := capsys.readouterr().err) and f"{page}: expected the lines <!-- benchmarks:" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.full
def test_every_suite_runs(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # those of other tests
    settings = Settings(
        cells=("lstm",),
        suites=("ragged", "ensemble", "step", "length", "memory", "compile", "closed_loop"),
        ragged=(("lstm", SHAPE),),
        contestants=("jaxrnn", "jaxrnn packed", "jaxrnn stream"),
        budget=Budget(0.001, 1, 1, turn=0.001),
        members=2,
        ensemble_shape=SHAPE,
        step_sizes=(4,),
        lengths=(9,),
        length_sizes=((1, 4),),
        memory_shape=SHAPE,
        compile_shape=SHAPE,
        compile_lengths=(),
        loops=Loops(9, 3, 4, steps=5, batches=(2,), width=2, searched=(1,), layer_normed=(SHAPE,)),
    )
    rows = [row for measured in measurements(settings) for row in measured.rows]
    assert {row.suite for row in rows} == set(settings.suites)
    assert [row for row in rows if row.note.startswith("failed")] == []
    assert all(row.seconds for row in rows if not row.note)
    stepped = {(row.variant, row.contestant) for row in rows if row.suite == "step"}
    assert stepped >= {("", "jaxrnn"), ("", "jaxrnn stream"), ("readout", "jaxrnn"), ("readout", "jaxrnn stream")}
    titles = [title for title, _ in report.tables(rows)]
    assert "One step at B = 1, µs" in titles and "Compile time of a training step, ms" in titles
    lines = dict(report.tables(rows))["Closed loops, and layer normalisation in training, ms"][1:]
    assert [line[0] for line in lines] == [
        *("generate greedy lstm 2,5,3,4", "generate temperature lstm 2,5,3,4", "beam search lstm 1,5,3,4"),
        *("layer norm ba2016 lstm 4,6,3,8", "layer norm per_gate lstm 4,6,3,8"),
    ]
    met = {line.target: line.ratios for line in targets.verdicts(rows)}
    by_hand = {who: row.median for row in rows if row.quantity == "beam search" for who in [row.contestant]}
    assert met["beam search / scan of given steps"] == {
        "lstm 1,5,3,4": by_hand["jaxrnn"] / by_hand["scan of given steps"]
    }
    report.figure(rows)


@pytest.mark.parametrize("variant", ["bidirectional", "masked"])
@pytest.mark.parametrize("name", ["jaxrnn", "flax linen", "flax nnx"])
def test_contestants_compute_the_same_kind_of_thing(name, variant):
    """The same matrices, and a gradient by every parameter and by the inputs."""
    problem = Problem("elman", *SHAPE, variant)
    result = compiled(train(problem, BY_NAME[name].model(problem)), 1, {}).call()
    check_train(problem, result)
    assert result[1][1].shape == (problem.T, problem.B, problem.I)


def test_padding_has_no_cotangent():
    masked = data(TINY._replace(variant="masked"))
    padded = np.arange(TINY.T)[:, None] >= masked.lengths
    assert padded.any() and not masked.cotangent[padded].any() and masked.cotangent[~padded].all()


def test_textbook_lstm_is_the_library_lstm():
    params = ours.model(ours.textbook_lstm)(TINY).params
    fused = ours.jr.cells.LSTMParams(
        *(np.concatenate([params[name][gate] for gate in "ifgo"], axis=-1) for name in ("W_x", "W_h", "b"))
    )
    xs = data(TINY).xs
    ys = ours.model(ours.textbook_lstm)(TINY).apply(params, xs, None)
    np.testing.assert_allclose(ys, ours.model()(TINY).apply(fused, xs, None), rtol=0, atol=1e-6)  # float32, 6 steps


# ---------------------------------------------------------------- what a contestant must not do


def test_a_contestant_without_input_gradient_is_found():
    model = ours.model()(TINY)
    stopped = model._replace(apply=lambda params, xs, lengths: model.apply(params, jax.lax.stop_gradient(xs), lengths))
    result = compiled(train(TINY, stopped), 1, {}).call()
    with pytest.raises(ValueError, match=r"a gradient of shape \(6, 4, 3\) is 0 or not finite"):
        check_train(TINY, result)


def test_a_contestant_with_fewer_weights_is_found():
    with pytest.raises(ValueError, match="100 parameters; the equations have 352 to 416"):
        check_weights(TINY, np.zeros((10, 10)))
    with pytest.raises(ValueError, match="the equations have"):
        forward(TINY, Model(np.zeros(3), lambda params, xs, lengths: xs))


def test_failures_and_refusals_are_noted_and_the_others_run():
    def refuse(placed):
        raise NotOffered("no lengths")

    def fail(placed):
        raise RuntimeError("a first line\na second line")

    builds = {"a": refuse, "b": fail, "c": lambda placed: Program(lambda: 1)}
    entries = [Entry(row(name, None), build, lambda result: None) for name, build in builds.items()]
    rows = measure(Group("three", entries, Budget(0.001, 2, 2, turn=0.001)))
    assert [row.note for row in rows] == ["not offered: no lengths", "failed: RuntimeError: a first line", ""]
    assert [len(row.seconds) for row in rows] == [0, 0, 2]
    assert "failed: RuntimeError: a first line: b (lstm 4,6,3,8 train)" in report.notes(rows)[1]


# ---------------------------------------------------------------- rounds


def test_rounds_interleave_and_keep_to_the_budget():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    measured = interleaved(calls, Budget(seconds=1.0, least=2, most=3, turn=0.0))
    assert {name: len(times) for name, times in measured.items()} == {"a": 3, "b": 3}
    rounds = [sorted(order[-12:][4 * n : 4 * n + 4]) for n in range(3)]  # a call that warms, and one that is timed
    assert rounds == [["a", "a", "b", "b"]] * 3
    budget = Budget(seconds=0.5, least=5, most=25)
    assert budget.rounds({"a": 0.02, "b": 0.08}) == 10
    assert (budget.rounds({"a": 10.0}), budget.rounds({"a": 1e-6})) == (5, 25)


def test_own_work_is_not_other_work(monkeypatch):
    monkeypatch.setattr(OtherWork, "busy_seconds", staticmethod(lambda: 100.0))
    work = OtherWork()
    work.wall, work.busy, work.own = work.wall - 10, 88.0, work.own - 8  # 12 s busy in 10 s, 8 of them our own
    assert work.cores() == pytest.approx(0.4, abs=0.01)
    monkeypatch.setattr(OtherWork, "busy_seconds", staticmethod(lambda: None))
    assert OtherWork().cores() is None


# ---------------------------------------------------------------- ratios


def test_lstm_against_torch_uses_one_device_where_the_batch_is_one():
    other = (1, 6, 3, 8)
    rows = [row("jaxrnn", 4.0), row("jaxrnn", 3.0, devices=2), row("torch", 2.0)]
    rows += [row("jaxrnn", 1.0, shape=other), row("torch", 4.0, shape=other)]
    line = verdict(rows, "LSTM training step, two devices / torch")
    assert line.ratios == {"lstm 4,6,3,8": 1.5, "lstm 1,6,3,8": 0.25}
    assert (line.value, line.smallest, line.largest, line.where) == (0.875, 0.25, 1.5, "lstm 4,6,3,8")
    assert line.met is False  # the median is, but one shape is above 1.3


def test_best_peer_is_the_fastest_at_each_shape_placed_as_it_says():
    rows = [row("jaxrnn", 2.0), row("jaxrnn", 1.0, devices=2)]
    rows += [row("haiku", 4.0), row("flax linen", 2.5), row("torch", 0.1)]
    rows += [row("haiku", 1.25, devices=2), row("flax linen", 9.0, devices=2)]
    assert verdict(rows, "LSTM training step, two devices / best JAX peer unsharded").value == pytest.approx(0.4)
    assert verdict(rows, "LSTM training step / best JAX peer, both on two").value == pytest.approx(0.8)
    line = verdict(rows, "LSTM training step / best JAX peer, both on one")
    assert line.value == pytest.approx(0.8) and line.met is True


def test_auto_over_plain_is_judged_by_its_worst_row():
    rows = [row("jaxrnn", 1.0), row("jaxrnn plain", 2.0)]
    for name, seconds in (("jaxrnn", 1.1), ("jaxrnn plain", 1.0)):
        rows.append(row(name, seconds, cell="gru", quantity="forward", devices=2))
    line = verdict(rows, 'plan "auto"')
    assert line.value == pytest.approx(1.1) and line.met is False
    assert line.where == "gru 4,6,3,8 forward, 2 devices"
    of_one_program = [r._replace(digest="a") for r in rows]
    assert verdict(of_one_program, 'plan "auto"').value == 1.0  # what differs is noise
    of_two = [r._replace(digest=r.contestant) for r in rows]
    assert verdict(of_two, 'plan "auto"').value == pytest.approx(1.1)


def test_memory_compile_ensemble_and_textbook_ratios():
    rows = []
    for name, megabytes, seconds in (("jaxrnn", 100, 1.0), ("jaxrnn checkpoint", 4, 1.4)):
        for loss in suites.LOSSES:
            rows.append(row(name, seconds, suite="memory", quantity=f"loss on {loss}", temp_bytes=megabytes * 10**6))
    for name, seconds in (("jaxrnn", 1.0), ("jaxrnn plain", 0.5)):
        rows.append(row(name, seconds, suite="compile", quantity="compile"))
    rows += [row("jaxrnn", 1.0, devices=2, suite="ensemble", quantity="gradient")]
    rows += [row("torch", 4.0, suite="ensemble", quantity="gradient"), row("jaxrnn", 2.0), row("textbook", 2.4)]
    assert verdict(rows, "temporaries, checkpointed / not, T = 1,000, loss on last").value == pytest.approx(0.04)
    assert verdict(rows, "time, checkpointed / not, T = 1,000, loss on all").value == pytest.approx(1.4)
    assert (verdict(rows, "compile time").value, verdict(rows, "compile time").met) == (2.0, False)
    assert (verdict(rows, "32 small LSTMs").value, verdict(rows, "32 small LSTMs").met) == (0.25, True)
    assert verdict(rows, "textbook LSTM / our lstm, training step, one").value == pytest.approx(1.2)


def test_what_was_not_measured_is_neither_met_nor_missed():
    lines = targets.verdicts([row("jaxrnn", 1.0), row("torch", None, note="failed: …")])
    assert len(lines) == 38 and all(line.value is None and line.met is None for line in lines)
    assert {line[-1] for line in report.targets(lines)[1:]} == {"not measured"}


# ---------------------------------------------------------------- tables, options


def test_table_shows_median_spread_and_the_fastest():
    rows = [row("jaxrnn", 0.01), row("torch", 0.02), row("floor", 0.001)]
    assert report.by_shape(rows, report.milliseconds) == [
        ("B, T, I, H", "jaxrnn", "torch", "floor"),
        ("lstm 4,6,3,8", "**10.0 ± 0.75**", "20.0 ± 1.5", "1.0 ± 0.075"),
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--only", "lsmt"],
            "--only: 'lsmt' is none of cells, variants, ragged, small, ensemble, step, length, memory, compile, ",
        ),
        (["--shapes", "1,2,3"], "--shapes: expected B,T,I,H such as 32,128,128,128, got '1,2,3'"),
        (["--shapes", "1,2,3,0"], "--shapes: expected sizes of at least 1, got '1,2,3,0'"),
        (["--contestants", "jax"], f"--contestants: 'jax' is none of {', '.join(BY_NAME)}"),
    ],
)
def test_wrong_options_are_named(options, message, capsys):
    assert main(options) == 2
    assert message in capsys.readouterr().err
