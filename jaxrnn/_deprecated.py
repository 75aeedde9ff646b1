"""Names that moved: each works for one release more, with a warning that says where it is now."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

REMOVED_IN = "0.3"
Function = TypeVar("Function", bound=Callable[..., Any])
MOVED: dict[str, Mapping[str, str]] = {}  # by module: the new dotted name of each old one, entered by ``moved_names``


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Say what the old name of something is now; ``stacklevel`` 3 points at the caller of the one that calls this."""
    message = f"{old} is now {new}; the old name goes in jaxrnn {REMOVED_IN}."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def moved_names(module: str, homes: Mapping[str, str], *, stacklevel: int = 3) -> Callable[[str], Any]:
    """A module's ``__getattr__`` for names that moved; ``homes`` gives the new dotted name of each old one.

    ``stacklevel`` is 4 where the module has a ``__getattr__`` of its own that calls this one.
    """
    MOVED[module] = homes

    def getattr_of_module(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = homes[name].rpartition(".")
        warn_renamed(f"{module}.{name}", homes[name], stacklevel=stacklevel)
        return getattr(importlib.import_module(home), new)

    return getattr_of_module


def renamed_keywords(**renamed: str) -> Callable[[Function], Function]:
    """A decorator: arguments by their old keywords still work; ``renamed`` gives the new keyword of each old one."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def accepting(*arguments: Any, **keywords: Any) -> Any:
            for old in renamed.keys() & keywords.keys():
                new = renamed[old]
                if new in keywords:
                    raise TypeError(f"{function.__name__}: got {new} and its old name {old}; give {new} alone.")
                warn_renamed(f"{function.__name__}({old}=…)", f"{new}=…")
                keywords[new] = keywords.pop(old)
            return function(*arguments, **keywords)

        return cast(Function, accepting)

    return decorate
