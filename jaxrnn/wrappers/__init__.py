"""Wrappers, one a file: a Cell in, a Cell out, with the same parameters or a few more.

The wrappers stand at the root, ``jr.zoneout`` …; the face holds the records of what they add to the parameters.
"""

from jaxrnn.wrappers.normalized import NormalizedParams

__all__ = ["NormalizedParams"]
