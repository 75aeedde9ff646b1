"""The command line from end to end, and the files that a run leaves."""

import io
import json
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import digits
from experiments.reports import samples
from experiments.runner import command, config, directories, report, terminal, training
from experiments.runner.command import main
from jaxrnn.training import BlockResult
from tests.experiments.tiny import left_by_a_run

CONFIG = str(Path(__file__).parents[2] / "configs/digits.toml")


def test_a_tiny_run_leaves_files_that_agree(tmp_path, capsys):
    runs = tmp_path / "runs"
    older = runs / "digits-001"
    older.mkdir(parents=True)
    (older / "metrics.jsonl").write_text("mine")
    settings = ["model.cells=['elman', 'gru']", "model.hidden_size=4", "train.steps=4", "train.log_every=2"]
    settings += ["train.batch_size=8", "train.seeds=[5, 3]"]
    overrides = [option for setting in settings for option in ("--set", setting)]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- digits:begin, by run configs/digits.toml -->\n<!-- digits:end -->\nafter\n")
    assert main(["run", CONFIG, "--out", str(runs), "--write", str(page), *overrides]) == 0

    assert [path.name for path in older.iterdir()] == ["metrics.jsonl"]
    assert (older / "metrics.jsonl").read_text() == "mine"
    run = runs / "digits-002"
    files = left_by_a_run("curves") | {"metrics.jsonl", "checkpoints", "samples.json"}
    assert {path.name for path in run.iterdir()} == files
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"elman", "gru"}
    resolved = tomllib.loads((run / "config.toml").read_text())
    assert resolved["train"]["seeds"] == [5, 3] and resolved["data"]["seed"] == 0

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["model"], line["step"], line["seed"]) for line in lines] == [
        (model, step, seed) for model in ("elman", "gru") for step in (2, 4) for seed in (5, 3)
    ]
    assert all(line["grad_norm"] > 0 and 0 < line["loss"] < 10 for line in lines)

    assert not any("test_accuracy" in line for line in lines)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_reads"] == 1
    text = (run / "table.md").read_text()
    assert page.read_text() == (
        f"before\n<!-- digits:begin, by run configs/digits.toml -->\n{text}<!-- digits:end -->\nafter\n"
    )
    table = text.splitlines()
    assert table[-1].startswith("As run on ") and f"jax {jax.__version__}" in table[-1]
    out = capsys.readouterr().out
    for index, name in enumerate(("elman", "gru")):
        model = summary["models"][index]
        last = [line["validation_accuracy"] for line in lines if line["model"] == name and line["step"] == 4]
        assert (model["model"], model["validation_accuracy"]["each"], model["diverged"]) == (name, last, {})
        assert model["validation_accuracy"]["mean"] == pytest.approx(np.mean(last))
        assert model["validation_accuracy"]["sd"] == pytest.approx(abs(last[0] - last[1]) / 2**0.5)
        shown = [float(number) for number in table[2 + index].split(" | ")[2].removesuffix(" %").split(" ± ")]
        measured = [100 * np.mean(last), 100 * abs(last[0] - last[1]) / 2**0.5]
        assert shown == pytest.approx(measured, abs=0.0501)  # one decimal, a tie rounded either way
        assert out.count(f"{name}: 4 steps in") == 1  # one line a model: no bar where there is no terminal
    assert summary["environment"]["jax"] and "\x1b" not in out
    assert f"written to {run}" in out and f"report: {run / 'report.html'}" in out
    assert (run / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    errors, images = samples.read(run)
    shares = np.bincount(digits.Config.model_validate(resolved).images.test().labels) / 360
    for model in summary["models"]:
        wrong = np.array(errors.by_model[model["model"]]) @ shares  # of all digits, of each seed
        np.testing.assert_allclose(1 - wrong, model["test_accuracy"]["each"], atol=1e-6)
    assert len(images.tiles) == 12 and ", read as " in images.tiles[0].caption


ACCURACY = report.Column("test accuracy", "test_accuracy", "%")


def result(losses, accuracies=(0.5, 1.0), seeds=(0, 1)):
    points = [
        BlockResult(
            10 * (index + 1),
            {"loss": np.array(loss), "test_accuracy": np.array(accuracies)},
            {
                "loss": np.where(np.isfinite(loss), 0, 10 * index + 7),
                "gradient": np.where(np.isfinite(loss), 0, 10 * index + 6),
            },
        )
        for index, loss in enumerate(losses)
    ]
    return report.Result("lstm", seeds, 12345, points, seconds=2.0)


def test_divergence_is_told_in_the_table_and_null_in_json(tmp_path):
    diverged = result([(1.0, 2.0), (0.5, np.nan), (0.4, np.inf)])
    report.write(tmp_path, [diverged], [ACCURACY], ["a note"], {}, task={"lag": 3})
    losses = diverged.history[1].values["loss"]
    rows = [{"seed": seed, "step": 20, "loss": loss} for seed, loss in zip(diverged.seeds, losses, strict=True)]
    directories.records(tmp_path, tensorboard=False).append(rows)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["models"][0]["diverged"] == {"1": ["gradient", 16]} and summary["task"] == {"lag": 3}
    told = "lstm, seed 1 DIVERGED: its gradient is not finite at step 16. It counts in the mean."
    assert f"\n\na note\n\n{told}\n\nAs run on " in (tmp_path / "table.md").read_text()
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first, second) == ({"seed": 0, "step": 20, "loss": 0.5}, {"seed": 1, "step": 20, "loss": None})


