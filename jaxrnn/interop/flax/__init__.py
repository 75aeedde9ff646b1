"""Flax: weights of its recurrent cells both ways, and any jaxrnn cell or layer as a Flax module.

linen   from_linen, to_linen    linen_cell, linen_variables
nnx     from_nnx, to_nnx        nnx_cell, nnx_layer

Either half of Flax is imported when one of its names is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxrnn.interop.registry import Library

if TYPE_CHECKING:
    from jaxrnn.interop.flax.linen import LinenCell, from_linen, linen_cell, linen_variables, to_linen
    from jaxrnn.interop.flax.nnx import NnxCell, NnxLayer, from_nnx, nnx_cell, nnx_layer, to_nnx

LIBRARY = Library("Flax", "flax")

__all__ = [
    "LinenCell",
    "NnxCell",
    "NnxLayer",
    "from_linen",
    "from_nnx",
    "linen_cell",
    "linen_variables",
    "nnx_cell",
    "nnx_layer",
    "to_linen",
    "to_nnx",
]


def __getattr__(name: str) -> Any:
    half = name if name in ("linen", "nnx") else "nnx" if "nnx" in name.lower() else "linen"
    if name not in (*__all__, half):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    LIBRARY.load()
    module = importlib.import_module(f"{__name__}.{half}")
    return module if name == half else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
