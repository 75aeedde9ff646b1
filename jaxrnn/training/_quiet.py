"""What orbax logs and leaves unfinished in a call of ours stays silent; records and errors of others get through."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ORBAX = f"{os.sep}orbax{os.sep}"
_lock = threading.Lock()  # the hook is the process's: the first call that is quiet sets it, the last one takes it away
_calls: list[frozenset[int | None]] = []  # of each quiet call: the threads that are not its own
_hook_before: Any = None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep from the user what orbax says in this thread and in those that it starts meanwhile.

    It warns at every restore of what is settled here, and logs each error that it raises. Reads that an error left
    unfinished complain once they are collected, of their error or of a loop that is closed.
    """
    started = {thread.ident for thread in threading.enumerate() if not thread.name.startswith("Dummy-")}  # by Python
    others = frozenset(started - {threading.get_ident()})

    def let_through(record: logging.LogRecord) -> bool:
        return record.thread in others or _ORBAX not in record.pathname or record.levelno >= logging.CRITICAL

    log = logging.getLogger("absl")
    log.addFilter(let_through)
    _enter(others)
    try:
        yield
    finally:
        _leave(others)
        log.removeFilter(let_through)


def _enter(others: frozenset[int | None]) -> None:
    global _hook_before
    with _lock:
        if not _calls:
            _hook_before, sys.unraisablehook = sys.unraisablehook, _hook
        _calls.append(others)


def _leave(others: frozenset[int | None]) -> None:
    with _lock:
        _calls.remove(others)
        if not _calls:
            sys.unraisablehook = _hook_before


def _hook(unraisable: Any) -> None:
    """Python drops what is raised where nobody can catch it, as in a destructor, and tells a hook."""
    code = getattr(unraisable.object, "cr_code", None)
    of_orbax = code is not None and _ORBAX in code.co_filename
    closed = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    ours = any(threading.get_ident() not in others for others in list(_calls))
    if not (ours and (of_orbax or closed)):
        _hook_before(unraisable)
