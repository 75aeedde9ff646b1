"""Wrappers, one a file: a Cell in, a Cell out, with the same parameters or a few more.

The wrappers stand at the root, ``jr.zoneout`` …; the face holds the records of what they add to the parameters
and the carry.
"""

from jaxrnn.wrappers.dilated import DilatedCarry
from jaxrnn.wrappers.every import EveryCarry
from jaxrnn.wrappers.masked_weights import MaskedParams
from jaxrnn.wrappers.normalized import NormalizedParams
from jaxrnn.wrappers.weight_norm import WeightNormParams

__all__ = ["DilatedCarry", "EveryCarry", "MaskedParams", "NormalizedParams", "WeightNormParams"]
