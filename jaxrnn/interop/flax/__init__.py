"""Flax: weights of its recurrent cells both ways, and any jaxrnn cell or layer as a Flax module.

linen   from_linen, to_linen    linen_cell, linen_variables
nnx     from_nnx, to_nnx        nnx_cell, nnx_layer
"""

from jaxrnn.interop.flax.linen import LinenCell, from_linen, linen_cell, linen_variables, to_linen
from jaxrnn.interop.flax.nnx import NnxCell, NnxLayer, from_nnx, nnx_cell, nnx_layer, to_nnx

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
