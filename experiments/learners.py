"""Learners side by side: what each keeps, what a step costs, and which rate suits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxrnn as jr
from experiments import measured
from experiments.benchmarks.timing import Budget, interleaved


def best(rates: Sequence[float], worth: np.ndarray) -> float:
    """The rate whose validation streams are worth most in the mean; one that is lost, NaN, is worth nothing.

    Args:
        rates: R of them.
        worth: (R, streams).
    """
    mean = worth.mean(1)
    return rates[int(np.argmax(np.where(np.isfinite(mean), mean, -np.inf)))]


def seconds_a_step(runs: Mapping[str, Callable[..., Any]], arguments: tuple[Any, ...], steps: int) -> dict[str, float]:
    """Of each run of so many steps, the learners in turns: the median of rounds."""
    calls = {}
    for name, run in runs.items():
        compiled = jax.jit(run).lower(*arguments).compile()
        calls[name] = lambda compiled=compiled: jax.block_until_ready(compiled(*arguments))
        calls[name]()
    found = interleaved(calls, Budget(seconds=0.3, least=7, most=25))
    return {name: float(np.median(seconds)) / steps for name, seconds in found.items()}


def numbers_kept(online: Any, cell: jr.Cell, inputs: int) -> int:
    """The size of a learner's trace, for one stream."""

    def trace(key):
        return online.init(cell.init(key), x=jax.ShapeDtypeStruct((inputs,), np.float32), key=key).trace

    return sum(a.size for a in jax.tree.leaves(jax.eval_shape(trace, jax.random.key(0))))


def less(seeds: Sequence[int], values: np.ndarray, first: np.ndarray, form: str) -> str:
    """The mean difference of two learners on the same seeds, and its interval."""
    a, b = (dict(zip(seeds, of.tolist(), strict=True)) for of in (values, first))
    found = measured.difference("", "", a, b)
    if found is None:
        return "–"
    mean, low, high = (measured.signed(value, form) for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"
