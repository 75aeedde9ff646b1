"""Online copy: the longest string that rules of learning online learn to copy, for the same data and time.

About 6 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Console

import jaxrnn as jr
from experiments import learners, measured
from experiments.environment import environment
from experiments.online_copy import strings
from experiments.reports import figures as drawings
from experiments.runner import report
from experiments.runner.config import Many, Rate, Seed, Table
from jaxrnn import plotting
from jaxrnn.commands.other_work import OtherWork

Rule = Literal["rtrl", "snap1", "snap2", "snap3", "eprop", "rflo", "uoro", "window", "bptt"]
Update = Callable[[Any, Any, Any], tuple[Any, Any]]  # (grads, params, opt_state) -> (params, opt_state)


class Model(Table):
    hidden_size: int = Field(default=16, gt=0)
    density: float = Field(default=0.25, gt=0, lt=1)  # of the units, those that each unit of a sparse network hears
    mask_seed: Seed = 0  # who hears whom, the same in all sparse networks


class Data(Table):
    steps: int = Field(default=16_000, gt=0)
    batch_size: int = Field(default=8, gt=0)
    bound: float = Field(default=0.15, gt=0)  # bits a character; below it strings may be longer
    shorter: int = Field(default=5, ge=0)  # a batch has strings from so many below the longest to the longest


class Learn(Table):
    dense: Many[Rule] = ("rtrl", "snap1", "eprop", "uoro", "window", "bptt")
    sparse: Many[Rule] = ("rtrl", "snap2", "snap1", "bptt")
    windows: Many[int] = (4, 8, 16)  # steps back, the present one included
    rates: Many[Rate] = (3e-3, 1e-2, 3e-2)  # of Adam: for each learner that of the longest validation strings
    validation_seeds: Many[Seed] = (1000, 1001)
    seeds: Many[Seed] = (0, 1, 2, 3, 4, 5)


class Config(Table):
    experiment: Literal["online_copy"]
    model: Model = Model()
    data: Data = Data()
    learn: Learn = Learn()


class Learner(NamedTuple):
    """A network and how it learns."""

    rule: Rule
    window: int = 0
    sparse: bool = False

    @property
    def name(self) -> str:
        rule = {"window": f"window of {self.window}", "bptt": "bptt, at the end"}.get(self.rule, self.rule)
        return f"sparse, {rule}" if self.sparse else rule

    @property
    def at_the_end(self) -> bool:
        """Whether the params are held throughout a batch and updated once it is over."""
        return self.rule == "bptt"

    def cell(self, config: Config) -> jr.Cell:
        H = config.model.hidden_size
        gru = jr.gru(strings.INPUTS, H, reset="after")
        if self.sparse:
            gru = jr.masked_weights(gru, mask=np.tile(who_hears_whom(config.model), (1, 3)), names="W_hh")
        return jr.chain(gru, jr.readout(H, 1))

    def online(self, config: Config) -> Any:
        """With params held, rtrl's gradients add up to those of back-propagation through all steps."""
        cell = self.cell(config)
        rule: Any = {"window": "tbptt", "bptt": "rtrl"}.get(self.rule, self.rule)
        masks = cell.init(jax.random.key(0)) if self.sparse else None
        return jr.online(cell, strings.bits, rule=rule, window=self.window or None, masks=masks)


class Measured(NamedTuple):
    learner: Learner
    rate: float
    longest: np.ndarray  # (seeds, T): the longest strings of the batch after each step; they are not learnt yet
    seconds: float  # of a step, of a whole batch
    kept: int  # numbers of the trace, for each string

    def learnt(self, steps: int | None = None) -> np.ndarray:
        """(seeds,): the longest strings that are learnt after so many steps; None: all."""
        return self.longest[:, (steps or 0) - 1] - 1


def who_hears_whom(model: Model) -> np.ndarray:
    """(H, H) booleans, from and to: each unit hears as many others, drawn once; the three gates hear the same."""
    H = model.hidden_size
    drawn = np.random.RandomState(model.mask_seed).random_sample((H, H))
    return drawn.argsort(0).argsort(0) < max(1, round(model.density * H))


def learners_of(config: Config) -> list[Learner]:
    found = []
    for sparse, rules in ((False, config.learn.dense), (True, config.learn.sparse)):
        for rule in rules:
            windows = config.learn.windows if rule == "window" else (0,)
            found += [Learner(rule, window, sparse) for window in windows]
    return found


