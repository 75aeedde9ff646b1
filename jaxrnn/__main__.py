"""The commands: ``python -m jaxrnn <command>``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jaxrnn import doctor
from jaxrnn.commands import convert, inspect, tune


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (None: the command line) names, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrnn",
        description="jaxrnn, a functional recurrence toolkit for JAX.",
        epilog="`python -m jaxrnn <command> --help` explains a command.",
    )
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    for module in (doctor, inspect, convert, tune):  # commands add themselves, and set `run`, which takes the arguments
        module.add_command(commands)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
