"""Sweeps: grids of settings and seeds, one program for equal shapes, ranked; stopped and gone on with."""

import csv
import json

import numpy as np
import pytest

from experiments.runner import command, config
from experiments.runner.command import main
from experiments.runner.sweep import on_validation
from tests.experiments.tiny import ROOT, STEPS, TINY, copied, options, run

GRID = ["--grid", "model.hidden_size=2,3", "--grid", "train.lr=1e-3,3e-2", "--seeds", "2"]


def sweep(out, *settings):
    config = str(ROOT / "configs/adding.toml")
    few = [*TINY["adding"][:1], *TINY["adding"][2:], *STEPS[:2], "model.learning_rates={}"]
    return main(["sweep", config, "--out", str(out), *options(*few, *settings), *GRID])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep, and its directory as a kill within the second program would have left it."""
    out = tmp_path_factory.mktemp("sweeps")
    with copied(out / "adding-sweep-001", ("elman, T = 6, model.hidden_size=3", 4)) as killed:
        assert sweep(out, "train.save_every=1") == 0
    return out / "adding-sweep-001", killed[0]


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.full
def test_a_sweep_ranks_what_its_members_measured(swept, tmp_path):
    directory = swept[0]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    last = {
        (line["model.hidden_size"], line["train.learning_rate"], line["seed"]): line["held_out_error"]
        for line in lines
        if line["step"] == 12
    }
    assert len(last) == 8 and len(lines) == 8 * 6
    results = table(directory / "results.csv")
    means = [float(row["mean"]) for row in results]
    assert means == sorted(means) and len(results) == 4
    for row in results:
        size, rate = int(row["model.hidden_size"]), float(row["train.learning_rate"])
        a, b = last[size, rate, 0], last[size, rate, 1]
        assert float(row["mean"]) == pytest.approx((a + b) / 2) and float(row["sd"]) == pytest.approx(
            abs(a - b) / 2**0.5
        )
        # Student's t for one degree of freedom is 12.7062 at 97.5 %.
        half = 12.7062 * float(row["sd"]) / 2**0.5
        interval = [float(row["low"]), float(row["high"])]
        assert interval == pytest.approx([float(row["mean"]) - half, float(row["mean"]) + half], rel=1e-4, abs=1e-6)
        assert (row["seeds"], row["lost"], row["steps"]) == ("2", "0", "12")
        assert int(row["parameters"]) == 2 * size + size**2 + size + size + 1
    members = {
        (int(row["model.hidden_size"]), float(row["train.learning_rate"]), int(row["seed"])): row["held_out_error"]
        for row in table(directory / "members.csv")
    }
    assert {place: float(value) for place, value in members.items()} == last
    page = (directory / "report.html").read_text()
    assert "Adding, a sweep" in page and "--grid model.hidden_size=2,3 --grid train.learning_rate=0.001,0.03" in page
    shown = (directory / "table.md").read_text()
    titles = ["model", "hidden_size", "learning_rate", "held-out error", "95 % interval of the mean"]
    assert shown.splitlines()[0] == f"| {' | '.join([*titles, 'lost', 'parameters', 'steps'])} |"
    assert shown.splitlines()[2].startswith(f"| elman, T = 6 | {results[0]['model.hidden_size']} |")
    for figure in ("scores.png", "curves.png"):
        assert (directory / figure).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # One program for each hidden size, and each member as it would be alone.
    programs = sorted(path.name.rpartition("-")[0] for path in (directory / "checkpoints").iterdir())
    assert programs == ["elman_T_=_6_model.hidden_size=2", "elman_T_=_6_model.hidden_size=3"]
    settings = ["model.hidden_size=3", "model.learning_rates={}", "train.learning_rate=3e-2", "train.seeds=[1]"]
    assert run("adding", tmp_path, *settings, "task.stop_below=0.0") == 0
    alone = json.loads((tmp_path / "adding-001/metrics.jsonl").read_text().splitlines()[-1])
    assert alone["held_out_error"] == pytest.approx(last[3, 0.03, 1], rel=1e-4)  # another program, 12 steps


def test_a_sweep_that_was_killed_goes_on(swept, capsys):
    finished, killed = swept
    capsys.readouterr()
    assert main(["sweep", "--resume", str(killed)]) == 0
    for name in ("metrics.jsonl", "results.csv", "members.csv", "table.md"):
        assert (killed / name).read_bytes() == (finished / name).read_bytes()
    assert main(["sweep", "--resume", str(killed), "--seeds", "3"]) == 2
    assert main(["sweep", "--resume", str(killed.parent)]) == 2
    assert main(["sweep"]) == 2
    assert main(["predict", str(killed)]) == 2
    assert main(["run", "--resume", str(killed)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "sweep: --resume takes no CONFIG, --grid or --seeds: the sweep has its own",
        f"{killed.parent}: not the directory of a sweep: it has no readable sweep.json",
        "sweep: expected a CONFIG, or --resume SWEEP",
        f"{killed}: is a sweep; run the setting that you choose, then ask that run",
        f"{killed}: is a sweep; go on with it by sweep --resume {killed}",
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["model.hiden_size=2,3"], "--grid: model.hiden_size: unknown key; did you mean 'hidden_size'?"),
        (["model.hidden_size=2,-3"], "--grid: model.hidden_size: expected a number above 0, got -3"),
        (
            ["model.hidden_size"],
            "--grid model.hidden_size: expected KEY=VALUE,VALUE,…, such as model.hidden_size=",
        ),
        (["mesh.batch=1,2"], "--grid: mesh.batch cannot be swept; --set it for the whole sweep"),
        (["model.hidden_size=2,2"], "--grid model.hidden_size=2,2: expected every key and every value once"),
        (
            ["train.lr=1e-3", "train.learning_rate=1"],
            "--grid train.learning_rate=1: expected every key and",
        ),
        (
            ["train.lr=1e-3,1e-2"],
            "--grid: train.learning_rate=0.001 and train.learning_rate=0.01 train the same elman, T = 150: what "
            "differs has no effect on it. If model.learning_rates has a rate for it, that one counts: --set "
            "'model.learning_rates={}' takes it away",
        ),
    ],
)
def test_what_is_wrong_with_a_grid_is_told(tmp_path, capsys, grid, message):
    arguments = [option for text in grid for option in ("--grid", text)]
    assert main(["sweep", str(ROOT / "configs/adding.toml"), "--out", str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "settings", "kept"),
    [
        ("music", [], ["task.held_out=validation"]),
        ("vowels", ["task.held_out=validation"], []),
        ("vowels", ["task.held_out=test"], []),  # whoever asks for it
        ("digits", [], []),  # ranks on validation images anyway
        ("adding", [], []),  # draws what it holds out; the key of that name is a number
    ],
)
def test_a_sweep_ranks_on_validation_data(name, settings, kept):
    load = lambda settings: config.load(ROOT / "configs" / f"{name}.toml", settings, command.schema_of)
    assert on_validation(load(settings)) == kept
    assert on_validation(load([*settings, *kept])) == []


@pytest.mark.full
def test_a_member_that_diverged_is_lost_and_last(tmp_path, capsys):
    """An accuracy is a finite number even where nothing else is."""
    settings = ["model.learning_rates={}", "train.schedule=constant", "train.optimizer=sgd", "train.clip=none"]
    config = str(ROOT / "configs/digits.toml")
    few = options(*TINY["digits"], "model.cells=['elman']", *STEPS, *settings)
    assert main(["sweep", config, "--out", str(tmp_path), *few, "--grid", "train.lr=1e38,1e-3"]) == 0
    results = table(tmp_path / "digits-sweep-001/results.csv")
    assert [(row["train.learning_rate"], row["lost"]) for row in results] == [("0.001", "0"), ("1e+38", "2")]
    assert np.isfinite(float(results[0]["mean"])) and np.isnan(float(results[1]["mean"]))
    members = table(tmp_path / "digits-sweep-001/members.csv")
    assert [np.isnan(float(row["validation_accuracy"])) for row in members] == [False, False, True, True]
