"""README's code blocks run, in order, as one program; the docstrings' examples too."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import jax.numpy as jnp
import pytest

import jaxrnn

pytestmark = pytest.mark.usefixtures("quick_to_compile")
README = pathlib.Path(__file__).parents[1] / "README.md"
MODULES = [
    module.name
    for module in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn.")
    if not module.name.endswith("__main__") and not module.name.startswith("jaxrnn.interop")  # those: tests/interop
]


def test_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert len(blocks) == 8
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    ys, lengths = names["ys"], names["lengths"]
    assert ys.shape == (7, 2, 8) and bool((ys[4:, 1] == 0).all()) and bool(jnp.abs(ys[:, 0]).max() > 0)
    assert names["gradients"].W_hh.shape == (8, 8, 32) and bool(jnp.abs(names["gradient"].W_hh).max() > 0)
    assert names["gates"].f.shape == (7, 2, 8) and lengths.tolist() == [7, 4]
    assert names["spectrum"].exponents.shape == (2, 4) and names["products"].shape == (10, 2, 16)
    assert 0 < float(names["radius"]) < 1
    assert names["metadata"] == {"step": 100} and (tmp_path / "model.safetensors").exists()
    assert bool(names["around"].stable.all()) and len(names["figure"].axes) == 1
    losses = [float(point.values["loss"]) for point in names["fitted"].points]
    assert len(losses) == 5 and losses[-1] < losses[0] / 2 and (tmp_path / "runs/sines/100").is_dir()


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_is_documented_and_exported():
    for name in jaxrnn.__all__:
        assert getattr(jaxrnn, name).__doc__, name
    functions = [getattr(jaxrnn, n) for n in jaxrnn.__all__ if n.islower()]
    without_example = [f.__name__ for f in functions if ">>>" not in f.__doc__]
    assert without_example == []


def test_importing_jaxrnn_imports_nothing_heavy():
    import subprocess
    import sys

    heavy = [
        "flax",
        "optax",
        "torch",
        "keras",
        "onnx",
        "safetensors",
        "matplotlib",
        "orbax",
        "sklearn",
        "pydantic",
        "rich",
        "tensorboardX",
    ]
    code = f"import sys, jaxrnn; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
