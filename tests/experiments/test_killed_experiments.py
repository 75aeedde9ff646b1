"""Every experiment, killed in the middle and gone on with, ends as one left alone; each that trains can be swept."""

import csv
import importlib
import json
import multiprocessing
import signal

import pytest

from experiments import EXPERIMENTS
from experiments.runner.command import main
from jaxrnn.training import checkpoints
from tests.experiments import killed
from tests.experiments.tiny import ROOT, options

SECONDS = 240  # a process that takes so long hangs
# One process imports what all of them need, and each of them begins as a copy of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["orbax.checkpoint", "tests.experiments.killed", "experiments.runner.study"])
# pretrained runs files of others, of which tests/interop/test_pretrained_onnx.py has small ones
TRAINED = [name for name in EXPERIMENTS if "\nSTUDY = " in (ROOT / f"experiments/{name}/__init__.py").read_text()]
OF_ITS_OWN = [name for name in EXPERIMENTS if name not in TRAINED]


def ends(code, name, folder, command, **how):
    """A process of its own; a traceback stands in the captured stderr."""
    process = PROCESSES.Process(target=killed.begin, args=(name, folder, command), kwargs=how)
    process.start()
    process.join(SECONDS)
    assert process.exitcode == code


def measured(run):
    """What a run has written, but for its times and the machine."""

    def timeless(value):
        if isinstance(value, dict):
            return {key: timeless(of) for key, of in value.items() if key not in ("seconds", "environment", "ratio")}
        return [timeless(of) for of in value] if isinstance(value, list) else value

    return json.dumps(timeless(json.loads((run / "summary.json").read_text())))  # as text: NaN is not NaN


@pytest.mark.full
@pytest.mark.parametrize("name", [*TRAINED, *(name for name in OF_ITS_OWN if name != "pretrained")])
def test_killed_and_gone_on_with_it_ends_as_if_left_alone(name, tmp_path):
    ends(0, name, tmp_path, killed.starts(name, tmp_path, tmp_path / "whole"))
    ends(-signal.SIGKILL, name, tmp_path, killed.starts(name, tmp_path, tmp_path / "broken"), killed=True)
    whole, broken = (tmp_path / out / f"{name}-001" for out in ("whole", "broken"))
    assert not (broken / "summary.json").exists()
    if name in TRAINED:
        (model,) = (broken / "checkpoints").iterdir()
        assert 0 < checkpoints.latest(model) < killed.KILLED_AT  # of which the line is there, but no checkpoint
    ends(0, name, tmp_path, ["run", "--resume", str(broken)])
    assert measured(broken) == measured(whole)
    if name in TRAINED:
        assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    begins_again = f"{broken}: {name} keeps no checkpoints: it begins again"
    assert (begins_again in (tmp_path / "said.txt").read_text()) == (name in OF_ITS_OWN)


@pytest.mark.full
@pytest.mark.parametrize("name", TRAINED)
def test_two_learning_rates_are_swept(name, tmp_path):
    command = ["sweep", *killed.starts(name, tmp_path, tmp_path)[1:], "--grid", "train.learning_rate=1e-3,1e-2"]
    fields = importlib.import_module(EXPERIMENTS[name].module).Config.model_fields["model"].annotation.model_fields
    ends(0, name, tmp_path, [*command, *options(*["model.learning_rates={}"] * ("learning_rates" in fields))])
    with (tmp_path / f"{name}-sweep-001" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(float(row["train.learning_rate"]) for row in rows) == [1e-3, 1e-2]
    assert {row["lost"] for row in rows} == {"0"}
    lines = map(json.loads, (tmp_path / f"{name}-sweep-001" / "metrics.jsonl").read_text().splitlines())
    losses = {line["train.learning_rate"]: line["loss"] for line in lines}  # of the last block
    assert len(losses) == len(set(losses.values())) == 2


def test_what_makes_a_run_short_is_known_of_each():
    assert killed.OF_ITS_OWN.keys() == {*OF_ITS_OWN} - {"pretrained"}


@pytest.mark.parametrize("name", OF_ITS_OWN)
def test_what_ranks_nothing_is_not_swept(name, tmp_path, capsys):
    config = ROOT / EXPERIMENTS[name].config
    assert main(["sweep", str(config), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{config}: {name} cannot be swept: it has a run of its own, and no held-out score to rank settings by; "
        "run it once for each setting"
    )
    assert not list(tmp_path.iterdir())
