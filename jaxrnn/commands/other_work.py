"""What else a machine does while something is measured on it."""

from __future__ import annotations

import os
import time
from pathlib import Path


class OtherWork:
    """How many cores other processes kept busy, on average since it was made; None where the system does not say."""

    def __init__(self) -> None:
        self.wall, self.busy, self.own = time.perf_counter(), self.busy_seconds(), time.process_time()

    def cores(self) -> float | None:
        wall, busy, own = time.perf_counter(), self.busy_seconds(), time.process_time()
        if busy is None or self.busy is None:
            return None
        return max((busy - self.busy) - (own - self.own), 0.0) / (wall - self.wall)

    @staticmethod
    def busy_seconds() -> float | None:
        """Of all cores together, since the machine started."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _idle, _wait, irq, softirq, steal, *_ = stat.read_text(encoding="ascii").split()[1:11]
        return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")
