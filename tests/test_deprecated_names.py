"""Names that moved work for one release more, and warn with the place where they are now."""

import importlib
import pathlib
import re
import warnings

import pytest

import jaxrnn as jr
from jaxrnn._deprecated import MOVED, REMOVED_IN

ROOT = pathlib.Path(__file__).parents[1]
# The modules that have a table, found by their text: importing them enters it.
MODULES = sorted(
    {
        name
        for path in (ROOT / "jaxrnn").rglob("*.py")
        for name in re.findall(r'moved_names\(\s*"([\w.]+)"', path.read_text(encoding="utf-8"))
    }
)
for module in MODULES:
    importlib.import_module(module)
NAMES = [(module, old, new) for module in MODULES for old, new in MOVED[module].items()]


def test_the_tables_are_found():
    assert {"jaxrnn", "jaxrnn.training", "jaxrnn.interop.safetensors"} <= set(MODULES)
    assert MOVED["jaxrnn"]["verdict"] == "jaxrnn.gradients.classify_exponent"
    assert MOVED["jaxrnn"]["Division"] == "jaxrnn.devices.EnsembleLayout"
    assert MOVED["jaxrnn"]["Report"] == "jaxrnn.planning.ScanExplanation"


@pytest.mark.parametrize(("module", "old", "new"), NAMES, ids=[f"{module}.{old}" for module, old, _ in NAMES])
def test_a_moved_name_warns_and_is_the_same_object(module, old, new):
    with pytest.warns(DeprecationWarning) as caught:
        found = getattr(importlib.import_module(module), old)
    (warning,) = caught
    assert str(warning.message) == f"{module}.{old} is now {new}; the old name goes in jaxrnn {REMOVED_IN}."
    assert warning.filename == __file__
    home, _, name = new.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the new name is no old one
        assert found is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("module", MODULES)
def test_old_names_are_not_offered(module):
    """Neither ``__all__`` nor ``dir`` shows them to editors, and no module both has a name and calls it moved."""
    there = importlib.import_module(module)
    assert MOVED[module].keys().isdisjoint({*getattr(there, "__all__", ()), *dir(there)})


@pytest.mark.parametrize("module", MODULES)
def test_unknown_names(module):
    with pytest.raises(AttributeError, match=re.escape(f"module {module!r} has no attribute 'no_such_name'")):
        _ = importlib.import_module(module).no_such_name


def test_the_regime_of_a_diagnosis_was_its_verdict():
    diagnosis = jr.gradients.Diagnosis(exponent=-0.5, sd=0.0, steps=100, regime="vanishing")
    with pytest.warns(
        DeprecationWarning, match=r"^Diagnosis\.verdict is now Diagnosis\.regime; the old name goes"
    ) as caught:
        assert diagnosis.verdict == "vanishing"
    assert caught[0].filename == __file__
