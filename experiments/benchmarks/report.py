"""What a run leaves behind, a directory of its own, and what the terminal shows.

runs/benchmarks-001/
  rows.jsonl     a line for each contestant of each group, every round's seconds included; written as measured
  summary.json   the targets with their ratios, the machine, the versions
  table.md       all of it as Markdown; --write PAGE puts it between the markers of a page
  figure.png     training steps beside torch's, and the cost against T
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import markdown
from experiments.benchmarks import online_steps
from experiments.benchmarks.contestants import BY_NAME, FLOORS, PLAN, TORCH
from experiments.benchmarks.measuring import notes_of
from experiments.benchmarks.problems import GATES
from experiments.benchmarks.suites import Row
from experiments.benchmarks.targets import Verdict, name, verdicts
from experiments.environment import sentence

if TYPE_CHECKING:  # what only figures and terminals need is imported there: `experiments.gpu` does without
    from matplotlib.figure import Figure
    from rich.console import Console

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "dm-haiku", "equinox", "keras", "torch")
DASH = "–"


def append(directory: Path, rows: Iterable[Row]) -> None:
    """A line for each row, at once, so that a stopped run keeps what it measured."""
    with (directory / "rows.jsonl").open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row._asdict()) + "\n")


def load(directory: Path) -> list[Row]:
    """The rows of an older run."""
    rows = []
    for line in (directory / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        rows.append(Row(**fields | {"shape": tuple(fields["shape"]), "seconds": tuple(fields["seconds"])}))
    return rows


def write(directory: Path, rows: Sequence[Row], environment: dict[str, Any], pages: Sequence[Path] = ()) -> None:
    """summary.json, table.md and figure.png, from the rows; the tables also between the markers of the pages."""
    lines = verdicts(rows)
    summary = {"targets": [line._asdict() | {"met": line.met} for line in lines], "environment": environment}
    (directory / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    parts = {name: "\n\n".join(part(rows, lines, environment)) + "\n" for name, part in PARTS.items()}
    (directory / "table.md").write_text(parts["benchmarks"], encoding="utf-8")
    figure(rows).savefig(directory / "figure.png", dpi=150)
    for page in pages:
        markdown.write_parts(page, parts)


def everything(rows: Sequence[Row], lines: Sequence[Verdict], environment: dict[str, Any]) -> list[str]:
    parts = [sentence(environment, PACKAGES), "**Targets**", markdown.table(targets(lines))]
    for title, header_and_body in tables(rows):
        parts += [f"**{title}**", markdown.table(header_and_body)]
    return parts + notes(rows)


def targets_alone(rows: Sequence[Row], lines: Sequence[Verdict], environment: dict[str, Any]) -> list[str]:
    return [sentence(environment, PACKAGES), markdown.table(targets(lines))]


PARTS = {"benchmarks": everything, "benchmark-targets": targets_alone}  # paragraphs, by the name of a page's markers


def targets(lines: Sequence[Verdict]) -> list[tuple[str, ...]]:
    body = []
    for line in lines:
        limit = f"≤ {line.limit:g}" + (f", none > {line.largest_may_be:g}" if line.largest_may_be else "")
        if line.value is None:
            body.append((line.target, limit, DASH, DASH, "not measured"))
            continue
        spread = f"{line.smallest:.2f} … {line.largest:.2f} ({line.where})"
        body.append((line.target, limit, f"{line.value:.2f}", spread, "met" if line.met else "**missed**"))
    return [("target", "at most", "measured", "smallest … largest", ""), *body]


def tables(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """(title, header and body) of each table that has rows."""

    def chosen(suite: str, quantity: str | None = None, devices: int | None = None) -> list[Row]:
        return [
            row
            for row in rows
            if row.suite == suite and quantity in (None, row.quantity) and devices in (None, row.devices)
        ]

    found = []
    for suite, whose in (
        ("cells", ""),
        ("variants", ", variants of the LSTM"),
        ("ragged", ", sequences of many lengths"),
        ("small", ", small models"),
    ):
        for quantity, what in (("train", "Training step"), ("forward", "Forward")):
            for devices, where in ((1, "one device"), (2, "two devices, the batch split")):
                found.append((f"{what}, {where}, ms{whose}", by_shape(chosen(suite, quantity, devices), milliseconds)))
    found += [
        ("Temporaries of a training step, one device, MB", by_shape(chosen("cells", "train", 1), megabytes)),
        ("Ensemble, a gradient for each member, ms", ensemble(chosen("ensemble"))),
        ("One step at B = 1, µs", by_shape(chosen("step"), microseconds)),
        ("Cost against T, forward, ms", by_shape(chosen("length", "forward"), milliseconds)),
        ("Cost against T, training step, ms", by_shape(chosen("length", "train"), milliseconds)),
        ("Cost against T, temporaries of a training step, MB", by_shape(chosen("length", "train"), megabytes)),
        ("Gradient by the parameters, T = 1,000, ms", by_quantity(chosen("memory"), milliseconds)),
        ("Gradient by the parameters, T = 1,000, temporaries in MB", by_quantity(chosen("memory"), megabytes)),
        ("Compile time of a training step, ms", by_shape(chosen("compile"), milliseconds)),
        ("Closed loops, and layer normalisation in training, ms", beside(chosen("closed_loop"))),
        ("A step of learning online", online_steps.lines(rows, spread)),
    ]
    return [(title, lines) for title, lines in found if len(lines) > 1]


def by_shape(rows: Sequence[Row], shown: Callable[[Row], str]) -> list[tuple[str, ...]]:
    return grid(rows, name, shown, "B, T, I, H")


def by_quantity(rows: Sequence[Row], shown: Callable[[Row], str]) -> list[tuple[str, ...]]:
    return grid(rows, lambda row: row.quantity, shown, "")


def ensemble(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Contestants downwards: there is one shape."""
    lines: list[tuple[str, ...]] = [("contestant", "one device", "two devices")]
    for who in dict.fromkeys(row.contestant for row in rows):
        cells = {row.devices: milliseconds(row) for row in rows if row.contestant == who}
        if set(cells.values()) != {DASH}:
            lines.append((who, cells.get(1, DASH), cells.get(2, DASH)))
    return lines


