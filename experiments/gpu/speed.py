"""The benchmark on a GPU: what is timed, in the order in which the time limit is spent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from experiments.benchmarks.contestants import BY_NAME, CUDNN, PLAIN, PLAN, TORCH, Contestant
from experiments.benchmarks.problems import Problem
from experiments.benchmarks.suites import Entry, Group, Row, sequence_entry, title
from experiments.benchmarks.timing import Budget

SUITE = "gpu"
DTYPES = {  # who takes part in which
    "float32": (PLAN, PLAIN, TORCH, CUDNN),
    "bfloat16": (PLAN, PLAIN, TORCH),
    "float16": (TORCH,),  # torch hands it to any cuDNN, bfloat16 only to newer ones
}
# Timed in the same rounds.
TOGETHER = (("float32",), ("bfloat16", "float16"))


class Settings(NamedTuple):
    """What a run measures; the defaults are the whole benchmark."""

    shapes: tuple[tuple[int, int, int, int], ...] = (  # the most used first; B, T, I, H
        (16, 1024, 768, 768),
        (32, 128, 512, 512),
        (64, 256, 256, 256),
        (1, 65536, 32, 32),
    )
    cells: tuple[str, ...] = ("lstm", "gru")
    quantities: tuple[str, ...] = ("train", "forward")
    contestants: tuple[str, ...] = (PLAN, PLAIN, TORCH, CUDNN)
    budget: Budget = Budget(seconds=0.5, least=3, most=15)


def contestants(problem: Problem, settings: Settings) -> list[Contestant]:
    """Who takes part in a problem, on a GPU."""
    named = [BY_NAME[name] for name in DTYPES[problem.dtype] if name in settings.contestants]
    return [contestant for contestant in named if problem.cell in contestant.cells and contestant.installed()]


def problems(settings: Settings) -> Iterator[list[Problem]]:
    """List by list: those of a list are timed in the same rounds."""
    for shape in settings.shapes:
        for cell in settings.cells:
            for dtypes in TOGETHER:
                yield [Problem(cell, *shape, dtype=dtype) for dtype in dtypes]


def groups(settings: Settings) -> Iterator[Group]:
    for together in problems(settings):
        for quantity in settings.quantities:
            entries: list[Entry] = []
            for problem in together:
                dtype = "" if problem.dtype == "float32" else problem.dtype
                row = Row(SUITE, quantity, problem.cell, problem.shape, dtype, 1, "")
                entries += [
                    sequence_entry(row._replace(contestant=contestant.name), problem, contestant)
                    for contestant in contestants(problem, settings)
                ]
            first = together[0]
            yield Group(f"{title(first, quantity)} {first.dtype}", entries, settings.budget)
