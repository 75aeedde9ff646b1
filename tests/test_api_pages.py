"""The reference: every public name stands on a page of docs/api, and its docstring has an example."""

import importlib
import inspect
import re
import runpy
import sys
import types
from collections import Counter

import pytest

import jaxrnn as jr
from jaxrnn.interop.registry import converters
from tests.documents import BLOCK, ROOT, run

PAGES = ROOT / "docs" / "api"
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
# Where a name of a face belongs; names of the root by subject, as its __all__ groups them.
PAGE_OF = {
    "jaxrnn": "cells.md, wrappers.md, running.md, combining.md, sequences.md, attention.md or files.md",
    "jaxrnn.cells": "records.md",
    "jaxrnn.wrappers": "wrappers.md",
    "jaxrnn.attention": "attention.md",
    "jaxrnn.planning": "planning.md",
    "jaxrnn.gradients": "gradients.md",
    "jaxrnn.decoding": "decoding.md",
    "jaxrnn.devices": "devices.md",
    "jaxrnn.training": "training.md",
    "jaxrnn.plotting": "plotting.md",
}
FACES = [name for name in jr.__all__ if inspect.ismodule(getattr(jr, name))]


def names_of(face: str) -> list[str]:
    """The public names of a face: those of ``__all__``, else its own functions and classes."""
    module = jr if face == "jaxrnn" else getattr(jr, face.removeprefix("jaxrnn."))
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return [name for name in own if not name.startswith("_")]


def entries() -> Counter[str]:
    return Counter(name for page in PAGES.glob("*.md") for name in ENTRY.findall(page.read_text(encoding="utf-8")))


def test_every_public_name_is_on_a_page():
    expected = {f"{face}.{name}": page for face, page in PAGE_OF.items() for name in names_of(face)}
    of_interop = [(name, module.__all__) for name, module in converters().items()]  # no library is imported
    expected |= {f"jaxrnn.interop.{library}.{name}": "interop.md" for library, names in of_interop for name in names}
    found = entries()
    missing = [f"add `::: {name}` to docs/api/{page}" for name, page in expected.items() if name not in found]
    of_training = ("checkpoints", "records", "locking")  # beside the face, by their full names
    modules = tuple(f"jaxrnn.training.{module}." for module in of_training)
    unknown = [name for name in found if name not in expected and not name.startswith(modules)]
    assert not missing, "\n".join(missing)
    assert not unknown, f"these entries of docs/api are names of no face, take them out: {unknown}"
    assert max(found.values()) == 1, f"on two pages: {[name for name, count in found.items() if count > 1]}"


def test_every_face_has_a_page():
    assert {f"jaxrnn.{face}" for face in FACES} == PAGE_OF.keys() - {"jaxrnn"} | {"jaxrnn.interop"}
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in [*PAGES.glob("*.md")]:
        assert f"api/{page.name}" in nav, f"add {page.name} to `nav` in mkdocs.yml"


WITH_BLOCKS = sorted(page.name for page in PAGES.glob("*.md") if BLOCK.search(page.read_text()))
LONG = "gradients.md", "records.md"  # which compile much


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.full if p in LONG else ()) for p in WITH_BLOCKS])
def test_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(f"docs/api/{page}")


@pytest.mark.parametrize(
    "page", sorted({*PAGE_OF.values()} - {PAGE_OF["jaxrnn"]} | {"running.md", "combining.md", "files.md"})
)
def test_every_record_has_an_example(page):
    """A class shows itself in its docstring, or in the example at the top of its page."""
    text = (PAGES / page).read_text(encoding="utf-8")
    shown = "".join(BLOCK.findall(text))
    for entry in ENTRY.findall(text):
        name = entry.rpartition(".")[2]
        value = getattr(importlib.import_module(entry.rpartition(".")[0]), name)
        if inspect.isclass(value) and ">>>" not in (value.__doc__ or ""):
            assert re.search(rf"\b{name}\b", shown), f"show {name} at work in the example of docs/api/{page}"


@pytest.mark.parametrize("face", PAGE_OF)
def test_every_public_function_has_an_example(face):
    module = jr if face == "jaxrnn" else getattr(jr, face.removeprefix("jaxrnn."))
    undocumented, without_example = [], []
    for name in names_of(face):
        value = getattr(module, name)
        home = f"{value.__module__.replace('.', '/')}.py: {name}"
        if not (value.__doc__ or "").strip():
            undocumented.append(home)
        elif inspect.isfunction(value) and ">>>" not in value.__doc__:
            without_example.append(home)
    assert not undocumented, f"add a docstring: {undocumented}"
    assert not without_example, f"add a section `Example:` with lines that begin with >>>: {without_example}"


def test_docstrings_are_shown_as_lists_and_code(monkeypatch):
    """What docs/building/docstrings.py makes of ours, without the packages that build the site."""
    monkeypatch.setitem(sys.modules, "griffe", types.SimpleNamespace(Extension=object))
    shown = runpy.run_path(str(ROOT / "docs/building/docstrings.py"))["shown"]
    text = """One line.

    h_t = F(h_{t-1}, x_t)

Args:
    params, xs: as for ``apply``; xs (T, *B, I) and
        more (*B).

Example:
    >>> 1 + 1
    2

Differs from: Keras.
"""
    assert shown(text) == (
        "One line.\n\n    h_t = F(h_{t-1}, x_t)\n\n\n**Args**\n\n\n"
        "- `params, xs`: as for ``apply``; xs (T, \\*B, I) and\n  more (\\*B).\n\n\n"
        "**Example**\n\n```pycon\n>>> 1 + 1\n2\n```\n\n**Differs from** Keras."
    )
