"""What a converter says of itself: its library, and the files that ``python -m jaxrnn convert`` reads and writes by it.

Each module or folder beside this one that states ``LIBRARY`` is a converter. It may state two tables more:

    LIBRARY = Library("Keras", "keras", extra="interop")
    FORMATS = {".keras": Format("Keras", read)}              files by their suffix
    REFUSED = {".h5": "it holds weights alone; …"}           suffixes that are not taken, and the way round

Whoever lists converters (the command line, the face ``jr.interop``, the tests) asks here. One list alone is kept by
hand, for type checkers: the import in ``jaxrnn/interop/__init__.py``. A converter imports its library in its functions,
by ``LIBRARY.load()``, so that all of them can be asked on a machine that has none of the libraries.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from jaxrnn._base import Cell, Layer, PyTree

NONE: Mapping[str, Any] = MappingProxyType({})


class Library(NamedTuple):
    """Another library: how it is called, imported and installed.

    Fields:
        title: in words, "PyTorch".
        module: as Python imports it, "torch".
        package: as pip calls it, where that is another name.
        extra: which of jaxrnn's extras brings it; "" where none does.
    """

    title: str
    module: str
    package: str = ""
    extra: str = ""

    @property
    def install(self) -> str:
        """What pip installs it by: ``jaxrnn[torch]``, or the package."""
        return f"jaxrnn[{self.extra}]" if self.extra else self.package or self.module

    def load(self, module: str | None = None) -> ModuleType:
        """The library, or one of its modules, imported.

        Raises:
            ImportError: it is not installed; the message says what to install.
        """
        if module is not None and not isinstance(module, str):
            raise TypeError(f"Library.load: module must be the name of a module, got {module!r}.")
        try:
            return importlib.import_module(module or self.module)
        except ImportError as error:
            raise ImportError(f"jaxrnn.interop needs {self.module}: pip install '{self.install}'") from error


class Loaded(NamedTuple):
    """What was read from a file."""

    model: Cell | Layer
    params: PyTree
    notes: Sequence[str] = ()  # what the user should know: what was left out, say


class Option(NamedTuple):
    """An option of the command line that a format reads by: ``--prefix``."""

    help: str
    choices: Sequence[str] | None = None


class Format(NamedTuple):
    """A kind of file.

    Fields:
        title: in words, "ONNX", "torch state dicts".
        read: ``read(path, **options) -> Loaded``.
        write: ``write(path, model, params)``; None where no such file is written.
        options: what the file does not say, by name; None is passed for one that the user leaves out.
        parts: ``parts(path)``, a line for each part that the file may hold beside others; None where it is one model.
    """

    title: str
    read: Callable[..., Loaded]
    write: Callable[[str, Cell | Layer, PyTree], None] | None = None
    options: Mapping[str, Option] = NONE
    parts: Callable[[str], Sequence[str]] | None = None


def converters() -> dict[str, ModuleType]:
    """Every converter by its name, ``{"torch": jaxrnn.interop.torch …}``; no library is imported by it."""
    here = importlib.import_module(__package__)
    names = sorted(found.name for found in pkgutil.iter_modules(here.__path__) if not found.name.startswith("_"))
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "LIBRARY")}


def formats() -> dict[str, Format]:
    """The files that converters read, by suffix."""
    return _all("FORMATS")


def refused() -> dict[str, str]:
    """The suffixes that are not taken, each with the reason and the way round."""
    return _all("REFUSED")


def _all(table: str) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, module in converters().items():
        own = getattr(module, table, NONE)
        if taken := own.keys() & entries.keys():
            raise ValueError(f"jaxrnn.interop.{name}: {table} has {', '.join(sorted(taken))}, which another one has.")
        entries |= own
    return entries
