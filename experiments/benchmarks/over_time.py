"""What ``python -m experiments.benchmarks.parallel`` measures: runs in parallel over time beside the same as scans."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from experiments.benchmarks.measuring import measure
from experiments.benchmarks.problems import NotOffered
from experiments.benchmarks.programs import Placed, Program, Traced, compiled
from experiments.benchmarks.suites import Entry, Group, Row
from experiments.benchmarks.timing import Budget
from jaxrnn.parallel_over_time.convergence import ParallelRun

PyTree = Any

SUITE = "parallel"
PARALLEL, SCAN, PLAIN = "jr.parallel", "jr.scan", "plain scan"
PRODUCTS = "floor products"
AUTO, CHUNKS, NEWTON = "auto", "chunks", "newton"
INPUTS = 16
STEPS = 65_536
CLOSE = 1e-4  # of the largest number of a leaf: sums over all of time in another order
BEGINNING = 40  # steps after which rounding alone parts two chaotic runs
REMEMBERED = 1_000  # steps


class Case(NamedTuple):
    """A line of the table of targets."""

    name: str
    make: Callable[[int], jr.Cell]  # from the number of inputs
    limit: float  # of the time of jr.scan, of a training step
    method: str = CHUNKS
    change: Callable[[Any], Any] = lambda params: params
    steps: int = STEPS
    rows: int = 1
    devices: tuple[int, ...] = (1, 2)  # along time
    chaotic: bool = False


def sized(make: Callable[..., jr.Cell], H: int) -> Callable[[int], jr.Cell]:
    return lambda inputs: make(inputs, H)


def gain(factor: float) -> Callable[[Any], Any]:
    """The recurrent matrix, orthogonal as it is drawn, times a factor."""
    return lambda params: params._replace(W_hh=factor * params.W_hh)


def remembers(params: Any) -> Any:
    """A GRU whose update gate is 1 / REMEMBERED where its inputs are 0: z = σ(-log(REMEMBERED - 1))."""
    r, z, n = jnp.split(params.b, 3)
    return params._replace(b=jnp.concatenate([r, z - np.log(REMEMBERED - 1), n]))


CASES = (
    Case("GRU-16", sized(jr.gru, 16), 0.30),
    Case("LSTM-16", sized(jr.lstm, 16), 0.30),
    Case("GRU-64", sized(jr.gru, 64), 0.55),
    Case("LSTM-64", sized(jr.lstm, 64), 0.55),
    Case("Elman-32, gain 0.9", sized(jr.elman, 32), 0.40, change=gain(0.9)),
    Case("LRU-64", sized(jr.lru, 64), 0.5, "associative"),
    Case("minGRU-64", sized(jr.min_gru, 64), 0.5, "associative"),
    Case("auto, short: GRU-16", sized(jr.gru, 16), 1.05, AUTO, steps=512, devices=(1,)),
    Case("auto, 32 rows: GRU-16", sized(jr.gru, 16), 1.05, AUTO, steps=2_048, rows=32, devices=(1,)),
    Case("chaotic: Elman-24, gain 4", sized(jr.elman, 24), 1.15, CHUNKS, gain(4), devices=(1,), chaotic=True),
    Case("remembers: GRU-64", sized(jr.gru, 64), 1.15, CHUNKS, remembers, devices=(1,)),
)


class Settings(NamedTuple):
    """What is measured; the defaults are the whole of it."""

    cases: tuple[Case, ...] = CASES
    quantities: tuple[str, ...] = ("train", "forward")
    budget: Budget = Budget(seconds=0.4, least=5, most=15)
    lengths: tuple[int, ...] = (1_000, 4_000, 32_000, 256_000, 1_000_000)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    steps_of_batches: int = 4_096
    points: Budget = Budget(seconds=0.1, least=3, most=9)  # of the curves


class Curve(NamedTuple):
    """Runs of one cell at several T or B: a panel of the figure."""

    name: str
    by: str  # "T", "B"
    cell: Callable[[int], jr.Cell]
    quantity: str
    contestants: tuple[str, ...]


GRU_16 = sized(jr.gru, 16)
CURVES = (
    Curve("GRU-16", "T", GRU_16, "forward", (SCAN, PLAIN, CHUNKS)),
    Curve("GRU-16", "T", GRU_16, "train", (SCAN, PLAIN, CHUNKS)),
    Curve("GRU-4", "T", sized(jr.gru, 4), "forward", (SCAN, CHUNKS, NEWTON)),
    Curve("GRU-16", "B", GRU_16, "train", (SCAN, PLAIN, CHUNKS)),
)


class Ran(NamedTuple):
    """A group, measured."""

    title: str
    rows: list[Row]
    went: dict[str, str]  # how its run in parallel went; nothing of a curve


def measurements(settings: Settings) -> Iterator[Ran]:
    """Every group, measured: cases, then curves."""
    for case in settings.cases:
        for quantity in settings.quantities:
            ran = measured(case, quantity, settings.budget, contestants_of(case, quantity), SUITE, has_floor=True)
            yield ran._replace(went=how_it_went(case) if quantity == settings.quantities[0] else {})
    for curve in CURVES:
        along = settings.lengths if curve.by == "T" else settings.batches
        for n in along:
            steps, rows = (n, 1) if curve.by == "T" else (settings.steps_of_batches, n)
            case = Case(curve.name, curve.cell, 1.0, steps=steps, rows=rows)
            runs = [Run(name, 1, METHODS[name]) for name in curve.contestants]
            yield measured(case, curve.quantity, settings.points, runs, f"against {curve.by}")


class Run(NamedTuple):
    """One contestant of a group."""

    name: str
    devices: int
    layer: Callable[[jr.Cell], jr.Layer]


METHODS: dict[str, Callable[[jr.Cell], jr.Layer]] = {
    SCAN: jr.scan,
    PLAIN: functools.partial(jr.scan, plan="plain"),
    CHUNKS: functools.partial(jr.parallel, method="chunks"),
    NEWTON: functools.partial(jr.parallel, method="newton"),
}


def contestants_of(case: Case, quantity: str) -> list[Run]:
    """The scan first, with whose results the others are compared; several devices in training steps alone."""
    in_parallel = functools.partial(jr.parallel, method=case.method)
    scans = [Run(name, 1, METHODS[name]) for name in (SCAN, PLAIN)]
    return [*scans, *(Run(PARALLEL, n, in_parallel) for n in case.devices if n == 1 or quantity == "train")]


def measured(
    case: Case, quantity: str, budget: Budget, runs: Sequence[Run], suite: str, *, has_floor: bool = False
) -> Ran:
    """The rows of a case: times, taken in turns, and how many cores were at work in them."""
    cell, params = model(case)
    xs, cotangent = data(case.steps, case.rows, cell.output_size)
    agrees, watches, entries = Agreement(case), [], []
    for run in runs:
        row = Row(suite, quantity, case.name, shape_of(case), case.method, run.devices, run.name)
        traced = QUANTITIES[quantity](run.layer(cell), params, xs, cotangent)
        watches.append(Watch())
        entries.append(Entry(row, functools.partial(build, traced, run.devices, watches[-1]), agrees))
    if has_floor:
        row = Row(suite, quantity, case.name, shape_of(case), case.method, 1, PRODUCTS)
        watches.append(Watch())
        floor = functools.partial(build, products(quantity, params, case.steps * case.rows), 1, watches[-1])
        entries.append(Entry(row, floor, lambda result: None))
    title = f"{case.name}, B = {case.rows}, T = {case.steps:,}, {quantity}"
    rows = measure(Group(title, entries, budget))
    return Ran(title, [row._replace(cores=watch.cores) for row, watch in zip(rows, watches, strict=True)], {})


def shape_of(case: Case) -> tuple[int, int, int, int]:
    return case.rows, case.steps, INPUTS, case.make(INPUTS).output_size or 0


def model(case: Case) -> tuple[jr.Cell, PyTree]:
    """The cell and its parameters as it draws them, changed as the case wants them; NumPy arrays."""
    cell = case.make(INPUTS)
    return cell, jax.tree.map(np.asarray, case.change(cell.init(jax.random.key(0))))


@functools.lru_cache(maxsize=1)
def data(steps: int, rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """The inputs, and the cotangent of the outputs."""
    rng = np.random.default_rng(0)
    draw = lambda size: rng.standard_normal((steps, rows, size), dtype=np.float32)
    return draw(INPUTS), draw(features)


def forward(layer: jr.Layer, params: PyTree, xs: np.ndarray, cotangent: np.ndarray) -> Traced:
    return Traced(lambda params, xs: layer.apply(params, xs)[1], (params, xs), (None, 0))


def train(layer: jr.Layer, params: PyTree, xs: np.ndarray, cotangent: np.ndarray) -> Traced:
    """``loss = sum(ys * cotangent)``, its value and its gradient by parameters and inputs."""

    def loss(params, xs, cotangent):
        return jnp.sum(layer.apply(params, xs)[1] * cotangent)

    return Traced(jax.value_and_grad(loss, argnums=(0, 1)), (params, xs, cotangent), (None, 0, 0))


def products(quantity: str, params: PyTree, rows: int) -> Traced:
    """The products of all steps with the cell's matrices, all at once; in training those of the gradients too.

    It is the arithmetic of a run that waits for nothing and does nothing twice.
    """
    matrices = [W for W in jax.tree.leaves(params) if W.ndim == 2]
    rng = np.random.default_rng(1)
    draw = lambda size: rng.standard_normal((rows, size), dtype=np.float32)
    given = [(draw(W.shape[0]), W, draw(W.shape[1])) for W in matrices]

    def run(given):
        ys = [x @ W for x, W, _ in given]
        return ys if quantity == "forward" else (ys, [(d @ W.T, x.T @ d) for x, W, d in given])

    return Traced(run, (given,), (None,))


QUANTITIES = {"forward": forward, "train": train}


class Watch:
    """How much time the calls of a program took, by the clock and of this process's cores."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    @property
    def cores(self) -> float | None:
        return self.cpu / self.wall if self.wall else None

    def watched(self, call: Callable[[], Any]) -> Callable[[], Any]:
        def watched() -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            result = call()
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu
            return result

        return watched


