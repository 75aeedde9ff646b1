"""A recurrence split over the blocks of a cluster: each has a part of the units, and the weights of that part.

A value's columns are pieces (the gates of a sum, one after the other), and each block has an even share of each piece,
so that what is elementwise needs no other block. A product needs its operand whole: the blocks hand their parts of it
to each other before each product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxrnn.kernels.recurrence import ALONG_FEATURES, NoKernelError, Recurrence, check_memory, product
from jaxrnn.programs.program import Op

Position = tuple[int, int]  # of a value, a column: pieces may end there


def fit(recurrence: Recurrence) -> Recurrence:
    """The recurrence for the fewest blocks that can hold it.

    Raises:
        NoKernelError: no cluster can.
    """
    reasons = []
    for blocks in (1, 2, 4, 8):  # larger clusters are not portable
        try:
            found = recurrence if blocks == 1 else split(recurrence, blocks)
            check_memory(found)
            return found
        except NoKernelError as reason:
            reasons.append(reason)
    raise NoKernelError(f"{reasons[0]}, and no cluster of up to 8 blocks can hold it")


def split(recurrence: Recurrence, blocks: int) -> Recurrence:
    """The recurrence of one of so many blocks: of the same program, with a part of the columns of each value.

    Raises:
        NoKernelError: the pieces are no multiples of 8 columns for each block.
    """
    program = recurrence.program
    if not {w.weight for w in recurrence.weights}.isdisjoint([*recurrence.vectors, *recurrence.rows]):
        raise NoKernelError("a weight that stands in elementwise work, too")
    pieces = _pieces(recurrence)
    kinds = dict(program.kinds)
    for n, widths in pieces.items():
        for width in widths:
            if width % (8 * blocks):
                raise NoKernelError(f"{width} columns over {blocks} blocks; each block has multiples of 8")
        kinds[n] = kinds[n].update(shape=(*kinds[n].shape[:-1], kinds[n].shape[-1] // blocks))
    each_step = [op._replace(params=_of_a_block(op, blocks)) for op in recurrence.each_step]
    return recurrence._replace(program=program._replace(kinds=kinds), each_step=each_step, blocks=blocks, pieces=pieces)


def order(widths: Iterable[int], blocks: int) -> np.ndarray:
    """The columns of a value, one block's after the other's."""
    starts = itertools.accumulate(widths, initial=0)
    pieces = [np.arange(a, b).reshape(blocks, -1) for a, b in itertools.pairwise(starts)]
    return np.concatenate(pieces, axis=1).reshape(-1)


def _pieces(recurrence: Recurrence) -> dict[int, list[int]]:
    """The widths of the pieces of each value in the kernel: the coarsest that all operations respect."""
    kinds = recurrence.program.kinds
    values = {n for op in recurrence.each_step for n in (*op.inputs, *op.outputs)} - {
        w.weight for w in recurrence.weights
    }
    values.update(recurrence.carry, recurrence.entering, recurrence.program.outputs)
    ends = {n: {0, kinds[n].shape[-1]} for n in values if kinds[n].ndim and kinds[n].shape[-1] > 1}
    pairs = list(_tied(recurrence))
    before = 0
    while before != (before := sum(map(len, ends.values()))):
        for (a, from_a), (b, from_b), width in pairs:
            if a in ends and b in ends:
                shared = {e - from_a for e in ends[a]} | {e - from_b for e in ends[b]} | {0, width}
                shared = {e for e in shared if 0 <= e <= width}
                ends[a] |= {e + from_a for e in shared}
                ends[b] |= {e + from_b for e in shared}
    return {n: [b - a for a, b in itertools.pairwise(sorted(found))] for n, found in ends.items()}


def _tied(recurrence: Recurrence) -> Iterator[tuple[Position, Position, int]]:
    """Columns of two values, from a position each and so many, that one block must have of both."""
    kinds = recurrence.program.kinds

    def whole(a: int, b: int) -> tuple[Position, Position, int]:
        return (a, 0), (b, 0), kinds[a].shape[-1] if kinds[a].ndim else 1

    for before, after in zip(recurrence.carry, recurrence.program.outputs, strict=False):
        yield whole(before, after)
    first: dict[Any, Op] = {}  # a weight's rows and columns have one order
    for op in recurrence.each_step:
        if op.name == "dot_general":
            same = first.setdefault(product(op), op)
            yield whole(same.inputs[0], op.inputs[0])
            yield whole(same.outputs[0], op.outputs[0])
        elif op.name in ALONG_FEATURES:
            yield from _parts(op, kinds)
        else:
            for n in op.inputs:
                yield whole(op.outputs[0], n)


def _parts(op: Op, kinds: Mapping[int, Any]) -> Iterator[tuple[Position, Position, int]]:
    def width(n: int) -> int:
        size: int = kinds[n].shape[-1]
        return size

    if op.name == "slice":
        yield (op.inputs[0], op.params["start_indices"][1]), (op.outputs[0], 0), width(op.outputs[0])
    elif op.name == "pad":
        yield (op.inputs[0], 0), (op.outputs[0], op.params["padding_config"][1][0]), width(op.inputs[0])
    else:
        whole, parts = (op.inputs[0], op.outputs) if op.name == "split" else (op.outputs[0], op.inputs)
        for part, start in zip(parts, itertools.accumulate(map(width, parts), initial=0), strict=False):
            yield (whole, start), (part, 0), width(part)


def _of_a_block(op: Op, blocks: int) -> Mapping[str, Any]:
    """The parameters of an operation along features, for a block's columns: pieces end where it cuts."""
    p = dict(op.params)
    if op.name == "slice":
        for name in ("start_indices", "limit_indices"):
            p[name] = (p[name][0], p[name][1] // blocks)
    elif op.name == "split":
        p["sizes"] = tuple(size // blocks for size in p["sizes"])
    elif op.name == "pad":
        rows, (low, high, between) = p["padding_config"]
        p["padding_config"] = (rows, (low // blocks, high // blocks, between))
    return p
