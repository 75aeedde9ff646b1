"""Online drift: a stream whose rule changes; rules of learning online beside truncated back-propagation.

About 5 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pydantic import Field
from rich.console import Console

import jaxrnn as jr
from experiments import learners, measured
from experiments.environment import environment
from experiments.online_drift import teacher
from experiments.reports import figures as drawings
from experiments.runner import report
from experiments.runner.config import Many, Rate, Seed, Table
from jaxrnn import plotting
from jaxrnn.commands.other_work import OtherWork

Kind = Literal["gru", "min_gru"]
Rule = Literal["rtrl", "snap1", "uoro", "window", "chunk"]
CURVE = 100  # points of a curve of the figure


class Model(Table):
    hidden_size: int = Field(default=16, gt=0)


class Data(Table):
    steps: int = Field(default=30_000, gt=CURVE)
    inputs: int = Field(default=2, gt=0)
    units: int = Field(default=8, gt=0)  # of the teacher
    slowest: float = Field(default=20.0, ge=1)  # steps: the longest of its time constants
    drift: float = Field(default=0.01, ge=0, lt=1)  # of its weights in a step: after 1 / drift² steps they are others
    noise: float = Field(default=0.1, ge=0)  # standard deviation, that of the answers is 1


class Learn(Table):
    rules: Many[Rule] = get_args(Rule)
    windows: Many[int] = (1, 2, 4, 8, 16)  # steps back, an update at every step
    chunks: Many[int] = (4, 16)  # steps of which one update is made
    rates: Many[Rate] = (1e-3, 3e-3, 1e-2, 3e-2)  # of Adam: for each learner that with the least validation loss
    validation_seeds: Many[Seed] = (1000, 1001, 1002)
    seeds: Many[Seed] = (0, 1, 2, 3, 4)


class Config(Table):
    experiment: Literal["online_drift"]
    model: Model = Model()
    data: Data = Data()
    learn: Learn = Learn()


class Learner(NamedTuple):
    """A cell and how it learns."""

    name: str
    kind: Kind
    rule: Rule
    window: int = 0  # or the steps of a chunk

    def cell(self, config: Config) -> jr.Cell:
        H, I = config.model.hidden_size, config.data.inputs
        cell = jr.gru(I, H, reset="after") if self.kind == "gru" else jr.min_gru(I, H)
        return jr.chain(cell, jr.readout(H, 1))


class Measured(NamedTuple):
    learner: Learner
    rate: float
    losses: np.ndarray  # (seeds, T): the squared error of each prediction, made before its target is seen
    seconds: float  # of a step, of one stream
    kept: int  # numbers of the trace


def learners_of(config: Config) -> list[Learner]:
    found = []
    for rule in config.learn.rules:
        if rule == "window":
            found += [Learner(f"window of {k}", "gru", rule, k) for k in config.learn.windows]
        elif rule == "chunk":
            found += [Learner(f"chunks of {k}", "gru", rule, k) for k in config.learn.chunks]
        else:
            found.append(Learner(rule, "gru", rule))
    return [*found, Learner("minGRU, rtrl", "min_gru", "rtrl")] if "rtrl" in config.learn.rules else found


def squared(y: Any, target: Any) -> Any:
    return ((y - target) ** 2).sum()


Run = Callable[[jax.Array, Any, teacher.Stream], jax.Array]  # (key, rate, stream) -> losses (T,)


def run_of(learner: Learner, config: Config) -> Run:
    """From the first step of a stream to its last."""
    return by_chunks(learner, config) if learner.rule == "chunk" else at_every_step(learner, config)


def online_of(learner: Learner, cell: jr.Cell) -> Any:
    rule: Any = "tbptt" if learner.rule == "window" else learner.rule
    return jr.online(cell, squared, rule=rule, window=learner.window or None)


def at_every_step(learner: Learner, config: Config) -> Run:
    cell = learner.cell(config)
    online = online_of(learner, cell)

    def run(key, rate, stream):
        optimizer = optax.adam(rate)
        k_params, k_rule = jax.random.split(key)
        params = cell.init(k_params)

        def step(held, inputs):
            params, opt_state, state = held
            state, y, grads = online.step(params, state, *inputs)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state, state), squared(y, inputs[1])

        state = online.init(params, x=stream.xs[0], key=k_rule if learner.rule == "uoro" else None)
        return jax.lax.scan(step, (params, optimizer.init(params), state), (stream.xs, stream.targets))[1]

    return run


def by_chunks(learner: Learner, config: Config) -> Run:
    """Back through the steps of a chunk, once they are all there; the carry goes on."""
    cell, k = learner.cell(config), learner.window

    def run(key, rate, stream):
        optimizer = optax.adam(rate)
        params = cell.init(jax.random.split(key)[0])
        chunks = jax.tree.map(lambda a: a[: len(a) // k * k].reshape(-1, k, *a.shape[1:]), (stream.xs, stream.targets))

        def chunk(held, inputs):
            params, opt_state, carry = held
            xs, targets = inputs

            def loss(params):
                after, ys = jr.scan(cell).apply(params, xs, carry)
                losses = jax.vmap(squared)(ys, targets)
                return losses.sum(), (after, losses)

            grads, (carry, losses) = jax.grad(loss, has_aux=True)(params)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state, carry), losses

        held = (params, optimizer.init(params), cell.initial_carry(params))
        return jax.lax.scan(chunk, held, chunks)[1].reshape(-1)

    return run


def stream_of(config: Config, seed: Any) -> teacher.Stream:
    data = config.data.model_dump()
    return teacher.draw(jax.random.fold_in(jax.random.key(17), seed), data.pop("steps"), **data)


def chosen_and_run(config: Config, learner: Learner) -> tuple[float, np.ndarray]:
    """The rate of the least mean validation loss, and the losses with it on the streams of the seeds."""
    run = run_of(learner, config)

    @jax.jit
    def losses(seeds, rates):
        of_seed = lambda seed, rate: run(jax.random.key(seed), rate, stream_of(config, seed))
        return jax.vmap(of_seed)(seeds, rates)

    settings = config.learn
    pairs = [(seed, rate) for rate in settings.rates for seed in settings.validation_seeds]
    seeds, rates = (np.array(a) for a in zip(*pairs, strict=True))
    means = np.asarray(losses(seeds, rates.astype(np.float32))).mean(1)
    rate = learners.best(settings.rates, -means.reshape(len(settings.rates), -1))
    seeds = np.array(settings.seeds)
    return rate, np.asarray(losses(seeds, np.full(len(seeds), rate, np.float32)))


def times(config: Config, chosen: list[Learner], steps: int = 500) -> dict[str, float]:
    """Seconds of a step of one stream."""
    short = config.model_copy(update={"data": config.data.model_copy(update={"steps": steps})})
    runs = {learner.name: run_of(learner, short) for learner in chosen}
    return learners.seconds_a_step(runs, (jax.random.key(0), 1e-3, stream_of(short, 0)), steps)


def kept(config: Config, learner: Learner) -> int:
    """The numbers of a learner's trace; of a chunk its carries and inputs."""
    cell = learner.cell(config)
    if learner.rule == "chunk":
        return learner.window * (config.model.hidden_size + config.data.inputs)
    return learners.numbers_kept(online_of(learner, cell), cell, config.data.inputs)


