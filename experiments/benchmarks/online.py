"""``python -m experiments.benchmarks.online``: what a step of learning online costs, and whether its memory grows."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import optax

import jaxrnn as jr
from experiments.benchmarks import report
from experiments.benchmarks.command import add_out, add_write, run_command, say
from experiments.benchmarks.measuring import measure
from experiments.benchmarks.online_steps import lines, online, squared
from experiments.benchmarks.suites import Row, Settings
from experiments.environment import environment, sentence
from experiments.markdown import table, write_parts
from experiments.runner.directories import new_directory
from experiments.runner.options import positive
from jaxrnn.commands.other_work import OtherWork

PACKAGES = ("jax", "jaxlib", "numpy")
PARTS = ("online-steps", "online-memory")


class Memory(NamedTuple):
    """What a process held while it learnt from a long stream."""

    steps: int
    seconds: float
    state: int  # bytes, of carry, trace, params and optimizer
    first: float  # MB, after the first hundredth of the stream
    most: float  # MB, the most seen after that
    last: float


def memory(steps: int = 10**6, block: int = 1_000) -> Memory:
    """A GRU of 16 units that predicts the second last number, by "snap1" and Adam at every step of one stream."""
    cell = jr.chain(jr.gru(1, 16, reset="after"), jr.readout(16, 1))
    learner, optimizer = jr.online(cell, squared, rule="snap1"), optax.adam(1e-3)
    params = cell.init(jax.random.key(0))

    @functools.partial(jax.jit, donate_argnums=0)
    def run(held, number):
        xs = jax.random.normal(jax.random.fold_in(jax.random.key(1), number), (block + 2, 1, 1))

        def step(held, inputs):
            params, opt_state, state = held
            state, y, grads = learner.step(params, state, *inputs)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state, state), squared(y, inputs[1])

        held, losses = jax.lax.scan(step, held, (xs[2:], xs[:-2]))
        return held, losses.mean()

    held = (params, optimizer.init(params), learner.init(params, (1,)))
    size, blocks, seen = sum(a.nbytes for a in jax.tree.leaves(held)), -(-steps // block), []
    begin = time.perf_counter()
    for number in range(blocks):
        held, mean = run(held, number)
        if number + 1 >= max(blocks // 100, 1):
            mean.block_until_ready()
            seen.append(resident())
    return Memory(blocks * block, time.perf_counter() - begin, size, seen[0], max(seen), seen[-1])


def resident() -> float:
    """MB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def said_of(m: Memory) -> str:
    return (
        f'{m.steps:,} steps of one stream, a GRU of 16 units under `"snap1"` with an update at every step: resident '
        f"memory {m.first:.1f} MB after {m.steps // 100:,} steps, {m.last:.1f} MB after all of them, at most "
        f"{m.most:.1f} MB between; {m.state / 1e3:.1f} kB of that are params, optimizer, carry and trace. "
        f"{1e6 * m.seconds / m.steps:.1f} µs a step."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, also where a target is missed; 1 (a file), 2 (was asked wrongly)."""
    arguments = parser().parse_args(argv)

    def asked() -> None:
        only = [arguments.only] if arguments.only else ["steps", "memory"]
        run(only, arguments.steps, arguments.out, arguments.write)

    return run_command(asked, [arguments.write], PARTS)


def run(only: Sequence[str], steps: int, out: Path, page: Path | None = None) -> Path:
    """Measure, and write what came of it; returns the run directory."""
    jax.config.update("jax_platforms", "cpu")
    parts, machine, other_work = {}, environment(PACKAGES), OtherWork()
    directory = new_directory(out, "online")
    if "steps" in only:
        rows: list[Row] = []
        for group in online(Settings()):
            rows += (measured := measure(group))
            report.append(directory, measured)
            times = (f"{row.contestant} {row.note or report.spread(row, 1e6 / row.shape[1])}" for row in measured)
            say("; ".join((group.title, *times)))
        parts["online-steps"] = table(lines(rows, report.spread), left=2)
    if "memory" in only:
        parts["online-memory"] = said_of(memory(steps))
    machine["other_work"] = other_work.cores()
    parts = {name: f"{text}\n\n{sentence(machine, PACKAGES)}" for name, text in parts.items()}
    (directory / "table.md").write_text("\n\n".join(parts.values()) + "\n", encoding="utf-8")
    say("\n\n".join((*parts.values(), f"written to {directory}")))
    if page is not None:
        write_parts(page, parts)
    return directory


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.online",
        description="A step of learning online beside a forward step and its floor; memory over a long stream.",
    )
    top.add_argument("--only", choices=("steps", "memory"), help="one of the two")
    top.add_argument("--steps", type=positive, default=10**6, help="of the long stream (default: 1,000,000)")
    add_out(top)
    add_write(top, PARTS[0], f", and {PARTS[1]}")
    return top


if __name__ == "__main__":
    sys.exit(main())
