"""mytask runs, reads a file, and looks at its test split once."""

import json
from pathlib import Path

import pytest

from experiments.runner import training
from experiments.runner.command import main

from . import STUDY, Config

CONFIG = str(Path(__file__).with_name("config.toml"))
SMALL = ["model.cells=['elman']", "model.hidden_size=3", "data.buckets=1"]
SMALL += ["train.steps=2", "train.log_every=1", "train.batch_size=4", "train.seeds=[0]"]


def run(out, *settings):
    options = [option for setting in [*SMALL, *settings] for option in ("--set", setting)]
    return main(["run", CONFIG, "--out", str(out), *options])


def test_a_short_run_on_a_file(tmp_path):
    rows = [f"s{n},{(n * t) % 5},{n % 2}" for n in range(40) for t in range(3 + n % 2)]
    (tmp_path / "sequences.csv").write_text("\n".join(["sequence,height,label", *rows]) + "\n")
    assert run(tmp_path / "runs", f"data.path={tmp_path / 'sequences.csv'}") == 0
    summary = json.loads((tmp_path / "runs/mytask-001/summary.json").read_text())
    assert summary["test_reads"] == 1
    assert all(0 <= accuracy <= 1 for accuracy in summary["models"][0]["test_accuracy"]["each"])


def test_a_wrong_file_leaves_nothing(tmp_path, capsys):
    (tmp_path / "sequences.csv").write_text("sequence,height,label\ns1,0.5,yes\ns1,oops,yes\n")
    assert run(tmp_path / "runs", f"data.path={tmp_path / 'sequences.csv'}") == 2
    assert "row 3, column 'height': expected a finite number, got 'oops'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_choosing_reads_no_test_split():
    train = {"steps": 2, "log_every": 1, "seeds": [0], "batch_size": 4}
    model, data = {"cells": ["elman"], "hidden_size": 3}, {"buckets": 1}
    config = Config.model_validate({"experiment": "mytask", "model": model, "data": data, "train": train})
    assert set(config.splits.classes) == {"slow", "middle", "fast"}
    fit = training.fit("elman", STUDY.task(config, "elman"), config.train)
    assert config.splits.test_reads == 0
    STUDY.conclude(config, {"elman": fit})
    assert config.splits.test_reads == 1
    with pytest.raises(RuntimeError, match="read already"):
        STUDY.conclude(config, {"elman": fit})