def run(config: Config, directory: Path) -> None:
    """Measure every learner, and write table, curves and summary."""
    console, chosen, other_work = Console(), learners_of(config), OtherWork()
    seconds = times(config, chosen)
    busy = other_work.cores()
    everything = []
    for learner in chosen:
        rate, losses = chosen_and_run(config, learner)
        everything.append(Measured(learner, rate, losses, seconds[learner.name], kept(config, learner)))
        console.print(f"{learner.name}: rate {rate:g}, {in_short(config, everything[-1])}", highlight=False)
    zero = of_zero(config)
    report.write_table(directory, rows(config, everything, zero), notes(config, busy))
    summary = {"measured": [summarized(config, m) for m in everything], "environment": environment(report.PACKAGES)}
    (directory / "summary.json").write_text(report.to_json(summary, indent=2) + "\n", encoding="utf-8")
    drawings.save(figure(config, everything, zero), directory / "regret.png")
    console.print(f"written to {directory}", highlight=False, soft_wrap=True)


def regret(config: Config, m: Measured) -> np.ndarray:
    """(seeds, T): the squared error beyond the noise, which whoever knew the teacher would have."""
    return m.losses - config.data.noise**2


def of_zero(config: Config) -> float:
    """The regret of a step of whoever answers 0: the answers' mean square."""
    return float(np.mean([np.mean(np.square(stream_of(config, seed).answers)) for seed in config.learn.seeds]))


