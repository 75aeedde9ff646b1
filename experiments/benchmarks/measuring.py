"""How a group is measured: built, checked, then timed in interleaved rounds."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from experiments.benchmarks.problems import NotOffered
from experiments.benchmarks.programs import Placed, Program
from experiments.benchmarks.suites import Group, Row
from experiments.benchmarks.timing import interleaved


def measure(group: Group) -> list[Row]:
    """The group's rows: with figures, or with a note that says why there are none."""
    placed: Placed = {}
    programs: dict[int, Program] = {}
    notes: dict[int, str] = {}
    for index, entry in enumerate(group.entries):
        try:
            program = entry.build(placed)
            entry.check(program.call())
            programs[index] = program
        except NotOffered as reason:
            notes[index] = f"{reason.word}: {reason}"
        except Exception as error:  # whatever another library raises: the table says it, the run goes on
            notes[index] = f"failed: {type(error).__name__}: {first_line(error)}"
    calls = {index: program.call for index, program in programs.items()}
    if group.entries and group.entries[0].row.suite == "compile":
        rounds = 1 + group.budget.least // 2
        each = [{index: call() for index, call in calls.items()} for _ in range(rounds)]
        seconds = {index: [times[index] for times in each] for index in calls}
    else:
        seconds = interleaved(calls, group.budget)
    rows = []
    for index, entry in enumerate(group.entries):
        if index in programs:
            _, compile_seconds, temp_bytes, digest = programs[index]
            row = entry.row._replace(compile_seconds=compile_seconds, temp_bytes=temp_bytes, digest=digest)
            rows.append(row._replace(seconds=tuple(seconds[index])))
        else:
            rows.append(entry.row._replace(note=notes[index]))
    placed.clear()
    gc.collect()
    return rows


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def notes_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows without figures, by reason."""
    by_reason: dict[str, list[Row]] = {}
    for row in rows:
        if row.note:
            by_reason.setdefault(row.note, []).append(row)
    return by_reason
