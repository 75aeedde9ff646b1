"""Experiments of a user's own, in folders outside this package: found, imported, and begun by ``new``."""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import re
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import EXPERIMENTS

TEMPLATE = Path(__file__).with_name("mytask")  # an experiment that runs; its name is put in place of "mytask"
_LOADED: dict[str, ModuleType] = {}


class OwnError(Exception):
    """Why an experiment of one's own cannot be used or begun."""


def module_of(name: str) -> ModuleType:
    """The module of an experiment: one of this package, or one of a user's that ``find`` has imported."""
    return importlib.import_module(EXPERIMENTS[name].module) if name in EXPERIMENTS else _LOADED[name]


def find(name: Any, config: Path) -> bool:
    """Whether there is such an experiment; a user's own is imported.

    It is a folder of that name with an ``__init__.py``: the one in which the config file lies, or one beside the config
    file, or one in the current directory, from where a run is resumed.

    Raises:
        OwnError: Python has another module of that name, or the folder defines no experiment.
    """
    if not isinstance(name, str) or not name.isidentifier():
        return False
    if name in EXPERIMENTS:
        return True
    beside = config.resolve().parent
    places = [beside] if beside.name == name else []
    for folder in (*places, beside / name, Path.cwd() / name):
        if (folder / "__init__.py").is_file():
            _LOADED[name] = _imported(name, folder / "__init__.py")
            return True
    return False


def _imported(name: str, file: Path) -> ModuleType:
    there = sys.modules.get(name)
    if there is not None and there is not _LOADED.get(name) and Path(there.__file__ or ".").resolve() != file.resolve():
        raise OwnError(
            f"{file.parent}: Python has another module called {name!r}; rename the folder and the experiment"
        )
    if there is None or Path(there.__file__ or ".").resolve() != file.resolve():
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
        assert spec is not None and spec.loader is not None
        there = importlib.util.module_from_spec(spec)
        sys.modules[name] = there  # so that its own files can import each other
        try:
            spec.loader.exec_module(there)
        except BaseException:
            del sys.modules[name]
            raise
    if not hasattr(there, "Config") or not (hasattr(there, "STUDY") or hasattr(there, "run")):
        raise OwnError(
            f"{file}: expected Config, and STUDY or run(config, directory); experiments/__init__.py says how"
        )
    return there


def new(name: str, into: Path) -> Path:
    """Write ``into/name``: an experiment that runs at once, its config, README and test.

    Raises:
        OwnError: a name that is taken, or that no module can have.
    """
    folder = into / name
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise OwnError(f"new: expected a name of up to 40 small letters, digits and _, a letter first, got {name!r}")
    if name in EXPERIMENTS:
        raise OwnError(f"new: {name!r} is an experiment already, {EXPERIMENTS[name].config}; choose another name")
    if folder.exists() or folder.is_symlink():
        raise OwnError(f"new: {folder} is there already, and stays as it is; choose another name")
    if name in sys.builtin_module_names or importlib.util.find_spec(name) is not None:
        raise OwnError(f"new: Python has a module called {name!r} already, which the folder would hide; choose another")
    made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=into))
    try:
        for file in sorted(TEMPLATE.iterdir()):
            if file.is_file():
                text = file.read_text(encoding="utf-8").replace("mytask", name)
                (made / file.name.replace("mytask", name)).write_text(text, encoding="utf-8")
        made.chmod(0o755)  # mkdtemp's is for the user alone
        made.rename(folder)  # whole, or not at all
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return folder
