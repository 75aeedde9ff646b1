"""Weights of other libraries in and out: ``jr.interop.torch``, ``jr.interop.keras`` …, one library a file or folder.

A converter is imported when it is first used, and its library when it converts. ``registry.py`` says how a converter
declares itself; ``conversion.py`` holds what converters share.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors see; at run time every module of this folder is found
    from jaxrnn.interop import equinox, flax, haiku, keras, onnx, torch

__all__ = ["equinox", "flax", "haiku", "keras", "onnx", "torch"]

_modules = [found.name for found in pkgutil.iter_modules(__path__)]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        if name not in _modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_modules})
