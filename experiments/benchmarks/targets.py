"""The targets, each a ratio of two contestants' medians in the same rounds, judged over the shapes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from experiments.benchmarks import closed_loop, online_steps
from experiments.benchmarks.contestants import CHECKPOINT, PACKED, PEER_NAMES, PLAIN, PLAN, STREAM, TEXTBOOK, TORCH
from experiments.benchmarks.problems import GATES
from experiments.benchmarks.suites import LOSSES, Row

Figure = Callable[[Row], float | None]
STEP = "training step"


class Verdict(NamedTuple):
    """One line of the table of targets."""

    target: str
    limit: float
    value: float | None  # the median of the ratios, or the largest; None where nothing was measured
    smallest: float | None = None
    largest: float | None = None
    where: str = ""  # the largest is
    largest_may_be: float | None = None
    ratios: dict[str, float] | None = None  # by shape

    @property
    def met(self) -> bool | None:
        if self.value is None or self.largest is None:
            return None
        return self.value <= self.limit and (self.largest_may_be is None or self.largest <= self.largest_may_be)


def judged(
    target: str, ratios: dict[str, float], limit: float, *, every: bool = False, largest_may_be: float | None = None
) -> Verdict:
    """By the median of the ratios, or with ``every`` by the largest of them."""
    if not ratios:
        return Verdict(target, limit, None, largest_may_be=largest_may_be)
    where = max(ratios, key=ratios.__getitem__)
    smallest, largest = min(ratios.values()), ratios[where]
    value = largest if every else statistics.median(ratios.values())
    return Verdict(target, limit, value, smallest, largest, where, largest_may_be, ratios)


def name(row: Row) -> str:
    """What a ratio stands for, apart from contestant, devices and quantity."""
    shape = ",".join(map(str, row.shape))
    return " ".join(filter(None, (row.variant, row.cell, shape)))


def time_of(row: Row) -> float | None:
    return row.median


def temporaries(row: Row) -> float | None:
    return None if row.temp_bytes is None else float(row.temp_bytes)


def figures(
    rows: Iterable[Row],
    contestants: str | Sequence[str],
    devices: int,
    *,
    suite: str = "cells",
    quantity: str = "train",
    cell: str | None = None,
    figure: Figure = time_of,
) -> dict[str, float]:
    """The figure at each shape: the contestant's, or the smallest of several contestants'."""
    wanted = (contestants,) if isinstance(contestants, str) else contestants
    best: dict[str, float] = {}
    for row in rows:
        value = figure(row)
        matches = (row.suite, row.quantity, row.devices) == (suite, quantity, devices) and row.contestant in wanted
        if matches and cell in (None, row.cell) and value is not None:
            best[name(row)] = min(value, best.get(name(row), value))
    return best


def ratio(numerators: dict[str, float], denominators: dict[str, float]) -> dict[str, float]:
    """At the shapes that both have; a denominator of 0 (no temporaries at all) has no ratio."""
    return {key: value / denominators[key] for key, value in numerators.items() if denominators.get(key)}


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every line of the targets, those without figures included."""
    parts = (beside_others, few_rows, many_lengths, single_steps, plans, ensembles, memory, compiling, loops, learning)
    return [verdict for part in parts for verdict in part(rows)]


