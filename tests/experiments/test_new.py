"""``python -m experiments new``: a folder that runs and passes its own test, wherever it lies."""

import hashlib
import os
import subprocess
import sys

import pytest

from experiments.runner import config, mytask, own
from experiments.runner.command import main

# The template's own tests, run here on the template, but for one that the long test below runs.
from experiments.runner.mytask.test_mytask import (  # noqa: F401
    SMALL,
    test_a_wrong_file_leaves_nothing,
    test_choosing_reads_no_test_split,
)
from tests.documents import ROOT


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("waves", "other_waves"):
        own._LOADED.pop(name, None)
        sys.modules.pop(name, None)


def test_new_writes_a_folder_that_runs_where_it_lies(elsewhere, capsys):
    assert main(["new", "waves"]) == 0
    said = capsys.readouterr().out
    assert "python -m experiments run waves/config.toml --set data.path=FILE" in said
    files = {path.name: path.read_text() for path in (elsewhere / "waves").iterdir()}
    assert set(files) == {"__init__.py", "config.toml", "README.md", "test_waves.py"}
    assert not any("mytask" in text for text in files.values()) and 'experiment = "waves"' in files["config.toml"]
    options = [option for setting in SMALL for option in ("--set", setting)]
    assert main(["run", "waves/config.toml", *options]) == 0
    assert main(["run", "--resume", "runs/waves-001"]) == 0  # found in the current directory
    said = capsys.readouterr()
    assert "read from its checkpoint, not run" in said.out and not said.err
    assert "test accuracy" in (elsewhere / "runs/waves-001/table.md").read_text()


def test_a_name_that_is_taken_or_none_is_refused_and_nothing_is_written(elsewhere, capsys):
    for name, message in (
        ("digits", "new: 'digits' is an experiment already, configs/digits.toml; choose another name"),
        ("numpy", "new: Python has a module called 'numpy' already, which the folder would hide; choose another"),
        *((name, f"of up to 40 small letters, digits and _, a letter first, got {name!r}") for name in BAD),
    ):
        assert main(["new", name]) == 2
        assert message in capsys.readouterr().err
    (elsewhere / "waves").mkdir()
    (elsewhere / "waves" / "mine.txt").write_text("mine")
    assert main(["new", "waves"]) == 2
    assert "waves is there already, and stays as it is; choose another name" in capsys.readouterr().err
    assert [path.name for path in elsewhere.rglob("*")] == ["waves", "mine.txt"]


BAD = ("my-task", "2waves", "Waves", "class", "", "../waves", "a" * 41)


def test_a_run_is_of_one_file_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "find", lambda name, path: True)
    path, stored = tmp_path / "waves.csv", tmp_path / "config.toml"
    path.write_text("sequence,f1,label\n")
    given = {"experiment": "mytask", "data": {"path": str(path)}}
    stored.write_text(config.dump(mytask.Config.model_validate(given)))
    loaded = config.load(stored, [], lambda name: mytask.Config)
    assert loaded.data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("sequence,f1,label\ns,1,a\n")
    with pytest.raises(config.ConfigError) as error:
        config.load(stored, [], lambda name: mytask.Config)
    assert f"data.sha256: {path} has changed: it was {loaded.data.sha256:.12}… when the run began" in str(error.value)


def test_a_folder_that_is_no_experiment(elsewhere, capsys):
    (elsewhere / "other_waves").mkdir()
    (elsewhere / "other_waves/__init__.py").write_text("")
    (elsewhere / "other_waves/config.toml").write_text('experiment = "other_waves"\n')
    assert main(["run", "other_waves/config.toml"]) == 2
    assert "expected Config, and STUDY or run(config, directory)" in capsys.readouterr().err
    (elsewhere / "waves.toml").write_text('experiment = "waves"\n')
    assert main(["run", "waves.toml"]) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "; one of your own is a folder of that name, beside the config file or in the current directory\n"
    )


@pytest.mark.full
def test_the_commands_of_the_readme_work_from_another_directory(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def python(*command):
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    assert python("experiments", "new", "waves").returncode == 0
    options = [option for setting in SMALL for option in ("--set", setting)]
    assert python("experiments", "run", "waves/config.toml", *options).returncode == 0
    predicted = python("experiments", "predict", "runs/waves-001", "--count", "2")
    assert predicted.returncode == 0 and predicted.stdout.count("%") == 2, predicted.stderr
    tested = python("pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "waves")
    assert tested.returncode == 0 and "3 passed" in tested.stdout, tested.stdout