def build(traced: Traced, devices: int, watch: Watch, placed: Placed) -> Program:
    """Compiled; with several devices, all that has T steps is shared among them along time.

    Raises:
        NotOffered: there are fewer devices.
    """
    if devices > jax.device_count():
        raise NotOffered(f"{devices} devices are more than the {jax.device_count()} there are")
    program = compiled(traced, devices, placed)
    return program._replace(call=watch.watched(program.call))


class Agreement:
    """The check of a group's results: all agree with the first, so far as two runs of the case can."""

    def __init__(self, case: Case):
        self.case, self.first = case, None

    def __call__(self, result: PyTree) -> None:
        got = jax.tree.map(np.asarray, result)
        if self.case.chaotic:
            is_forward = isinstance(got, np.ndarray)
            got = got[:BEGINNING] if is_forward else got[0]  # its gradients overflow
        if self.first is None:
            self.first = got
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(self.first), strict=True):
            if a.shape != b.shape or not np.isfinite(a).all() or not np.any(a):
                raise ValueError(f"results of shape {a.shape} are wrong in shape, not finite, or all 0")
            off = np.abs(a - b).max() / np.abs(b).max()
            if off > CLOSE and (a.ndim or not self.case.chaotic):
                raise ValueError(f"results of shape {a.shape} are {off:.1e} off those of the scan, of the largest")


