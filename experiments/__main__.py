"""The command line: ``python -m experiments run``, ``sweep``, ``predict`` and ``list``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import EXPERIMENTS
from jaxrnn.devices import join_processes, use_cpu_devices

# What the experiments import beyond jaxrnn's own dependencies, and the name that pip knows it by.
TRAIN_EXTRA = {
    "matplotlib": "matplotlib",
    "orbax": "orbax-checkpoint",
    "pydantic": "pydantic",
    "rich": "rich",
    "sklearn": "scikit-learn",
}


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
    with contextlib.suppress(RuntimeError):  # where this process has used JAX before
        if jax.config.jax_num_cpu_devices < 1:  # type: ignore[attr-defined]  # not said by the environment
            use_cpu_devices(os.cpu_count() or 1)  # the seeds of a model are divided among them
    try:
        join_processes()
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    status = guarded(arguments)
    if status not in (0, 2) and getattr(arguments, "resume", None) is not None:
        print(f"to go on: python -m experiments {arguments.command} --resume {arguments.resume}", file=sys.stderr)
    return status


def guarded(arguments: argparse.Namespace) -> int:
    """Run the command; what can go wrong without a fault in the program becomes a message and a status."""
    from experiments.config import ConfigError  # here, after the check that the extra is installed
    from experiments.report import RunError
    from jaxrnn.training import Interrupted, NonFiniteError
    from jaxrnn.training.checkpoints import CheckpointError

    try:
        COMMANDS[arguments.command](arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(error, file=sys.stderr)
        print(
            "A new run with a smaller train.learning_rate or train.clip_at may stay finite; train.nonfinite='skip' "
            "leaves such steps out, 'record' goes on.",
            file=sys.stderr,
        )
        arguments.resume = None  # it would come to the same end
        return 1
    except (RunError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # a run directory that cannot be made, a full disk
        print(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, file=sys.stderr)
        return 1
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 130
    except ValueError as error:
        if "Gloo" not in str(error):
            raise
        # An ordinary end of this process would wait for the one that is gone, until JAX gives it up.
        print(f"another process has died: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        os._exit(1)
    except KeyboardInterrupt:
        print("stopped at once; what came after the last checkpoint has to be done again", file=sys.stderr)
        return 130
    return 0


def run(arguments: argparse.Namespace) -> None:
    from experiments import config, report, study, training

    if arguments.resume is None:
        if arguments.config is None:
            raise config.ConfigError("run: expected a CONFIG, or --resume RUN")
        settings = config.load(arguments.config, arguments.set, schema_of)
        if hasattr(settings, "mesh"):  # what is wrong with it is said before a directory is made
            training.device_mesh(settings.mesh, len(settings.train.seeds))
        directory = report.new_directory(arguments.out, settings.experiment, config.dump(settings))
    else:
        directory = arguments.resume
        if (directory / "sweep.json").exists():
            raise config.ConfigError(f"{directory}: is a sweep; go on with it by sweep --resume {directory}")
        settings = config.load_again(directory, arguments.config, arguments.set, schema_of)
    arguments.resume = directory
    module = importlib.import_module(EXPERIMENTS[settings.experiment].module)
    with report.alone(directory):
        if hasattr(module, "STUDY"):
            study.run(module.STUDY, settings, directory)
        else:
            module.run(settings, directory)


def sweep(arguments: argparse.Namespace) -> None:
    from experiments import config, report, training
    from experiments import sweep as sweeps
    from experiments.study import Study

    if arguments.resume is None:
        if arguments.config is None:
            raise config.ConfigError("sweep: expected a CONFIG, or --resume SWEEP")
        grid, overrides = config.grid_of(arguments.grid), list(arguments.set)
        if arguments.seeds is not None:
            overrides.append(f"train.seeds={list(range(arguments.seeds))}")
        path = arguments.config
    else:
        if arguments.config is not None or arguments.grid or arguments.seeds is not None:
            raise config.ConfigError("sweep: --resume takes no CONFIG, --grid or --seeds: the sweep has its own")
        path, overrides, grid = arguments.resume / "config.toml", arguments.set, sweeps.stored_grid(arguments.resume)
    settings = sweeps.settings_of(grid)
    configs = [(setting, config.load(path, overrides, schema_of, grid=setting)) for setting in settings]
    shared = config.load(path, overrides, schema_of)
    module = importlib.import_module(EXPERIMENTS[shared.experiment].module)
    if not hasattr(module, "STUDY"):
        raise config.ConfigError(f"{path}: {shared.experiment} trains nothing, so there is nothing to sweep")
    study: Study = module.STUDY
    for group in sweeps.groups(study, configs):  # what is wrong with the grid is said before a directory is made
        training.device_mesh(shared.mesh, len(group.members))
    if arguments.resume is None:
        directory = report.new_directory(arguments.out, f"{shared.experiment}-sweep", config.dump(shared))
        sweeps.store_grid(directory, grid)
    else:
        directory = arguments.resume
        config.load_again(directory, None, overrides, schema_of)
    arguments.resume = directory
    with report.alone(directory):
        sweeps.run(study, configs, directory)


def predict(arguments: argparse.Namespace) -> None:
    from experiments import config
    from experiments import predict as predictions

    if (arguments.run / "sweep.json").exists():
        raise config.ConfigError(f"{arguments.run}: is a sweep; run the setting that you choose, then ask that run")
    settings = config.load_again(arguments.run, None, [], schema_of)
    module = importlib.import_module(EXPERIMENTS[settings.experiment].module)
    if not hasattr(module, "STUDY"):
        raise config.ConfigError(f"{arguments.run}: {settings.experiment} trains nothing that could be asked")
    predictor, params, title = predictions.choose(
        module.STUDY, settings, arguments.run, arguments.model, arguments.seed, arguments.best
    )
    if arguments.output is not None and arguments.input is None:
        raise config.ConfigError("--output: expected with --input")
    print(title, file=sys.stderr)
    if arguments.steps:
        lines = predictions.step_by_step(predictor, params, sys.stdin)
    elif arguments.input is not None:
        lines = predictions.of_file(predictor, params, arguments.input, arguments.output)
    else:
        lines = predictions.held_out(predictor, params, arguments.count)
    for line in lines:
        print(line, flush=True)


COMMANDS = {"run": run, "sweep": sweep, "predict": predict}


def schema_of(experiment: str) -> Any:
    return importlib.import_module(EXPERIMENTS[experiment].module).Config


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
    commands = top.add_subparsers(dest="command", required=True, metavar="{run,sweep,predict,list}")
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
        description="Ask a trained model of a run: for some held-out examples, beside the truth; for the sequences of\n"
        "a file; or step by step, where the model answers at every step.",
        epilog="examples:\n  python -m experiments predict runs/digits-001 --model gru\n"
        "  python -m experiments predict runs/flip_flop-001 --steps    then lines such as [1, 0, -1]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.add_argument("run", type=Path, metavar="RUN", help="a run directory, such as runs/digits-001")
    predict.add_argument("--model", metavar="NAME", help="which of its models (default: the first)")
    predict.add_argument("--seed", type=int, metavar="N", help="which of its seeds (default: the first)")
    predict.add_argument(
        "--best", action="store_true", help="the parameters with the best held-out score, not the last"
    )
    asked = predict.add_mutually_exclusive_group()
    asked.add_argument(
        "--count", type=positive, default=10, metavar="N", help="how many held-out examples (default: 10)"
    )
    asked.add_argument("--input", type=Path, metavar="FILE", help="a .npy array (T, N, …), as the model was trained on")
    asked.add_argument("--steps", action="store_true", help="read a step a line, in JSON, and answer each at once")
    predict.add_argument(
        "--output", type=Path, metavar="FILE", help="with --input: a .npy file for the answers, (N, …)"
    )
    commands.add_parser("list", help="list the experiments, how to run them and how long they take")
    return top


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


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


if __name__ == "__main__":
    sys.exit(main())