def beside_others(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Training steps and forward runs beside torch and the best of the JAX libraries."""

    def ours(cell: str) -> dict[str, float]:
        """On two devices; on one where the batch cannot be split."""
        return figures(rows, PLAN, 1, cell=cell) | figures(rows, PLAN, 2, cell=cell)

    def against_torch(cell: str) -> dict[str, float]:
        return ratio(ours(cell), figures(rows, TORCH, 1, cell=cell))

    def peers(devices: int, cell: str = "lstm", quantity: str = "train") -> dict[str, float]:
        return figures(rows, PEER_NAMES, devices, cell=cell, quantity=quantity)

    def own(devices: int, cell: str = "lstm", quantity: str = "train") -> dict[str, float]:
        return figures(rows, PLAN, devices, cell=cell, quantity=quantity)

    yield judged(f"LSTM {STEP}, two devices / torch", against_torch("lstm"), 1.0, largest_may_be=1.3)
    yield judged(f"LSTM {STEP}, two devices / best JAX peer unsharded", ratio(own(2), peers(1)), 0.7)
    yield judged(f"LSTM {STEP} / best JAX peer, both on two devices", ratio(own(2), peers(2)), 0.85)
    yield judged(f"LSTM {STEP} / best JAX peer, both on one device", ratio(own(1), peers(1)), 0.9)
    yield judged(f"GRU {STEP}, two devices / torch", against_torch("gru"), 0.4)
    yield judged(f"Elman {STEP}, two devices / torch", against_torch("elman"), 0.5)
    for cell in GATES:
        ratios = ratio(own(2, cell, "forward"), peers(2, cell, "forward"))
        yield judged(f"{cell} forward / best JAX peer, both on two devices", ratios, 0.85)
    for cell in ("lstm", "gru"):
        ratios = ratio(own(1, cell, "forward"), peers(1, cell, "forward"))
        yield judged(f"{cell} forward / best JAX peer, both on one device", ratios, 0.9)


def few_rows(rows: Sequence[Row]) -> Iterator[Verdict]:
    for cell in ("lstm", "gru"):
        for quantity in ("forward", "train"):
            small = [figures(rows, who, 1, suite="small", quantity=quantity, cell=cell) for who in (PLAN, PLAIN)]
            yield judged(f"{cell} of 16 units, few rows, {quantity} / plain scan", ratio(*small), 0.5, every=True)


def many_lengths(rows: Sequence[Row]) -> Iterator[Verdict]:
    for lengths, limit in (("masked", 0.7), ("geometric", 0.7), ("equal", 1.05)):
        shared = ratio(*(ragged(rows, who, lengths) for who in (PACKED, PLAN)))
        kind = "spread evenly" if lengths == "masked" else lengths
        yield judged(f"sequences sharing lanes / not, {STEP}, lengths {kind}", shared, limit, every=True)


def single_steps(rows: Sequence[Row]) -> Iterator[Verdict]:
    for who, what in ((PLAN, "cell.step"), (STREAM, "jr.stream, with mask and resets")):
        steps = [figures(rows, name, 1, suite="step", quantity="step", cell="lstm") for name in (who, TORCH)]
        yield judged(f"one LSTM step, {what} / torch", ratio(*steps), 1.0, every=True)


def plans(rows: Sequence[Row]) -> Iterator[Verdict]:
    yield judged('plan "auto" / "plain", any shape, any cell', auto_over_plain(rows), 1.05, every=True)
    for devices, where in ((1, "one device"), (2, "two devices")):
        textbook = ratio(figures(rows, TEXTBOOK, devices), figures(rows, PLAN, devices, cell="lstm"))
        yield judged(f"textbook LSTM / our lstm, {STEP}, {where}", textbook, 1.25)


def ensembles(rows: Sequence[Row]) -> Iterator[Verdict]:
    loop = figures(rows, TORCH, 1, suite="ensemble", quantity="gradient")
    together = {
        key: value
        for devices in (1, 2)
        for key, value in figures(rows, PLAN, devices, suite="ensemble", quantity="gradient").items()
    }
    yield judged("32 small LSTMs, a gradient each / a torch loop", ratio(together, loop), 0.4)


def memory(rows: Sequence[Row]) -> Iterator[Verdict]:
    for loss, limit in zip(LOSSES, (0.05, 0.2), strict=True):
        for figure, what, at_most in ((temporaries, "temporaries", limit), (time_of, "time", 1.5)):
            both = [
                figures(rows, who, 1, suite="memory", quantity=f"loss on {loss}", figure=figure)
                for who in (CHECKPOINT, PLAN)
            ]
            yield judged(f"{what}, checkpointed / not, T = 1,000, loss on {loss}", ratio(*both), at_most)
    unsaved = [figures(rows, who, 1, figure=temporaries) for who in (PLAN, PLAIN)]
    yield judged("temporaries without checkpointing / plain scan's", ratio(*unsaved), 1.1)


def compiling(rows: Sequence[Row]) -> Iterator[Verdict]:
    both = [figures(rows, who, 1, suite="compile", quantity="compile") for who in (PLAN, PLAIN)]
    yield judged("compile time, any T / the plain scan's", ratio(*both), 1.3, every=True)


def loops(rows: Sequence[Row]) -> Iterator[Verdict]:
    for what, limit in zip(closed_loop.WHAT, (1.1, 1.1, 1.5, 1.5), strict=True):
        base, unit = ("lstm", "lstm training") if what == "layer norm" else (closed_loop.GIVEN, closed_loop.GIVEN)
        pair = [figures(rows, who, 1, suite="closed_loop", quantity=what) for who in (closed_loop.OURS, base)]
        yield judged(f"{what} / {unit}", ratio(*pair), limit, every=True)


def learning(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Online."""
    for case in online_steps.CASES:
        both = [
            figures(rows, who, 1, suite=online_steps.SUITE, quantity=case.rule, cell=case.name)
            for who in (online_steps.ONLINE, case.against)
        ]
        yield judged(f"{case.name} by {case.rule} / {case.against}", ratio(*both), case.limit, every=True)


def ragged(rows: Sequence[Row], contestant: str, lengths: str) -> dict[str, float]:
    """Training steps at lengths of one kind."""
    return figures((row for row in rows if row.variant == lengths), contestant, 1, suite="ragged")


def auto_over_plain(rows: Sequence[Row]) -> dict[str, float]:
    """Every row that both plans have, of four suites: forward and training step, one device and two. One program under
    both plans has the ratio 1, whatever its two times are."""
    ratios = {}
    digests = {(row.suite, row.quantity, row.devices, name(row), row.contestant): row.digest for row in rows}
    for suite in ("cells", "variants", "small", "length"):
        for quantity in ("forward", "train"):
            for devices in (1, 2):
                both = (figures(rows, who, devices, suite=suite, quantity=quantity) for who in (PLAN, PLAIN))
                for key, value in ratio(*both).items():
                    auto, plain = (digests[suite, quantity, devices, key, who] for who in (PLAN, PLAIN))
                    same = auto is not None and auto == plain
                    ratios[f"{key} {quantity}, {devices} device{'s' * (devices > 1)}"] = 1.0 if same else value
    return ratios
