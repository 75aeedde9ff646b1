"""Plan "auto" beside plan "plain" on one problem: the same program, or the ratio of their times with its interval."""

from __future__ import annotations

import functools
import gc
import itertools
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

import jaxrnn as jr
from experiments.benchmarks import ours, problems
from experiments.benchmarks.measuring import first_line
from experiments.benchmarks.problems import CHECKS, NotOffered, Problem
from experiments.benchmarks.programs import QUANTITIES, Model, Placed, Program, Traced, arguments, program
from experiments.benchmarks.timing import Budget, interleaved

Shape = tuple[int, int, int, int]  # B, T, I, H

PLANS = ("auto", "plain")
TIME, TEMPORARIES, COMPILE = 1.05, 1.1, 1.3  # the limits, of auto / plain
TRIES = 3  # measured once, and up to twice again where it looks bad
CONFIDENCE = 0.95
LEAST = 9  # rounds, so that the interval has its confidence and is not the smallest and the largest ratio
BUDGET = Budget(seconds=0.6, least=LEAST, most=41, turn=0.01)

SHAPES: tuple[Shape, ...] = (
    *problems.SHAPES,
    (1, 10_000, 8, 8),
    (1, 1_000, 16, 16),
    (1, 100, 256, 256),
    (2, 300, 1, 8),
    (2, 500, 32, 32),
    (2, 20, 512, 64),
    (8, 1_000, 2, 16),
    (8, 100, 128, 128),
    (8, 64, 32, 256),
    (32, 10, 64, 64),
    (32, 300, 1, 32),
    (128, 50, 16, 128),
    (512, 20, 32, 32),
    (512, 10, 2, 64),
)


class Kind(NamedTuple):
    """A cell of the comparison."""

    gates: str  # a key of problems.GATES: the matrices that it has
    cell: Callable[[Problem], jr.Cell]


CELLS = {
    "elman": Kind("elman", ours.library_cell),
    "lstm": Kind("lstm", ours.library_cell),
    "gru": Kind("gru", ours.gru_reset_before),
    "gru after": Kind("gru", ours.library_cell),
    "peephole": Kind("lstm", lambda problem: jr.peephole_lstm(problem.I, problem.H)),
    "textbook": Kind("lstm", ours.textbook_lstm),
}


class Pair(NamedTuple):
    """What is computed under both plans."""

    cell: str  # a key of CELLS
    shape: Shape
    quantity: str  # a key of QUANTITIES
    devices: int

    @property
    def name(self) -> str:
        shape = ",".join(map(str, self.shape))
        return f"{self.cell} {shape} {self.quantity}, {self.devices} device{'s' * (self.devices > 1)}"


class Try(NamedTuple):
    """The median of the paired ratios auto / plain, and the interval of it."""

    ratio: float
    low: float
    high: float
    rounds: int


class Found(NamedTuple):
    """A pair's figures; a line of rows.jsonl. In twos: auto's and plain's."""

    pair: Pair
    same: str = ""  # "lowered", "optimised": the text in which the two programs are the same; then nothing is timed
    tries: tuple[Try, ...] = ()
    seconds: tuple[tuple[float, float], ...] = ()  # of a call, the medians of each try
    temp_bytes: tuple[int, int] | None = None
    compile_seconds: tuple[float, float] | None = None
    note: str = ""  # why there is no figure

    @property
    def best(self) -> Try | None:
        """The try that decides: only what is above the limit in all of them is above it."""
        return min(self.tries, key=lambda one: one.low) if self.tries else None

    @property
    def time(self) -> float | None:
        """The lower bound of the ratio of the times; 1 where the programs are the same."""
        return 1.0 if self.same else self.best.low if self.best else None

    @property
    def undecided(self) -> bool:
        """Every try's ratio is above the limit, but not the lower bound of all of them."""
        return bool(self.best) and all(one.ratio > TIME for one in self.tries) and (self.time or 0) <= TIME

    @property
    def temporaries(self) -> float | None:
        if self.temp_bytes is None:
            return None
        auto, plain = self.temp_bytes
        return auto / plain if plain else math.inf if auto else 1.0

    @property
    def compiling(self) -> float | None:
        return None if self.compile_seconds is None else self.compile_seconds[0] / self.compile_seconds[1]


def pairs(cells: Sequence[str], shapes: Sequence[Shape]) -> Iterator[Pair]:
    """Shape by shape, so that a run that ends early has every cell. A batch that cannot be split has one device."""
    for shape, cell, devices, quantity in itertools.product(shapes, cells, (1, 2), QUANTITIES):
        if shape[0] % devices == 0:
            yield Pair(cell, shape, quantity, devices)


def model(pair: Pair, plan: str) -> Model:
    """The scan of the cell, made anew: nothing that it keeps is warm."""
    return ours.model(CELLS[pair.cell].cell, plan=plan)(problem_of(pair))


def problem_of(pair: Pair) -> Problem:
    return Problem(CELLS[pair.cell].gates, *pair.shape)


# ---------------------------------------------------------------- one pair


def measured(
    pair: Pair, budget: Budget = BUDGET, tries: int = TRIES, model_of: Callable[[Pair, str], Model] = model
) -> Found:
    """Both programs compiled, and where they differ timed, again and compiled anew while they look bad."""
    placed: Placed = {}
    try:
        return _measured(pair, budget, tries, model_of, placed)
    except NotOffered as reason:
        return Found(pair, note=f"{reason.word}: {reason}")
    except Exception as error:  # the table says it, the run goes on
        return Found(pair, note=f"failed: {type(error).__name__}: {first_line(error)}")
    finally:
        placed.clear()
        gc.collect()


