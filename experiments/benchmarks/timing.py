"""Interleaved rounds: in each, every program has its turn, so that the machine's drift hits all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


class Budget(NamedTuple):
    seconds: float = 0.5  # for each program of a group, its share of the rounds
    least: int = 5  # rounds, however long they take
    most: int = 25
    turn: float = 0.02  # seconds that one turn of a fast program is filled up to

    def times(self, factor: int) -> Budget:
        """That many times the rounds."""
        return self._replace(seconds=factor * self.seconds, least=factor * self.least, most=factor * self.most)

    def rounds(self, turns: Mapping[Any, float]) -> int:
        """How many rounds fit, given the seconds of each program's turn."""
        fit = self.seconds * len(turns) / max(sum(turns.values()), 1e-9)
        return int(min(max(fit, self.least), self.most))


def interleaved(calls: Mapping[Key, Callable[[], Any]], budget: Budget, seed: int = 0) -> dict[Key, list[float]]:
    """Seconds per call of each program, one number a round; every program must have run before.

    Each round has a random order, by the seed. A turn begins with a call that is not timed, except where calls are
    long: the threads of the program before may still spin, and the caches hold its data.
    """
    rng = np.random.default_rng(seed)
    keys = list(calls)
    estimate = {key: _estimate(calls[key]) for key in keys}
    repeats = {key: int(min(max(budget.turn / max(estimate[key], 1e-6), 1), 500)) for key in keys}
    warms = {key: estimate[key] < 0.1 for key in keys}
    rounds = budget.rounds({key: estimate[key] * (repeats[key] + warms[key]) for key in keys})
    measured: dict[Key, list[float]] = {key: [] for key in keys}
    collects = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for index in rng.permutation(len(keys)):
                key = keys[index]
                if warms[key]:
                    calls[key]()
                measured[key].append(_seconds(calls[key], repeats[key]))
    finally:
        if collects:
            gc.enable()
    return measured


def _estimate(call: Callable[[], Any]) -> float:
    once = _seconds(call, 1)
    return once if once > 0.1 else min(once, _seconds(call, 3))


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
