"""The options of ``python -m experiments``, and what reads those of the other commands."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from experiments import EXPERIMENTS


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
    commands = top.add_subparsers(dest="command", required=True, metavar="{run,sweep,predict,compose,report,new,list}")
    run = commands.add_parser(
        "run",
        help="run the experiment that a config file describes, or go on with a run that was stopped",
        description="Run the experiment that a config file describes. The file holds only what differs from\n"
        "the defaults; the run directory gets the whole config, the metrics, checkpoints, a table and a figure.\n"
        "A run that was stopped, by Ctrl-C, a crash or a full disk, goes on with --resume where it was.",
        epilog="examples:\n  python -m experiments run configs/digits.toml --set train.steps=200 "
        "--set 'model.cells=[\"gru\"]'\n  python -m experiments run --resume runs/digits-001",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a TOML file, such as configs/digits.toml")
    add_settings(run)
    run.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with this run directory; its config is used, [mesh] may be set anew",
    )
    sweep = commands.add_parser(
        "sweep",
        help="train every combination of some settings from many seeds, and rank them",
        description="Train every combination of the values of a grid, each from many seeds. Members whose models have\n"
        "equal shapes (they differ in seed, train.learning_rate or train.clip_at) train as one program, over all\n"
        "devices. All take all steps: patience and nonfinite='stop' do not hold in a sweep.\n"
        "The directory gets the metrics, results.csv and members.csv, a table and figures.",
        epilog="examples:\n  python -m experiments sweep configs/digits.toml --set 'model.cells=[\"gru\"]' "
        "--grid model.hidden_size=32,64 \\\n      --grid train.learning_rate=1e-3,3e-3 --seeds 8\n"
        "  python -m experiments sweep --resume runs/digits-sweep-001",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.add_argument(
        "config", type=Path, nargs="?", metavar="CONFIG", help="a TOML file, such as configs/digits.toml"
    )
    sweep.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE,…",
        help="the values of one key: train.learning_rate=1e-3,3e-3 (may be repeated: every combination is trained)",
    )
    sweep.add_argument("--seeds", type=positive, metavar="N", help="seeds 0 … N-1 (default: train.seeds of the config)")
    add_settings(sweep)
    sweep.add_argument(
        "--resume", type=Path, metavar="SWEEP", help="go on with this sweep's directory, from the member not yet done"
    )
    predict = commands.add_parser(
        "predict",
        help="ask a trained model of a run",
        description="Ask a trained model of a run: for some held-out examples, beside the truth; for texts, where it\n"
        "reads words; for the sequences of a file; or step by step, where the model answers at every step.",
        epilog="examples:\n  python -m experiments predict runs/digits-001 --model gru\n"
        "  python -m experiments predict runs/g2p-001 --text hello world\n"
        "  python -m experiments predict runs/flip_flop-001 --steps    then lines such as [1, 0, -1]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_choice(predict)
    asked = predict.add_mutually_exclusive_group()
    asked.add_argument(
        "--text", nargs="+", metavar="TEXT", help="what a model of words reads, such as words to be pronounced"
    )
    asked.add_argument(
        "--count", type=positive, default=10, metavar="N", help="how many held-out examples (default: 10)"
    )
    asked.add_argument("--input", type=Path, metavar="FILE", help="a .npy array (T, N, …), as the model was trained on")
    asked.add_argument("--steps", action="store_true", help="read a step a line, in JSON, and answer each at once")
    predict.add_argument(
        "--output", type=Path, metavar="FILE", help="with --input: a .npy file for the answers, (N, …)"
    )
    compose = commands.add_parser(
        "compose",
        help="let a trained model of music go on by itself: a MIDI file and a drawing",
        description="Let a trained model go on by itself, reading what it has drawn. Of music: a MIDI file, and the\n"
        "piano roll drawn beside it, as .png.",
        epilog="example:\n  python -m experiments compose runs/music-001 --model gru-nade --best --output chorale.mid",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_choice(compose)
    compose.add_argument("--steps", type=positive, default=64, metavar="N", help="how many (default: 64)")
    compose.add_argument(
        "--draw", type=natural, default=0, metavar="N", help="another number, another piece (default: 0)"
    )
    compose.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="where to write, such as chorale.mid"
    )
    report = commands.add_parser(
        "report",
        help="write the page of a run, or of several side by side",
        description="Write report.html: one file that fetches nothing. Of one run into its folder, as every run\n"
        "does at its end; of several beside their folders: what differs, all models in one table, all curves in one\n"
        "figure. "
        "A run that has not finished is shown as far as it came.",
        epilog="examples:\n  python -m experiments report runs/digits-001\n"
        "  python -m experiments report runs/digits-001 runs/digits-002 --output compared.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory, such as runs/digits-001")
    report.add_argument("--output", type=Path, metavar="FILE", help="where to write the page")
    new = commands.add_parser(
        "new",
        help="write the folder of an experiment of your own, which runs at once",
        description="Write a folder into the current directory: an experiment that runs at once, its config, README\n"
        "and test. It learns from waves that it makes, or from a file of yours: --set data.path=FILE.",
        epilog="example:\n  python -m experiments new mytask && python -m experiments run mytask/config.toml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("name", metavar="NAME", help="small letters, digits and _, such as mytask")
    commands.add_parser("list", help="list the experiments, how to run them and how long they take")
    return top


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def natural(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2**32 - 1, got {text!r}")
    return int(text)


def amount_of(unit: str) -> Callable[[str], float]:
    """What reads a number of so many seconds, minutes …: finite, above 0."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(f"expected a number of {unit} above 0, got {text!r}")
        return number

    return read


def page_and_part(text: str) -> tuple[Path, str]:
    """``docs/results/adding.md#adding-long``, or the page alone."""
    page, _, part = text.partition("#")
    return Path(page), part


def add_choice(command: argparse.ArgumentParser) -> None:
    """Of one trained model."""
    command.add_argument("run", type=Path, metavar="RUN", help="a run directory, such as runs/digits-001")
    command.add_argument("--model", metavar="NAME", help="which of its models (default: the first)")
    command.add_argument("--seed", type=int, metavar="N", help="which of its seeds (default: the first)")
    command.add_argument(
        "--best", action="store_true", help="the parameters with the best held-out score, not the last"
    )


def add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, its value written as in TOML: train.steps=200 (may be repeated)",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where run directories such as digits-001 are made (default: runs); none is overwritten",
    )
    command.add_argument(
        "--quiet", action="store_true", help="print the run directory alone, at the end; what goes wrong is still told"
    )
    command.add_argument(
        "--write",
        type=page_and_part,
        action="append",
        default=[],
        metavar="PAGE[#NAME]",
        help="write the table into a Markdown page too, between <!-- NAME:begin --> and <!-- NAME:end --> "
        "(may be repeated; NAME: the experiment's, such as digits, or digits-sweep)",
    )
