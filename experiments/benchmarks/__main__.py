"""``python -m experiments.benchmarks``: measure, and write what came of it to a directory of its own."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

import jaxrnn as jr
from experiments.benchmarks.command import (
    CORES_THAT_DISTURB,
    AskedWrongly,
    add_out,
    add_report,
    add_seconds,
    add_shapes,
    names_in,
    run_command,
    shape_of,
)

if TYPE_CHECKING:
    from experiments.benchmarks.suites import Settings

EXTRA = {"matplotlib": "matplotlib", "rich": "rich"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Exit status: 0, 1 (could not run), 2 (was asked wrongly), 130 (was stopped)."""
    arguments = parser().parse_args(argv)
    missing = [pip for module, pip in EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"the benchmarks need {', '.join(missing)}: pip install 'jaxrnn[train]'", file=sys.stderr)
        return 1
    from experiments.benchmarks.report import PARTS

    def asked() -> None:
        if arguments.report is not None:
            report_again(arguments.report, arguments.write)
        else:
            jr.devices.use_cpu_devices(2)  # a program on one of them still has every core
            run(settings_of(arguments), arguments.out, arguments.write)

    try:
        return run_command(asked, arguments.write, PARTS)
    except KeyboardInterrupt:
        print("\nstopped; --report RUN makes the tables of the rows up to here", file=sys.stderr)
        return 130


def run(settings: Settings, out: Path, pages: Sequence[Path] = ()) -> Path:
    """Measure every group of the settings, then write the tables, also into the pages; returns the run directory."""
    from experiments.benchmarks import report, suites
    from experiments.benchmarks.every_suite import measurements
    from experiments.environment import environment, sentence
    from experiments.runner.directories import new_directory

    console = terminal()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    directory = new_directory(out, "benchmarks")
    machine = environment(report.PACKAGES)
    say(sentence(machine, report.PACKAGES))
    for module in suites.missing(settings):
        say(f"{module} is not installed: left out")
    rows: list[suites.Row] = []
    begin = time.perf_counter()
    other_work = []
    for measured in measurements(settings):
        rows += measured.rows
        other_work.append(measured.other_work)
        report.append(directory, measured.rows)
        say(f"{time.perf_counter() - begin:6.0f} s  {measured.title}: {report.fastest(measured.rows)}")
        if measured.other_work > CORES_THAT_DISTURB:
            say(
                f"WARNING: other processes kept {measured.other_work:.1f} cores busy: not to be trusted, torch's "
                f"figures least of all"
            )
    machine["other_work"] = sum(other_work) / max(len(other_work), 1)
    machine["seconds"] = round(time.perf_counter() - begin)
    report.write(directory, rows, machine, pages)
    report.show(rows, directory, console)
    return directory


def terminal() -> Any:
    """A console; wide where the output goes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)


def report_again(directory: Path, pages: Sequence[Path]) -> None:
    """The tables and the figure of an older run, made anew from its rows; also written into the pages."""
    import json

    from experiments.benchmarks import report
    from experiments.environment import environment

    rows = report.load(directory)
    summary = directory / "summary.json"
    known = json.loads(summary.read_text(encoding="utf-8"))["environment"] if summary.exists() else None
    report.write(directory, rows, known or environment(report.PACKAGES), pages)
    report.show(rows, directory, terminal())


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The whole benchmark, or the part that was asked for.

    Raises:
        AskedWrongly: a word or a shape that is not known, with those that are.
    """
    from experiments.benchmarks.contestants import BY_NAME
    from experiments.benchmarks.every_suite import SUITES
    from experiments.benchmarks.problems import GATES
    from experiments.benchmarks.programs import QUANTITIES
    from experiments.benchmarks.suites import Settings
    from experiments.benchmarks.timing import Budget

    settings = Settings()
    if arguments.quick:
        settings = settings._replace(
            shapes=(settings.shapes[0], settings.shapes[2]),
            budget=Budget(seconds=0.2, least=3),
            step_sizes=settings.step_sizes[:1],
            lengths=(100, 1_000),
            compile_lengths=(1_000,),
        )
    if arguments.seconds is not None:
        settings = settings._replace(budget=settings.budget._replace(seconds=arguments.seconds))
    kinds: dict[str, Sequence[str]] = {"suites": tuple(SUITES), "cells": tuple(GATES), "quantities": tuple(QUANTITIES)}
    words = [word for argument in arguments.only for word in argument.split(",")]
    unknown = [word for word in words if not any(word in known for known in kinds.values())]
    if unknown:
        known = ", ".join(word for known in kinds.values() for word in known)
        raise AskedWrongly(f"--only: {unknown[0]!r} is none of {known}")
    chosen = {field: tuple(word for word in known if word in words) for field, known in kinds.items()}
    if arguments.shapes:
        shapes = tuple(shape_of(text) for text in arguments.shapes)
        settings = settings._replace(shapes=shapes, variant_shapes=shapes)
        chosen["suites"] = chosen["suites"] or ("cells", "variants")
    if arguments.contestants:
        settings = settings._replace(contestants=names_in("--contestants", arguments.contestants, tuple(BY_NAME)))
    return settings._replace(
        suites=chosen["suites"] or settings.suites,
        cells=chosen["cells"] or settings.cells,
        quantities=chosen["quantities"] or settings.quantities,
    )


def parser() -> argparse.ArgumentParser:
    from experiments.benchmarks.every_suite import SUITES
    from experiments.benchmarks.problems import GATES
    from experiments.benchmarks.programs import QUANTITIES

    top = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks",
        description="jaxrnn beside torch and the JAX libraries: time, compile time, temporary memory.",
        epilog='example:\n  make bench BENCH_ARGS="--only lstm,train --shapes 32,128,128,128"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help=f"suites ({', '.join(SUITES)}), cells ({', '.join(GATES)}), quantities ({', '.join(QUANTITIES)}), "
        "with commas; of a kind that is not named, all",
    )
    add_shapes(top, "of the suites cells and variants; the other suites then run only if --only names them")
    top.add_argument("--contestants", metavar="NAMES", help="with commas, such as 'jaxrnn,jaxrnn plain,torch'")
    top.add_argument(
        "--quick", action="store_true", help="two shapes, short lengths, few rounds: minutes, rough figures"
    )
    add_seconds(top, "the time budget of each contestant in each group", 0.5)
    add_out(top)
    add_report(top)
    top.add_argument(
        "--write",
        nargs="+",
        type=Path,
        default=[],
        metavar="PAGE",
        help="write the tables into these Markdown pages too, between <!-- benchmarks:begin --> and "
        "<!-- benchmarks:end -->; the targets alone between those of benchmark-targets",
    )
    return top


if __name__ == "__main__":
    sys.exit(main())
