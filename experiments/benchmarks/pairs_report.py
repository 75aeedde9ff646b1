"""What a comparison of the plans leaves behind: a directory of its own, and the part of the page between its markers.

runs/auto-001/
  rows.jsonl     a line for each pair, written as measured
  summary.json   the machine, the versions, how many pairs were asked for; a run that is killed leaves it too
  table.md       all of it as Markdown; --write PAGE puts it between the markers of a page
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments import markdown
from experiments.benchmarks.pairs import COMPILE, TEMPORARIES, TIME, Found, of_json
from experiments.benchmarks.report import DASH
from experiments.environment import sentence

PART = "auto"  # the name of the markers
PACKAGES = ("jax", "jaxlib", "numpy")
WORST = 5
SMALL = 65_536  # bytes: that much more in temporaries is counted apart
QUANTITIES = {"train": "Training step", "forward": "Forward"}
DEVICES = {1: "one device", 2: "two devices, the batch split"}


def append(directory: Path, found: Found) -> None:
    with (directory / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(found._asdict()) + "\n")


def load(directory: Path) -> tuple[list[Found], dict[str, Any]]:
    """The pairs of an older run, and the summary of it."""
    lines = (directory / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return [of_json(json.loads(line)) for line in lines], summary


def keep(directory: Path, summary: dict[str, Any]) -> None:
    (directory / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write(directory: Path, found: Sequence[Found], summary: dict[str, Any], page: Path | None = None) -> str:
    """summary.json and table.md, and the same between the markers of the page; returns the latter."""
    keep(directory, summary)
    text = "\n\n".join(paragraphs(found, summary)) + "\n"
    (directory / "table.md").write_text(text, encoding="utf-8")
    if page is not None:
        markdown.write_parts(page, {PART: text})
    return text


def paragraphs(found: Sequence[Found], summary: dict[str, Any]) -> list[str]:
    parts = [
        sentence(summary["environment"], PACKAGES),
        *counts(found, summary["asked"] - len(found)),
        markdown.table(targets(found)),
    ]
    for title, lines in worst(found):
        parts += [f"**{title}**", markdown.table(lines)]
    for quantity, what in QUANTITIES.items():
        for devices, where in DEVICES.items():
            chosen = [one for one in found if (one.pair.quantity, one.pair.devices) == (quantity, devices)]
            lines = grid(chosen)
            if len(lines) > 1:
                parts += [f"**{what}, {where}: time of auto / plain**", markdown.table(lines)]
    return parts


def counts(found: Sequence[Found], left_out: int) -> list[str]:
    """How many are the same program, how many were timed, who has no figure."""
    lowered, optimised = (sum(one.same == text for one in found) for text in ("lowered", "optimised"))
    timed = [one for one in found if one.tries]
    again = sum(len(one.tries) > 1 for one in timed)
    words = (
        f"{len(found)} programs: {lowered + optimised} are the same under both plans ({lowered} as lowered, "
        f"{optimised} as compiled), {len(timed)} were timed, {again} of them more than once."
    )
    undecided = [one for one in timed if one.undecided]
    if undecided:
        names = "; ".join(f"{one.pair.name} {interval(one)}" for one in undecided)
        words += f" The ratio of {len(undecided)} is above {TIME:g} in every try, but not its lower bound: {names}."
    missing = [f"- {one.pair.name}: {one.note}" for one in found if one.note]
    if left_out:
        missing.append(f"- {left_out} more were **not reached** in the time given")
    return [words, "\n".join(missing)] if missing else [words]


def targets(found: Sequence[Found]) -> list[tuple[str, ...]]:
    """What the limits are, and how many are above them."""
    lines: list[tuple[str, ...]] = [("auto / plain", "at most", "median", "largest", "above", "")]
    for title, limit, value in LIMITS:
        values = [figure for one in found if (figure := value(one)) is not None]
        if not values:
            lines.append((title, f"{limit:g}", DASH, DASH, DASH, "not measured"))
            continue
        above = sum(figure > limit for figure in values)
        verdict = "**missed**" if above else "met"
        count = f"{above} of {len(values)}"
        lines.append(
            (title, f"{limit:g}", ratio(statistics.median(values)), ratio(max(values)), count, verdict),
        )
    return lines


LIMITS: tuple[tuple[str, float, Callable[[Found], float | None]], ...] = (
    ("time, lower bound", TIME, lambda one: one.time),
    ("temporaries", TEMPORARIES, lambda one: one.temporaries),
    (
        f"temporaries, but for {SMALL // 1024} KiB",
        TEMPORARIES,
        lambda one: None if one.temp_bytes is None else 1.0 if few(one.temp_bytes) else one.temporaries,
    ),
    ("compile time", COMPILE, lambda one: one.compiling),
)


def few(temp_bytes: tuple[int, int]) -> bool:
    """Auto has at most so little more than plain that no model notices."""
    auto, plain = temp_bytes
    return auto - plain <= SMALL


def worst(found: Sequence[Found]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """(title, header and body): the worst few by each measure."""
    timed = largest(found, lambda one: one.time if one.tries else None)
    times = [
        (one.pair.name, f"{milliseconds(one, 0)} / {milliseconds(one, 1)}", interval(one), tries(one)) for one in timed
    ]
    memory = [
        (one.pair.name, f"{one.temp_bytes[0]:,} / {one.temp_bytes[1]:,}", ratio(one.temporaries))
        for one in largest(found, lambda one: one.temporaries)
        if one.temp_bytes is not None
    ]
    compiling = [
        (one.pair.name, " / ".join(f"{1e3 * t:.0f}" for t in one.compile_seconds), ratio(one.compiling))
        for one in largest(found, lambda one: one.compiling)
        if one.compile_seconds is not None
    ]
    both = "auto / plain"
    tables: list[tuple[str, list[tuple[str, ...]]]] = [
        ("The worst by time, ms", [("", both, "ratio", "tries"), *times]),
        ("The worst by temporaries, bytes", [("", both, "ratio"), *memory]),
        ("The worst by compile time, ms", [("", both, "ratio"), *compiling]),
    ]
    return [(title, lines) for title, lines in tables if len(lines) > 1]


def largest(found: Iterable[Found], value: Callable[[Found], float | None]) -> list[Found]:
    known = [(figure, one) for one in found if (figure := value(one)) is not None]
    return [one for _, one in sorted(known, key=lambda pair: -pair[0])[:WORST]]


def grid(found: Sequence[Found]) -> list[tuple[str, ...]]:
    """A line for each shape, a column for each cell: the ratio, in bold where it is above; = for the same program."""
    cells = list(dict.fromkeys(one.pair.cell for one in found))
    by_place = {(one.pair.shape, one.pair.cell): one for one in found}
    body = []
    for shape in dict.fromkeys(one.pair.shape for one in found):
        entries = (by_place.get((shape, cell)) for cell in cells)
        body.append((",".join(map(str, shape)), *(DASH if one is None else short(one) for one in entries)))
    return [("B, T, I, H", *cells), *body]


def short(found: Found) -> str:
    if found.same or not found.best:
        return "=" if found.same else DASH
    text = ratio(found.best.ratio)
    return f"**{text}**" if found.best.low > TIME else text


def interval(found: Found) -> str:
    best = found.best
    return f"{ratio(best.ratio)} [{ratio(best.low)}, {ratio(best.high)}]" if best else DASH


def tries(found: Found) -> str:
    """How many rounds each try had, and its ratio."""
    return ", ".join(f"{ratio(one.ratio)} ({one.rounds})" for one in found.tries)


def milliseconds(found: Found, which: int) -> str:
    """Of a call in the try that decides, auto's (0) or plain's (1)."""
    assert found.best is not None
    return f"{1e3 * found.seconds[found.tries.index(found.best)][which]:.3g}"


def ratio(value: float | None) -> str:
    return DASH if value is None else "∞" if math.isinf(value) else f"{value:.2f}"


def line(found: Found) -> str:
    """A pair, on the terminal."""
    if found.note:
        return f"{found.pair.name}: {found.note}"
    if found.same:
        time = f"the same program, as {'lowered' if found.same == 'lowered' else 'compiled'}"
    else:
        time = f"{milliseconds(found, 0)} / {milliseconds(found, 1)} ms, {interval(found)}"
        time += f", tries {tries(found)}" * (len(found.tries) > 1)
    above = "  ABOVE" * any((value(found) or 0) > limit for _, limit, value in LIMITS)
    return f"{found.pair.name}: {time}; temporaries {ratio(found.temporaries)}, compile {ratio(found.compiling)}{above}"
