"""``[data]`` of a config, and the config of an experiment that reads sequences from it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from experiments.data import files
from experiments.data.records import Content, DataError
from experiments.data.splits import Rule, Splits, split
from experiments.runner.config import Seed, Table, Trained

Share = Annotated[float, Field(gt=0, lt=0.5)]


class Source(Table):
    """``[data]``: which sequences."""

    path: str = ""  # a file of one's own (docs/own_data.md); "": what the experiment brings
    validation: Share = 0.2  # of a file that does not say its splits
    test: Share = 0.2
    seed: Seed = 0  # draws the splits, and nothing else
    buckets: int = Field(default=2, gt=0)  # lengths to which batches are padded: each is a program to be compiled
    classes: tuple[int | str, ...] = Field(default=(), strict=False)  # which labels there may be; (): those that occur
    sha256: str = ""  # of the file, filled in when a run begins; another one is another run

    @model_validator(mode="before")
    @classmethod
    def the_file_is_known_by_its_digest(cls, given: Any) -> Any:
        path = given.get("path") if isinstance(given, dict) else None
        if isinstance(path, str) and files.path_of(path).is_file() and not given.get("sha256"):
            return {**given, "sha256": files.digest(files.path_of(path))}
        return given

    @field_validator("path")
    @classmethod
    def there_is_such_a_file(cls, path: str) -> str:
        if path:
            files.check_file(files.path_of(path))
        return path

    @field_validator("sha256")
    @classmethod
    def the_file_is_still_the_same(cls, before: str, info: ValidationInfo) -> str:
        path = info.data.get("path")  # missing where it was wrong itself
        if before and path and (now := files.digest(files.path_of(path))) != before:
            raise ValueError(
                f"{path} has changed: it was {before:.12}… when the run began, and is {now:.12}… now; put the old file "
                f"back, or start a new run"
            )
        return before

    @property
    def rule(self) -> Rule:
        return Rule(self.validation, self.test, self.seed)


class Reading(Trained):
    """The configuration of an experiment that learns from what it reads, in batches by length."""

    @model_validator(mode="after")
    def batches_differ_in_shape(self) -> Reading:
        if self.train.accumulate > 1:
            raise ValueError(
                f"train.accumulate: expected 1, as batches by length differ in shape, got {self.train.accumulate}"
            )
        return self


class WithData(Reading):
    """The configuration of an experiment that learns from sequences, its own or those of ``data.path``.

    ``config.splits`` has them; its test split is read in ``conclude``, once.
    """

    data: Source = Source()
    wants: ClassVar[tuple[str, ...]] = ("label",)  # what the experiment cannot do without: "label", "target"
    brings: ClassVar[str] = "made by the experiment"  # in words, where there is no data.path
    _splits: Splits | None = PrivateAttr(default=None)

    @classmethod
    def own(cls) -> Content:
        """The sequences that the experiment brings."""
        raise DataError("data.path: this experiment brings no data; expected --set data.path=FILE")

    @property
    def splits(self) -> Splits:
        """Those of this run, read at the first call."""
        if self._splits is None:
            self.read_data()
        assert self._splits is not None
        return self._splits

    @classmethod
    def check(cls, path: Path | str, content: Content) -> None:
        """Refuse (``records.refuse``) what the experiment cannot use, of all splits, before there are any."""

    def read_data(self) -> None:
        """Read and check the sequences: the commands call it before a run has a directory.

        Raises:
            DataError: one line that names the key of the config, and what is wrong with the file.
        """
        try:
            found = _read(type(self), self.data).again()
        except DataError as error:
            message = str(error)
            raise DataError(message if message.startswith("data.") else f"data.path: {message}") from None
        there, of = found.sizes["train"], self.train
        if of.batch_size > there:
            raise DataError(
                f"train.batch_size: expected at most {there}, the number of training sequences, got {of.batch_size}"
            )
        self._splits = found

    def about_the_data(self) -> str:
        """Which sequences, and how they were split, for the notes under a table."""
        name = f"{Path(self.data.path).name} (SHA-256 {self.data.sha256:.12})" if self.data.path else self.brings
        sizes = ", ".join(f"{number} {of}" for of, number in self.splits.sizes.items())
        read = "was read once, at the end" if self.splits.test_reads else "was not read"
        return f"Sequences: {name}; {sizes}, split by {self.splits.rule}. The test split {read}."


@functools.lru_cache(maxsize=2)  # a sweep makes many configs of one file
def _read(of: type[WithData], source: Source) -> Splits:
    content = files.read(files.path_of(source.path)) if source.path else of.own()
    where = source.path or "the data that the experiment brings"
    of.check(where, content)
    return split(where, content, source.rule, wants=of.wants, classes=source.classes)