def how_it_went(case: Case) -> dict[str, str]:
    """What ``jr.convergence`` says of it, and what "auto" takes at these shapes."""
    cell, params = model(case)
    xs = jnp.asarray(data(case.steps, case.rows, cell.output_size)[0])
    report = jr.convergence(jr.parallel(cell, method=case.method), params, xs, repeats=None)
    went = {run.direction: in_short(run) for run in report.runs}
    for run in report.runs[:1]:
        went["chunks"] = f"{run.chunks} of {run.steps // run.chunks} steps"
    (scan,) = jr.explain(jr.parallel(cell), params, xs).scans
    took, why_not = (
        (words or "").split(cut)[0] for words, cut in ((scan.in_parallel, ","), (scan.not_in_parallel, ";"))
    )
    return went | {"auto": took or f"the scan: {why_not}"}


def in_short(run: ParallelRun) -> str:
    """One of the runs of ``jr.convergence``."""
    if run.fell_back:
        return f"step by step, after {run.iterations} sweeps" if run.iterations else "step by step, after the probe"
    if run.method == "associative":
        return "exact"
    if run.method == NEWTON:
        return f"{run.iterations} iterations"
    return f"warm-up of {run.warm_up} steps, {run.iterations} sweep{'s' * (run.iterations > 1)}"
