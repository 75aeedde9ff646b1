"""The groups of rows: what is timed side by side."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from experiments.benchmarks import ours, pytorch
from experiments.benchmarks.contestants import (
    BY_NAME,
    CHECKPOINT,
    CHECKPOINTED,
    CONTESTANTS,
    PACKED,
    PLAIN,
    PLAN,
    STREAM,
    TORCH,
    Contestant,
)
from experiments.benchmarks.problems import (
    CHECKS,
    GATES,
    LENGTHS,
    READOUT,
    SHAPES,
    VARIANTS,
    NotOffered,
    Problem,
    check_weights,
    data,
    drawn,
)
from experiments.benchmarks.programs import QUANTITIES, Model, Placed, Program, Traced, compiled, place, train
from experiments.benchmarks.timing import Budget

PyTree = Any


class Row(NamedTuple):
    """One contestant's figures; a line of rows.jsonl."""

    suite: str
    quantity: str
    cell: str
    shape: tuple[int, int, int, int]  # B, T, I, H
    variant: str
    devices: int
    contestant: str
    seconds: tuple[float, ...] = ()  # of a call, one number a round
    compile_seconds: float | None = None
    temp_bytes: int | None = None
    note: str = ""  # why there is no figure
    cores: float | None = None  # at work in its calls: the process's CPU time / wall time; None: not watched
    digest: str | None = None  # of the lowered program

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


class Entry(NamedTuple):
    row: Row
    build: Callable[[Placed], Program]
    check: Callable[[Any], None]


class Group(NamedTuple):
    """What is timed in the same rounds."""

    title: str
    entries: list[Entry]
    budget: Budget


class Loops(NamedTuple):
    """Of the suite closed_loop: a language model of one LSTM, and layer-normed ones."""

    symbols: int = 64
    features: int = 64  # of their embedding
    units: int = 256
    steps: int = 200
    batches: tuple[int, ...] = (1, 64)
    width: int = 8  # of the beam
    searched: tuple[int, ...] = (1, 16)  # batches
    layer_normed: tuple[tuple[int, int, int, int], ...] = (SHAPES[0], SHAPES[2])


class Settings(NamedTuple):
    """What a run measures; the defaults are the whole benchmark."""

    suites: tuple[str, ...] = ()  # by the names of every_suite.py; (): all
    cells: tuple[str, ...] = tuple(GATES)
    quantities: tuple[str, ...] = tuple(QUANTITIES)
    shapes: tuple[tuple[int, int, int, int], ...] = SHAPES  # of `cells`
    variant_shapes: tuple[tuple[int, int, int, int], ...] = SHAPES[:1]
    small_shapes: tuple[tuple[int, int, int, int], ...] = ((1, 1_000, 16, 16), (4, 500, 16, 16))
    ragged: tuple[tuple[str, tuple[int, int, int, int]], ...] = (
        ("lstm", SHAPES[0]),
        ("lstm", SHAPES[2]),
        ("gru", SHAPES[1]),
    )
    contestants: tuple[str, ...] = tuple(BY_NAME)
    budget: Budget = Budget()
    members: int = 32
    ensemble_shape: tuple[int, int, int, int] = (16, 100, 2, 32)
    step_sizes: tuple[int, ...] = (64, 128, 512)  # I = H, at B = 1
    lengths: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    length_sizes: tuple[tuple[int, int], ...] = ((1, 64), (8, 64))  # B, H
    memory_shape: tuple[int, int, int, int] = (32, 1_000, 128, 128)
    compile_shape: tuple[int, int, int, int] = SHAPES[0]
    compile_lengths: tuple[int, ...] = (1_000, 10_000)  # of the LSTM, besides the shape's own T
    loops: Loops = Loops()
    online_batches: tuple[int, ...] = (1, 16)

    def taking_part(self, cell: str) -> list[Contestant]:
        on_gpu = jax.default_backend() == "gpu"
        return [
            contestant
            for contestant in CONTESTANTS
            if contestant.name in self.contestants
            and cell in contestant.cells
            and contestant.installed()
            and (on_gpu or not contestant.gpu)
        ]