def test_table_of_one_seed_has_no_deviation():
    one = result([(1.0,)], accuracies=(0.25,), seeds=(0,))
    assert report.rows([one], [ACCURACY, report.Column("loss", "loss", ".2f")]) == [
        ("model", "parameters", "test accuracy", "loss", "steps", "seconds"),
        ("lstm", "12,345", "25.0 %", "1.00", "10", "2"),
    ]
    assert report.rows([result([(1.0, 2.0)])], [report.Column("loss", "loss", ".2f")])[1][2] == "1.50 ± 0.71"
    assert report.spread((0,)) == "one seed" and report.spread((0, 1)) == "mean ± standard deviation of 2 seeds"


def test_bar_shows_loss_and_accuracy_on_a_terminal_only():
    shown = {}
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
        run = result([(1.0, 2.0)])
        with terminal.Display(10, ACCURACY, console) as display:
            display.start("lstm")
            display.update("lstm", run.history[0])
            display.finish(run)
        shown[is_terminal] = console.file.getvalue()
    assert "10/10  loss 1.5  test accuracy 75.0 %" in shown[True]
    assert shown[False] == "lstm: 10 steps in 2.0 s, loss 1.5, test accuracy 75.0 ± 35.4 %\n"


def test_bar_tells_the_pace_and_the_time_that_is_left(monkeypatch):
    now = iter([7.0, 100.0, 102.0, 105.0, 500.0])
    monkeypatch.setattr(terminal, "time", SimpleNamespace(perf_counter=lambda: next(now)))  # other threads keep theirs
    display = terminal.Display(4000, ACCURACY, Console(file=io.StringIO()))
    # 50 steps in 2 seconds after the second block, then 75 in 5. Before it lies compilation, also where the first is
    # what a resumed run has restored; after the last block nothing.
    paces = [display.pace("lstm", step) for step in (20, 50, 100, 125, 4000)]
    assert paces == ["", "", "  25 steps/s  2:36 left", "  15 steps/s  4:18 left", ""]


def shown_by(is_terminal, lower, steps=40, resumed=False, **console):
    """What a display writes of a model whose accuracies fall and rise."""
    file = io.StringIO()
    display = terminal.Display(
        steps, ACCURACY, Console(file=file, force_terminal=is_terminal, width=160, **console), block=10
    )
    run = result([(1.0, 2.0)] * 3)
    means = (0.5, 0.9, 0.7)
    blocks = [
        block._replace(values={**block.values, "test_accuracy": np.array([mean, mean])})
        for block, mean in zip(run.history, means, strict=True)
    ]
    with display:
        display.start("lstm", lower)
        for block in blocks[resumed:]:
            display.update("lstm", block)
        display.finish(run._replace(history=blocks, ended="stopped early, after step 30 of 40: for its reasons"))
    return file.getvalue()


def test_the_best_so_far_and_an_early_stop_are_told():
    said = shown_by(False, lower=False)
    assert said == (
        "lstm: 30 steps in 2.0 s, loss 1.5, test accuracy 70.0 ± 0.0 % (best 90.0 % at 20)\n"
        "lstm: stopped early, after step 30 of 40: for its reasons\n"
    )
    assert "(best 50.0 % at 10)" in shown_by(False, lower=True) and "best" not in shown_by(False, lower=None)
    assert "(best since 20 90.0 % at 20)" in shown_by(False, lower=False, resumed=True)  # of before nothing is known
    assert "test accuracy 70.0 % (best 90.0 % at 20)" in shown_by(True, lower=False)


