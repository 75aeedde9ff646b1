"""The Japanese vowels: folds within the training split, a model of each sequence's own steps, one look at the test."""

import importlib.util
import json

import jax
import numpy as np
import pytest

import jaxrnn as jr
from experiments import vowels
from experiments.data import source, splits
from experiments.runner import training
from experiments.runner.command import main
from experiments.vowels.model import classifier
from tests.documents import ROOT

SMALL = ["train.steps=2", "train.log_every=1", "train.seeds=[0]", "train.batch_size=4", "model.hidden_size=2"]
SMALL += ["model.cells=['gru']", "task.folds=2"]


@pytest.fixture
def aeon(tmp_path, monkeypatch):
    """A package of that name with a few sequences of three speakers, 6 to train and 3 to test of each."""
    folder = tmp_path / "aeon" / "datasets" / "data" / "JapaneseVowels"
    folder.mkdir(parents=True)
    (tmp_path / "aeon" / "__init__.py").write_text("raise ImportError('only found, never imported')")
    rng = np.random.default_rng(0)
    for part, count in (("TRAIN", 18), ("TEST", 9)):
        rows = []
        for n in range(count):
            features = rng.normal(n % 3, 1, (12, 2 + n % 3))
            rows.append(":".join([*(",".join(f"{a:.3f}" for a in row) for row in features), str(n % 3 + 1)]))
        (folder / f"JapaneseVowels_{part}.ts").write_text("\n".join(["@classLabel true 1 2 3", "@data", *rows]))
    monkeypatch.syspath_prepend(tmp_path)
    source._read.cache_clear()
    yield
    source._read.cache_clear()


def config(**task):
    train = {"batch_size": 4, "steps": 2, "log_every": 1}
    return vowels.Config.model_validate({"experiment": "vowels", "train": train, "task": {"folds": 3, **task}})


def test_folds_are_disjoint_stratified_and_within_the_training_split(aeon, monkeypatch):
    monkeypatch.setattr(splits.Splits, "test", None)  # whoever chooses cannot read it
    of = config(held_out="validation")
    assert list(vowels.models(of)) == [f"{cell}, fold {k}" for cell in ("gru", "lstm") for k in (1, 2, 3)]
    seen = []
    for fold in range(3):
        learned, held_out = vowels.part(of, fold)
        assert len(learned.ids) == 12 and np.bincount(held_out.labels).tolist() == [2, 2, 2]
        assert set(learned.ids).isdisjoint(held_out.ids)
        seen += held_out.ids
        task = vowels.task(of, f"gru, fold {fold + 1}")
        scale, whole = task.shared
        assert sorted(whole.lengths.tolist()) == sorted(held_out.lengths.tolist())
        np.testing.assert_allclose(scale[0], np.concatenate(learned.xs).mean(0), rtol=1e-5)
        fed = [task.feed([0])(step) for step in range(3)]
        xs = np.concatenate([batch.xs[0].sum((0, 2))[batch.valid[0]] for batch in fed])
        np.testing.assert_allclose(np.sort(xs), np.sort([x.sum() for x in learned.xs]), rtol=1e-5)
    assert sorted(seen) == sorted(f"train{n}" for n in range(1, 19))
    whole = vowels.part(config(), None)
    assert len(whole.learned.ids) == 18 and whole.learned is whole.held_out


def test_folds_are_trained_by_one_program(aeon):
    """Equal functions and shapes, though one fold holds out the longest sequences; other data."""
    of = config(held_out="validation")
    first, second = (vowels.task(of, f"gru, fold {k}") for k in (1, 2))
    programs = training.programs_of(first, of.train, 1, {})
    assert training.programs_of(second, of.train, 1, {}) is programs
    others = [(vowels.task(of, "lstm, fold 1"), of.train), (first, of.train.model_copy(update={"learning_rate": 0.5}))]
    others += [(first._replace(batch_axis={"xs": 1}), of.train)]
    for task, train in others:
        assert training.programs_of(task, train, 1, {}) is not programs
    shapes = [jax.tree.map(np.shape, task.shared) for task in (first, second)]
    fed = [{jax.tree.map(np.shape, task.feed([0])(step)) for step in range(3)} for task in (first, second)]
    assert shapes[0] == shapes[1] and fed[0] == fed[1]
    assert (first.shared[0][0] != second.shared[0][0]).any()


@pytest.mark.parametrize("name", ["gru", pytest.param("lstm", marks=pytest.mark.full)])
def test_the_readout_sees_the_mean_of_each_sequences_own_steps(name, traced):
    mean, sd = np.array([1.0, -1, 0], np.float32), np.array([2.0, 1, 1], np.float32)
    model = classifier(name, 3, 2, 4, dropout=0.5, noise=1.0, dtype=None)
    layer, readout = model.init(jax.random.key(0))
    readout = readout._replace(b_y=np.arange(4, dtype=np.float32))
    lengths = np.array([3, 1], np.int32)
    xs = np.asarray(jax.random.normal(jax.random.key(1), (4, 2, 3)))
    logits = traced(lambda params, xs: model.apply(params, xs, lengths, (mean, sd), None))((layer, readout), xs)
    cell = {"gru": jr.gru, "lstm": jr.lstm}[name]
    both = jr.bidirectional(cell(3, 2), cell(3, 2))
    for b, length in enumerate(lengths):
        alone = (xs[:length, b] - mean) / sd
        outputs = np.asarray(traced(lambda params, x: both.apply(params, x)[1])(layer, alone))
        expected = outputs.mean(0) @ readout.W_hy + readout.b_y
        np.testing.assert_allclose(logits[b], expected, rtol=1e-5, atol=1e-6)  # float32


def run(out, *settings):
    options = [option for setting in [*SMALL, *settings] for option in ("--set", setting)]
    return main(["run", str(ROOT / "configs/vowels.toml"), "--out", str(out), *options])


@pytest.mark.full
def test_a_tiny_run_reads_the_test_split_once(aeon, tmp_path):
    assert run(tmp_path / "runs") == 0
    summary = json.loads((tmp_path / "runs/vowels-001/summary.json").read_text())
    (model,) = summary["models"]
    assert summary["test_reads"] == 1 and 0 <= model["test_accuracy"]["each"][0] <= 1
    text = (tmp_path / "runs/vowels-001/table.md").read_text()
    assert "9 test, split by the file" in text and "MLSTM-FCN is quoted with 97.6 %" in text


@pytest.mark.full
def test_cross_validation_reads_no_test_split(aeon, tmp_path, monkeypatch):
    monkeypatch.setattr(splits.Splits, "test", None)
    assert run(tmp_path / "runs", "task.held_out=validation") == 0
    assert "gru: " in (tmp_path / "runs/vowels-001/table.md").read_text()


def test_without_aeon_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: name != "aeon" and find(name)
    )
    source._read.cache_clear()
    assert run(tmp_path / "runs") == 2
    said = capsys.readouterr().err
    assert said == (
        "data.path: aeon, whose JapaneseVowels the experiment reads, is not installed; pip install 'jaxrnn[vowels]', "
        "or pip install --no-deps aeon: its files alone are read\n"
    )
    assert not (tmp_path / "runs").exists()