def missing(settings: Settings) -> list[str]:
    """What should take part and is not installed, by the name of its module."""
    needs = [BY_NAME[name].needs for name in settings.contestants if not BY_NAME[name].installed()]
    return sorted({module for module in needs if module is not None})


def cells(settings: Settings) -> Iterator[Group]:
    """Every cell at every shape: forward and training step, on one device and on two."""
    for cell in settings.cells:
        for shape in settings.shapes:
            yield from sequence_groups("cells", Problem(cell, *shape), settings)


def variants(settings: Settings) -> Iterator[Group]:
    for variant in VARIANTS:
        for shape in settings.variant_shapes if "lstm" in settings.cells else ():
            yield from sequence_groups("variants", Problem("lstm", *shape, variant), settings)


def ragged(settings: Settings) -> Iterator[Group]:
    """Sequences of different lengths, on one device: sharing lanes, and as they stand."""
    for cell, shape in settings.ragged:
        for lengths in LENGTHS if cell in settings.cells else ():
            problem = Problem(cell, *shape, lengths)
            for quantity in settings.quantities:
                entries = [
                    sequence_entry(
                        Row("ragged", quantity, cell, shape, lengths, 1, contestant.name), problem, contestant
                    )
                    for contestant in (BY_NAME[PLAN], BY_NAME[PACKED], BY_NAME[PLAIN])
                    if contestant.name in settings.contestants
                ]
                yield Group(title(problem, quantity), entries, settings.budget)


def small(settings: Settings) -> Iterator[Group]:
    """Small models of few rows, where the loop itself costs more than the work."""
    for cell in settings.cells:
        for shape in settings.small_shapes:
            yield from sequence_groups("small", Problem(cell, *shape), settings)


def sequence_groups(suite: str, problem: Problem, settings: Settings) -> Iterator[Group]:
    for quantity in settings.quantities:
        entries = []
        for devices in devices_at_hand():
            for contestant in settings.taking_part(problem.cell):
                over_time = contestant.model is not None or contestant.sequence is not None
                if over_time and (devices == 1 or not own_program(contestant)):
                    row = Row(suite, quantity, problem.cell, problem.shape, problem.variant, devices, contestant.name)
                    entries.append(sequence_entry(row, problem, contestant))
        yield Group(title(problem, quantity), entries, settings.budget)


def sequence_entry(row: Row, problem: Problem, contestant: Contestant) -> Entry:
    def build(placed):
        if problem.B % row.devices:
            raise NotOffered(f"a batch of {problem.B} cannot be split over {row.devices} devices")
        if contestant.model is not None:
            source: Traced | Program = QUANTITIES[row.quantity](problem, contestant.model(problem))
        else:
            assert contestant.sequence is not None
            source = contestant.sequence(problem, row.quantity)
        return source if isinstance(source, Program) else compiled(source, row.devices, placed)

    def check(result):
        if not contestant.name.startswith("floor"):
            CHECKS[row.quantity](problem, result)

    return Entry(row, build, check)


def own_program(contestant: Contestant) -> bool:
    """torch runs one way: on all cores."""
    return contestant.needs == "torch"


def devices_at_hand() -> tuple[int, ...]:
    return (1, 2) if jax.device_count() > 1 else (1,)


def title(problem: Problem, quantity: str) -> str:
    return " ".join(filter(None, (problem.variant, problem.cell, str(problem.shape).replace(" ", ""), quantity)))


