"""The reader of a file, by the end of its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.data import archive, arrays, rolls, tables
from experiments.data.records import Content, refuse
from jaxrnn._checks import nearest

READERS: dict[str, Callable[[Path], Content]] = {
    ".npz": arrays.read_npz,
    ".csv": tables.read_csv,
    ".tsv": tables.read_csv,
    ".jsonl": tables.read_jsonl,
    ".mat": arrays.read_mat,
    ".json": rolls.read_json,
    ".ts": archive.read_ts,
}


def read(path: Path) -> Content:
    """The sequences of a file, as they stand there.

    Raises:
        DataError: one line that names file, key, row and the fix.
    """
    check_file(path)
    try:
        content = READERS[path.suffix.lower()](path)
    except OSError as error:
        refuse(path, what=f"cannot be read: {error.strerror or error}", fix="see to its permissions")
    if not content.records:
        refuse(path, what="holds no sequences", fix="give some for each split")
    return content


def path_of(text: str) -> Path:
    """Where ``data.path`` is, from the current directory; no shell has put a home in place of its ~."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # of a user who is not there
        return Path(text)


def check_file(path: Path, kinds_read: Sequence[str] = tuple(READERS)) -> None:
    """There is such a file, of a kind that is read."""
    kinds = ", ".join(kinds_read)
    if path.is_dir():
        inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in kinds_read)
        name = f"{inside[0]}, say" if inside else f"of these kinds: {kinds}"
        refuse(path, what="is a folder", fix=f"name a file in it, {name}")
    if not path.exists():
        there = [str(file) for file in path.parent.glob("*")] if path.parent.is_dir() else []
        refuse(
            path, what=f"no such file{nearest(str(path), there, '')}", fix="give its path from the current directory"
        )
    if path.suffix.lower() not in kinds_read:
        refuse(path, what=f"ends in {path.suffix or 'nothing'!r}, which is not read", fix=f"the kinds are {kinds}")


def digest(path: Path) -> str:
    """SHA-256 of what the file holds; of a file of the archive, and of the one that goes with it."""
    found = hashlib.sha256()
    try:
        for part in archive.parts(path).values() if path.suffix.lower() == ".ts" else (path,):
            found.update(part.read_bytes())
        return found.hexdigest()
    except OSError as error:
        refuse(path, what=f"cannot be read: {error.strerror or error}", fix="see to its permissions")
