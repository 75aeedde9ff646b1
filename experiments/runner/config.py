"""Configuration: TOML files that hold what differs from the defaults, ``--set`` on top, one error a mistake.

    configs/digits.toml: train.stpes: unknown key; did you mean 'steps'?
    --set: train.learning_rate: expected a number above 0, got -1

An experiment declares its tables as pydantic models; what is wrong is said before JAX is asked for anything.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from experiments import EXPERIMENTS
from experiments.runner import own
from jaxrnn._checks import nearest

OWN = "; one of your own is a folder of that name, beside the config file or in the current directory"
SHORT = {"train.lr": "train.learning_rate"}  # on the command line


class ConfigError(Exception):
    """What is wrong with a configuration, a line for each mistake."""


Entry = TypeVar("Entry")


def _some_and_all_different(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    if not entries or len(set(entries)) < len(entries):
        raise ValueError(f"expected one entry or more, all different, got {_toml(entries)}")
    return entries


# Strict mode would refuse the list that TOML gives for a tuple; the entries themselves stay strict.
Many = Annotated[tuple[Entry, ...], Field(strict=False), AfterValidator(_some_and_all_different)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0)]


class Table(BaseModel):
    """A TOML table: no key that it does not know, no value of another type, no change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Train(Table):
    """``[train]``, the same for every experiment."""

    log_every: int = Field(default=50, gt=0)  # the steps of a block: one compiled call, one line of metrics
    steps: int = Field(default=2000, gt=0, validate_default=True)
    batch_size: int = Field(default=32, gt=0)
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Rate = 3e-3
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate: cosine ends at 0
    clip: Literal["global_norm", "value", "adaptive", "none"] = "global_norm"
    clip_at: float = Field(default=1.0, gt=0)  # the largest global norm, value, or share of the weights' norm
    seeds: Many[Seed] = (0, 1, 2, 3)
    accumulate: int = Field(default=1, gt=0, le=2**16)  # batches of batch_size that make one step
    precision: Literal["float32", "bfloat16"] = "float32"  # of what cells compute; parameters and sums are float32
    nonfinite: Literal["stop", "skip", "record"] = "stop"  # at a loss or gradient that is no finite number
    patience: int = Field(default=0, ge=0)  # blocks without a better held-out measure after which to stop; 0: never
    save_every: int = Field(default=5, gt=0)  # blocks between two checkpoints
    tensorboard: bool = False  # event files beside metrics.jsonl

    @property
    def block(self) -> int:
        return min(self.log_every, self.steps)

    @field_validator("steps")
    @classmethod
    def steps_make_whole_blocks(cls, steps: int, info: ValidationInfo) -> int:
        every = info.data.get("log_every", 1)  # missing where it was wrong itself
        if steps > every and steps % every:
            raise ValueError(f"expected a multiple of train.log_every ({every}), got {steps}")
        return steps


class Mesh(Table):
    """``[mesh]``: how the devices are shared; all processes' devices count."""

    members: int = Field(default=0, ge=0)  # devices that divide the seeds among them; 0: as many as divide their number
    batch: int = Field(default=1, gt=0)  # devices that divide the batch of each seed


class Trained(Table):
    """The configuration of an experiment that trains."""

    experiment: str
    train: Train = Train()
    mesh: Mesh = Mesh()

    @model_validator(mode="after")
    def devices_divide_the_batch(self) -> Trained:
        if self.train.batch_size % self.mesh.batch:
            raise ValueError(
                f"mesh.batch: expected a divisor of train.batch_size ({self.train.batch_size}), got {self.mesh.batch}"
            )
        return self