def ensemble(settings: Settings) -> Iterator[Group]:
    """Many small LSTMs, for each the gradient of its loss by its own parameters.

    jaxrnn by ``jr.devices.ensemble``, which takes the devices that there are; all JAX contestants by ``jax.vmap`` too,
    the members split over the devices; torch by a loop.
    """
    if "lstm" not in settings.cells or "train" not in settings.quantities:
        return
    problem, N = Problem("lstm", *settings.ensemble_shape), settings.members
    entries = []
    for devices in devices_at_hand():
        row = Row("ensemble", "gradient", "lstm", problem.shape, f"{N} members", devices, PLAN)
        if PLAN in settings.contestants:
            entries.append(Entry(row, functools.partial(library_ensemble, problem, N, devices), check_gradients))
        for contestant in settings.taking_part("lstm"):
            if contestant.model is not None:
                build = functools.partial(vmap_ensemble, contestant.model, problem, N, devices)
                entries.append(Entry(row._replace(contestant=f"{contestant.name}, vmap"), build, check_gradients))
            elif contestant.name == TORCH and devices == 1:
                loop = functools.partial(torch_ensemble, problem, N)
                entries.append(Entry(row._replace(contestant=TORCH), loop, check_gradients))
    yield Group(f"{N} LSTMs {problem.shape}".replace(", ", ","), entries, settings.budget)


def check_gradients(result: PyTree) -> None:
    for leaf in jax.tree.leaves(result):
        values = np.asarray(leaf)
        if not np.isfinite(values).all() or not values.any():
            raise ValueError(f"a gradient of shape {values.shape} is 0 or not finite")


def members_of(model: Model, problem: Problem, members: int) -> PyTree:
    drawings = [drawn(model.params, problem.H, seed) for seed in range(members)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *drawings)


def gradient_of(model: Model) -> Callable[..., PyTree]:
    def loss(params, xs, cotangent):
        return jnp.sum(model.apply(params, xs, None) * cotangent)

    return jax.grad(loss)


def library_ensemble(problem: Problem, members: int, devices: int, placed: Placed) -> Program:
    model = ours.model()(problem)
    xs, cotangent, _ = data(problem)
    stacked = jax.tree.map(lambda a: place(a, 0, devices, placed), members_of(model, problem, members))
    shared = [place(a, None, devices, placed) for a in (xs, cotangent)]
    run = jr.devices.ensemble(gradient_of(model), mesh=jr.devices.batch_mesh(devices))
    return Program(lambda: jax.block_until_ready(run(stacked, *shared)))


def vmap_ensemble(
    model_of: Callable[[Problem], Model], problem: Problem, members: int, devices: int, placed: Placed
) -> Program:
    model = model_of(problem)
    xs, cotangent, _ = data(problem, model.batch_axis)
    function = jax.vmap(gradient_of(model), in_axes=(0, None, None))
    args = (members_of(model, problem, members), xs, cotangent)
    return compiled(Traced(function, args, (0, None, None)), devices, placed)


def torch_ensemble(problem: Problem, members: int, placed: Placed) -> Program:
    return pytorch.ensemble(problem, members)


def step(settings: Settings) -> Iterator[Group]:
    """One step at B = 1, jitted, each call waiting for its output: the latency of decoding.

    The LSTM also with a readout on top, as a model that is served has one: jaxrnn's chain beside two modules of torch.
    """
    for cell in settings.cells if "forward" in settings.quantities else ():
        for variant in ("", READOUT) if cell == "lstm" else ("",):
            for H in settings.step_sizes:
                problem = Problem(cell, 1, 1, H, H, variant)
                entries = [
                    Entry(
                        Row("step", "step", cell, problem.shape, variant, 1, contestant.name),
                        functools.partial(step_program, contestant, problem),
                        functools.partial(check_step, problem),
                    )
                    for contestant in settings.taking_part(cell)
                    if contestant.step is not None and (not variant or contestant.name in (PLAN, STREAM, TORCH))
                ]
                yield Group(title(problem, "step"), entries, settings.budget)


def step_program(contestant: Contestant, problem: Problem, placed: Placed) -> Program:
    assert contestant.step is not None
    source = contestant.step(problem)
    if isinstance(source, Program):
        return source
    check_weights(problem, source.params)
    params, x, *flags = jax.device_put((source.params, data(problem).xs[0], *source.flags))
    carry = jax.tree.map(jnp.copy, source.carry)  # an array for each leaf: some give one array twice
    jitted = jax.jit(source.step, donate_argnums=1)  # called as servers call it; the dispatch is part of the latency

    def call():
        nonlocal carry
        carry, y = jitted(params, carry, x, *flags)
        return jax.block_until_ready(y)

    return Program(call)


