"""What an experiment hands over to the report of its run: strings, maps, images, errors by class or length.

    study.Conclusion(…, samples=[Words(title="Some test strings", header=("read", "said"), rows=(("a b", "b a"),))])

or, where the experiment has a ``run`` of its own, ``samples.write(directory, […])``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from jaxrnn.training.records import to_json

FILE = "samples.json"
Values = tuple[tuple[float | None, ...], ...]  # None: no finite number


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Said(Part):
    """A cell of Words that is right or wrong."""

    text: str
    right: bool


class Words(Part):
    """Strings, a row for each example: what was read, what was said, what should have been."""

    kind: Literal["words"] = "words"
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | Said, ...], ...]
    note: str = ""

    @model_validator(mode="after")
    def rows_are_as_long_as_the_header(self) -> Words:
        _all_of_length("rows", self.rows, len(self.header))
        return self


class Map(Part):
    """Numbers by row and column: attention, a piano roll, gates."""

    kind: Literal["map"] = "map"
    title: str
    values: Values  # (rows, columns)
    rows: tuple[str, ...] = ()  # their names, as many as there are, or none
    columns: tuple[str, ...] = ()
    ylabel: str = ""
    xlabel: str = ""
    low: float = 0.0  # drawn as nothing
    high: float = 1.0  # drawn full
    note: str = ""
    figure: str = ""  # the file of a figure that shows the same, which the page then leaves out

    @model_validator(mode="after")
    def is_a_matrix(self) -> Map:
        _all_of_length("values", self.values, len(self.values[0]) if self.values else 0)
        if not self.values or not self.values[0]:
            raise ValueError("values: expected a row and a column or more")
        if self.rows and len(self.rows) != len(self.values):
            raise ValueError(f"rows: expected {len(self.values)} names, got {len(self.rows)}")
        if self.columns and len(self.columns) != len(self.values[0]):
            raise ValueError(f"columns: expected {len(self.values[0])} names, got {len(self.columns)}")
        return self


class Tile(Part):
    """A small image and what is said of it."""

    values: Values  # (rows, columns) from 0 to 1
    caption: str

    @model_validator(mode="after")
    def is_a_matrix(self) -> Tile:
        _all_of_length("values", self.values, len(self.values[0]) if self.values else 0)
        return self


class Tiles(Part):
    """Images side by side."""

    kind: Literal["tiles"] = "tiles"
    title: str
    tiles: tuple[Tile, ...]
    note: str = ""


class Groups(Part):
    """A measure for each class, length …, of every seed of every model."""

    kind: Literal["groups"] = "groups"
    title: str
    axis: str  # what the groups are: "digit", "length"
    groups: tuple[str, ...]
    by_model: dict[str, Values]  # (seeds, groups)
    form: str = "%"  # as a report.Column's
    bad: Literal["high", "low"] = "high"  # which values are shaded
    note: str = ""

    @model_validator(mode="after")
    def every_seed_has_every_group(self) -> Groups:
        for model, values in self.by_model.items():
            _all_of_length(f"by_model.{model}", values, len(self.groups))
        return self


Sample = Annotated[Words | Map | Tiles | Groups, Field(discriminator="kind")]
_MANY = TypeAdapter(list[Sample])


def write(directory: Path, samples: Sequence[Sample]) -> None:
    """Beside the run's other files."""
    text = to_json([sample.model_dump(mode="json") for sample in samples], indent=None)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")


def read(directory: Path) -> list[Sample]:
    """Those of a run; none where it has handed over none.

    Raises:
        ValueError: in one line, what is wrong with the file.
    """
    if not (directory / FILE).exists():
        return []
    try:
        return _MANY.validate_json((directory / FILE).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def _all_of_length(what: str, rows: Sequence[Sequence[object]], length: int) -> None:
    for number, row in enumerate(rows):
        if len(row) != length:
            raise ValueError(f"{what}: expected rows of {length}, got {len(row)} in row {number}")
