"""The command line: ``python -m experiments run CONFIG`` and ``python -m experiments list``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import EXPERIMENTS
from jaxrnn import use_cpu_devices

# What the experiments import beyond jaxrnn's own dependencies, and the name that pip knows it by.
TRAIN_EXTRA = {"matplotlib": "matplotlib", "pydantic": "pydantic", "rich": "rich", "sklearn": "scikit-learn"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0, 1 (could not run), 2 (was asked wrongly), 130 (was stopped)."""
    arguments = parser().parse_args(argv)
    if arguments.command == "list":
        print(listing())
        return 0
    missing = [pip for module, pip in TRAIN_EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"experiments need {', '.join(missing)}: pip install 'jaxrnn[train]'", file=sys.stderr)
        return 1
    return run(arguments.config, arguments.set, arguments.out)


def run(path: Path, overrides: Sequence[str], out: Path) -> int:
    from experiments.config import ConfigError, load  # here, after the check that the extra is installed

    with contextlib.suppress(RuntimeError):  # where this process has used JAX before
        use_cpu_devices(os.cpu_count() or 1)  # the seeds of a model are divided among them
    try:
        config = load(path, overrides, lambda name: importlib.import_module(EXPERIMENTS[name].module).Config)
        importlib.import_module(EXPERIMENTS[config.experiment].module).run(config, out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # a run directory that cannot be made, a full disk
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the metrics up to here stand in the run directory", file=sys.stderr)
        return 130
    return 0


def listing() -> str:
    lines = []
    for name, experiment in EXPERIMENTS.items():
        lines += [
            f"{name}: {experiment.summary}",
            f"    python -m experiments run {experiment.config}    ({experiment.takes})",
        ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Train the models of one experiment and write what came of it to a directory of its own.",
        epilog="experiments:\n" + listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{run,list}")
    run = commands.add_parser(
        "run",
        help="run the experiment that a config file describes",
        description="Run the experiment that a config file describes. The file holds only what differs from\n"
        "the defaults; the run directory gets the whole config, the metrics, a table and a figure.",
        epilog="example:\n  python -m experiments run configs/digits.toml --set train.steps=200 "
        "--set 'model.cells=[\"gru\"]'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file, such as configs/digits.toml")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, its value written as in TOML: train.steps=200 (may be repeated)",
    )
    run.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where run directories such as digits-001 are made (default: runs); none is overwritten",
    )
    commands.add_parser("list", help="list the experiments, how to run them and how long they take")
    return top


if __name__ == "__main__":
    sys.exit(main())
