"""README's code blocks run, in order, as one program; the docstrings' examples too."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn._spec import FACTORIES
from tests.documents import ROOT, sections

MODULES = [
    module.name
    for module in pkgutil.walk_packages(jr.__path__, "jaxrnn.")
    if not module.name.endswith("__main__") and not module.name.startswith("jaxrnn.interop")  # those: tests/interop
]


def test_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {}
    for title, _, names in sections("README.md"):
        before[title] = dict(names)
    lengths = names["lengths"]
    assert lengths.tolist() == [7, 4]
    first = before["Fifteen lines"]
    loss, key = first["loss"], jax.random.key(1)
    assert loss(first["params"], key) < loss(first["model"].init(jax.random.key(0)), key)  # one step of descent
    assert all(leaf.any() for leaf in jax.tree.leaves(first["gradient"]))
    cells = before["Cells and layers"]
    assert cells["gates"].f.shape == (7, 2, 8) and not cells["ys"][4:, 1].any()
    own, params = names["integrator"], names["integrator"].init(jax.random.key(0))
    carry = own.initial_carry(params, (2,))
    by_hand = [None] * 7
    for t in range(7):
        carry, by_hand[t] = own.step(params, carry, names["xs"][t])
    ys = jr.scan(own).apply(params, names["xs"])[1]
    np.testing.assert_allclose(ys, jnp.stack(by_hand), rtol=1e-5, atol=1e-6)  # float32, another order of sums
    assert names["ys"].shape == (7, 2, 8) and not names["ys"][4:, 1].any()


def test_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


# Examples that compile most; of the others a third by default.
LONG = [
    f"jaxrnn.{name}"
    for name in (
        *("decoding.ctc", "decoding.likelihood", "decoding.samplers", "gradients.flow", "gradients.fixed_points"),
        *("parallel_over_time.convergence", "plotting", "ridge", "running.tbptt"),
    )
]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if name in LONG or number % 3 else ())
        for number, name in enumerate(MODULES)
    ],
)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


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
        "platformdirs",
    ]
    faces = ["cells", "wrappers", "planning", "gradients", "decoding", "devices", "training", "interop"]
    code = f"""
import sys, types, jaxrnn
assert all(isinstance(getattr(jaxrnn, face), types.ModuleType) for face in {faces})
print([name for name in {heavy} if name in sys.modules])
assert callable(jaxrnn.plotting.fixed_points)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_root_is_short():
    """Cells and wrappers, as many as there are, and at most 40 names beside them."""
    kinds = {
        name for name, make in FACTORIES.items() if make.__module__.startswith(("jaxrnn.cells.", "jaxrnn.wrappers."))
    }
    assert {"elman", "lstm", "gru", "zoneout", "leaky"} <= kinds <= set(jr.__all__)
    faces = {name for name in jr.__all__ if inspect.ismodule(getattr(jr, name))}
    beside = set(jr.__all__) - kinds - faces
    assert len(jr.__all__) == len(kinds) + len(faces) + len(beside) and len(beside) <= 40, sorted(beside)
