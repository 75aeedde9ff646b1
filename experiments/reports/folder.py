"""A run, read from its folder: what it was, how far it came, what it measured."""

from __future__ import annotations

import base64
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from experiments import EXPERIMENTS
from experiments.reports import figures, samples
from experiments.runner.config import ConfigError, flat
from experiments.runner.directories import RunError
from jaxrnn.training.records import Records

LARGEST = 1_500_000  # characters of an SVG that a page takes in; of a larger figure it takes the PNG

Curves = dict[str, dict[str, tuple[list[int], np.ndarray]]]  # measure -> model -> (steps, (seeds, steps))


class Picture(NamedTuple):
    """A figure of the run as it stands in the page."""

    name: str
    drawing: Markup | None  # an SVG, or
    png: str  # base64


class Run(NamedTuple):
    directory: Path
    experiment: str
    question: str
    grid: dict[str, list[Any]] | None  # of a sweep
    config: dict[str, Any]  # by dotted key
    summary: dict[str, Any]  # {} of a run that has not finished, or writes none
    rows: list[list[str]]  # of table.md, the header first
    notes: list[str]  # below it
    curves: Curves
    pictures: list[Picture]
    samples: list[samples.Sample]
    faults: list[str]  # what could not be shown

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def is_sweep(self) -> bool:
        return self.grid is not None

    @property
    def finished(self) -> bool:
        return bool(self.rows)

    @property
    def step(self) -> int:
        """The last that was recorded."""
        return max((steps[-1] for of in self.curves.values() for steps, _ in of.values()), default=0)


def read(directory: Path, prefix: str) -> Run:
    """What is there of a run; ids in the page begin with the prefix.

    Raises:
        ConfigError: it is no run. RunError: a file of it is damaged. checkpoints.CheckpointError: its metrics are.
    """
    content = _config(directory)
    experiment = content["experiment"]
    described = EXPERIMENTS.get(experiment)
    faults: list[str] = []
    rows, notes = _table(directory)
    try:
        handed_over = samples.read(directory)
    except ValueError as error:
        handed_over = []
        faults.append(f"{directory / samples.FILE}: not what an experiment hands over: {error}; left out.")
    shown_as_samples = {Path(sample.figure).stem for sample in handed_over if isinstance(sample, samples.Map)}
    pictures = _pictures(directory, prefix, faults, shown_as_samples)
    return Run(
        directory,
        experiment,
        described.summary if described else "",
        _grid(directory),
        flat(content),
        _summary(directory),
        rows,
        notes,
        _curves(directory),
        pictures,
        handed_over,
        faults,
    )


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.toml"
    if not directory.exists():
        raise ConfigError(f"{directory}: no such folder")
    if not path.is_file():
        raise ConfigError(f"{directory}: not a run directory: it has no config.toml")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError both are
        raise RunError(f"{path}: not a TOML file: {error}") from None
    if not isinstance(content.get("experiment"), str):
        raise ConfigError(f"{path}: expected the config of a run, with an experiment, got none")
    return content


def _grid(directory: Path) -> dict[str, list[Any]] | None:
    path = directory / "sweep.json"
    if not path.exists():
        return None
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))["grid"]
        return {str(key): list(values) for key, values in grid.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: not readable: {type(error).__name__}: {error}") from None


def _summary(directory: Path) -> dict[str, Any]:
    path = directory / "summary.json"
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError(f"expected an object, got {type(summary).__name__}")
    except (ValueError, RecursionError) as error:
        again = f"python -m experiments run --resume {directory}"
        raise RunError(f"{path}: not readable: {error}; {again} writes it again") from None
    return summary


def _table(directory: Path) -> tuple[list[list[str]], list[str]]:
    """The rows and the paragraphs of table.md but for the last one, which says where the figures come from."""
    path = directory / "table.md"
    if not path.exists():
        return [], []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not readable: {error}") from None
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    paragraphs = [block for block in text.split("\n\n") if block.strip() and not block.startswith("| ")]
    return [row for number, row in enumerate(rows) if number != 1], [block.strip() for block in paragraphs]


def _curves(directory: Path) -> Curves:
    """The measures of metrics.jsonl, each seed a row; what a model has not (yet) measured is NaN."""
    found: dict[str, dict[str, dict[int, dict[Any, float]]]] = {}  # measure, model, step, seed
    seeds: dict[str, dict[Any, None]] = {}
    path = directory / "metrics.jsonl"
    for row in Records(path, write=False).rows():
        if not isinstance(row.get("step"), int):
            raise RunError(f"{path}: expected rows with a whole number as their step, got {row!s:.80}")
        keys = list(row)
        place = keys.index("step")
        model = ", ".join(_named(key, row[key]) for key in keys[:place] if key != "seed")
        seed = str(row.get("seed"))
        seeds.setdefault(model, {})[seed] = None
        for measure in keys[place + 1 :]:
            value = row[measure]
            number = float(value) if isinstance(value, int | float) else np.nan
            found.setdefault(measure, {}).setdefault(model, {}).setdefault(row["step"], {})[seed] = number
    curves: Curves = {}
    for measure, by_model in found.items():
        curves[measure] = {}
        for model, by_step in by_model.items():
            steps = sorted(by_step)
            values = [[by_step[step].get(seed, np.nan) for step in steps] for seed in seeds[model]]
            curves[measure][model] = (steps, np.array(values))
    return curves


def _named(key: str, value: Any) -> str:
    return str(value) if key == "model" else f"{key.split('.')[-1]}={value}"


def _pictures(directory: Path, prefix: str, faults: list[str], left_out: set[str]) -> list[Picture]:
    """The figures, each as SVG where that can be read and is not too large, else as PNG."""
    found = []
    for path in sorted(directory.glob("*.png")):
        if path.stem in left_out:
            continue
        drawn = path.with_suffix(".svg")
        if drawn.exists() and drawn.stat().st_size <= LARGEST:
            try:
                markup = figures.inlined(drawn.read_text(encoding="utf-8"), f"{prefix}-{path.stem}")
                found.append(Picture(path.stem, markup, ""))
                continue
            except ValueError as error:
                faults.append(f"{drawn}: not a drawing: {error}; its PNG is shown.")
        found.append(Picture(path.stem, None, base64.b64encode(path.read_bytes()).decode()))
    return found


def seconds_of(summary: Mapping[str, Any]) -> float | None:
    """Of all models together, where the summary says what each took."""
    for of in summary.values():
        if isinstance(of, list) and of and all(isinstance(one, dict) and "seconds" in one for one in of):
            seconds = [one["seconds"] for one in of]
            return float(sum(seconds)) if all(isinstance(one, int | float) for one in seconds) else None
    return None
