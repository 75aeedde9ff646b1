"""Experiments on the real packages, for a few steps: `make test-data`; and that nothing else asks for them."""

import importlib
import json

import pytest

from experiments import EXPERIMENTS
from experiments.runner.command import main
from experiments.runner.config import Trained
from tests.experiments import packaged
from tests.experiments.tiny import ROOT, options

EXTRAS = packaged.extras()
FEW = ["train.steps=2", "train.log_every=1", "train.seeds=[0]"]


def few(name):
    """What makes a run of it short: `SMALL` of a test of its own, or a few steps where it trains.

    `SMALL_ON_PACKAGE` goes before, where a package holds so much more than the test's own data.
    """
    for path in sorted((ROOT / "tests/experiments").glob(f"test_{name}*.py")):
        module = importlib.import_module(f"tests.experiments.{path.stem}")
        settings = getattr(module, "SMALL_ON_PACKAGE", getattr(module, "SMALL", None))
        if settings is not None:
            return settings
    return FEW if issubclass(importlib.import_module(EXPERIMENTS[name].module).Config, Trained) else []


@pytest.mark.data
@pytest.mark.parametrize("name", EXTRAS)
def test_an_experiment_runs_on_its_package(name, tmp_path):
    assert main(["run", str(ROOT / f"configs/{name}.toml"), "--out", str(tmp_path), *options(*few(name))]) == 0
    (directory,) = tmp_path.iterdir()
    assert json.loads((directory / "summary.json").read_text()) and "| " in (directory / "table.md").read_text()
    assert (directory / "report.html").stat().st_size > 1000


def test_tests_on_packages_run_only_where_they_are_asked_for(request):
    asked = request.config.getoption("--data")
    assert asked or not [item for item in request.session.items if item.get_closest_marker("data")]


def test_packages_are_found_by_the_extras_of_experiments(tmp_path):
    assert EXTRAS["vowels"] == ["aeon"] and set(EXTRAS["pretrained"]) >= {"silero-vad==6.2.3", "g2p-en==2.1.0"}
    assert "aeon" in packaged.requirements(files=True) and "onnx" in packaged.requirements(files=False)
    assert not set(packaged.requirements(files=False)) & set(packaged.requirements(files=True))
    (tmp_path / "pyproject.toml").write_text(
        '[project.optional-dependencies]\nadding = ["Some_Thing>=2", "jaxrnn[train]"]\ntrain = ["orbax"]\n'
    )
    found = packaged.extras(tmp_path)
    assert found == {"adding": ["Some_Thing>=2"]} and packaged.name_of(found["adding"][0]) == "some-thing"


@pytest.mark.parametrize("name", EXTRAS)
def test_what_makes_a_run_on_a_package_short_is_known(name):
    module = importlib.import_module(EXPERIMENTS[name].module)
    assert few(name) or not hasattr(module, "STUDY"), f"tests/experiments/test_{name}.py: add SMALL, a list of settings"
