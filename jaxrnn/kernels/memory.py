"""How much of a layer fits where: shared memory and registers of a GPU's blocks, by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

ROWS = 64  # of a batch, that one block holds: what one tensor core instruction of a warpgroup multiplies
SHARED_MEMORY = 227 * 1024  # bytes that one block can have on an H100 or H200
REGISTER_FILE = 256 * 1024  # bytes of one multiprocessor
REGISTERS = 255  # of 4 bytes, that one thread can have
THREADS = 128  # of a warpgroup, the kernel's one
MULTIPROCESSORS = 132  # of an H100 (SXM) or H200; with so much shared memory each holds one block
CLUSTERS = (8, 16)  # blocks of one cluster: portable, and the most where a kernel asks for it
ALIGNED = 1024  # bytes; where an array in shared memory begins
SLICE = 64  # columns of h that a block of several reads at once; two slices are under way


def shared_memory_needed(arrays: Sequence[tuple[Sequence[int], Any]]) -> int:
    """The bytes of arrays, (shape, dtype) each, with their alignment."""
    sizes = [math.prod(shape) * jnp.dtype(dtype).itemsize for shape, dtype in arrays]
    return sum(-(-size // ALIGNED) * ALIGNED for size in sizes)


def accumulator_registers(columns: int) -> int:
    """The registers of each thread that hold a block's float32 sums of a product with so many columns."""
    return ROWS * columns // THREADS


class Share(NamedTuple):
    """What one block has, where the units of a layer are split over the fewest blocks that can hold it."""

    weights: int  # bytes of the layer's recurrent weights
    blocks: int  # that share one layer and 64 rows of the batch
    shared_memory: int  # bytes of one block
    accumulators: int  # bytes of one block's registers
    waits: str  # for whom a block waits at each step: "none", "cluster" or "grid"


def share(hidden: int, gates: int, dtype: Any) -> Share | None:
    """How the recurrent weights (H, gates × H) of a layer are split over blocks; None: not over all of a GPU.

    Each block has the weights of its units, all their gates, and the operand h: all of it where it is alone, else two
    slices of 64 columns. The sums of its products take half of the registers at most.
    """
    size = jnp.dtype(dtype).itemsize
    for blocks in range(1, MULTIPROCESSORS + 1):
        if hidden % (8 * blocks):  # tensor cores want multiples of 8 columns
            continue
        columns = gates * hidden // blocks
        operand = ROWS * (hidden if blocks == 1 else 2 * SLICE) * size
        accumulators = ROWS * columns * 4
        needed = hidden * columns * size + operand
        if needed <= SHARED_MEMORY and accumulators <= REGISTER_FILE // 2:
            waits = "none" if blocks == 1 else "cluster" if blocks <= CLUSTERS[1] else "grid"
            return Share(hidden * gates * hidden * size, blocks, needed, accumulators, waits)
    return None


def table(gates: int = 4, sizes: Sequence[int] = (64, 128, 256, 512, 768, 1024)) -> str:
    """Shares of layers, by their units and dtype, in Markdown."""
    lines = [
        "| H | dtype | weights, KiB | blocks | shared memory of each, KiB | accumulators of each, KiB | waits for |",
        "|---|---|---|---|---|---|---|",
    ]
    for dtype in ("bfloat16", "float32"):
        for hidden in sizes:
            if found := share(hidden, gates, dtype):
                kib = [n // 1024 for n in (found.weights, found.shared_memory, found.accumulators)]
                lines.append(
                    f"| {hidden} | {dtype} | {kib[0]:,} | {found.blocks} | {kib[1]} | {kib[2]} | {found.waits} |"
                )
            else:
                lines.append(f"| {hidden} | {dtype} | – | more than there are | – | – | – |")
    return "\n".join(lines)