Run = Callable[[Any, Any], jax.Array]  # (seed, rate) -> the longest strings after each step (T,)


def run_of(learner: Learner, config: Config) -> Run:
    """From strings of one character to where the steps end."""
    data, cell, online = config.data, learner.cell(config), learner.online(config)
    T, B = data.steps, data.batch_size

    def run(seed, rate):
        optimizer = optax.adam(rate)
        k_characters, k_lengths, k_params, k_rule = jax.random.split(jax.random.key(seed), 4)
        characters = jax.random.bernoulli(k_characters, 0.5, (T, B)).astype(jnp.int8)
        us = jax.random.uniform(k_lengths, (T, B))
        params = cell.init(k_params)

        def update(learning, grads):
            params, opt_state = learning
            updates, opt_state = optimizer.update(grads, opt_state)
            return optax.apply_updates(params, updates), opt_state

        def update_at_the_end(learning, summed, last):
            """With all gradients of a batch together."""
            done = lambda: (update(learning, summed), jax.tree.map(jnp.zeros_like, summed))
            return jax.lax.cond(last, done, lambda: (learning, summed))

        def step(held, t):
            learning, summed, state, place = held
            x, target = strings.shown(place, characters, t)
            begins = jnp.broadcast_to(place.position == 0, (B,))
            state, y, grads = online.step(learning[0], state, x, target, resets=begins)
            if learner.at_the_end:
                summed = jax.tree.map(jnp.add, summed, grads)
                learning, summed = update_at_the_end(learning, summed, strings.ends(place))
            else:
                learning = update(learning, grads)
            lost = strings.bits(y, target)
            place = strings.following(place, lost, us[t], bound=data.bound, shorter=data.shorter)
            return (learning, summed, state, place), place.longest

        state = online.init(params, (B,), key=k_rule if learner.rule == "uoro" else None)
        summed = jax.tree.map(jnp.zeros_like, params) if learner.at_the_end else ()
        held = (params, optimizer.init(params)), summed, state, strings.first(B)
        return jax.lax.scan(step, held, jnp.arange(T))[1]

    return run


