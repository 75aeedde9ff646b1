"""``python -m jaxrnn tune``: the constants by which plans choose, measured on this machine.

Of each choice both programs are run in turns, at sizes on both sides of the default. The constant becomes the one
nearest to the default that no measurement contradicts: where the two differ by less than the noise, it stays.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn as jr
from jaxrnn.commands._terminal import STATUS, guarded, say
from jaxrnn.commands.other_work import OtherWork
from jaxrnn.planning.constants import DEFAULT, constants, using
from jaxrnn.planning.tuning_file import conditions, file_text, is_default, is_off, read_file, tuning_path
from jaxrnn.saving.files import write_atomically

ROUNDS, FEWEST, SECONDS = 21, 7, 0.8  # of each case: at most, and as many as these seconds hold, but not fewer
BUSY = (
    0.2  # the spread of one program's times, and the share of the cores that others use, above which nothing is learnt
)
MARGIN = 0.03  # two programs that differ by less may do so by where their arrays happen to lie


def add_command(commands: Any) -> None:
    """Add ``tune`` to the subcommands of ``python -m jaxrnn``."""
    parser = commands.add_parser(
        "tune",
        help="measure on this machine which plans are fast, and keep it in a file",
        description="Measure, in a minute and on one CPU device, from which sizes on the choices of plans pay here, "
        "and write the constants to a file of the user, which later processes on this machine read. Let nothing else "
        "run.",
        epilog=f"{STATUS} On a machine too busy to measure it is 1, and nothing is written.",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="measure, and write nothing")
    instead.add_argument("--remove", action="store_true", help="remove the file: plans choose by the defaults again")
    instead.add_argument("--path", action="store_true", help="print where the file is, or would be")

    def run(arguments: Any) -> int:
        if arguments.path:
            return guarded("tune", lambda: say(tuning_path()))
        return guarded("tune", remove if arguments.remove else lambda: tune(dry_run=arguments.dry_run))

    parser.set_defaults(run=run)


# ---- what is measured ----------------------------------------------------------------------------


class Case(NamedTuple):
    """A choice at one size: the constant that decides it, and a model where it matters."""

    constant: str
    at: float  # of the constant's unit
    cell: str
    T: int
    B: int
    H: int  # and I

    def __str__(self) -> str:
        return f"{self.cell} (T, B, H) = ({self.T}, {self.B}, {self.H})"


CHOICES = {  # of each constant: its unit, and what is compared
    "contract_from": (
        "weights for each output",
        "a training step, gradients of weights contracted after the backward loop / added up in it",
    ),
    "left_from": ("weights", "a training step, weights of the forward loop on the left / on the right"),
}
RATIOS = (1, 2, 4, 8, 16)  # H / B, which is 4 H² weights for 4 B H outputs
CASES = [
    *(Case("contract_from", r, "lstm", 64 * r, 128 // r, 128) for r in RATIOS),
    *(Case("contract_from", r, "gru", 192 * r, 64 // r, 64) for r in RATIOS),
    *(Case("left_from", 4 * H * H, "lstm", 48, 32, H) for H in (256, 512, 768)),  # 48 steps share the transposes
]


def programs(case: Case) -> tuple[list[Any], tuple[Any, ...]]:
    """What is compared, compiled: with the choice, and without; and their arguments."""
    cell = getattr(jr, case.cell)(case.H, case.H)
    params = cell.init(jax.random.key(0))
    xs, ys = jax.random.normal(jax.random.key(1), (2, case.T, case.B, case.H))

    def compiled(choice: bool) -> Any:
        by_plan = case.constant == "contract_from"
        plan = jr.Plan(contract=choice) if by_plan else "auto"

        def run(params, xs, ys):  # another function for each choice: what jit has traced it keeps by the function
            loss = lambda params: jnp.mean((jr.scan(cell, plan=plan).apply(params, xs)[1] - ys) ** 2)
            return jax.tree.map(lambda a, d: a - 0.1 * d, params, jax.grad(loss)(params))

        with using(DEFAULT if by_plan else DEFAULT._replace(left_from=1 if choice else math.inf)):
            return jax.jit(run).lower(params, xs, ys).compile()

    return [compiled(True), compiled(False)], (params, xs, ys)


def times(case: Case) -> tuple[list[float], list[float]]:
    """Seconds of each round, with the choice and without; where they spread, of a second time."""
    with jax.enable_x64(False):
        compiled, arguments = programs(case)
        both = [functools.partial(program, *arguments) for program in compiled]
        for run in (*both, *both):
            jax.block_until_ready(run())
        taken = _take_turns(*both)
        return taken if max(map(_spread, taken)) <= BUSY else _take_turns(*both)


def _take_turns(*runs: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Which of the two is the first in a round changes from round to round."""
    taken: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for number in range(ROUNDS):
        if number >= FEWEST and time.perf_counter() - start > SECONDS:
            break
        for index in (0, 1) if number % 2 else (1, 0):
            before = time.perf_counter()
            jax.block_until_ready(runs[index]())
            taken[index].append(time.perf_counter() - before)
    return taken


# ---- what follows --------------------------------------------------------------------------------


