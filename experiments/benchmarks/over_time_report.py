"""What a comparison of runs in parallel over time with scans leaves behind, a directory of its own.

runs/parallel-001/
  rows.jsonl     a line for each contestant of each group, every round's seconds included; written as measured
  summary.json   the machine, the versions, how each run in parallel went
  table.md       all of it as Markdown; --write PAGE puts it between the markers of a page
  figure.png     time against T and against B; --write PAGE puts it beside the page, into a folder of the page's name
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import markdown
from experiments.benchmarks.floor import spread
from experiments.benchmarks.measuring import notes_of
from experiments.benchmarks.over_time import CASES, CHUNKS, NEWTON, PARALLEL, PLAIN, PRODUCTS, SCAN, SUITE
from experiments.benchmarks.pairs import Try, compared
from experiments.benchmarks.report import DASH
from experiments.benchmarks.suites import Row
from experiments.environment import sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PART = "parallel"  # the name of the markers
PACKAGES = ("jax", "jaxlib", "numpy")
QUANTITIES = {"train": "Training step", "forward": "Forward"}
HEADS = {
    (PARALLEL, 1): "jr.parallel",
    (PARALLEL, 2): "jr.parallel, two devices",
    (SCAN, 1): "jr.scan",
    (PLAIN, 1): "plain scan",
    (PRODUCTS, 1): "products alone",
}
CONTESTANTS = tuple(HEADS)
LIMITS = {case.name: case.limit for case in CASES}
COLOURS = {SCAN: "tab:blue", PLAIN: "0.6", CHUNKS: "tab:red", NEWTON: "tab:green"}

WENT = {"chunks": "chunks", "forward": "forward", "backward": "backward", "auto": '"auto" takes'}

ByWho = Mapping[tuple[str, int], Row]  # the rows of one group, by contestant and devices


def write(directory: Path, rows: Sequence[Row], summary: dict[str, Any], page: Path | None = None) -> str:
    """summary.json, table.md and figure.png, and the same into the page and beside it; returns the text."""
    content = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (directory / "summary.json").write_text(content, encoding="utf-8")
    text = "\n\n".join(paragraphs(rows, summary)) + "\n"
    (directory / "table.md").write_text(text, encoding="utf-8")
    picture = figure(rows)
    picture.savefig(directory / "figure.png", dpi=150)
    if page is not None:
        markdown.write_parts(page, {PART: text})
        beside = page.with_suffix("")
        beside.mkdir(exist_ok=True)
        picture.savefig(beside / "figure.png", dpi=150)
    return text


def paragraphs(rows: Sequence[Row], summary: Mapping[str, Any]) -> list[str]:
    """The targets, the times, what explains them, and where the curves cross."""
    parts = [sentence(summary["environment"], PACKAGES)]
    if lines := targets(rows):
        parts += ["**Targets: the time of a training step, jr.parallel / jr.scan**", markdown.table(lines, left=2)]
    for quantity, what in QUANTITIES.items():
        groups = grouped(rows, SUITE, quantity)
        if not groups:
            continue
        shown = [who for who in CONTESTANTS if any(who in group for group in groups)]
        head = ("", *(HEADS[who] for who in shown))
        for title, cell in ((f"{what}, ms", spread), (f"{what}: temporaries of one device in MB, cores at work", used)):
            lines = [(label(group), *(cell(group.get(who)) for who in shown)) for group in groups]
            parts += [f"**{title}**", markdown.table([head, *lines])]
    if summary["went"]:
        went = [(name, *(words.get(of, DASH) for of in WENT)) for name, words in summary["went"].items()]
        parts += ["**How they went**", markdown.table([("", *WENT.values()), *went], left=5)]
    if lines := curves(rows):
        parts += ["**Against T at B = 1, and against B at one T, ms**", markdown.table(lines, left=2)]
        parts += ["**Where the lines cross**", "\n".join(f"- {words}" for words in crossings(rows))]
    if missing := notes_of(rows):
        parts.append("\n".join(f"- {note}: {', '.join(map(place, found))}" for note, found in missing.items()))
    return parts


def place(row: Row) -> str:
    return f"{row.contestant} ({row.cell}, T = {row.shape[1]:,}, {row.quantity}, devices: {row.devices})"


def grouped(rows: Sequence[Row], suite: str, quantity: str) -> list[ByWho]:
    """The rows of each group of a suite, in the order in which they were measured."""
    found: dict[Any, dict[tuple[str, int], Row]] = {}
    for row in rows:
        if (row.suite, row.quantity) == (suite, quantity):
            found.setdefault((row.cell, row.shape), {})[row.contestant, row.devices] = row
    return list(found.values())


def ratio(group: ByWho, who: tuple[str, int], base: tuple[str, int]) -> Try | None:
    """Of the times of the same rounds."""
    a, b = group.get(who), group.get(base)
    return compared(a.seconds, b.seconds) if a and b and a.seconds and b.seconds else None


def interval(found: Try | None) -> str:
    return f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else DASH


def short(found: Try | None) -> str:
    return f"{found.ratio:.2f}" if found else DASH


def targets(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Each case against its limit, and beside it against the plain scan, and with two devices."""
    here, two, scan, plain, _ = CONTESTANTS
    by_name = {next(iter(group.values())).cell: group for group in grouped(rows, SUITE, "forward")}
    lines = []
    for group in grouped(rows, SUITE, "train"):
        first = next(iter(group.values()))
        found, limit = ratio(group, here, scan), LIMITS.get(first.cell, math.nan)
        verdict = DASH if found is None else "met" if found.ratio <= limit else "**missed**"
        lines.append(
            (
                first.cell,
                first.variant,
                f"≤ {limit:g}",
                interval(found),
                verdict,
                short(ratio(group, here, plain)),
                short(ratio(group, two, scan)),
                short(ratio(by_name.get(first.cell, {}), here, scan)),
                short(ratio(by_name.get(first.cell, {}), here, plain)),
            )
        )
    head = ("", "method", "at most", "measured", "", "/ plain scan", "two devices / jr.scan")
    return [(*head, "forward / jr.scan", "forward / plain scan"), *lines] if lines else []


