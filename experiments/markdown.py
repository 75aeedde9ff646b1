"""Markdown: tables, and the parts of a page that a command writes, between markers.

<!-- adding:begin, written by `python -m experiments run configs/adding.toml --write …` -->
| model | held-out error |
…
<!-- adding:end -->
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


class MarkerError(Exception):
    """A page that lacks the markers between which something is to be written."""


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """The first row is the header; the first ``left`` columns are aligned left, the others right.

    Example:
        >>> print(table([("model", "error"), ("gru", "0.1")]))
        | model | error |
        | --- | ---: |
        | gru | 0.1 |
    """
    header, *body = rows
    rule = ["---" if column < left else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body))


def write_between_markers(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name:begin … -->`` and ``<!-- name:end -->``; the markers stay as they are.

    Raises:
        MarkerError: the page does not have each of the two once, in this order. OSError: it cannot be read or written.
    """
    page = path.read_text(encoding="utf-8")
    begin, end = _span(path, page, name)
    path.write_text(f"{page[:begin]}\n{text.strip()}\n{page[end:]}", encoding="utf-8")


def between_markers(path: Path, name: str) -> str:
    """What stands there.

    Raises:
        MarkerError, OSError: as for ``write_between_markers``.
    """
    page = path.read_text(encoding="utf-8")
    begin, end = _span(path, page, name)
    return page[begin:end].strip()


def parts_of(path: Path, names: Iterable[str]) -> list[str]:
    """Those of the names for which a page has markers: to be asked before a long run, so that it is not in vain.

    Raises:
        MarkerError: it has them for none of the names, or not as it should. OSError: it cannot be read.
    """
    names, page = list(names), path.read_text(encoding="utf-8")
    found = [name for name in names if re.search(_begin(name), page, flags=re.MULTILINE)]
    for name in found or names[:1]:
        _span(path, page, name)
    return found


def write_parts(path: Path, parts: Mapping[str, str]) -> None:
    """Write those parts for which a page has markers.

    Raises:
        MarkerError, OSError: as for ``parts_of``.
    """
    for name in parts_of(path, parts):
        write_between_markers(path, name, parts[name])


def _begin(name: str) -> str:
    return rf"^<!-- *{re.escape(name)}:begin\b.*?-->$"


def _span(path: Path, page: str, name: str) -> tuple[int, int]:
    """Where the text between the markers begins and ends: after the first line, before the last."""
    begins = list(re.finditer(_begin(name), page, flags=re.MULTILINE))
    ends = list(re.finditer(rf"^<!-- *{re.escape(name)}:end *-->$", page, flags=re.MULTILINE))
    if len(begins) != 1 or len(ends) != 1 or begins[0].end() > ends[0].start():
        raise MarkerError(
            f"{path}: expected the lines <!-- {name}:begin --> and <!-- {name}:end -->, each once and in this order, "
            f"got {len(begins)} and {len(ends)} of them; add them where the text is to stand."
        )
    return begins[0].end(), ends[0].start()
