"""The time limit of a run: what is left, and what is no longer begun."""

from __future__ import annotations

import time
from collections.abc import Callable

from experiments.benchmarks.problems import OutOfTime
from experiments.benchmarks.programs import Placed, Program
from experiments.benchmarks.suites import Entry, Group

LEAST = 20.0  # seconds: to compile a training step on a GPU takes up to that, and cannot be stopped
CALLS = 6  # how often a long call is repeated: the check, the estimate of its time, three rounds, one to spare


class Deadline:
    """So many seconds from now.

    Args:
        seconds: the limit.
        clock: seconds that only grow; another one in tests.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.seconds, self.start = clock, seconds, clock()

    def left(self) -> float:
        return self.start + self.seconds - self.clock()

    def part(self, share: float) -> Deadline:
        """That share of what is left, from now."""
        return Deadline(share * max(self.left(), 0.0), self.clock)


def minding(deadline: Deadline, group: Group) -> Group:
    """The group, its entries built while there is time for them; one whose calls would take too long is left out.

    An entry is begun where LEAST seconds are left beside what the entries before it will take in the rounds, and kept
    where CALLS of its calls fit.
    """
    promised = 0.0  # seconds of the rounds, by the entries that are kept

    def minded(entry: Entry) -> Entry:
        def build(placed: Placed) -> Program:
            nonlocal promised
            if deadline.left() - promised < LEAST:
                raise OutOfTime("the time limit is used up")
            program = entry.build(placed)
            start = deadline.clock()
            program.call()
            once = deadline.clock() - start
            left = deadline.left() - promised
            if CALLS * once > left:
                raise OutOfTime(f"{CALLS} calls of {once:.1f} s do not fit into the {max(left, 0):.0f} s that are left")
            promised += max(CALLS * once, group.budget.seconds)
            return program

        return entry._replace(build=build)

    return group._replace(entries=[minded(entry) for entry in group.entries])