class Measured(NamedTuple):
    """A case with its times; ``ratio`` is below 1 where the choice is the faster one."""

    case: Case
    with_choice: float  # seconds, the median
    without: float
    ratio: float  # the median over the rounds
    low: float  # the median's confidence interval, 95 % and more
    high: float
    spread: float  # between the quartiles of a program's times, relative to their median; of the worse one

    @classmethod
    def of(cls, case: Case, first: Sequence[float], second: Sequence[float]) -> Measured:
        ratios = sorted(a / b for a, b in zip(first, second, strict=True))
        # As many ratios lie below the median as heads fall in so many throws: 0.98 √n is 1.96 standard deviations.
        k = max(0, math.floor(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios))))
        return cls(
            case,
            statistics.median(first),
            statistics.median(second),
            statistics.median(ratios),
            ratios[k],
            ratios[-1 - k],
            max(map(_spread, (first, second))),
        )

    @property
    def gains(self) -> bool:
        return self.high < 1 - MARGIN

    @property
    def loses(self) -> bool:
        return self.low > 1 + MARGIN

    def __str__(self) -> str:
        verdict = "gains" if self.gains else "loses" if self.loses else "even"
        return (
            f"  {self.case.at:>9,}  {self.case!s:34} {1e3 * self.with_choice:7.2f} / {1e3 * self.without:7.2f} ms"
            f" = {self.ratio:.2f} ({self.low:.2f} to {self.high:.2f}), spread {self.spread:4.0%}  {verdict}"
        )


def _spread(seconds: Sequence[float]) -> float:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return (high - low) / median


def chosen(default: float, found: Iterable[Measured]) -> float:
    """The constant from which a choice pays, as it was measured.

    No measurement contradicts a constant where none at it or above loses, and none below gains. Of the default, the
    sizes that were measured and twice the largest of them, it is the one nearest to the default of those that none
    contradicts; where some gain below others that lose, the smallest from which on none loses.
    """
    found = list(found)
    sizes = sorted({point.case.at for point in found})
    candidates = sorted({default, *sizes, 2 * sizes[-1]})
    pays = [c for c in candidates if not any(point.loses for point in found if point.case.at >= c)]
    agree = [c for c in pays if not any(point.gains for point in found if point.case.at < c)]
    return min(agree, key=lambda c: abs(math.log(c / default))) if agree else pays[0]


def tune(dry_run: bool = False) -> None:
    """Measure, print what was measured and what it changes, and write the file.

    Raises:
        ValueError: no single CPU device, a file of another kind in its place, or a machine too busy to measure.
    """
    if jax.default_backend() != "cpu" or jax.device_count() != 1:
        raise ValueError(
            f"tune: the constants are those of one CPU device, but JAX has {jax.device_count()} × "
            f"{jax.default_backend()}; run it with JAX_PLATFORMS=cpu and without jax_num_cpu_devices."
        )
    path = tuning_path()
    _check_is_ours(path)
    say(f"{conditions()['cpu']}; jaxlib {conditions()['jaxlib']}")
    before, found = constants(), []
    for constant, (unit, compared) in CHOICES.items():
        say(f"\n{unit}: {compared}")
        for case in (case for case in CASES if case.constant == constant):
            found.append(_measured(case))
            say(str(found[-1]))
    after = {name: chosen(getattr(DEFAULT, name), (m for m in found if m.case.constant == name)) for name in CHOICES}
    say("")
    for name, value in after.items():
        old, default = getattr(before, name), getattr(DEFAULT, name)
        change = "as before" if old == value else f"before {old:,}"
        say(f"{name}: {value:,}, {change}{'' if value == default else f' (the default is {default:,})'}")
    if dry_run:
        say(f"nothing is written; without --dry-run it would be {path}")
        return
    os.makedirs(os.path.dirname(os.path.realpath(path)), exist_ok=True)
    write_atomically("tune", path, lambda unfinished: Path(unfinished).write_text(file_text(after), encoding="utf-8"))
    say(f"written: {path}")
    if is_off():
        say("it is not read while JAXRNN_TUNING=off")


def _measured(case: Case) -> Measured:
    other_work = OtherWork()
    measured = Measured.of(case, *times(case))
    cores = other_work.cores() or 0.0
    if measured.spread > BUSY:
        reason = f"the times of {case} spread by {measured.spread:.1%}, twice, where {BUSY:.0%} is the most"
    elif cores > BUSY * (os.cpu_count() or 1):  # one that works steadily does not show in the spread
        reason = f"other processes kept {cores:.1f} of {os.cpu_count()} cores busy"
    else:
        return measured
    raise ValueError(
        f"tune: this machine is too busy to measure: {reason}; nothing is written. Run it again when nothing else runs."
    )


def remove() -> None:
    """Remove the file, where there is one."""
    path = tuning_path()
    _check_is_ours(path)
    try:
        os.remove(path)
    except FileNotFoundError:
        say(f"there is no file {path}")
    else:
        say(f"removed: {path}")


def _check_is_ours(path: str) -> None:
    """Nothing else is replaced or removed, should JAXRNN_TUNING name something else."""
    if is_default():
        return
    with contextlib.suppress(FileNotFoundError):
        try:
            read_file(path)
        except ValueError as error:
            raise ValueError(
                f"tune: {path!r} is no tuning file: {error}; remove it, or name another by JAXRNN_TUNING=PATH."
            ) from None