def chosen_and_run(config: Config, learner: Learner) -> tuple[float, np.ndarray]:
    """The rate of the longest strings on the validation seeds, and with it those of the seeds (seeds, T)."""
    settings, run = config.learn, run_of(learner, config)
    all_of = jr.devices.ensemble(lambda member: run(*member))

    def longest(pairs):
        seeds, rates = (np.array(a) for a in zip(*pairs, strict=True))
        return np.asarray(all_of((seeds.astype(np.uint32), rates.astype(np.float32))))

    found = longest([(seed, rate) for rate in settings.rates for seed in settings.validation_seeds])
    towards_the_end = found[:, -max(config.data.steps // 10, 1) :].mean(1)
    rate = learners.best(settings.rates, towards_the_end.reshape(len(settings.rates), -1))
    return rate, longest([(seed, rate) for seed in settings.seeds])


def seconds_of(config: Config, chosen: list[Learner], steps: int = 300) -> dict[str, float]:
    """Of a step, alone on the machine: one batch of strings."""
    short = config.model_copy(update={"data": config.data.model_copy(update={"steps": steps})})
    return learners.seconds_a_step({one.name: run_of(one, short) for one in chosen}, (0, 1e-3), steps)


def run(config: Config, directory: Path) -> None:
    """Measure every learner, and write table, curves and summary."""
    console, chosen = Console(), learners_of(config)
    others = OtherWork()
    seconds, busy = seconds_of(config, chosen), others.cores()
    everything = []
    for learner in chosen:
        kept = learners.numbers_kept(learner.online(config), learner.cell(config), strings.INPUTS)
        rate, longest = chosen_and_run(config, learner)
        everything.append(Measured(learner, rate, longest, seconds[learner.name], kept))
        learnt = measured.spread(everything[-1].learnt(), ".1f")
        console.print(f"{learner.name}: rate {rate:g}, strings of {learnt}", highlight=False)
    report.write_table(directory, rows(config, everything), notes(config, everything, busy))
    summary = {"measured": [summarized(m) for m in everything], "environment": environment(report.PACKAGES)}
    (directory / "summary.json").write_text(report.to_json(summary, indent=2) + "\n", encoding="utf-8")
    drawings.save(figure(config, everything), directory / "lengths.png")
    console.print(f"written to {directory}", highlight=False, soft_wrap=True)


def seconds_for_all(config: Config, everything: list[Measured]) -> float:
    """What the fastest learner takes for all steps."""
    return config.data.steps * min(m.seconds for m in everything)


def steps_within(config: Config, everything: list[Measured], m: Measured) -> int:
    """How many steps a learner takes in that time."""
    return max(1, min(round(seconds_for_all(config, everything) / m.seconds), config.data.steps))


def rows(config: Config, everything: list[Measured]) -> list[tuple[str, ...]]:
    header = ("learner", "numbers kept", "µs a step", "rate", "L, same data", "less the first's", "L, same time")
    found: list[tuple[str, ...]] = [header]
    for m in everything:
        first = next(other for other in everything if other.learner.sparse == m.learner.sparse)
        apart = "–" if m is first else learners.less(config.learn.seeds, m.learnt(), first.learnt(), ".1f")
        of_data = (f"{m.rate:g}", measured.spread(m.learnt(), ".1f"), apart)
        if m.learner.at_the_end:  # rtrl stands in for what goes back through the batch: its cost is not that
            found.append((m.learner.name, "–", "–", *of_data, "–"))
        else:
            of_time = measured.spread(m.learnt(steps_within(config, everything, m)), ".1f")
            found.append((m.learner.name, f"{m.kept:,}", f"{1e6 * m.seconds:.0f}", *of_data, of_time))
    return found


def notes(config: Config, everything: list[Measured], busy: float | None) -> list[str]:
    data, learn = config.data, config.learn
    others = "" if busy is None else f"; other processes kept {busy:.1f} cores busy meanwhile"
    return [
        f"L: the longest strings of which a batch was copied for less than {data.bound:g} bits a character; each "
        f"character is wanted L + 1 steps after it was read. Mean ± standard deviation of {len(learn.seeds)} seeds. "
        f"Same data: after {data.steps:,} steps of {data.batch_size} strings side by side. Less the first's: beside "
        f"the first learner of the same network, seed by seed, with 95 % intervals (Student's t). Same time: after the "
        f"{seconds_for_all(config, everything):.1f} seconds that the fastest learner takes for all steps. µs a step: "
        f"all {data.batch_size} strings, update included, one device, median of rounds in which the learners take "
        f"turns{others}. Numbers kept: of each string. Rate: Adam's, of {', '.join(f'{r:g}' for r in learn.rates)}, "
        f"that of the longest strings on {len(learn.validation_seeds)} other seeds."
    ]


def summarized(m: Measured) -> dict[str, Any]:
    return {
        "learner": m.learner.name,
        "rate": m.rate,
        "learnt": m.learnt().tolist(),
        "seconds": m.seconds,
        "kept": m.kept,
    }


def figure(config: Config, everything: list[Measured]) -> Figure:
    """The longest strings that are learnt: left by data, right by time."""
    picture = Figure(figsize=(11, 4.4), layout="constrained")
    by_data, by_time = picture.subplots(1, 2, sharey=True)
    rules = list(dict.fromkeys((m.learner.rule, m.learner.window) for m in everything))
    colours = dict(zip(rules, (*plotting.COLOURS, "grey", "saddlebrown", "olive", "purple") * 2, strict=False))
    steps = np.unique(np.geomspace(min(20, config.data.steps), config.data.steps, 400).astype(int))
    for m in everything:
        curve = m.longest[:, steps - 1].mean(0) - 1
        style = {
            "color": colours[m.learner.rule, m.learner.window],
            "linestyle": "--" if m.learner.sparse else "-",
            "linewidth": 1.2,
            "label": m.learner.name,
        }
        by_data.plot(config.data.batch_size * steps, curve, **style)
        if not m.learner.at_the_end:
            by_time.plot(m.seconds * steps, curve, **style)
    by_data.set(xlabel="steps of strings", ylabel="L, mean of the seeds", title="by data", xscale="log")
    by_time.set(xlabel="seconds", title="by time", xscale="log")
    for axes in (by_data, by_time):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    by_data.legend(frameon=False, fontsize=8)
    return picture
