"""Grids of settings, each from many seeds; what has equal shapes trains as one program, and the best comes first.

sweeps/digits-001/
  config.toml     the configuration that all settings share
  sweep.json      the grid
  metrics.jsonl   a line for each model, setting, seed and block of steps
  checkpoints/    of each program; what `sweep --resume` reads
  results.csv     a line for each model and setting, the best first
  members.csv     a line for each member: model, setting, seed
  table.md        the same as results.csv, to be read
  scores.png      each setting's mean and confidence interval, and its seeds; also as SVG
  curves.png      the score over the steps; also as SVG
  report.html     all of it as a page
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from experiments.reports import figures
from experiments.runner import report, terminal, training
from experiments.runner.config import ConfigError, Table, flat
from experiments.runner.study import Study, made_by
from jaxrnn import plotting

# What differs between members of one program: numbers that are traced, and what says which models there are.
TRACED = ("train.learning_rate", "train.clip_at", "train.seeds", "model.learning_rates", "model.cells")
SHOWN = 8  # curves in a figure

Setting = dict[str, Any]  # a value for each key of the grid


class Group(NamedTuple):
    """The members that train as one program."""

    title: str
    model: str
    config: Any  # of the first setting; the others differ in what is traced
    settings: list[Setting]
    members: list[training.Member]


class Outcome(NamedTuple):
    """What came of one model under one setting."""

    model: str
    setting: Setting
    seeds: tuple[int, ...]
    scores: np.ndarray  # (seeds,): the held-out measure after the last step; NaN of one that left the finite numbers
    curve: report.Curve
    parameters: int
    steps: int

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    @property
    def sd(self) -> float:
        """Of a sample (N - 1); NaN of a single seed."""
        return float(self.scores.std(ddof=1)) if len(self.scores) > 1 else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence of the mean: Student's t, as if the scores were normal."""
        half = scipy.stats.t.ppf(0.975, max(len(self.scores) - 1, 1)) * self.sd / len(self.scores) ** 0.5
        return self.mean - half, self.mean + half

    @property
    def lost(self) -> int:
        """How many seeds left the finite numbers, in the loss, the gradient, the parameters or the score."""
        return int((~np.isfinite(self.scores)).sum())

    @property
    def title(self) -> str:
        return ", ".join([self.model, *(f"{key.split('.')[-1]}={value}" for key, value in self.setting.items())])


def on_validation(config: Any) -> list[str]:
    """The override that keeps the test split from those who choose, where the config does not say what is held out."""
    return [
        f"{name}.held_out=validation"
        for name, table in config
        if isinstance(table, Table) and "held_out" not in table.model_fields_set
        if (field := type(table).model_fields.get("held_out")) and "validation" in get_args(field.annotation)
    ]


