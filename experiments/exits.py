"""The exit status of a command for what can go wrong with its files."""

from __future__ import annotations

import sys

from experiments.markdown import MarkerError


def said(error: MarkerError | OSError) -> int:
    """Print what is wrong with a page (2) or a file (1)."""
    if isinstance(error, MarkerError):
        print(f"--write: {error}", file=sys.stderr)
        return 2
    print(f"{error.filename}: {error.strerror}" if error.filename else error, file=sys.stderr)
    return 1