def _measured(pair: Pair, budget: Budget, tries: int, model_of: Callable[[Pair, str], Model], placed: Placed) -> Found:
    params = model_of(pair, "plain").params  # the same arrays for both

    def traced(plan: str) -> Traced:
        return QUANTITIES[pair.quantity](problem_of(pair), model_of(pair, plan)._replace(params=params))

    both, same = built(traced, pair.devices, placed, PLANS)
    compilations = [seconds_of(both)]
    while smallest(compilations)[0] > COMPILE * smallest(compilations)[1] and len(compilations) < 3:
        order = PLANS[:: 1 if len(compilations) % 2 else -1]
        compilations.append(seconds_of(built(traced, pair.devices, placed, order)[0]))
    temporaries = both["auto"].temp_bytes or 0, both["plain"].temp_bytes or 0
    found = Found(pair, same, temp_bytes=temporaries, compile_seconds=smallest(compilations))
    if same:
        return found
    for plan in PLANS:
        CHECKS[pair.quantity](problem_of(pair), both[plan].call())
    for number in range(tries):
        if number:  # other places in memory, for code and data, and the other order
            placed.clear()
            both, _ = built(traced, pair.devices, placed, PLANS[:: 1 if number % 2 == 0 else -1])
            for plan in PLANS:
                both[plan].call()
        calls = {plan: both[plan].call for plan in PLANS}
        times = interleaved(calls, budget.times(2**number), seed=number)
        found = found._replace(
            tries=(*found.tries, compared(times["auto"], times["plain"])),
            seconds=(*found.seconds, (statistics.median(times["auto"]), statistics.median(times["plain"]))),
        )
        if found.tries[-1].ratio <= TIME:
            break
    return found


def seconds_of(both: dict[str, Program]) -> tuple[float, float]:
    auto, plain = (both[plan].compile_seconds or math.nan for plan in PLANS)
    return auto, plain


def smallest(compilations: Sequence[tuple[float, float]]) -> tuple[float, float]:
    auto, plain = map(min, zip(*compilations, strict=True))
    return auto, plain


def built(
    traced: Callable[[str], Traced], devices: int, placed: Placed, order: Sequence[str]
) -> tuple[dict[str, Program], str]:
    """Both programs by plan, and in which text they are the same, if in any.

    Where the lowered text is the same it is compiled once, and its time counts for both.
    """
    args: dict[str, list[Any]] = {}
    lowered: dict[str, jax.stages.Lowered] = {}
    done: dict[str, jax.stages.Compiled] = {}
    taken: dict[str, float] = {}  # seconds
    for plan in order:
        source = traced(plan)
        args[plan] = arguments(source, devices, placed)
        jax.clear_caches()  # what the other plan has traced is not warm
        start = time.perf_counter()
        lowered[plan] = jax.jit(source.function).lower(*args[plan])
        taken[plan] = time.perf_counter() - start
    first, second = order
    done[first], once = compile_timed(lowered[first])
    same = "lowered" if lowered[first].as_text() == lowered[second].as_text() else ""
    done[second], twice = (done[first], once) if same else compile_timed(lowered[second])
    taken[first], taken[second] = taken[first] + once, taken[second] + twice
    if not same and instructions(str(done[first].as_text())) == instructions(str(done[second].as_text())):
        same = "optimised"
    return {plan: program(done[plan], args[plan], taken[plan], devices) for plan in order}, same


def compile_timed(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
    start = time.perf_counter()
    return lowered.compile(), time.perf_counter() - start


def instructions(hlo: str) -> str:
    """The text of a compiled program without what does not run: where in Python it is from, and its names."""
    hlo = re.sub(r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(\d+ .*\n)*", "", hlo, flags=re.MULTILINE)
    hlo = re.sub(r', metadata=\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}', "", hlo)
    hlo = re.sub(r"[\w.\-]+: (?=\(|\w+\[)", "", hlo)  # the names of a computation's parameters in its head
    numbers: dict[str, str] = {}
    return re.sub(r"%[\w.\-]+", lambda name: numbers.setdefault(name.group(), f"%{len(numbers)}"), hlo)


# ---------------------------------------------------------------- the interval


def compared(auto: Sequence[float], plain: Sequence[float]) -> Try:
    """The median of the ratios, each of two times of one round, and its interval by order statistics.

    The median lies between the k-th smallest and the k-th largest of n ratios but for a chance of
    2 · P(Binomial(n, 1/2) < k), whatever their distribution.
    """
    ratios = sorted(a / p for a, p in zip(auto, plain, strict=True))
    k = rank(len(ratios))
    return Try(statistics.median(ratios), ratios[k - 1], ratios[-k], len(ratios))


@functools.cache
def rank(n: int) -> int:
    """The largest k with the confidence, at least 1 (which below 6 ratios has less)."""
    allowed, k, chance = (1 - CONFIDENCE) * 2**n / 2, 0, 0
    while chance + math.comb(n, k) <= allowed:
        chance += math.comb(n, k)
        k += 1
    return max(k, 1)


def of_json(fields: dict[str, Any]) -> Found:
    """A Found again, from what JSON made of it."""

    def twos(values: Any) -> Any:
        return None if values is None else tuple(values)

    cell, shape, quantity, devices = fields["pair"]
    return Found(
        **fields
        | {
            "pair": Pair(cell, tuple(shape), quantity, devices),
            "tries": tuple(Try(*one) for one in fields["tries"]),
            "seconds": tuple(twos(one) for one in fields["seconds"]),
            "temp_bytes": twos(fields["temp_bytes"]),
            "compile_seconds": twos(fields["compile_seconds"]),
        }
    )