def beside(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Ours, and what each is measured by: a scan of as many given steps, or the plain LSTM."""
    lines: list[tuple[str, ...]] = [("B, T, I, H", PLAN, "beside", "ms")]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.quantity} {name(row)}", []).append(row)
    for line, (ours, base) in groups.items():
        lines.append((line, milliseconds(ours), base.contestant, milliseconds(base)))
    return lines


def grid(
    rows: Sequence[Row], line_of: Callable[[Row], str], shown: Callable[[Row], str], corner: str
) -> list[tuple[str, ...]]:
    """A line for each shape, a column for each contestant that has a figure; the fastest but for the floor in bold."""
    values = {(line_of(row), row.contestant): row for row in rows if shown(row) != DASH}
    present = {who for _, who in values}
    columns = [who for who in BY_NAME if who in present]
    body = []
    for line in dict.fromkeys(line for line, _ in values):
        entries = {who: values[line, who] for who in columns if (line, who) in values}
        racing = [row.median for who, row in entries.items() if who not in FLOORS and row.median is not None]
        cells = []
        for who in columns:
            row = entries.get(who)
            text = shown(row) if row else DASH
            best = row is not None and who not in FLOORS and row.median == min(racing) and shown is not megabytes
            cells.append(f"**{text}**" if best else text)
        body.append((line, *cells))
    return [(corner, *columns), *body]


def milliseconds(row: Row) -> str:
    return spread(row, 1e3)


def microseconds(row: Row) -> str:
    return spread(row, 1e6)


def spread(row: Row, scale: float) -> str:
    """The median, and half of what lies between the quartiles."""
    if row.median is None:
        return DASH
    low, high = np.percentile(row.seconds, (25, 75))
    return f"{figures_of(scale * row.median)} ± {figures_of(scale * float(high - low) / 2)}"


def figures_of(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def megabytes(row: Row) -> str:
    return DASH if row.temp_bytes is None else figures_of(row.temp_bytes / 1e6)


def notes(rows: Sequence[Row]) -> list[str]:
    """How to read the tables, and who is missing where."""
    lines = [
        "Times: the median of interleaved rounds ± half the distance between the quartiles; bold: the fastest. "
        "A dash: not offered, or failed, as listed. B, T, I, H: batch, steps, inputs, hidden units."
    ]
    missing = []
    for note, where in notes_of(rows).items():
        who = ", ".join(dict.fromkeys(row.contestant for row in where))
        places = list(dict.fromkeys(f"{name(row)} {row.quantity}" for row in where))
        shown = "; ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        missing.append(f"- {note}: {who} ({shown})")
    return [*lines, "\n".join(missing)] if missing else lines


def figure(rows: Sequence[Row]) -> Figure:
    """Training steps of each cell relative to torch's (or to jaxrnn's), and the cost of a step against T."""
    import matplotlib
    from matplotlib.figure import Figure

    picture = Figure(figsize=(13, 9), layout="constrained")  # without pyplot: no display, no global state
    *upper, last = picture.subplots(2, 2).flat
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    colour = {who: colours[index % len(colours)] for index, who in enumerate(BY_NAME)}
    for axes, cell in zip(upper, GATES, strict=True):
        chosen = [row for row in rows if (row.suite, row.quantity, row.cell) == ("cells", "train", cell) and row.median]
        axes.set_visible(bool(chosen))
        base_name = TORCH if any(row.contestant == TORCH for row in chosen) else PLAN
        base = {row.shape: row.median or 1 for row in chosen if (row.contestant, row.devices) == (base_name, 1)}
        shapes = list(base)
        for who in BY_NAME:
            for devices, marker in ((1, "o"), (2, "D")):
                points = [
                    (shapes.index(row.shape), row.median / base[row.shape])
                    for row in chosen
                    if (row.contestant, row.devices) == (who, devices) and row.shape in base and row.median
                ]
                if points:
                    x, y = np.array(points).T
                    label = who if devices == 1 else f"{who}, two devices"
                    face = colour[who] if devices == 1 else "none"
                    shift = 0.12 * (devices - 1.5)
                    axes.scatter(x + shift, y, marker=marker, facecolor=face, edgecolor=colour[who], s=36, label=label)
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set_xticks(range(len(shapes)), [",".join(map(str, shape)) for shape in shapes], rotation=15)
        axes.set(title=f"{cell}: training step / {base_name}", yscale="log")
    for who in BY_NAME:
        for B, style in zip(
            sorted({row.shape[0] for row in rows if row.suite == "length"}), ("-", "--", ":"), strict=False
        ):
            curve = sorted(
                (row.shape[1], 1e6 * row.median / row.shape[1])
                for row in rows
                if (row.suite, row.quantity, row.contestant) == ("length", "train", who)
                and row.shape[0] == B
                and row.median
            )
            if curve:
                T, cost = zip(*curve, strict=True)
                last.plot(T, cost, style, marker="o", markersize=3, color=colour[who], label=f"{who}, B = {B}")
    last.set(title="LSTM: training step, µs for each time step", xlabel="T", xscale="log", yscale="log")
    for axes in (*upper, last):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if last.get_legend_handles_labels()[0]:
        last.legend(frameon=False, fontsize=8)
    labelled = {
        label: handle for axes in upper for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    picture.legend(labelled.values(), labelled.keys(), loc="outside right center", frameon=False, fontsize=8)
    return picture


def fastest(rows: Sequence[Row]) -> str:
    """For a line of progress: who was fastest, and who failed."""
    racing = [row for row in rows if row.median is not None and not row.contestant.startswith("floor")]
    words = []
    if racing:
        best = min(racing, key=lambda row: row.median or 0)
        words.append(f"{best.contestant} ({best.devices}) {1e3 * (best.median or 0):.3g} ms")
    words += [f"{row.contestant} ({row.devices}) {row.note}" for row in rows if row.note.startswith("failed")]
    return ", ".join(words) or "nothing measured"


def show(rows: Sequence[Row], directory: Path, console: Console) -> None:
    """All tables on the terminal, the targets last."""
    from rich.table import Table

    for title, lines in [*tables(rows), ("Targets", targets(verdicts(rows)))]:
        header, *body = lines
        shown = Table(title=title, title_justify="left", padding=(0, 1))
        shown.add_column(header[0], no_wrap=title != "Targets")
        for column in header[1:]:
            shown.add_column(column, justify="right")
        for line in body:
            shown.add_row(*(text.replace("**", "") for text in line))
        console.print(shown)
    for note in notes(rows):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {directory}", markup=False, highlight=False, soft_wrap=True)
