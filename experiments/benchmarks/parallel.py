"""``python -m experiments.benchmarks.parallel``: when do runs in parallel over time take less time than the scan?"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import jaxrnn as jr
from experiments.benchmarks import over_time, over_time_report, report
from experiments.benchmarks.command import (
    add_out,
    add_report,
    add_seconds,
    add_write,
    names_in,
    run_command,
    say,
    warning,
)
from experiments.benchmarks.over_time import CASES, Settings
from experiments.environment import environment, sentence
from experiments.runner.directories import new_directory
from jaxrnn.commands.other_work import OtherWork

QUICK = 4_096  # steps at most


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, also where a target is missed or the run was stopped; 1 (a file), 2 (was asked wrongly)."""
    arguments = parser().parse_args(argv)

    def asked() -> None:
        if arguments.report is not None:
            summary = json.loads((arguments.report / "summary.json").read_text(encoding="utf-8"))
            rows = report.load(arguments.report)
            say(over_time_report.write(arguments.report, rows, summary, arguments.write))
            return
        settings = settings_of(arguments)
        jax.config.update("jax_platforms", "cpu")
        jr.devices.use_cpu_devices(2)  # a program on one of them still has every core
        run(settings, arguments.out, arguments.write)

    return run_command(asked, [arguments.write], [over_time_report.PART])


def run(settings: Settings, out: Path, page: Path | None = None) -> Path:
    """Measure, and write what came of it, also of a run that was stopped; returns the run directory."""
    directory = new_directory(out, "parallel")
    machine = environment(over_time_report.PACKAGES)
    say(sentence(machine, over_time_report.PACKAGES))
    summary: dict[str, Any] = {"environment": machine, "went": {}}
    begin, all_other_work, rows = time.perf_counter(), OtherWork(), []
    other_work = OtherWork()
    try:
        for ran in over_time.measurements(settings):
            busy = warning(other_work.cores())
            rows += ran.rows
            if ran.went:
                summary["went"][ran.rows[0].cell] = ran.went
            report.append(directory, ran.rows)
            say(f"{time.perf_counter() - begin:6.0f} s  {ran.title}: {report.fastest(ran.rows)}{busy}")
            other_work = OtherWork()
    except KeyboardInterrupt:
        say("\nstopped")
    machine["other_work"] = all_other_work.cores()
    machine["seconds"] = round(time.perf_counter() - begin)
    say(f"\n{over_time_report.write(directory, rows, summary, page)}\nwritten to {directory}")
    return directory


def settings_of(arguments: argparse.Namespace) -> Settings:
    """All of it, or what was asked for.

    Raises:
        AskedWrongly: a case that is not known, with those that are.
    """
    settings = Settings()
    wanted = names_in("--cases", arguments.cases, [case.name for case in CASES], ";")
    settings = settings._replace(cases=tuple(case for case in CASES if case.name in wanted))
    if arguments.quick:
        settings = settings._replace(
            cases=tuple(case._replace(steps=min(case.steps, QUICK)) for case in settings.cases),
            lengths=tuple(n for n in settings.lengths if n <= QUICK),
            batches=settings.batches[:2],
        )
    if arguments.no_curves:
        settings = settings._replace(lengths=(), batches=())
    if arguments.seconds is not None:
        settings = settings._replace(budget=settings.budget._replace(seconds=arguments.seconds))
    return settings


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.parallel",
        description="jr.parallel beside jr.scan and beside lax.scan of the step: training steps and forward runs of "
        "one long sequence, on one CPU device and with time shared by two; time against T and B.",
        epilog='example:\n  python -m experiments.benchmarks.parallel --cases "GRU-16; LSTM-64" --no-curves',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--cases", metavar="NAMES", help="of the table of targets, with semicolons; default: all")
    top.add_argument("--no-curves", action="store_true", help="without time against T and B")
    top.add_argument("--quick", action="store_true", help=f"at most {QUICK:,} steps")
    add_seconds(top, "for the rounds of each program of a case", Settings().budget.seconds)
    add_out(top)
    add_report(top)
    add_write(top, over_time_report.PART, ", and the figure beside it")
    return top


if __name__ == "__main__":
    sys.exit(main())
