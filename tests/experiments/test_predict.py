"""A trained model is asked: held-out examples, a file, step by step."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.runner import config, directories, predict, training
from experiments.runner.command import main, schema_of
from tests.experiments.tiny import ROOT, STEPS, TINY, run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of two models."""
    out = tmp_path_factory.mktemp("runs")
    assert run("digits", out) == 0
    return out / "digits-001"


@pytest.mark.full
@pytest.mark.parametrize("experiment", ["adding", "copy_memory", "flip_flop", "clipping"])
def test_every_experiment_can_be_asked(experiment, tmp_path, capsys, monkeypatch):
    directory = trained(experiment, tmp_path)
    assert main(["predict", directory, "--count", "3", "--seed", "3"]) == 0
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.out.splitlines()] == ["0", "1", "2"]
    assert "seed 3, after step 12" in said.err
    by_steps(experiment, directory, capsys, monkeypatch)


def trained(experiment, out):
    """A run's directory with its checkpoint, without what a run concludes."""
    overrides = [*TINY[experiment], *STEPS]
    settings = config.load(ROOT / f"configs/{experiment}.toml", overrides, schema_of)
    directory = directories.new_directory(out, experiment, config.dump(settings))
    study = importlib.import_module(f"experiments.{experiment}").STUDY
    (model,) = study.models(settings)
    training.fit(model, study.task(settings, model), study.settings(settings, model), directory=directory)
    return str(directory)


def by_steps(experiment, directory, capsys, monkeypatch):
    """What a model answers step by step, from lines, is what it answers to the whole file."""
    settings = config.load_again(Path(directory), None, [], schema_of)
    study = importlib.import_module(f"experiments.{experiment}").STUDY
    predictor, params, _ = predict.choose(study, settings, Path(directory), None, None, False)
    inputs = np.asarray(predictor.examples()[0])[:, :2]
    answers = np.asarray(predictor.answer(params, inputs))
    lines = [line for n in range(2) for line in [*(json.dumps(step.tolist()) for step in inputs[:, n]), ""]]
    if predictor.cell is None:
        monkeypatch.setattr(sys, "stdin", iter(lines))
        assert main(["predict", directory, "--steps"]) == 2
        assert "answers once it has read the whole sequence" in capsys.readouterr().err
        return
    monkeypatch.setattr(sys, "stdin", iter(lines))
    assert main(["predict", directory, "--steps"]) == 0
    said = np.array([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    said = said.reshape(2, len(inputs), -1)
    if experiment == "copy_memory":
        np.testing.assert_array_equal(said.argmax(-1), answers)
    else:
        np.testing.assert_allclose(said.reshape(answers.shape), answers, rtol=1e-4, atol=1e-5)  # six digits are said
    if experiment == "copy_memory":
        tokens_out_of_range(directory, inputs, capsys, monkeypatch)
    monkeypatch.setattr(sys, "stdin", iter([lines[0], "[1, 2, 3, 4]"]))
    assert main(["predict", directory, "--steps"]) == 2
    assert "line 2: expected a step such as " in capsys.readouterr().err


def tokens_out_of_range(directory, inputs, capsys, monkeypatch):
    """They are told, from lines and of a file, where the sequence stands; before, they were read as nothing."""
    for token in ("10", "-1", "1.5", str(2**40)):
        monkeypatch.setattr(sys, "stdin", iter(["3", token]))
        assert main(["predict", directory, "--steps"]) == 2
        assert f"line 2: expected tokens from 0 to 9, got {token}" in capsys.readouterr().err
    path = Path(directory) / "tokens.npy"
    for token in (10, -1, 2**40):
        tokens = inputs.astype(np.int64)
        tokens[4, 1] = token
        np.save(path, tokens)
        assert main(["predict", directory, "--input", str(path)]) == 2
        assert f"expected tokens from 0 to 9, got {token} at step 4 of sequence 1" in capsys.readouterr().err


@pytest.mark.full
def test_digits_of_a_file(digits, tmp_path, capsys):
    directory = str(digits)
    pixels = np.random.default_rng(0).uniform(size=(64, 3, 1)).astype(np.float32)
    np.save(tmp_path / "pixels.npy", pixels)
    ask = ["predict", directory, "--model", "gru", "--input", str(tmp_path / "pixels.npy")]
    capsys.readouterr()
    assert main([*ask, "--output", str(tmp_path / "answers.npy")]) == 0
    answers = np.load(tmp_path / "answers.npy")
    np.testing.assert_allclose(answers.sum(-1), 1, rtol=1e-5)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[1]) for line in lines] == answers.argmax(-1).tolist()
    assert main([*ask, "--best"]) == 0

    for wrong, message in [
        (pixels[..., 0], "expected an array float32 (T, N, 1), time first, got float32 (64, 3)"),
        (pixels.astype(int), "expected an array float32 (T, N, 1), got int64; convert it with astype"),
    ]:
        np.save(tmp_path / "pixels.npy", wrong)
        capsys.readouterr()
        assert main(ask) == 2 and message in capsys.readouterr().err
    (tmp_path / "pixels.npy").write_text("no array")
    assert main(ask) == 2 and "not a readable .npy file" in capsys.readouterr().err


def test_what_cannot_be_asked_is_told(digits, tmp_path, capsys):
    directory = str(digits)
    capsys.readouterr()
    assert main(["predict", directory, "--model", "gruu"]) == 2
    assert capsys.readouterr().err == "--model: expected 'elman' or 'gru', got 'gruu'; did you mean 'gru'?\n"
    assert main(["predict", directory, "--seed", "4"]) == 2
    assert capsys.readouterr().err == "--seed: expected one of 5, 3, got 4\n"
    assert main(["predict", str(tmp_path)]) == 2
    fresh = shutil.copytree(digits, tmp_path / "fresh", ignore=shutil.ignore_patterns("checkpoints"))
    assert main(["predict", str(fresh)]) == 1
    assert "no checkpoint of elman yet" in capsys.readouterr().err
