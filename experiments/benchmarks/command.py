"""What the commands of the benchmarks share: their options, the lines that they print, how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from experiments.exits import said
from experiments.markdown import MarkerError, parts_of
from experiments.runner.options import amount_of

os.environ.setdefault("KERAS_BACKEND", "jax")  # which Keras reads where a contestant first imports it
os.environ["JAXRNN_TUNING"] = "off"  # the defaults are measured, on any machine

CORES_THAT_DISTURB = 0.1  # kept busy by other processes while a group ran


class AskedWrongly(Exception):
    """An option that names what is not known; the text says what is."""


# ---- options -------------------------------------------------------------------------------------


def add_seconds(top: argparse.ArgumentParser, of_what: str, default: float) -> None:
    top.add_argument("--seconds", type=amount_of("seconds"), help=f"{of_what} (default: {default:g})")


def add_shapes(top: argparse.ArgumentParser, default: str) -> None:
    top.add_argument("--shapes", nargs="+", default=[], metavar="B,T,I,H", help=default)


def add_out(top: argparse.ArgumentParser) -> None:
    top.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: runs; none is overwritten")


def add_report(top: argparse.ArgumentParser) -> None:
    top.add_argument("--report", type=Path, metavar="RUN", help="measure nothing: make the tables of this run anew")


def add_write(top: argparse.ArgumentParser, part: str, more: str = "") -> None:
    text = f"write the tables into this page too, between <!-- {part}:begin --> and <!-- {part}:end -->{more}"
    top.add_argument("--write", type=Path, metavar="PAGE", help=text)


def shape_of(text: str) -> tuple[int, int, int, int]:
    """``B,T,I,H``.

    Raises:
        AskedWrongly: something else.
    """
    try:
        B, T, I, H = map(int, text.split(","))
    except ValueError:
        raise AskedWrongly(f"--shapes: expected B,T,I,H such as 32,128,128,128, got {text!r}") from None
    if min(B, T, I, H) < 1:
        raise AskedWrongly(f"--shapes: expected sizes of at least 1, got {text!r}")
    return B, T, I, H


def names_in(option: str, text: str | None, known: Sequence[str], separator: str = ",") -> tuple[str, ...]:
    """The names of an option, all that are known where it is not given.

    Raises:
        AskedWrongly: one that is not known, with those that are.
    """
    names = tuple(name.strip() for name in text.split(separator) if name.strip()) if text else tuple(known)
    if unknown := [name for name in names if name not in known]:
        raise AskedWrongly(f"{option}: {unknown[0]!r} is none of {f'{separator} '.join(known)}")
    return names


# ---- running -------------------------------------------------------------------------------------


def run_command(run: Callable[[], int | None], pages: Iterable[Path | None], parts: Iterable[str]) -> int:
    """Run, and return the exit status: that of ``run``, 0 for None; 1, a file; 2, asked wrongly, a page lacks markers.

    What is wrong with a page is said before anything is measured.
    """
    try:
        for page in pages:
            if page is not None:
                parts_of(page, parts)
        return run() or 0
    except AskedWrongly as error:
        print(error, file=sys.stderr)
        return 2
    except (MarkerError, OSError) as error:
        return said(error)


def say(text: str) -> None:
    """A line of progress, at once also where the output goes to a file."""
    print(text, flush=True)


def warning(busy: float | None) -> str:
    """What a line of progress says of other processes."""
    return f"  (other processes kept {busy:.1f} cores busy)" if (busy or 0.0) > CORES_THAT_DISTURB else ""