def label(group: ByWho) -> str:
    first = next(iter(group.values()))
    return f"{first.cell}, B = {first.shape[0]}, T = {first.shape[1]:,}"


def used(row: Row | None) -> str:
    """Memory and cores."""
    if row is None or not row.seconds:
        return DASH
    megabytes = DASH if row.temp_bytes is None else f"{row.temp_bytes / 1e6:.3g}"
    return f"{megabytes}, {DASH if row.cores is None else f'{row.cores:.2f}'}"


# ---------------------------------------------------------------- curves


def panels(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[str, list[tuple[int, Row]]]]:
    """(cell, quantity, "T" or "B") of each panel: by contestant its points, in order."""
    found: dict[tuple[str, str, str], dict[str, list[tuple[int, Row]]]] = {}
    for row in rows:
        if row.suite.startswith("against ") and row.seconds:
            by = row.suite.removeprefix("against ")
            points = found.setdefault((row.cell, row.quantity, by), {}).setdefault(row.contestant, [])
            points.append((row.shape[by == "T"], row))
    for panel in found.values():
        for points in panel.values():
            points.sort(key=lambda point: point[0])
    return found


def curves(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    lines = []
    for (cell, quantity, by), panel in panels(rows).items():
        for n in sorted({n for points in panel.values() for n, _ in points}):
            at = {who: dict(points).get(n) for who, points in panel.items()}
            steps = next(row.shape[1] for row in at.values() if row)
            where = f"T = {n:,}" if by == "T" else f"B = {n}, T = {steps:,}"
            lines.append((f"{cell}, {quantity}", where, *(spread(at.get(who)) for who in COLOURS)))
    return [("", "", *COLOURS), *lines] if lines else []


def crossings(rows: Sequence[Row]) -> list[str]:
    """For each panel and method, from or up to where it is faster than each of the scans."""
    found = []
    for (cell, quantity, by), panel in panels(rows).items():
        for method, base in itertools.product((CHUNKS, NEWTON), (SCAN, PLAIN)):
            scan = {n: row.median for n, row in panel.get(base, []) if row.median}
            ratios = [(n, row.median / scan[n]) for n, row in panel.get(method, []) if row.median and n in scan]
            if ratios:
                found.append(f"{cell}, {quantity}: {method} {crossing(ratios, by)} than the {base.split('.')[-1]}")
    return found


def crossing(ratios: Sequence[tuple[int, float]], by: str) -> str:
    """Where the line of the ratios crosses 1, both axes logarithmic."""
    words = []
    for (n, a), (m, b) in itertools.pairwise(ratios):
        if (a > 1) != (b > 1):
            at = math.exp(math.log(n) + math.log(m / n) * math.log(a) / math.log(a / b))
            words.append(f"{'faster' if a > 1 else 'slower'} from {by} ≈ {float(f'{at:.2g}'):,.0f}")
    last = f"{ratios[-1][1]:.2f} times the time at {by} = {ratios[-1][0]:,}"
    if not words:
        words = [f"{'slower' if ratios[0][1] > 1 else 'faster'} everywhere"]
    return f"is {', '.join(words)} ({last})"


def figure(rows: Sequence[Row]) -> Figure:
    """Time against T or B: a panel for each cell and quantity."""
    from matplotlib.figure import Figure

    found = panels(rows)
    picture = Figure(figsize=(4.2 * max(len(found), 1), 3.8), layout="constrained")  # without pyplot: no display
    for axes, ((cell, quantity, by), panel) in zip(
        picture.subplots(1, max(len(found), 1), squeeze=False)[0], found.items(), strict=False
    ):
        for who, points in panel.items():
            n, milliseconds = zip(*((n, 1e3 * (row.median or 0)) for n, row in points), strict=True)
            axes.plot(n, milliseconds, marker="o", markersize=3, color=COLOURS[who], label=who)
        other = "B = 1" if by == "T" else f"T = {points[0][1].shape[1]:,}"
        axes.set(title=f"{cell}, {QUANTITIES[quantity].lower()}, {other}", xlabel=by, xscale="log", yscale="log")
        axes.set_ylabel("ms")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return picture
