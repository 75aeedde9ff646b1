"""A step that learns online beside a step of the cell alone, one written from the papers, and what J takes at least."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from experiments.benchmarks.online_textbook import textbook
from experiments.benchmarks.programs import Placed, Program, Traced, compiled
from experiments.benchmarks.suites import Entry, Group, Row, Settings

SUITE = "online"
FORWARD, ONLINE, TEXTBOOK, FLOOR = "forward step", "jr.online", "textbook", "floor"
SAME = 2e-4  # by how much of the largest entry the gradients of two contestants may differ: float32, other sums


class Case(NamedTuple):
    """A cell and a rule, and what a step may take."""

    name: str
    cell: jr.Cell
    rule: str
    limit: float  # times that of a step of the contestant
    against: str
    steps: int = 20  # of a call


CASES = (
    Case("GRU-64", jr.gru(64, 64, reset="after"), "snap1", 4.0, FORWARD),
    Case("LSTM-64", jr.lstm(64, 64), "snap1", 4.0, FORWARD),
    Case("minGRU-64", jr.min_gru(64, 64), "rtrl", 2.0, FORWARD),
    Case("GRU-32", jr.gru(32, 32, reset="after"), "rtrl", 2.0, FLOOR, steps=4),
)


def online(settings: Settings) -> Iterator[Group]:
    """A step that learns beside one that does not, one written from the papers, and its floor."""
    for case in CASES:
        for B in settings.online_batches:
            yield Group(f"online {case.name} {case.rule}, B = {B}", entries_of(case, B), settings.budget)


def entries_of(case: Case, B: int) -> list[Entry]:
    cell, (I, H) = case.cell, sizes(case)
    params = jax.tree.map(np.asarray, cell.init(jax.random.key(0)))
    rng = np.random.default_rng(1)
    xs, targets = (rng.standard_normal((case.steps, B, n), dtype=np.float32) for n in (I, H))
    learner = jr.online(cell, squared, rule=case.rule)
    state = jax.tree.map(np.asarray, learner.init(params, (B,)))

    def forward(params, xs):
        return jax.lax.scan(lambda h, x: cell.step(params, h, x), cell.initial_carry(params, (B,)), xs)

    def learned(params, state, xs, targets):
        def step(held, inputs):
            state, sums = held
            state, y, grads = learner.step(params, state, *inputs)
            return (state, jax.tree.map(jnp.add, sums, grads)), y

        return jax.lax.scan(step, (state, jax.tree.map(jnp.zeros_like, params)), (xs, targets))

    init, one_step = textbook(cell, case.rule, squared, params, jnp.zeros(I))
    several = lambda tree: jax.tree.map(lambda a: np.zeros((B, *a.shape), a.dtype), tree)
    start = several(jax.eval_shape(lambda: (cell.initial_carry(params), init())))

    def by_the_book(params, held, xs, targets):
        def step(held, inputs):
            (carry, J), sums = held
            carry, J, grads = jax.vmap(one_step, (None, 0, 0, 0, 0))(params, carry, J, *inputs)
            sums = jax.tree.map(lambda a, b: a + b.sum(0), sums, grads)
            return ((carry, J), sums), jax.tree.leaves(carry)[0]

        return jax.lax.scan(step, (held, jax.tree.map(jnp.zeros_like, params)), (xs, targets))

    seen: dict[str, Any] = {}  # the gradients, of those that have been run
    traced = {
        FORWARD: Traced(forward, (params, xs), (None, None)),
        ONLINE: Traced(learned, (params, state, xs, targets), (None,) * 4),
        TEXTBOOK: Traced(by_the_book, (params, start, xs, targets), (None,) * 4),
        FLOOR: floor(case, B),
    }
    checks = {name: functools.partial(check_same, seen, name) for name in (ONLINE, TEXTBOOK)}
    row = Row(SUITE, case.rule, case.name, (B, case.steps, I, H), "", 1, "")
    return [
        Entry(row._replace(contestant=name), functools.partial(built, of), checks.get(name, check_finite))
        for name, of in traced.items()
    ]


def built(traced: Traced, placed: Placed) -> Program:
    return compiled(traced, 1, placed)


def squared(y: Any, target: Any) -> Any:
    return ((y - target) ** 2).sum()


def sizes(case: Case) -> tuple[int, int]:
    assert case.cell.input_size is not None and case.cell.output_size is not None
    return case.cell.input_size, case.cell.output_size


def kept(case: Case) -> tuple[int, int]:
    """The numbers of the influence of a sequence, and those of the params."""
    params = jax.eval_shape(case.cell.init, jax.random.key(0))
    trace = jax.eval_shape(lambda p: jr.online(case.cell, squared, rule=case.rule).init(p), params).trace
    return sum(a.size for a in jax.tree.leaves(trace)), sum(a.size for a in jax.tree.leaves(params))


def floor(case: Case, B: int) -> Traced:
    """What no step that keeps J can do without: J = D J + I, D dense as one matrix product, or J read and written once.

    Of the latter D is a number for each unit and I a vector times another, as for a dense cell's weights.
    """
    entries, P = kept(case)
    rng = np.random.default_rng(2)
    draw = lambda *shape: np.float32(0.1) * rng.standard_normal(shape, dtype=np.float32)
    if entries > 4 * P:  # dense: (S, S) times (S, P)
        S = entries // P

        def dense(D, J, I):
            return jax.lax.scan(lambda J, D: (jnp.einsum("bij,bjk->bik", D, J), None), J, D)[0] + I

        return Traced(dense, (draw(case.steps, B, S, S), draw(B, S, P), draw(B, S, 1)), (None,) * 3)
    units = sizes(case)[1]
    rows = round(entries / units)

    def elementwise(d, u, v, J):
        def step(J, of_step):
            d, u, v = of_step
            return d[:, None] * J + u[:, :, None] * v[:, None], None

        return jax.lax.scan(step, J, (d, u, v))[0]

    given = (draw(case.steps, B, units), draw(case.steps, B, rows), draw(case.steps, B, units), draw(B, rows, units))
    return Traced(elementwise, given, (None,) * 4)


def check_finite(result: Any) -> None:
    for leaf in jax.tree.leaves(result):
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"a result of shape {leaf.shape} is not finite")


def check_same(seen: dict[str, Any], name: str, result: Any) -> None:
    """Those that learn have the same gradients, summed over steps, and the same outputs."""
    check_finite(result)
    (_, sums), ys = result
    seen[name] = [np.asarray(a) for a in (*jax.tree.leaves(sums), ys)]
    for other in seen.values():
        for a, b in zip(seen[name], other, strict=True):
            far = np.abs(a - b).max()
            if far > SAME * np.abs(b).max():
                raise ValueError(f"{name} differs from what others found by {far:.1e}")


def lines(rows: Sequence[Row], shown: Callable[[Row, float], str]) -> list[tuple[str, ...]]:
    """The table: times of a step, and what they are to each other; ``shown(row, scale)`` writes a time."""
    measured = ("forward, µs", "online, µs", "textbook, µs", "floor, µs")
    header = ("cell", "rule", "B", *measured, "/ forward", "/ textbook", "/ floor", "target")
    found: list[tuple[str, ...]] = [header]
    times = {(row.cell, row.shape[0], row.contestant): row for row in rows if row.suite == SUITE and row.median}
    for case in CASES:
        for B in sorted({row.shape[0] for row in rows if row.suite == SUITE}):
            group = {name: times.get((case.name, B, name)) for name in (FORWARD, ONLINE, TEXTBOOK, FLOOR)}
            if None in group.values():
                continue
            others = (FORWARD, TEXTBOOK, FLOOR)
            ratios = {name: ratio(group[ONLINE], group[name]) for name in others}  # type: ignore[arg-type]
            met = "met" if ratios[case.against] <= case.limit else "**missed**"
            each = [shown(row, 1e6 / case.steps) for row in group.values() if row is not None]
            words = f"≤ {case.limit:g} × {'forward' if case.against == FORWARD else 'floor'}: {met}"
            least = 1 + ratio(group[FLOOR], group[FORWARD])  # type: ignore[arg-type]
            if case.against == FORWARD and least > case.limit:
                words += f"; a forward step and the floor alone are {least:.1f} ×"
            found.append(
                (case.name, f'"{case.rule}"', str(B), *each, *(f"{ratios[name]:.2f}" for name in others), words)
            )
    return found


def ratio(a: Row, b: Row) -> float:
    """The median of the rounds' ratios."""
    return float(np.median(np.array(a.seconds) / np.array(b.seconds)))
