"""Pages of documentation as programs: their Python blocks run from top to bottom, with one set of names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Section(NamedTuple):
    """What stands under one heading of the second level, or before the first; its blocks have run."""

    title: str
    text: str
    names: dict[str, Any]  # of the page so far, one dictionary for all its sections


def pages() -> list[str]:
    """Every page with Python blocks, from the root of the repository."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(file.relative_to(ROOT)) for file in files if BLOCK.search(file.read_text(encoding="utf-8")))


def sections(page: str) -> Iterator[Section]:
    """Run a page section by section. An error names the page and its own line in it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    starts = [0, *(match.start() for match in re.finditer(r"^## ", text, re.MULTILINE)), len(text)]
    names: dict[str, Any] = {}
    for start, end in itertools.pairwise(starts):
        for block in BLOCK.finditer(text, start, end):
            lines_before = text.count("\n", 0, block.start(1))
            exec(compile("\n" * lines_before + block[1], str(ROOT / page), "exec"), names)
        title = text[start:end].partition("\n")[0].removeprefix("## ")
        yield Section(title, text[start:end], names)


def run(page: str) -> dict[str, Any]:
    """Run a whole page and return its names."""
    *_, last = sections(page)
    return last.names
