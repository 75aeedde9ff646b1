"""``python -m experiments.gpu``: on a GPU, check it and measure; without one, lower everything for it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.benchmarks.command import add_out, add_write, names_in, run_command, say
from experiments.runner.options import amount_of

if TYPE_CHECKING:
    from experiments.benchmarks.suites import Row
    from experiments.gpu.speed import Settings
    from tests.cases import Case

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX leaves torch a quarter of the GPU's memory

# What is imported, by the name of its package; torch takes part where it is there.
NEEDED = {"jax": "jax[cuda12]", "numpy": "numpy", "scipy": "scipy", "safetensors": "safetensors", "pytest": "pytest"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 (something is wrong, or could not run), 2 (was asked wrongly), 130 (was stopped)."""
    arguments = parser().parse_args(argv)
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        packages = " ".join(f"'{NEEDED[module]}'" for module in missing)
        print(
            f"gpu: {sys.executable} must have {', '.join(NEEDED)}, got no {', '.join(missing)}; "
            f"pip install {packages}, or name another: make gpu PYTHON=…",
            file=sys.stderr,
        )
        return 1
    from experiments.gpu import report, speed

    def asked() -> int:
        settings = speed.Settings()
        names = names_in("--contestants", arguments.contestants, settings.contestants)
        settings = settings._replace(contestants=names)
        if not on_a_gpu():
            return without_gpu(settings)
        return with_gpu(settings, 60 * arguments.minutes, arguments.out, arguments.write)

    try:
        return run_command(asked, [arguments.write], [report.PART])
    except KeyboardInterrupt:
        print("\nstopped; what was written up to here stays", file=sys.stderr)
        return 130


def on_a_gpu() -> bool:
    import jax

    return jax.default_backend() == "gpu"


def with_gpu(
    settings: Settings, seconds: float, out: Path, page: Path | None = None, cases: Iterable[Case] | None = None
) -> int:
    """The doctor, the contract's cases, the benchmark; what was found is written after each part of them."""
    import jax

    from experiments.benchmarks.measuring import measure
    from experiments.benchmarks.report import append
    from experiments.gpu import contract, report, speed
    from experiments.gpu.deadline import Deadline, minding
    from experiments.runner.directories import new_directory
    from jaxrnn import doctor

    deadline = Deadline(seconds)
    try:
        contract.cpu()
    except RuntimeError:
        print(
            "gpu: JAX must have the CPU beside the GPU, for the loops that cases are held against, got "
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}; unset it.",
            file=sys.stderr,
        )
        return 1
    status = doctor.main()
    directory = new_directory(out, "gpu")
    found = report.Findings(report.machine(), status, [], [])
    say(f"\n{found.machine}\n\nThe contract's cases on {jax.devices()[0].device_kind}:")
    part = deadline.part(contract.SHARE)
    for outcomes in contract.compared(part, contract.CASES if cases is None else cases):
        found.outcomes.extend(outcomes)
        for outcome in outcomes:
            if outcome.wrong:
                say(report.wrong(outcome))
    say("\n".join(" | ".join(line) for line in report.contract_table(found.outcomes)))
    report.write(directory, found, page)
    for group in speed.groups(settings):
        rows = measure(minding(deadline, group))
        found.rows.extend(rows)
        append(directory, rows)
        report.write(directory, found, page)
        said = "; ".join(map(progress, rows)) or "nobody takes part"
        say(f"{seconds - deadline.left():6.0f} s  {group.title}: {said}")
    say(f"\n{report.write(directory, found, page)}\nwritten to {directory}" + (f" and {page}" if page else ""))
    return int(bool(status or found.wrong))


def progress(row: Row) -> str:
    from experiments.benchmarks.report import milliseconds

    return f"{row.contestant} {row.note or f'{milliseconds(row)} ms'}"


def without_gpu(settings: Settings, cases: Iterable[Case] | None = None) -> int:
    """Lower everything for CUDA; 0 where all of it lowers."""
    import itertools

    import jax

    from experiments.gpu import contract, lowering

    say(
        f"JAX {jax.__version__} sees no GPU, only {jax.devices()[0].device_kind}: nothing is measured, no page written."
    )
    start = time.perf_counter()
    failed = count = 0
    of_contract = lowering.of_contract(contract.CASES if cases is None else cases)
    for program in lowering.lowered(itertools.chain(of_contract, lowering.of_benchmark(settings))):
        count += 1
        if program.error:
            failed += 1
            say(f"not lowered: {program.name}: {program.error}")
    say(
        f"{count - failed} of {count} programs lowered for CUDA, in {time.perf_counter() - start:.0f} s: the "
        "contract's gradients and the benchmark's forward passes and training steps. Left out: torch, and cuDNN's "
        "LSTM in JAX, which asks the GPU for sizes."
    )
    return int(failed > 0)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m experiments.gpu",
        description="On a GPU: the doctor, the contract's cases in float32 with TF32 off and on, the benchmark beside "
        "cuDNN. Without one: everything is lowered for CUDA.",
        epilog="example:\n  make gpu PYTHON=python3.12",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--minutes",
        type=amount_of("minutes"),
        default=9.0,
        help="the time limit; what would exceed it is skipped (default: 9)",
    )
    top.add_argument("--contestants", metavar="NAMES", help="with commas, such as 'jaxrnn,jaxrnn plain'; default: all")
    add_out(top)
    add_write(top, "gpu")
    return top


if __name__ == "__main__":
    sys.exit(main())