def load(
    path: Path,
    overrides: Sequence[str],
    schema_of: Callable[[str], type[Any]],
    *,
    grid: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Read a config file, put the overrides on top, and check it all.

    Args:
        path: a TOML file whose ``experiment`` names the experiment.
        overrides: ``"train.steps=200"``, the value as in TOML; a bare word that is no TOML is a string.
        schema_of: the model (a Table) for the name of an experiment.
        grid: values by dotted key, from ``--grid``, above all.

    Raises:
        ConfigError: with a line for each mistake.
    """
    content = _read(path)
    source = {_override(content, text): "--set" for text in overrides}
    for key, value in grid.items():
        source[_put(content, f"--grid {key}", tuple(key.split(".")), value)] = "--grid"

    def located(loc: Sequence[int | str], message: str) -> str:
        said_by = [option for keys, option in source.items() if all(a == b for a, b in zip(keys, loc, strict=False))]
        return f"{said_by[-1] if said_by else path}: {_dotted(loc)}: {message}"

    name = content.get("experiment")
    try:
        found = own.find(name, path)
    except own.OwnError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(name, str) or not found:
        known = " or ".join(map(repr, EXPERIMENTS))
        came = f"got {_toml(name)}{nearest(name, EXPERIMENTS, OWN)}" if "experiment" in content else "it is missing"
        raise ConfigError(located(("experiment",), f"expected {known}, {came}"))
    schema = schema_of(name)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        lines = []
        for mistake in error.errors():
            loc, message = mistake["loc"], _explain(mistake, schema)
            if not loc:  # a validator of the whole, which names the key first
                key, _, message = message.partition(": ")
                loc = tuple(key.split("."))
            lines.append(located(loc, message))
        raise ConfigError("\n".join(lines)) from None


def load_again(
    directory: Path, path: Path | None, overrides: Sequence[str], schema_of: Callable[[str], type[Any]]
) -> Any:
    """The config that a run was started with, ``[mesh]`` as it is now; any other change would be another run.

    Args:
        directory: of the run.
        path: a config file that is to say the same; None reads the run's own.
        overrides, schema_of: as for ``load``; with ``path`` None on top of the run's config.

    Raises:
        ConfigError: with a line for each key that differs.
    """
    if not (directory / "config.toml").is_file():
        raise ConfigError(f"{directory}: not a run directory: it has no config.toml")
    started = load(directory / "config.toml", [], schema_of)
    now = load(path or directory / "config.toml", overrides, schema_of)
    before, after = (flat(config.model_dump(exclude={"mesh"})) for config in (started, now))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if changed:
        lines = [f"{key}: {_toml(before.get(key))} when it was started, {_toml(after.get(key))} now" for key in changed]
        raise ConfigError("\n".join(f"{directory}: {line}" for line in [*lines, "start a new run for another config"]))
    return now


def flat(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Values by their dotted keys."""
    items: dict[str, Any] = {}
    for key, value in table.items():
        items |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return items


def dump(config: Table) -> str:
    """The whole config as TOML, which ``load`` reads again."""
    return tomli_w.dumps(config.model_dump())


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = [str(other) for other in path.parent.glob("*.toml")]
        raise ConfigError(f"{path}: no such file{nearest(path, there, '')}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError both are
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def _override(content: dict[str, Any], text: str) -> tuple[str, ...]:
    """Put one ``key=value`` into the content; returns the keys that lead to it."""
    dotted, equals, written = text.partition("=")
    keys = tuple(key.strip() for key in SHORT.get(dotted.strip(), dotted).split("."))
    if not equals or not all(keys):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, such as train.steps=200")
    return _put(content, f"--set {text}", keys, _value(f"--set {text}", written.strip()))


def _put(content: dict[str, Any], option: str, keys: tuple[str, ...], value: Any) -> tuple[str, ...]:
    table = content
    for depth, key in enumerate(keys[:-1], start=1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{option}: {_dotted(keys[:depth])} is a value, not a table of keys")
    table[keys[-1]] = value
    return keys


def _value(option: str, written: str) -> Any:
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        # A word, or a path; shells swallow the quotes that TOML wants.
        if re.fullmatch(r"[A-Za-z_][\w./-]*|[\w./~\\:@+ -]*[/\\.][\w./~\\:@+ -]*", written):
            return written
        raise ConfigError(f"{option}: {written or 'nothing'} is not a TOML value") from None


def grid_of(options: Sequence[str]) -> dict[str, list[Any]]:
    """``["train.learning_rate=1e-3,3e-3"]`` -> the values by key.

    Raises:
        ConfigError: what is no KEY=VALUE,VALUE, a key or a value that is there twice.
    """
    grid: dict[str, list[Any]] = {}
    for text in options:
        key, equals, written = (part.strip() for part in text.partition("="))
        if not equals or not all(key.split(".")) or not written:
            raise ConfigError(f"--grid {text}: expected KEY=VALUE,VALUE,…, such as model.hidden_size=32,64")
        try:
            values = tomllib.loads(f"values = [{written}]")["values"]
        except tomllib.TOMLDecodeError:
            values = [_value(f"--grid {text}", word.strip()) for word in written.split(",")]
        key = SHORT.get(key, key)
        if key in grid or any(values.count(value) > 1 for value in values):
            raise ConfigError(f"--grid {text}: expected every key and every value once")
        grid[key] = values
    return grid


WANTED = {
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "string_type": "expected a string",
    "bool_type": "expected true or false",
    "tuple_type": "expected a list",
    "model_type": "expected a table of keys",
    "greater_than": "expected a number above {gt:g}",
    "greater_than_equal": "expected a number of at least {ge:g}",
    "less_than": "expected a number below {lt:g}",
    "less_than_equal": "expected a number of at most {le:g}",
    "literal_error": "expected {expected}",
}


def _explain(mistake: Any, schema: type[Table]) -> str:
    """One pydantic error in the words of someone who writes a config file."""
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind == "extra_forbidden":
        *tables, key = mistake["loc"]
        known = _table_at(schema, tables).model_fields
        return "unknown key" + nearest(key, known, f"; the keys are {', '.join(known)}")
    if kind == "value_error":  # a validator of ours, which says it all
        return str(context["error"])
    choices = re.findall(r"'([^']*)'", context["expected"]) if kind == "literal_error" else []
    wanted = WANTED[kind].format(**context) if kind in WANTED else mistake["msg"]
    return f"{wanted}, got {_toml(mistake['input'])}{nearest(mistake['input'], choices, '')}"


def _table_at(schema: type[Table], tables: Sequence[str]) -> type[Table]:
    at: Any = schema
    for name in tables:
        # Of tables by names of the user's own, dict[str, Table], the name is no field.
        at = get_args(at)[1] if get_origin(at) is dict else at.model_fields[name].annotation
    assert isinstance(at, type) and issubclass(at, Table)
    return at


def _toml(value: Any) -> str:
    """A value as it would be written in the file."""
    return json.dumps(value, default=str, ensure_ascii=False).replace('"', "'")


def _dotted(loc: Sequence[int | str]) -> str:
    parts = [part for part in loc if part != "[key]"]  # pydantic's mark for a name in a table of our own choice
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
