"""The command line: ``python -m experiments run``, ``sweep``, ``predict``, ``compose``, ``report``, ``new`` …"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.markdown import MarkerError, parts_of, write_between_markers
from experiments.runner import own
from experiments.runner.options import listing, parser
from jaxrnn.devices import join_processes, use_cpu_devices

# What the experiments import beyond jaxrnn's own dependencies, and the name that pip knows it by.
TRAIN_EXTRA = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "orbax": "orbax-checkpoint",
    "pydantic": "pydantic",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "tomli_w": "tomli-w",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0, 1 (could not run), 2 (was asked wrongly), 130 (was stopped)."""
    arguments = parser().parse_args(argv)
    if arguments.command == "list":
        print(listing())
        return 0
    if arguments.command == "new":
        return new(arguments.name)
    missing = [pip for module, pip in TRAIN_EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"experiments need {', '.join(missing)}: pip install 'jaxrnn[train]'", file=sys.stderr)
        return 1
    if arguments.command != "report":  # which computes nothing
        try:
            devices_and_processes()
        except (RuntimeError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
    status = guarded(arguments)
    if status not in (0, 2) and getattr(arguments, "resume", None) is not None:
        again = f"python -m experiments {arguments.command} --resume {shlex.quote(str(arguments.resume))}"
        keeps = getattr(arguments, "keeps_checkpoints", True)
        print(f"{'to go on' if keeps else 'to begin again, in the same folder'}: {again}", file=sys.stderr)
    return status


def devices_and_processes() -> None:
    """All cores as devices, and of several processes one mesh."""
    with contextlib.suppress(RuntimeError):  # where this process has used JAX before
        told = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]  # by the environment; -1 where it is not
        use_cpu_devices(told if told > 0 else os.cpu_count() or 1)  # the seeds of a model are divided among them
    join_processes()


def new(name: str) -> int:
    """Write the folder of a new experiment into the current directory, and say what to do with it."""
    try:
        folder = own.new(name, Path.cwd()).relative_to(Path.cwd())
    except own.OwnError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"new: {error.filename or name}: {error.strerror}", file=sys.stderr)
        return 1
    print(
        f"{folder}/ has an experiment that runs:\n"
        f"    python -m experiments run {folder}/config.toml\n"
        f"    python -m experiments run {folder}/config.toml --set data.path=FILE    # .csv, .npz, .jsonl, .mat\n"
        f"    python -m pytest {folder}"
    )
    return 0


def guarded(arguments: argparse.Namespace) -> int:
    """Run the command; what can go wrong without a fault in the program becomes a message and a status."""
    from experiments.runner.config import ConfigError  # here, after the check that the extra is installed
    from experiments.runner.directories import RunError
    from experiments.runner.terminal import quiet
    from jaxrnn.training import Interrupted, NonFiniteError
    from jaxrnn.training.checkpoints import CheckpointError

    try:
        with quiet(is_quiet := getattr(arguments, "quiet", False)):
            COMMANDS[arguments.command](arguments)
        if is_quiet and jax.process_index() == 0:
            print(arguments.resume)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except MarkerError as error:
        print(f"--write: {error}", file=sys.stderr)
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
        keeps = getattr(arguments, "keeps_checkpoints", True)
        lost = "what came after the last checkpoint has to be done again" if keeps else "it keeps no checkpoints"
        print(f"stopped at once; {lost}", file=sys.stderr)
        return 130
    return 0


def run(arguments: argparse.Namespace) -> None:
    from experiments.runner import config, directories, study, training
    from jaxrnn.training.locking import alone

    if not (resumed := arguments.resume is not None):
        if arguments.config is None:
            raise config.ConfigError("run: expected a CONFIG, or --resume RUN")
        settings = config.load(arguments.config, arguments.set, schema_of)
        read_data(settings)
        if hasattr(settings, "mesh"):  # what is wrong with it is said before a directory is made
            training.device_mesh(settings.mesh, len(settings.train.seeds))
        check_pages(arguments.write, settings.experiment)
        directory = directories.new_directory(arguments.out, settings.experiment, config.dump(settings))
    else:
        directory = arguments.resume
        if (directory / "sweep.json").exists():
            raise config.ConfigError(f"{directory}: is a sweep; go on with it by sweep --resume {directory}")
        settings = config.load_again(directory, arguments.config, arguments.set, schema_of)
        read_data(settings)
        check_pages(arguments.write, settings.experiment)
    arguments.resume = directory
    module = own.module_of(settings.experiment)
    arguments.keeps_checkpoints = hasattr(module, "STUDY")
    with alone(directory):
        if arguments.keeps_checkpoints:
            study.run(module.STUDY, settings, directory)
        else:
            if resumed and jax.process_index() == 0:
                print(f"{directory}: {settings.experiment} keeps no checkpoints: it begins again", file=sys.stderr)
            module.run(settings, directory)
        write_pages(arguments.write, settings.experiment, directory)
        if jax.process_index() == 0:
            write_report([directory])


