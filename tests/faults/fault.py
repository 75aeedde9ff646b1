"""What a planted fault is.

A fault is a piece of text that stands in the library exactly once, and what is put in its place: no file is named, so
the table outlives moves. Each is one that a change could bring in and that leaves programs running.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    name: str
    old: str  # stands exactly once in jaxrnn/
    new: str
    tests: tuple[str, ...]  # pytest's arguments


@functools.cache
def _library(tree: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in sorted((tree / "jaxrnn").rglob("*.py"))}


def place_of(fault: Fault, tree: Path) -> Path:
    """The file of the library in which the fault's text stands."""
    places = [path for path, text in _library(tree).items() for _ in range(text.count(fault.old))]
    if len(places) != 1:
        raise ValueError(
            f"{fault.name!r} stands {len(places)} times in jaxrnn/, not once; write its text in tests/faults "
            f"as it is now: {fault.old!r}"
        )
    return places[0]


def tests(file: str, of: str = "") -> tuple[str, ...]:
    """pytest's arguments: a file and, where given, ``-k``."""
    return (f"tests/{file}.py", *(("-k", of) if of else ()))