def settings_of(grid: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every combination of the grid's values, the last key changing first."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def store_grid(directory: Path, grid: Mapping[str, Sequence[Any]]) -> None:
    (directory / "sweep.json").write_text(json.dumps({"grid": grid}, indent=2) + "\n", encoding="utf-8")


def stored_grid(directory: Path) -> dict[str, list[Any]]:
    """The grid that a sweep was started with."""
    try:
        return json.loads((directory / "sweep.json").read_text(encoding="utf-8"))["grid"]
    except (OSError, ValueError, KeyError, RecursionError):
        raise ConfigError(f"{directory}: not the directory of a sweep: it has no readable sweep.json") from None


def groups(study: Study, configs: Sequence[tuple[Setting, Any]]) -> list[Group]:
    """What can train together: the same model, every setting alike but for what is traced.

    Args:
        study: the experiment.
        configs: each setting with the config that it makes.

    Raises:
        ConfigError: two settings that would train the very same model.
    """
    for key in configs[0][0]:
        if key == "experiment" or key.startswith("mesh"):
            raise ConfigError(f"--grid: {key} cannot be swept; --set it for the whole sweep")
    tables = {json.dumps(study.columns(config)) for _, config in configs}
    if len(tables) > 1:
        raise ConfigError("--grid: these settings measure different things, which cannot be ranked; sweep each alone")
    found: dict[str, Group] = {}
    taken: dict[tuple[str, float, float], Setting] = {}
    for setting, config in configs:
        for model in study.models(config):
            everything = flat(config.model_dump(exclude={"mesh"}))
            fixed = {key: value for key, value in everything.items() if not key.startswith(TRACED)}
            clip_at = 0.0 if config.train.clip == "none" else study.settings(config, model).clip_at
            shape = json.dumps([model, fixed], sort_keys=True, default=str)
            settings = study.settings(config, model)
            same = taken.setdefault((shape, settings.learning_rate, clip_at), setting)
            if same is not setting:
                raise ConfigError(
                    f"--grid: {_written(same)} and {_written(setting)} train the same {model}: what differs has no "
                    f"effect on it. If model.learning_rates has a rate for it, that one counts: "
                    f"--set 'model.learning_rates={{}}' takes it away"
                )
            untraced = [f"{key}={value}" for key, value in setting.items() if not key.startswith(TRACED)]
            group = found.setdefault(shape, Group(", ".join([model, *untraced]), model, config, [], []))
            group.settings.append(setting)
            group.members.extend(
                training.Member(
                    seed, settings.learning_rate, settings.clip_at, {"model": model, **setting, "seed": seed}
                )
                for seed in config.train.seeds
            )
    return list(found.values())


def run(study: Study, configs: Sequence[tuple[Setting, Any]], directory: Path) -> list[Outcome]:
    """Train every group, then rank; a sweep that was stopped in this directory is resumed.

    All members take all steps: none stops early, and one that leaves the finite numbers does not stop the others.
    """
    everything = groups(study, configs)
    columns = study.columns(configs[0][1])
    outcomes = []
    train = configs[0][1].train
    with terminal.Display(train.steps, columns[0], block=train.block) as display:
        for group in everything:
            task = study.task(group.config, group.model)
            settings = study.settings(group.config, group.model)
            display.start(group.title, task.lower if task.score == columns[0].name else None, settings.steps)
            fit = training.fit(
                group.title,
                task._replace(stop_when=training.never),
                settings.model_copy(
                    update={"patience": 0, "nonfinite": "skip" if settings.nonfinite == "skip" else "record"}
                ),
                mesh=group.config.mesh,
                among=group.members,
                directory=directory,
                on_block=functools.partial(display.update, group.title),
                made_by=made_by(group.config),
            )
            display.finish(fit.result)
            outcomes += _outcomes(group, fit.result, task.score)
    ranked = best_first(outcomes, lower=task.lower)
    if jax.process_index() == 0:
        score = next(column for column in columns if column.name == task.score)
        write(directory, ranked, score)
        terminal.show_table(rows(ranked, score), [*notes(ranked), f"written to {directory}"])
    return ranked


def best_first(outcomes: Sequence[Outcome], *, lower: bool) -> list[Outcome]:
    """By the mean; where a seed was lost, last."""

    def place(outcome: Outcome) -> tuple[int, float]:
        return outcome.lost, (outcome.mean if lower else -outcome.mean) if not outcome.lost else 0.0

    return sorted(outcomes, key=place)


def write(directory: Path, ranked: Sequence[Outcome], score: report.Column) -> None:
    """The tables and figures of a sweep."""
    keys = list(ranked[0].setting)
    with (directory / "results.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["model", *keys, "seeds", "mean", "sd", "low", "high", "lost", "parameters", "steps"])
        for o in ranked:
            numbers = (len(o.seeds), o.mean, o.sd, *o.interval, o.lost, o.parameters, o.steps)
            table.writerow([o.model, *o.setting.values(), *numbers])
    with (directory / "members.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["model", *keys, "seed", score.name])
        for o in ranked:
            for seed, value in zip(o.seeds, o.scores.tolist(), strict=True):
                table.writerow([o.model, *o.setting.values(), seed, value])
    report.write_table(directory, rows(ranked, score), notes(ranked))
    figures.save(scores(ranked, score), directory / "scores.png")
    figures.save(curves(ranked, score), directory / "curves.png")


def rows(ranked: Sequence[Outcome], score: report.Column) -> list[tuple[str, ...]]:
    """The table, its header first."""
    keys = [key.split(".")[-1] for key in ranked[0].setting]
    header = ("model", *keys, score.title, "95 % interval of the mean", "lost", "parameters", "steps")
    body = [
        (
            o.model,
            *(str(value) for value in o.setting.values()),
            score.shown(o.scores),
            " … ".join(score.shown(np.array([end])) for end in o.interval) if len(o.seeds) > 1 else "–",
            f"{o.lost} of {len(o.seeds)}",
            f"{o.parameters:,}",
            f"{o.steps:,}",
        )
        for o in ranked
    ]
    return [header, *body]


def notes(ranked: Sequence[Outcome]) -> list[str]:
    return [
        "Mean ± standard deviation of the seeds, after the last step; the interval is Student's t. Lost: seeds whose "
        "loss, gradient, parameters or score left the finite numbers. The best first, by the mean; settings with lost "
        "seeds last."
    ]


def scores(ranked: Sequence[Outcome], score: report.Column) -> Figure:
    """A line for each setting: its seeds, the mean, and the confidence interval of the mean."""
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(ranked)), layout="constrained")
    axes = figure.subplots()
    for place, o in enumerate(ranked):
        colour = plotting.COLOURS[0]
        finite = o.scores[np.isfinite(o.scores)]
        axes.plot(finite, np.full(len(finite), place), ".", color=colour, alpha=0.35)
        if not o.lost:
            axes.plot(o.mean, place, "o", color=colour)
            if len(o.seeds) > 1:
                axes.plot(o.interval, (place, place), "-", color=colour, linewidth=2)
    axes.set_yticks(range(len(ranked)), [o.title for o in ranked], fontsize=8)
    axes.invert_yaxis()  # the best at the top
    axes.set_xlabel(f"{score.title}: seeds, mean, 95 % interval of the mean")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves(ranked: Sequence[Outcome], score: report.Column) -> Figure:
    panel = {o.title: o.curve for o in ranked[:SHOWN]}
    title = "Score" if len(ranked) <= SHOWN else f"Score of the best {SHOWN}"
    return report.draw({score.title: panel}, len(ranked[0].seeds), title=title, yscale="linear")


def _outcomes(group: Group, result: report.Result, score: str) -> list[Outcome]:
    """The group's result, a setting at a time."""
    steps, values = report.curve(result, lambda measured: measured[score])  # (members, points)
    values = values.astype(float)
    for block in result.history:  # an accuracy is finite even where nothing else is
        for at in block.nonfinite.values():
            values[at > 0, -1] = np.nan
    found = []
    for setting in group.settings:
        label = {"model": group.model, **setting}
        mine = [n for n, m in enumerate(group.members) if all(m.label[key] == value for key, value in label.items())]
        seeds = tuple(group.members[n].seed for n in mine)
        found.append(
            Outcome(group.model, setting, seeds, values[mine, -1], (steps, values[mine]), result.parameters, steps[-1])
        )
    return found


def _written(setting: Setting) -> str:
    return ", ".join(f"{key}={value}" for key, value in setting.items()) or "no grid"
