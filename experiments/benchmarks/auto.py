"""``python -m experiments.benchmarks.auto``: is plan "auto" anywhere slower than plan "plain"?"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

import jaxrnn as jr
from experiments.benchmarks import pairs, pairs_report
from experiments.benchmarks.command import (
    add_out,
    add_report,
    add_seconds,
    add_shapes,
    add_write,
    names_in,
    run_command,
    say,
    shape_of,
    warning,
)
from experiments.benchmarks.pairs import BUDGET, CELLS, SHAPES, Pair
from experiments.benchmarks.timing import Budget
from experiments.environment import environment, sentence
from experiments.runner.directories import new_directory
from experiments.runner.options import amount_of
from jaxrnn.commands.other_work import OtherWork

QUICK = (SHAPES[2], SHAPES[7], SHAPES[15])  # small ones


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, also where a limit is missed or the run was stopped; 1 (a file), 2 (was asked wrongly)."""
    arguments = parser().parse_args(argv)

    def asked() -> None:
        if arguments.report is not None:
            found, summary = pairs_report.load(arguments.report)
            say(pairs_report.write(arguments.report, found, summary, arguments.write))
            return
        wanted = list(pairs.pairs(*chosen(arguments)))
        jax.config.update("jax_platforms", "cpu")
        jr.devices.use_cpu_devices(2)  # a program on one of them still has every core
        budget = BUDGET if arguments.seconds is None else BUDGET._replace(seconds=arguments.seconds)
        run(wanted, 60 * arguments.minutes, budget, arguments.out, arguments.write)

    return run_command(asked, [arguments.write], [pairs_report.PART])


def run(asked: Sequence[Pair], limit: float, budget: Budget, out: Path, page: Path | None = None) -> Path:
    """Measure these pairs while there is time, and write what came of it; returns the run directory."""
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    directory = new_directory(out, "auto")
    machine = environment(pairs_report.PACKAGES)
    say(sentence(machine, pairs_report.PACKAGES))
    summary = {"environment": machine, "asked": len(asked)}
    pairs_report.keep(directory, summary)
    if any(pair.shape[0] == 1 for pair in asked):
        say("A batch of 1 cannot be split: those shapes run on one device alone.")
    pairs.measured(asked[0], budget, tries=1)  # once for nothing: the first compilation of a process is slow
    begin, all_other_work, found = time.perf_counter(), OtherWork(), []
    try:
        for pair in asked:
            if time.perf_counter() - begin > limit:
                break
            other_work = OtherWork()
            found.append(pairs.measured(pair, budget))
            pairs_report.append(directory, found[-1])
            say(f"{time.perf_counter() - begin:6.0f} s  {pairs_report.line(found[-1])}{warning(other_work.cores())}")
    except KeyboardInterrupt:
        say("\nstopped")
    machine["other_work"] = all_other_work.cores()
    machine["seconds"] = round(time.perf_counter() - begin)
    say(f"\n{pairs_report.write(directory, found, summary, page)}\nwritten to {directory}")
    return directory


def chosen(arguments: argparse.Namespace) -> tuple[Sequence[str], Sequence[pairs.Shape]]:
    """The cells and shapes that were asked for.

    Raises:
        AskedWrongly: one that is not known, with those that are.
    """
    cells = names_in("--cells", arguments.cells, list(CELLS))
    if arguments.shapes:
        return cells, [shape_of(text) for text in arguments.shapes]
    return cells, QUICK if arguments.quick else SHAPES


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.auto",
        description='Plan "auto" beside plan "plain": time, temporaries and compile time of forward passes and '
        "training steps, on one CPU device and on two. Where both compile to the same program nothing is timed.",
        epilog='example:\n  python -m experiments.benchmarks.auto --cells "lstm,gru after" --shapes 1,1000,16,16',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--quick", action="store_true", help=f"{len(QUICK)} small shapes")
    top.add_argument("--cells", metavar="NAMES", help=f"with commas, of {', '.join(CELLS)}; default: all")
    add_shapes(top, f"default: {len(SHAPES)} shapes")
    top.add_argument(
        "--minutes",
        type=amount_of("minutes"),
        default=45.0,
        help="the time limit; the run says how many it did not reach (default: 45)",
    )
    add_seconds(top, "for the rounds of each program, first try", BUDGET.seconds)
    add_out(top)
    add_report(top)
    add_write(top, pairs_report.PART)
    return top


if __name__ == "__main__":
    sys.exit(main())
