"""What the commands share: one line for an error, text that cannot steer the terminal, the suffix of a file."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import TextIO

import jax

from jaxrnn.interop.registry import refused
from jaxrnn.saving.recognise import recognised

LONGEST = 2_000  # characters of an error's line
STATUS = "The exit status is 0 where all went well, 1 for an error, 2 for wrong arguments."


def guarded(who: str, command: Callable[[], None]) -> int:
    """The exit status of a command; an error becomes one line, and is all that is printed beside the command's own."""
    try:
        with jax.enable_x64(True), warnings.catch_warnings():  # 64 bits: weights keep their dtype
            warnings.simplefilter("ignore")  # those of other libraries; a command says its own
            command()
    except Exception as error:  # readers of other libraries raise anything
        known = isinstance(error, OSError) and error.strerror and error.filename
        text = f"{error.strerror}: {error.filename!r}" if known else str(error)  # type: ignore[attr-defined]
        text = " ".join(text.split()) or type(error).__name__
        text = text if len(text) < LONGEST else f"{text[:LONGEST]} …"  # names and values in a file may be of any length
        say(text if text.startswith(f"{who}: ") else f"{who}: {text}", file=sys.stderr)
        return 1
    return 0


def say(text: str, file: TextIO | None = None) -> None:
    """Print lines; what a file says cannot steer the terminal."""
    print("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text), file=file)


def format_of(who: str, path: str, known: Iterable[str]) -> str:
    """The suffix that says how a file is read: by its content where that is known, else by its name.

    Raises:
        ValueError: another one, with the way round where there is one.
    """
    kind = recognised(path)
    if kind is None:
        return suffix_of(who, path, known)
    if kind.suffix in known:
        return kind.suffix
    raise ValueError(f"{who}: {path!r} is not taken: by its content it is {kind.title}; {kind.fix}.")


def suffix_of(who: str, path: str, known: Iterable[str]) -> str:
    """The suffix of a path, one of those known.

    Raises:
        ValueError: another one, with the way round where there is one.
    """
    name = os.path.basename(path).lower()
    not_taken = refused()
    for suffix in sorted(not_taken, key=len, reverse=True):
        if name.endswith(suffix):
            raise ValueError(f"{who}: {path!r} is not taken: {not_taken[suffix]}.")
    suffix = os.path.splitext(name)[1]
    if suffix not in known:
        raise ValueError(f"{who}: {path!r} should end with one of {', '.join(known)}, which say the format.")
    return suffix