def sweep(arguments: argparse.Namespace) -> None:
    from experiments.runner import config, directories, training
    from experiments.runner import sweep as sweeps
    from experiments.runner.study import Study
    from jaxrnn.training.locking import alone

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
    if ranked_on := sweeps.on_validation(config.load(path, overrides, schema_of)):
        overrides = [*overrides, *ranked_on]
        print(f"{', '.join(ranked_on)}: a sweep chooses, for which the test split is not; --set it otherwise")
    settings = sweeps.settings_of(grid)
    configs = [(setting, config.load(path, overrides, schema_of, grid=setting)) for setting in settings]
    shared = config.load(path, overrides, schema_of)
    module = own.module_of(shared.experiment)
    if not hasattr(module, "STUDY"):
        raise config.ConfigError(
            f"{path}: {shared.experiment} cannot be swept: it has a run of its own, and no held-out score to rank "
            f"settings by; run it once for each setting"
        )
    for each in (shared, *(of_setting for _, of_setting in configs)):
        read_data(each)
    study: Study = module.STUDY
    for group in sweeps.groups(study, configs):  # what is wrong with the grid is said before a directory is made
        training.device_mesh(shared.mesh, len(group.members))
    part = f"{shared.experiment}-sweep"
    check_pages(arguments.write, part)
    if arguments.resume is None:
        directory = directories.new_directory(arguments.out, part, config.dump(shared))
        sweeps.store_grid(directory, grid)
    else:
        directory = arguments.resume
        config.load_again(directory, None, overrides, schema_of)
    arguments.resume = directory
    with alone(directory):
        sweeps.run(study, configs, directory)
        write_pages(arguments.write, part, directory)
        if jax.process_index() == 0:
            write_report([directory])


def predict(arguments: argparse.Namespace) -> None:
    from experiments.runner import config
    from experiments.runner import predict as predictions

    predictor, params, title = asked(arguments)
    if arguments.output is not None and arguments.input is None:
        raise config.ConfigError("--output: expected with --input")
    print(title, file=sys.stderr)
    if arguments.steps:
        lines = predictions.step_by_step(predictor, params, sys.stdin)
    elif arguments.text is not None:
        lines = predictions.of_texts(predictor, params, arguments.text)
    elif arguments.input is not None:
        lines = predictions.of_file(predictor, params, arguments.input, arguments.output)
    else:
        lines = predictions.held_out(predictor, params, arguments.count)
    for line in lines:
        print(line, flush=True)


def compose(arguments: argparse.Namespace) -> None:
    from experiments.runner import config

    predictor, params, title = asked(arguments)
    if predictor.compose is None:
        raise config.ConfigError(f"{arguments.run}: the models of this experiment compose nothing; ask them by predict")
    print(title, file=sys.stderr)
    for line in predictor.compose(params, jax.random.key(arguments.draw), arguments.steps, arguments.output):
        print(line)


def asked(arguments: argparse.Namespace) -> Any:
    """``(predictor, params, title)`` of the run, model and seed that a command asks."""
    from experiments.runner import config
    from experiments.runner import predict as predictions

    if (arguments.run / "sweep.json").exists():
        raise config.ConfigError(f"{arguments.run}: is a sweep; run the setting that you choose, then ask that run")
    settings = config.load_again(arguments.run, None, [], schema_of)
    read_data(settings)
    module = own.module_of(settings.experiment)
    if not hasattr(module, "STUDY"):
        raise config.ConfigError(
            f"{arguments.run}: {settings.experiment} has a run of its own, which leaves no model to be asked"
        )
    return predictions.choose(module.STUDY, settings, arguments.run, arguments.model, arguments.seed, arguments.best)


def report(arguments: argparse.Namespace) -> None:
    write_report(arguments.runs, arguments.output)


def write_report(runs: Sequence[Path], output: Path | None = None) -> None:
    """The page of some runs; what could not be shown in it is told."""
    from experiments.reports import page

    path, faults = page.write(runs, output)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"report: {path}")


def read_data(settings: Any) -> None:
    """What is wrong with the data of an experiment is said before a directory is made.

    A configuration that reads data has ``read_data()``, which raises DataError: a line that names key and file.
    """
    from experiments.data.records import DataError
    from experiments.runner.config import ConfigError

    if hasattr(settings, "read_data"):
        try:
            settings.read_data()
        except DataError as error:
            raise ConfigError(str(error)) from None


def check_pages(pages: Sequence[tuple[Path, str]], part: str) -> None:
    """Before anything is trained: each page has markers, of its own name or of this part."""
    for page, name in pages:
        parts_of(page, [name or part])


def write_pages(pages: Sequence[tuple[Path, str]], part: str, directory: Path) -> None:
    """The table of a run between the markers of the pages; of several processes the first has it."""
    if jax.process_index() == 0:
        for page, name in pages:
            write_between_markers(page, name or part, (directory / "table.md").read_text(encoding="utf-8"))


COMMANDS = {"run": run, "sweep": sweep, "predict": predict, "compose": compose, "report": report}


def schema_of(experiment: str) -> Any:
    return own.module_of(experiment).Config
