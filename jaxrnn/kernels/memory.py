"""How much of a layer fits where: shared memory and registers of a GPU's blocks, by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SHARED_MEMORY = 227 * 1024  # bytes that one block can have on an H100 or H200 (compute capability 9.0)
REGISTERS = 65_536  # of 4 bytes, of one multiprocessor
MULTIPROCESSORS = 132  # of an H100 SXM or H200, each with room for one such block
CLUSTER = 16  # blocks that can share their shared memory, where the size is not portable; 8 else
ALIGNED = 1024  # bytes; where an array in shared memory begins


def shared_memory_needed(*arrays: Sequence[tuple[Sequence[int], Any]]) -> int:
    """The bytes of arrays, (shape, dtype) each, with their alignment."""
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for group in arrays for shape, dtype in group]
    return sum(-(-size // ALIGNED) * ALIGNED for size in sizes)
