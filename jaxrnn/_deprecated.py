"""Names that moved: each works for one release more, with a warning that says where it is now."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

REMOVED_IN = "0.3"


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Say what the old name of something is now; ``stacklevel`` 3 points at the caller of the one that calls this."""
    message = f"{old} is now {new}; the old name goes in jaxrnn {REMOVED_IN}."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def moved_names(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` for names that moved; ``homes`` gives the new dotted name of each old one."""

    def getattr_of_module(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = homes[name].rpartition(".")
        warn_renamed(f"{module}.{name}", homes[name], stacklevel=3)
        return getattr(importlib.import_module(home), new)

    return getattr_of_module
