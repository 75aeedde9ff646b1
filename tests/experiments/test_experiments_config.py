"""Every mistake in a config file or in --set is refused with the key's path, before anything runs."""

import importlib
import tomllib
from pathlib import Path

import pytest

from experiments import EXPERIMENTS, digits
from experiments.runner import config, study
from experiments.runner.command import main

ROOT = Path(__file__).parents[2]
NAMES = " or ".join(map(repr, EXPERIMENTS))


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """``said(*overrides, text=…)``: what stderr says of a config, refused before the experiment runs."""
    path = tmp_path / "digits.toml"

    def never(*arguments):
        raise AssertionError("a wrong config reached the experiment")

    monkeypatch.setattr(study, "run", never)

    def run(*overrides, text='experiment = "digits"\n'):
        path.write_text(text)
        options = [option for override in overrides for option in ("--set", override)]
        assert main(["run", str(path), "--out", str(tmp_path / "runs"), *options]) == 2
        return capsys.readouterr().err.replace(str(path), "digits.toml").splitlines()

    return run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=3", "train.stpes: unknown key; did you mean 'steps'?"),
        ("modle.hidden_size=3", "modle: unknown key; did you mean 'model'?"),
        ("xyz=3", "xyz: unknown key; the keys are experiment, train, mesh, model, data"),
        ("train.learning_rate=-1", "train.learning_rate: expected a number above 0, got -1"),
        ("train.learning_rate=inf", "train.learning_rate: expected a finite number, got Infinity"),
        ("train.learning_rate=true", "train.learning_rate: expected a number, got true"),
        ("train.steps=ten", "train.steps: expected an integer, got 'ten'"),
        ("train.steps=2.0", "train.steps: expected an integer, got 2.0"),
        ("train.steps=75", "train.steps: expected a multiple of train.log_every (50), got 75"),
        ("train.seeds=[0, true]", "train.seeds[1]: expected an integer, got true"),
        ("train.seeds=[-1]", "train.seeds[0]: expected a number of at least 0, got -1"),
        ("train.seeds=[]", "train.seeds: expected one entry or more, all different, got []"),
        ("train.seeds=[4, 4]", "train.seeds: expected one entry or more, all different, got [4, 4]"),
        ("model.learning_rates.gru=0", "model.learning_rates.gru: expected a number above 0, got 0"),
        (
            "model.learning_rates.elmann=0.1",
            "model.learning_rates.elmann: expected 'elman', 'gru', 'lstm', 'peephole_lstm' or "
            "'bidirectional_lstm', got 'elmann'; did you mean 'elman'?",
        ),
        ("model.cells=lstm", "model.cells: expected a list, got 'lstm'"),
        ("data.order=row", "data.order: expected 'pixels', 'permuted' or 'rows', got 'row'; did you mean 'rows'?"),
        ("data.test_fraction=0.9", "data.test_fraction: expected a number of at most 0.5, got 0.9"),
        ("train.lr=0", "train.learning_rate: expected a number above 0, got 0"),
        ("train.accumulate=0", "train.accumulate: expected a number above 0, got 0"),
        ("train.accumulate=1000000000", "train.accumulate: expected a number of at most 65536, got 1000000000"),
        (
            "train.precision=bfloat",
            "train.precision: expected 'float32' or 'bfloat16', got 'bfloat'; did you mean 'bfloat16'?",
        ),
        ("train.nonfinite=ignore", "train.nonfinite: expected 'stop', 'skip' or 'record', got 'ignore'"),
        ("train.patience=-1", "train.patience: expected a number of at least 0, got -1"),
        ("train.save_every=0", "train.save_every: expected a number above 0, got 0"),
        ("train.tensorboard=1", "train.tensorboard: expected true or false, got 1"),
        ("mesh.members=-1", "mesh.members: expected a number of at least 0, got -1"),
        ("mesh.batch=0", "mesh.batch: expected a number above 0, got 0"),
        ("train=3", "train: expected a table of keys, got 3"),
        ("experiment=digit", f"experiment: expected {NAMES}, got 'digit'; did you mean 'digits'?"),
    ],
)
def test_wrong_override(said, override, message):
    assert said(override) == [f"--set: {message}"]


def test_one_line_for_each_mistake_and_where_it_stands(said):
    text = 'experiment = "digits"\nmodle = 1\n[train]\nstpes = 3\nlearning_rate = "fast"\n'
    assert said("model.cells=['lstmm']", text=text) == [
        "digits.toml: train.learning_rate: expected a number, got 'fast'",
        "digits.toml: train.stpes: unknown key; did you mean 'steps'?",
        "--set: model.cells[0]: expected 'elman', 'gru', 'lstm', 'peephole_lstm' or 'bidirectional_lstm', "
        "got 'lstmm'; did you mean 'lstm'?",
        "digits.toml: modle: unknown key; did you mean 'model'?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "--set train.steps: expected KEY=VALUE, such as train.steps=200"),
        ("=3", "--set =3: expected KEY=VALUE, such as train.steps=200"),
        ("train.seeds=[1", "--set train.seeds=[1: [1 is not a TOML value"),
        ("experiment.x=1", "--set experiment.x=1: experiment is a value, not a table of keys"),
    ],
)
def test_override_that_is_none(said, override, message):
    assert said(override) == [message]


