"""``python -m experiments.benchmarks.floor``: what the time of a forward run on one CPU device consists of."""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid

from experiments import markdown
from experiments.benchmarks.command import (
    CORES_THAT_DISTURB,
    add_seconds,
    add_shapes,
    add_write,
    names_in,
    run_command,
    shape_of,
)
from experiments.benchmarks.contestants import BEFORE, BY_NAME, PEER_NAMES, PLAIN, PLAN, TORCH, Contestant
from experiments.benchmarks.measuring import measure, notes_of
from experiments.benchmarks.problems import SHAPES, Problem
from experiments.benchmarks.programs import Traced
from experiments.benchmarks.report import DASH
from experiments.benchmarks.suites import Group, Row, sequence_entry
from experiments.benchmarks.timing import Budget
from experiments.environment import environment, sentence
from jaxrnn.commands.other_work import OtherWork

PART = "floor"  # the name of the markers
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "dm-haiku", "equinox", "keras", "torch")
BUDGET = Budget(seconds=1.0, least=15, most=60)
LIMIT = 0.9  # of the best peer


class Kind(NamedTuple):
    cell: str  # of a Problem
    ours: str  # the contestant
    pieces: tuple[int, ...]  # of W_hh: how many gates each of the products has
    gates: Callable[..., tuple[jax.Array, ...]]  # (pre-activations, *carry) -> carry, h first


def lstm_gates(a, h, c):
    i, f, g, o = (part + h for part in jnp.split(a, 4, -1))
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return sigmoid(o) * jnp.tanh(c), c


def gru_gates(a, h):
    r, z, n = jnp.split(a, 3, -1)
    r, z = sigmoid(r + h), sigmoid(z + h)
    return ((1 - z) * h + z * jnp.tanh(n + r * h),)


KINDS = {
    "lstm": Kind("lstm", PLAN, (4,), lstm_gates),
    "gru after": Kind("gru", PLAN, (3,), gru_gates),
    "gru": Kind("gru", BEFORE, (2, 1), gru_gates),  # the second product waits for the first
}


