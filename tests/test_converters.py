"""Converters declare themselves, and every list of them is complete; none of their libraries is needed here."""

import subprocess
import sys
import tomllib
from types import ModuleType

import pytest

import jaxrnn as jr
from jaxrnn.interop import registry
from jaxrnn.interop.registry import Format, Library, Loaded, converters, formats, refused
from tests.documents import ROOT

SHARED = {"conversion", "registry"}  # the modules of the folder that are no converters
MOVED = {"safetensors"}  # says where its names are now


def test_a_module_is_a_converter_or_shared():
    files = {path.stem for path in (ROOT / "jaxrnn" / "interop").iterdir() if path.stem.isidentifier()}
    modules = {name for name in files if not name.startswith("_")}
    undeclared = modules - SHARED - MOVED - converters().keys()
    assert not undeclared, f"state LIBRARY = Library(…) in jaxrnn/interop/{', '.join(undeclared)}: registry.py says how"
    assert {"torch", "keras", "flax", "haiku", "equinox", "onnx"} <= converters().keys()


def test_every_converter_is_an_attribute():
    for name, module in converters().items():
        assert getattr(jr.interop, name) is module and name in dir(jr.interop)
    assert set(jr.interop.__all__) <= converters().keys()
    with pytest.raises(AttributeError, match=r"module 'jaxrnn\.interop' has no attribute 'caffe'"):
        jr.interop.caffe  # noqa: B018


def test_every_converter_names_its_functions():
    for name, module in converters().items():
        missing = [function for function in module.__all__ if not getattr(module, function).__doc__]
        assert module.__all__ and not missing, f"jaxrnn.interop.{name}: give {missing} a docstring"


def test_asking_converters_imports_no_library():
    libraries = {name: module.LIBRARY.module for name, module in converters().items()}
    code = (
        f"import sys, jaxrnn; before = set(sys.modules); from jaxrnn.interop.registry import converters, formats; "
        f"converters(); formats(); print([n for n, m in {libraries}.items() if m in sys.modules.keys() - before])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "[]\n", f"these converters import their library at the top, use LIBRARY.load(): {found}"


def test_every_extra_brings_its_library():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, module in converters().items():
        library = module.LIBRARY
        package = library.package or library.module
        lists = project["optional-dependencies"]
        wanted = lists.get(library.extra, []) if library.extra else project["dependencies"]
        where = f"the extra {library.extra}" if library.extra else "dependencies"
        held = [entry for entry in wanted if entry.split("=")[0].rstrip("<>!~ ") == package]
        assert held, f"pyproject.toml: add {package!r}, which jaxrnn.interop.{name} needs, to {where}"


@pytest.mark.parametrize(
    ("library", "install"),
    [
        (Library("Caffe", "no_such_caffe", extra="interop"), r"jaxrnn\[interop\]"),
        (Library("Caffe", "no_such_caffe", package="caffe-py"), "caffe-py"),
        (Library("Caffe", "no_such_caffe"), "no_such_caffe"),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(library, install):
    with pytest.raises(ImportError, match=rf"jaxrnn\.interop needs no_such_caffe: pip install '{install}'"):
        library.load()


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("torch", lambda: jr.interop.torch.to_torch(jr.lstm(3, 4), None)),
        ("keras", lambda: jr.interop.keras.from_keras(None)),
        ("equinox", lambda: jr.interop.equinox.from_equinox(None)),
        ("onnx", lambda: jr.interop.onnx.load(b"")),
    ],
)
def test_a_converter_without_its_library(module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    extra = converters()[module].LIBRARY.extra
    with pytest.raises(ImportError, match=rf"jaxrnn\.interop needs {module}: pip install 'jaxrnn\[{extra}\]'"):
        call()


def test_the_files_that_converters_read_and_write():
    ours = {
        ".safetensors": ("torch state dicts", False),
        ".pt": ("torch state dicts", False),
        ".keras": ("Keras models", False),
        ".onnx": ("ONNX", True),
    }
    found = {suffix: (format.title, format.write is not None) for suffix, format in formats().items()}
    assert found.items() >= ours.items()
    assert {".pkl", ".weights.h5"} <= refused().keys()


def test_two_converters_cannot_read_the_same_files(monkeypatch):
    def read(path):
        return Loaded(jr.lstm(3, 4), None)

    first, second = ModuleType("first"), ModuleType("second")
    first.FORMATS = second.FORMATS = {".npz": Format("arrays", read)}  # type: ignore[attr-defined]
    monkeypatch.setattr(registry, "converters", lambda: {"first": first, "second": second})
    with pytest.raises(ValueError, match=r"jaxrnn\.interop\.second: FORMATS has \.npz, which another one has"):
        formats()
