"""The command: ``python -m experiments.parity`` prints the tables as Markdown: each library, then each model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments import markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the table, and return 1 where a difference is above its limit."""
    parser = argparse.ArgumentParser(prog="python -m experiments.parity", description=__doc__)
    parser.add_argument(
        "--only", metavar="LIBRARY", action="append", help="torch, keras, linen, nnx …; may be repeated"
    )
    parser.add_argument(
        "--write",
        metavar="PAGE",
        type=Path,
        help="write the tables into this page too, between <!-- parity:begin --> and <!-- parity:end -->",
    )
    arguments = parser.parse_args(argv)
    if arguments.write is not None:
        try:
            markdown.parts_of(arguments.write, ["parity"])
        except (markdown.MarkerError, OSError) as error:
            parser.error(f"--write: {error}")
    os.environ.setdefault("KERAS_BACKEND", "jax")

    from experiments.parity.compare import compare
    from experiments.parity.report import LIMITS, summary, table, worst
    from experiments.parity.sources import sources

    known = dict.fromkeys(library for library, _ in sources())
    if unknown := set(arguments.only or ()) - known.keys():
        parser.error(f"unknown library {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    rows = []
    for library, make in sources():
        if arguments.only is None or library in arguments.only:
            for dtype in ("float32",) if library == "onnx" else ("float32", "float64"):
                with jax.enable_x64(True):
                    rows.append(compare(make, dtype))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    tables = f"{summary(rows)}\n\n{table(rows)}"
    print(tables)
    if arguments.write is not None:
        markdown.write_between_markers(arguments.write, "parity", tables)
    above = [row for row in rows if worst(row) > LIMITS[row.dtype]]
    for row in above:
        print(f"above {LIMITS[row.dtype]:g}: {row.source.library} {row.source.cell} {row.source.options} {row.dtype}")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