def products(kind: Kind, problem: Problem, quantity: str) -> Traced:
    """A loop with the products of the step, as the cell does them, and what ties one step to the next."""
    B, _, I, H = problem.shape
    rng = np.random.default_rng(0)
    W_x, *W_h = (
        rng.uniform(-1, 1, (rows, gates * H)).astype(np.float32) / H
        for rows, gates in ((I, sum(kind.pieces)), *((H, gates) for gates in kind.pieces))
    )

    def run(xs, W_x, W_h):
        def step(h, x):
            a = x @ W_x
            for W in W_h:
                h = sum(jnp.split(h @ W, W.shape[1] // H, -1))
            return h + sum(jnp.split(a, a.shape[1] // H, -1)), None

        return jax.lax.scan(step, jnp.zeros((B, H)), xs)[0]

    return Traced(run, (inputs(problem), W_x, W_h), (1, None, None))


def nonlinearities(kind: Kind, problem: Problem, quantity: str) -> Traced:
    """A loop with what the cell does elementwise, of pre-activations that stay in the cache."""
    B, T, _, H = problem.shape
    a = np.random.default_rng(0).standard_normal((B, problem.gate_columns), dtype=np.float32)
    carry = (np.zeros((B, H), np.float32),) * (2 if kind.cell == "lstm" else 1)

    def run(a, carry):
        return jax.lax.scan(lambda carry, _: (kind.gates(a, *carry), None), carry, None, length=T)[0]

    return Traced(run, (a, carry), (0, 0))


def loop(kind: Kind, problem: Problem, quantity: str) -> Traced:
    """A loop that reads a step of xs and writes one of ys, and computes next to nothing."""
    B, _, _, H = problem.shape

    def step(h, x):
        h = 0.5 * h + x[:, :1]
        return h, h

    return Traced(lambda xs: jax.lax.scan(step, jnp.zeros((B, H)), xs)[1], (inputs(problem),), (1,))


def inputs(problem: Problem) -> np.ndarray:
    B, T, I, _ = problem.shape
    return np.random.default_rng(1).standard_normal((T, B, I), dtype=np.float32)


PARTS = {"floor products": products, "floor nonlinearities": nonlinearities, "floor loop": loop}


def groups(kinds: Sequence[str], shapes: Sequence[tuple[int, int, int, int]], budget: Budget) -> Iterator[Group]:
    """For each cell and shape the parts, our run, the peers and torch."""
    for name in kinds:
        kind = KINDS[name]
        parts = [Contestant(part, None, sequence=functools.partial(make, kind)) for part, make in PARTS.items()]
        others = [BY_NAME[who] for who in (kind.ours, PLAIN, *PEER_NAMES, TORCH)]
        for shape in shapes:
            problem = Problem(kind.cell, *shape)
            entries = [
                sequence_entry(Row(PART, "forward", name, shape, "", 1, one.name), problem, one)
                for one in (*parts, *others)
                if one.installed() and not (one.name == PLAIN and kind.ours == BEFORE)
            ]
            yield Group(f"{name} {','.join(map(str, shape))}", entries, budget)


def paragraphs(rows: Sequence[Row], machine: Mapping[str, Any]) -> list[str]:
    """The tables, and who has no figure."""
    parts = [sentence(machine, PACKAGES)]
    for name in dict.fromkeys(row.cell for row in rows):
        shapes = dict.fromkeys(row.shape for row in rows if row.cell == name)
        lines = [line([row for row in rows if (row.cell, row.shape) == (name, shape)]) for shape in shapes]
        parts += [f"**{name}, ms**", markdown.table([HEADER, *lines])]
    missing = [
        f"- {', '.join(sorted({row.contestant for row in found}))}: {note}" for note, found in notes_of(rows).items()
    ]
    return [*parts, "\n".join(missing)] if missing else parts


HEADER = (
    "B, T, I, H",
    "products",
    "nonlinearities",
    "loop",
    "sum",
    "jaxrnn",
    "best peer",
    "jaxrnn / peer",
    "sum / peer",
    "torch",
)


def line(rows: Sequence[Row]) -> tuple[str, ...]:
    """One shape: medians, ± half the distance between the quartiles."""
    by_name = {row.contestant: row for row in rows if row.median is not None}
    ours = next((row for row in rows if row.contestant in (PLAN, BEFORE)), None)
    peers = [by_name[who] for who in PEER_NAMES if who in by_name]
    best = min(peers, key=lambda row: row.median or 0, default=None)
    medians = [by_name[part].median if part in by_name else None for part in PARTS]
    total = None if None in medians else sum(filter(None, medians))
    limit = best and best.median

    def over(value: float | None) -> str:
        if value is None or not limit:
            return DASH
        return f"**{value / limit:.2f}**" if value / limit > LIMIT else f"{value / limit:.2f}"

    return (
        ",".join(map(str, rows[0].shape)),
        *map(milliseconds, medians),
        milliseconds(total),
        spread(ours),
        f"{spread(best)} ({best.contestant})" if best else DASH,
        over(ours.median if ours else None),
        over(total),
        spread(by_name.get(TORCH)),
    )


def milliseconds(seconds: float | None) -> str:
    return DASH if seconds is None else f"{1e3 * seconds:.3g}"


def spread(row: Row | None) -> str:
    if row is None or row.median is None:
        return DASH
    low, _, high = statistics.quantiles(row.seconds, n=4) if len(row.seconds) > 1 else (row.median,) * 3
    return f"{milliseconds(row.median)} ± {milliseconds((high - low) / 2)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, also where the run was stopped; 1 (a file), 2 (was asked wrongly)."""
    arguments = parser().parse_args(argv)

    def asked() -> None:
        shapes = [shape_of(text) for text in arguments.shapes] or SHAPES[:3]
        kinds = names_in("--cells", arguments.cells, list(KINDS))
        jax.config.update("jax_platforms", "cpu")
        budget = BUDGET if arguments.seconds is None else BUDGET._replace(seconds=arguments.seconds, least=3)
        text = run(kinds, shapes, budget)
        print(text)
        if arguments.write is not None:
            markdown.write_parts(arguments.write, {PART: text})

    return run_command(asked, [arguments.write], [PART])


def run(kinds: Sequence[str], shapes: Sequence[tuple[int, int, int, int]], budget: Budget) -> str:
    """Measure, and the tables as Markdown; of a run that was stopped, those of what it measured."""
    other_work, rows = OtherWork(), []
    try:
        for group in groups(kinds, shapes, budget):
            print(group.title, file=sys.stderr, flush=True)
            rows += measure(group)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    machine = environment(PACKAGES)
    machine["other_work"] = busy = other_work.cores()
    if (busy or 0) > CORES_THAT_DISTURB:
        print(f"WARNING: other processes kept {busy:.1f} cores busy: not to be trusted", file=sys.stderr)
    return "\n\n".join(paragraphs(rows, machine)) + "\n"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.floor",
        description="A forward run on one CPU device: its products alone, its nonlinearities alone, an empty loop, "
        "beside jaxrnn, the best of the other JAX libraries, and torch.",
    )
    top.add_argument("--cells", metavar="NAMES", help=f"with commas, of {', '.join(KINDS)}; default: all")
    add_shapes(top, "default: the three of the benchmark")
    add_seconds(top, "for the rounds of each program", BUDGET.seconds)
    add_write(top, PART)
    return top


if __name__ == "__main__":
    sys.exit(main())