def test_file_without_an_experiment(said):
    assert said(text="") == [f"digits.toml: experiment: expected {NAMES}, it is missing"]


def test_file_that_is_not_toml(said):
    (line,) = said(text="experiment = \n")
    assert line.startswith("digits.toml: not a TOML file: Invalid value (at line 1")


def test_missing_file_names_the_nearest(tmp_path, capsys):
    (tmp_path / "digits.toml").write_text("")
    assert main(["run", str(tmp_path / "digit.toml")]) == 2
    there, nearest = tmp_path / "digit.toml", str(tmp_path / "digits.toml")
    assert capsys.readouterr().err == f"{there}: no such file; did you mean {nearest!r}?\n"


def test_batch_larger_than_the_data_is_refused_before_a_run_directory_is_made(tmp_path, capsys):
    arguments = ["run", str(ROOT / "configs/digits.toml"), "--out", str(tmp_path / "runs")]
    assert main([*arguments, "--set", "train.batch_size=1150"]) == 2
    message = "train.batch_size: expected at most 1149, the number of training images, got 1150\n"
    assert capsys.readouterr().err.endswith(f": {message}")
    assert not (tmp_path / "runs").exists()


def test_batch_that_the_devices_do_not_divide(said):
    (line,) = said("train.batch_size=10", "mesh.batch=4")
    assert line.endswith(": mesh.batch: expected a divisor of train.batch_size (10), got 4")


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "digits.toml"
    path.write_text('experiment = "digits"\n[train]\nsteps = 100\nbatch_size = 8\n')
    got = config.load(path, ["train.steps=200", "model.cells=['gru']"], lambda name: digits.Config)
    assert (got.train.steps, got.train.batch_size, got.model.cells) == (200, 8, ("gru",))
    assert got.train.clip_at == config.Train().clip_at


def test_a_path_needs_no_quotes():
    for path in ("waves.csv", "/data/waves-2.npz", "../my waves.csv", "~/waves.mat", "2024.csv"):
        assert config._value("--set", path) == path
    assert config._value("--set", "0.25") == 0.25 and config._value("--set", "'waves.csv'") == "waves.csv"


def test_fewer_steps_than_a_block_make_one_short_block():
    assert config.Train(steps=20, log_every=50).block == 20
    assert config.Train(steps=200, log_every=50).block == 50


def test_dumped_config_loads_to_the_same(tmp_path):
    path = tmp_path / "config.toml"
    written = digits.Config.model_validate(
        {
            "experiment": "digits",
            "model": {"learning_rates": {"gru": 2e-3, "elman": 1e-6}},
            "train": {"learning_rate": 1e-5, "seeds": [7, 3], "tensorboard": True, "nonfinite": "skip"},
            "mesh": {"batch": 4},
            "data": {"seed": 2**32 - 1},
        }
    )
    path.write_text(config.dump(written))
    assert config.load(path, [], lambda name: digits.Config) == written
    path.write_text(WRITTEN_BY_0_1_0)
    assert config.load(path, [], lambda name: digits.Config) == written


# Of a run that was begun before tomli-w wrote these files.
WRITTEN_BY_0_1_0 = """experiment = "digits"

[train]
log_every = 50
steps = 2000
learning_rate = 1e-05
seeds = [7, 3]
nonfinite = "skip"
tensorboard = true

[mesh]
members = 0
batch = 4

[model]
cells = ["elman", "gru", "lstm", "peephole_lstm", "bidirectional_lstm"]
hidden_size = 64
learning_rates = {gru = 0.002, elman = 1e-06}

[data]
test_fraction = 0.2
seed = 4294967295
"""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_a_folder_and_a_config(name):
    """What the docstring of experiments asks of a new one."""
    experiment, code = EXPERIMENTS[name], f"experiments/{name}/__init__.py"
    assert experiment.summary, f"{code}: say on the first line of its docstring what is learned or measured"
    assert experiment.takes.startswith("About "), f"{code}: say on the third line of its docstring how long it takes"
    assert (ROOT / experiment.config).is_file(), f'{experiment.config}: write it, with the line experiment = "{name}"'
    module = importlib.import_module(experiment.module)
    assert hasattr(module, "Config"), f"{code}: define Config"
    assert hasattr(module, "STUDY") != hasattr(module, "run"), f"{code}: define STUDY, or run(config, directory)"
    assert config.load(ROOT / experiment.config, [], lambda _: module.Config).experiment == name


def test_config_files_name_experiments():
    for path in (ROOT / "configs").glob("*.toml"):
        assert tomllib.loads(path.read_text())["experiment"] in EXPERIMENTS, path