def test_no_control_characters_where_there_is_no_terminal_and_no_colour_where_none_is_wanted(monkeypatch):
    control = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
    colour = re.compile(r"\x1b\[[\d;]*\b(3\d|4\d|9\d)[\d;]*m")
    monkeypatch.setattr(terminal, "EVERY", 0.0)  # a line a block, not one a minute
    said = shown_by(False, lower=False)
    assert not control.search(said) and "lstm: step 20 of 40  loss 1.5  test accuracy 90.0 %" in said
    assert colour.search(shown_by(True, lower=False, color_system="standard"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(shown_by(True, lower=False, color_system="standard"))
    monkeypatch.setenv("TERM", "dumb")
    assert not control.search(shown_by(True, lower=False))


@pytest.mark.parametrize(("steps", "patience", "why"), [(20, 0, ""), (40, 0, "all is done"), (40, 2, "patience")])
def test_why_a_training_ended_early(steps, patience, why):
    task = training.Task(*[None] * 4, score="held_out_error", until="all is done")
    task = task._replace(stop_when=lambda block: not patience and block.step == 20)
    settings = config.Train(steps=steps, log_every=10, patience=patience)
    told = training.ended_early(task, settings, [BlockResult(20, {}, {})])
    why = "for 2 blocks of 10 steps no seed had a better held out error" if why == "patience" else why
    assert told == (f"stopped early, after step 20 of {steps}: {why}" if why else "")


def test_curves_show_every_model_and_seed():
    figure = report.curves([result([(1.0, 2.0), (0.5, 0.7)])], {"loss": lambda values: values["loss"]}, title="t")
    (line,) = figure.axes[0].lines
    assert (line.get_xdata() == [10, 20]).all() and np.allclose(line.get_ydata(), [1.5, 0.6])
    assert figure.axes[0].get_title() == "loss" and "2 seeds" in figure.get_suptitle()


def test_list_and_help_say_how_to_run(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "digits: Handwritten digits" in listed and "python -m experiments run configs/digits.toml" in listed
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    assert "configs/digits.toml" in capsys.readouterr().out


def test_a_page_without_markers_is_said_before_anything_is_trained(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- digits:begin -->\n<!-- digits:end -->\n")
    options = ["--out", str(tmp_path / "runs"), "--write", f"{page}#digits-long"]
    for verb in ("run", "sweep"):
        assert main([verb, CONFIG, *options]) == 2
        assert f"--write: {page}: expected the lines <!-- digits-long:begin -->" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_run_directory_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "runs").write_text("a file")
    assert main(["run", CONFIG, "--out", str(tmp_path / "runs")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'runs' / 'digits-001'}: Not a directory\n"


def test_quiet_prints_the_run_directory_alone(monkeypatch, capsys):
    def spoken(arguments):
        print("progress")
        print("what is wrong", file=sys.stderr)
        arguments.resume = Path("runs/digits-001")

    monkeypatch.setitem(command.COMMANDS, "run", spoken)
    assert main(["run", CONFIG, "--quiet"]) == 0
    assert capsys.readouterr() == ("runs/digits-001\n", "what is wrong\n")
    assert main(["run", CONFIG]) == 0 and capsys.readouterr().out == "progress\n"


@pytest.mark.parametrize("keeps", [True, False])
def test_ctrl_c_says_whether_anything_is_kept(keeps, monkeypatch, capsys):
    def stopped(arguments):
        arguments.resume, arguments.keeps_checkpoints = Path("my runs/adding-001"), keeps
        raise KeyboardInterrupt

    monkeypatch.setitem(command.COMMANDS, "run", stopped)
    assert main(["run", CONFIG]) == 130
    again = "python -m experiments run --resume 'my runs/adding-001'"
    assert capsys.readouterr().err.splitlines() == (
        ["stopped at once; what came after the last checkpoint has to be done again", f"to go on: {again}"]
        if keeps
        else ["stopped at once; it keeps no checkpoints", f"to begin again, in the same folder: {again}"]
    )


def test_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    assert main(["run", CONFIG]) == 1
    assert capsys.readouterr().err == "experiments need scikit-learn: pip install 'jaxrnn[train]'\n"