def in_short(config: Config, m: Measured) -> str:
    return f"regret a step {measured.spread(regret(config, m).mean(1), '.4f')}"


def rows(config: Config, everything: list[Measured], zero: float) -> list[tuple[str, ...]]:
    first, seeds = everything[0], config.learn.seeds
    found: list[tuple[str, ...]] = [
        (
            *("learner", "numbers kept", "µs a step", "rate", "regret a step", "in the last quarter"),
            f"regret less {first.learner.name}'s, stream by stream",
        )
    ]
    for m in everything:
        whole = regret(config, m)
        shown = (measured.spread(part.mean(1), ".4f") for part in (whole, whole[:, -whole.shape[1] // 4 :]))
        sizes = f"{m.kept:,}", f"{1e6 * m.seconds:.0f}", f"{m.rate:g}"
        apart = learners.less(seeds, whole.mean(1), regret(config, first).mean(1), ".4f")
        found.append((m.learner.name, *sizes, *shown, "–" if m is first else apart))
    return [*found, ("answering 0", "0", "–", "–", f"{zero:.4f}", "–", "–")]


def notes(config: Config, busy: float | None) -> list[str]:
    data, learn = config.data, config.learn
    return [
        f"Regret: the squared error of a prediction, made before its target is seen, less that of whoever knows the "
        f"teacher, {data.noise**2:g}; mean over {data.steps:,} steps ± standard deviation of {len(learn.seeds)} "
        f"streams and seeds. Rate: Adam's, of {', '.join(f'{r:g}' for r in learn.rates)}, that of the least loss on "
        f"{len(learn.validation_seeds)} other streams. Differences: on the same streams, with 95 % intervals "
        f"(Student's t). µs a step: one stream, update included, median of rounds in which the learners take turns"
        f"{'' if busy is None else f'; other processes kept {busy:.1f} cores busy meanwhile'}."
    ]


def summarized(config: Config, m: Measured) -> dict[str, Any]:
    return {
        "learner": m.learner.name,
        "rate": m.rate,
        "regret": regret(config, m).mean(1).tolist(),
        "seconds": m.seconds,
        "kept": m.kept,
    }


def figure(config: Config, everything: list[Measured], zero: float) -> Figure:
    """Left the regret over time, right what it is at which cost; one legend for both."""
    picture = Figure(figsize=(11, 4.8), layout="constrained")
    over_time, by_cost = picture.subplots(1, 2)
    windows = [m for m in everything if m.learner.rule == "window"]
    best = min(windows, key=lambda m: m.losses.mean(), default=None)
    shown = [m for m in everything if m.learner.rule != "window" or m is best]
    for m, colour in zip(shown, plotting.COLOURS * 2, strict=False):
        mean = regret(config, m).mean(0)
        n = len(mean) // CURVE
        curve = mean[: n * CURVE].reshape(CURVE, n).mean(1)
        over_time.plot(n * (np.arange(CURVE) + 1), curve, color=colour, linewidth=1, label=m.learner.name)
        if m.learner.rule != "window":
            by_cost.plot(1e6 * m.seconds, regret(config, m).mean(), "o", color=colour)
    over_time.axhline(zero, color="grey", linewidth=1, linestyle="--", label="answering 0")
    if windows:
        points = [(1e6 * m.seconds, float(regret(config, m).mean())) for m in windows]
        by_cost.plot(*zip(*points, strict=True), "-s", color="grey", label="windows, right")
        for m, point in zip(windows, points, strict=True):
            by_cost.annotate(str(m.learner.window), point, (3, 4), textcoords="offset points", fontsize=8)
    over_time.set(xlabel="step", ylabel="regret a step", yscale="log", title="over time, mean of the streams")
    by_cost.set(xlabel="µs a step", ylabel="regret a step", xscale="log", title="by cost")
    for axis in (over_time.yaxis, by_cost.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    for axes in (over_time, by_cost):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    picture.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return picture