def check_step(problem: Problem, y: Any) -> None:
    values = np.asarray(y)
    if values.shape != (problem.B, problem.H) or not np.isfinite(values).all() or not values.any():
        raise ValueError(f"the output {values.shape} of a step is wrong in shape, not finite, or 0")


def length(settings: Settings) -> Iterator[Group]:
    """The cost against T, of the LSTM on one device."""
    if "lstm" not in settings.cells:
        return
    for B, H in settings.length_sizes:
        for T in settings.lengths:
            problem = Problem("lstm", B, T, H, H)
            for quantity in settings.quantities:
                entries = [
                    sequence_entry(
                        Row("length", quantity, "lstm", problem.shape, "", 1, contestant.name), problem, contestant
                    )
                    for contestant in (BY_NAME[PLAN], BY_NAME[PLAIN], CHECKPOINTED)
                    if contestant.name in settings.contestants
                ]
                yield Group(title(problem, quantity), entries, settings.budget._replace(least=3))


LOSSES = ("last state", "all outputs")


def memory(settings: Settings) -> Iterator[Group]:
    """The gradient by the parameters alone: its temporaries, and its time, with checkpoints and without."""
    if "lstm" not in settings.cells or "train" not in settings.quantities:
        return
    problem = Problem("lstm", *settings.memory_shape)
    options: dict[str, dict[str, Any]] = {PLAN: {}, PLAIN: {"plan": "plain"}, CHECKPOINT: {"checkpoint": True}}
    for loss in LOSSES:
        entries = [
            Entry(
                Row("memory", f"loss on {loss}", "lstm", problem.shape, "", 1, name),
                functools.partial(parameter_gradient, problem, loss, options[name]),
                functools.partial(check_weights, problem),
            )
            for name in options
            if name in settings.contestants
        ]
        yield Group(f"memory, loss on {loss}", entries, settings.budget)


def parameter_gradient(problem: Problem, loss_on: str, options: dict[str, Any], placed: Placed) -> Program:
    run = ours.layer(ours.library_cell, problem, **options)
    params = drawn(jax.eval_shape(run.init, jax.random.key(0)), problem.H)
    xs, cotangent, _ = data(problem)

    def loss(params, xs, cotangent):
        carry, ys = run.apply(params, xs)
        return jnp.vdot(carry.h, cotangent[-1]) if loss_on == "last state" else jnp.sum(ys * cotangent)

    return compiled(Traced(jax.grad(loss), (params, xs, cotangent), (None, 1, 1)), 1, placed)


def compile_time(settings: Settings) -> Iterator[Group]:
    """Lowering and compiling a training step, all of JAX's caches empty; ``seconds`` are those."""
    if "train" not in settings.quantities:
        return
    B, T, I, H = settings.compile_shape
    problems = [Problem(cell, B, T, I, H) for cell in settings.cells]
    if "lstm" in settings.cells:
        problems += [Problem("lstm", B, longer, I, H) for longer in settings.compile_lengths]
    for problem in problems:
        entries = [
            Entry(
                Row("compile", "compile", problem.cell, problem.shape, "", 1, contestant.name),
                functools.partial(compilation, contestant, problem),
                check_nothing,
            )
            for contestant in settings.taking_part(problem.cell)
            if contestant.model is not None
        ]
        yield Group(title(problem, "compile"), entries, settings.budget)


def check_nothing(result: Any) -> None:
    """A compilation has no result."""


def compilation(contestant: Contestant, problem: Problem, placed: Placed) -> Program:
    """Its call returns seconds: those of the compilation, without what leads up to it."""

    def call() -> float:
        assert contestant.model is not None
        traced = train(problem, contestant.model(problem))  # anew: nothing that it keeps is warm
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), traced.args)
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(traced.function).lower(*shapes).compile()
        return time.perf_counter() - start

    return Program(call)
