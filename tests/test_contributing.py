"""CONTRIBUTING.md's recipes, followed block by block in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT

FILE = re.compile(r"^New, `(?P<file>[^`\n]+)`:\n\n```\w+\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^- `(?P<file>[^`\n]+)`, after `(?P<after>[^`\n]+)`: `(?P<line>[^`\n]+)`$", re.MULTILINE)
COPIED = ("configs", "docs", "experiments", "jaxrnn", "tests")
LEFT = shutil.ignore_patterns("__pycache__", "*.png", "fixtures", "faults")


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Path:
    """A copy of the repository in which every recipe was followed."""
    copy = tmp_path_factory.mktemp("followed")
    for folder in COPIED:
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT)
    for file in ROOT.glob("*.*"):
        if file.is_file():
            shutil.copy(file, copy)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for step in FILE.finditer(page):
        file = copy / step["file"]
        assert not file.exists(), f"CONTRIBUTING.md: {step['file']} is there already"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(step["code"], encoding="utf-8")
    for step in LINE.finditer(page):
        lines = (copy / step["file"]).read_text(encoding="utf-8").splitlines()
        at = [number for number, line in enumerate(lines) if line.strip() == step["after"]]
        assert at, f"CONTRIBUTING.md: {step['file']} has no line {step['after']!r}"
        indent = lines[at[0]][: -len(lines[at[0]].lstrip())] if lines[at[0]].startswith(" ") else ""
        lines.insert(at[0] + 1, indent + step["line"])
        (copy / step["file"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return copy


def in_copy(copy: Path, *command: str) -> str:
    """What a Python command prints, run where the recipes were followed."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def passed(copy: Path, files: list[str], chosen: str) -> int:
    """How many of the chosen tests passed; no other outcome."""
    said = in_copy(copy, "-m", "pytest", "-q", "-n", "0", *files, "-k", chosen)
    counts = re.findall(r"(\d+) (\w+)", said.splitlines()[-1].partition(" in ")[0])
    assert {outcome for _, outcome in counts} <= {"passed", "deselected"}, said
    return int(counts[0][0])


@pytest.mark.full
def test_the_cell_and_the_wrapper_pass_the_contract(followed):
    some = "equals_the_plain_loop or padding_never_leaks"
    assert passed(followed, ["tests/test_contract.py"], f"(cfn or input_gain) and ({some})") >= 4


@pytest.mark.full
def test_the_pass_passes_its_test_and_stands_in_the_order(followed):
    files = ["tests/test_cancel_negations.py", "tests/test_passes.py"]
    assert passed(followed, files, "double_negations or page_lists or this_step or (left_out and negations)") == 4


@pytest.mark.full
def test_the_experiment_runs_and_writes_its_page(followed):
    for needed in ("pydantic", "tomli_w", "jinja2"):
        pytest.importorskip(needed)
    assert "forgetting" in in_copy(followed, "-m", "experiments", "list")
    small = ["--set", "steps=20", "--set", "model.hidden_size=8", "--set", "model.cells=['elman']"]
    page = followed / "docs/results/forgetting.md"
    in_copy(followed, "-m", "experiments", "run", "configs/forgetting.toml", *small, "--write", str(page))
    assert re.search(r"\| elman \| \d+\.\d \|\n\nTime constant: in steps, from 20 steps", page.read_text())
    assert (followed / "runs/forgetting-001/config.toml").exists()


def test_what_the_recipes_write_passes_the_linter(followed):
    in_copy(followed, "-m", "ruff", "check", ".")
    in_copy(followed, "-m", "ruff", "format", "--check", ".")


def test_nothing_is_missing_in_a_list(followed):
    files = ["tests/test_api_pages.py", "tests/test_readme.py", "tests/test_bad_arguments.py"]
    assert passed(followed, files, "every or cfn or input_gain") >= 10


@pytest.mark.full
def test_the_converter_passes_its_test_and_is_in_no_list(followed):
    files = ["tests/interop/test_tensorflow1.py", "tests/interop/test_files.py"]
    assert passed(followed, files, "tensorflow1 or test_every") == 2 + 2 + 2  # its own, its rows, that none lacks
    assert passed(followed, ["tests/test_converters.py"], "test") >= 10
