"""A run over time in checkpointed segments: the forward pass keeps the carry at each segment's start alone.

The backward pass runs a segment forward again before it goes back through it, so that memory holds the carries and one
segment instead of T steps. Segments nest: one of 1,000 steps may itself run in segments of 30.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import PyTree
from jaxrnn._checks import check_has_number, check_sizes
from jaxrnn._spec import registered


@registered
class Budget(NamedTuple):
    """``checkpoint=Budget(steps)``: segments nested as deep as it takes to hold at most that many steps in memory.

    With d levels of segments a run of T steps holds about d · T^(1/d) carries and steps, and computes each step d times
    more in the forward direction. The smallest such d is taken.

    Fields:
        steps: how many carries and steps of the innermost segment may be held at once.

    Example:
        >>> import jaxrnn as jr
        >>> layer = jr.scan(jr.gru(3, 5), checkpoint=jr.Budget(steps=100))

    Differs from the reference, whose segments are of unequal length, the best for each T: here those of a level are
    alike, so that the program does not grow with T.

    Reference:
        Gruslys, Munos, Danihelka, Lanctot & Graves, "Memory-efficient backpropagation through time", NeurIPS 2016.
    """

    steps: int


def check_checkpoint(who: str, checkpoint: Any) -> None:
    """True, False, the steps of a segment, or a budget."""
    if isinstance(checkpoint, Budget):
        check_sizes(f"{who}: Budget", steps=checkpoint.steps)
    elif not isinstance(checkpoint, bool | int | float):
        raise TypeError(f"{who}: checkpoint must be True, a segment length or jr.Budget(steps), got {checkpoint!r}.")
    elif not isinstance(checkpoint, bool):
        check_sizes(who, checkpoint=checkpoint)


def segment_lengths(who: str, checkpoint: bool | int | Budget, T: int) -> tuple[int, ...]:
    """The lengths of the segments, outermost first; none where the run stays whole."""
    if checkpoint is False:
        return ()
    check_has_number(who, f"checkpoint={checkpoint!r}", T)
    if T < 2:
        return ()
    if checkpoint is True:
        return (_near(T, math.sqrt(T)),)
    if not isinstance(checkpoint, Budget):
        return (checkpoint,) if checkpoint < T else ()
    best = T
    for levels in range(1, T.bit_length() + 1):
        lengths = _nested(T, levels)
        parts = [math.ceil(a / b) for a, b in zip((T, *lengths), lengths, strict=False)]
        held = sum(parts) + (lengths[-1] if lengths else T)
        if held <= checkpoint.steps:
            return lengths
        best = min(best, held)
    raise ValueError(
        f"{who}: {T} steps cannot be run backward within checkpoint=Budget(steps={checkpoint.steps}); "
        f"the deepest nesting holds {best}. Give at least steps={best}."
    )


def _nested(T: int, levels: int) -> tuple[int, ...]:
    lengths = [T]
    for level in range(levels, 1, -1):
        lengths.append(_near(lengths[-1], lengths[-1] ** ((level - 1) / level)))
    return tuple(lengths[1:])


def _near(T: int, length: float) -> int:
    """A segment length near the one wanted; one that divides T where there is one, so that no remainder is left."""
    divisors = [d for d in range(math.ceil(length / 2), int(length * 2) + 1) if T % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / length)), default=math.ceil(length))


def run_in_segments(
    run: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    inputs: PyTree,
    lengths: Sequence[int],
    reverse: bool,
) -> tuple[PyTree, PyTree]:
    """``run(carry, inputs) -> (carry, ys)`` over the whole of inputs (T, …), segment by segment."""
    if not lengths:
        return run(carry, inputs)
    T, length = jax.tree.leaves(inputs)[0].shape[0], lengths[0]
    n, rest = divmod(T, length)

    def segment(carry, inputs):
        return run_in_segments(run, carry, inputs, lengths[1:], reverse)

    # What does not fill a segment comes last in the order of the run.
    first = rest if reverse else 0
    whole = jax.tree.map(lambda a: a[first : first + n * length].reshape(n, length, *a.shape[1:]), inputs)
    in_loop = jax.checkpoint(segment, prevent_cse=False)  # a loop's two passes are apart as it is
    carry, ys = jax.lax.scan(in_loop, carry, whole, reverse=reverse)
    ys = jax.tree.map(lambda a: a.reshape(n * length, *a.shape[2:]), ys)
    if not rest:
        return carry, ys
    left = jax.tree.map(lambda a: a[:rest] if reverse else a[n * length :], inputs)
    carry, ys_left = jax.checkpoint(segment)(carry, left)
    order = (ys_left, ys) if reverse else (ys, ys_left)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *order)
