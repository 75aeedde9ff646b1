"""A run that was stopped goes on where it was, or says why it cannot."""

import json
import os
import re
import shutil
import signal

import pytest

from experiments.runner import terminal
from experiments.runner.command import main
from jaxrnn.training.locking import alone
from tests.experiments.tiny import ROOT, copied, options, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two models, and copies of its directory as a kill at some moments would have left it."""
    out = tmp_path_factory.mktemp("runs")
    with copied(out / "digits-001", ("elman", 2), ("gru", 10)) as killed:
        assert run("digits", out, "train.save_every=2") == 0
    assert len(killed) == 2
    return out / "digits-001", killed


@pytest.mark.full
def test_a_run_that_was_killed_goes_on(whole, capsys):
    finished, killed = whole
    capsys.readouterr()
    for directory in killed:
        assert not (directory / "table.md").exists()
        assert main(["run", "--resume", str(directory)]) == 0
        assert (directory / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
        ends = [json.loads((run / "summary.json").read_text())["models"] for run in (directory, finished)]
        for model in [*ends[0], *ends[1]]:
            del model["seconds"]
        assert ends[0] == ends[1]
        assert f"written to {directory}" in capsys.readouterr().out
    # Of a run that is complete the tables are made again, and nothing is trained.
    before = (finished / "metrics.jsonl").read_bytes()
    assert main(["run", "--resume", str(finished)]) == 0 and (finished / "metrics.jsonl").read_bytes() == before
    said, read = capsys.readouterr().out, "had ended after step 12; read from its checkpoint, not run"
    assert f"elman: {read}" in said and f"gru: {read}" in said


def test_another_config_is_another_run(whole, capsys):
    directory = whole[0]
    before = (directory / "metrics.jsonl").read_bytes()
    assert main(["run", "--resume", str(directory), *options("train.steps=20", "model.cells=['gru']")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{directory}: train.steps: 12 when it was started, 20 now",
        f"{directory}: model.cells: ['elman', 'gru'] when it was started, ['gru'] now",
        f"{directory}: start a new run for another config",
    ]
    assert (directory / "metrics.jsonl").read_bytes() == before
    assert main(["run", str(ROOT / "configs/digits.toml"), "--resume", str(directory)]) == 2
    assert "model.hidden_size: 3 when it was started, 96 now" in capsys.readouterr().err


def test_devices_that_are_not_there_are_told(tmp_path, capsys):
    mesh = options("train.batch_size=24", "train.seeds=[0]")
    assert run("digits", tmp_path, "train.batch_size=24", "mesh.batch=8") == 2
    assert run("digits", tmp_path, "mesh.members=3") == 2
    assert run("digits", tmp_path, "mesh.batch=3") == 2
    config = str(ROOT / "configs/digits.toml")
    assert main(["sweep", config, "--out", str(tmp_path), *mesh, *options("mesh.batch=8")]) == 2
    told = "mesh: expected at most 2 devices, all that there are, got members = 1 times batch = 8"
    assert capsys.readouterr().err.splitlines() == [
        told,
        "mesh.members: expected a divisor of the 2 members, got 3",
        "--set: mesh.batch: expected a divisor of train.batch_size (4), got 3",
        told,
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_resumed_is_told(tmp_path, whole, capsys):
    assert main(["run", "--resume", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: not a run directory: it has no config.toml\n"
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "run: expected a CONFIG, or --resume RUN\n"

    directory = shutil.copytree(whole[0], tmp_path / "run")
    with alone(directory):
        assert main(["run", "--resume", str(directory)]) == 1
        owner = (directory / "lock").read_text().strip()
    hint = f"to go on: python -m experiments run --resume {directory}\n"
    busy = f"{directory}: another training is at work in it: {owner}; wait for its end, or stop it.\n"
    assert capsys.readouterr().err == busy + hint

    (damaged,) = (directory / "checkpoints/gru/12/state/d").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:20])
    assert main(["run", "--resume", str(directory)]) == 1
    said = capsys.readouterr().err
    newest = directory / "checkpoints/gru/12"
    assert said.startswith(f"{newest}: damaged: ") and f"; remove {newest} to go on from step 8.\n{hint}" in said
    shutil.rmtree(newest)
    assert main(["run", "--resume", str(directory)]) == 0
    assert (directory / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, whole, monkeypatch, capsys):
    update = terminal.Display.update

    def pressed(display, model, block):
        update(display, model, block)
        if (model, block.step) == ("gru", 6):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(terminal.Display, "update", pressed)
    assert run("digits", tmp_path, "train.save_every=2") == 130
    directory = tmp_path / "digits-001"
    assert capsys.readouterr().err == (
        f"stopped after step 6, which is saved\nto go on: python -m experiments run --resume {directory}\n"
    )
    monkeypatch.setattr(terminal.Display, "update", update)
    assert main(["run", "--resume", str(directory)]) == 0
    assert (directory / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, capsys):
    # Two weights after a step of 3e38 have no sum in float32.
    lost = ["train.learning_rate=3e38", "train.schedule=constant", "model.cells=['elman']", "model.learning_rates={}"]
    assert run("digits", tmp_path, *lost) == 1
    of_seed = r"elman, seed {}: the (gradient|loss) is not finite at step 2"
    said = f"{of_seed.format(5)}; {of_seed.format(3)}\\. The state after step 0 is saved\\.\n"
    assert re.match(said + r"A new run with a smaller train\.learning_rate .*\n$", capsys.readouterr().err)


def test_the_last_update_is_looked_at_too(tmp_path, capsys):
    """It shows in no loss of the training."""
    lost = ["clip.variants=['none']", "train.learning_rate=3e38", "train.schedule=constant", "model.gain=3.0"]
    assert run("clipping", tmp_path, *lost, "train.steps=1", "train.log_every=1", "train.nonfinite=stop") == 1
    assert re.match(r"none, seed [35]: the parameters are not finite at step 1", capsys.readouterr().err)


@pytest.mark.full
def test_an_edited_config_is_refused(tmp_path, whole, capsys):
    directory = shutil.copytree(whole[0], tmp_path / "run")
    text = (directory / "config.toml").read_text()
    (directory / "config.toml").write_text(text.replace("batch_size = 4", "batch_size = 8"))
    assert main(["run", "--resume", str(directory)]) == 1
    said = "checkpoints/elman: belongs to a training with other settings: train.batch_size was 4, is 8."
    assert said in capsys.readouterr().err
