"""Three splits: train and validation to choose by, and the test split, which is handed out once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from experiments.data.records import Content, Record, refuse
from experiments.data.sequences import Sequences, check_numbers, classes_of, of_records

NAMES = ("train", "validation", "test")
ALSO = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation"}


class TestSplitError(RuntimeError):
    """Test data were asked for a second time."""

    __test__ = False  # pytest would collect it for its name


class Rule(NamedTuple):
    """How a file without splits is split."""

    validation: float  # shares
    test: float
    seed: int


Held = TypeVar("Held")


class ReadOnce:
    """What hands its test data to the final evaluation, the first call alone; ``test_reads`` counts it.

    So whatever chooses (a task, a sweep, early stopping) cannot have looked at them, and a second evaluation is an
    error, not a habit.
    """

    test_reads = 0

    def _handed_out(self, what: str, held: Held) -> Held:
        if self.test_reads:
            raise TestSplitError(
                f"the test {what} was read already: it is handed to the final evaluation, once. Choose by "
                "`validation`; evaluate all models in the place that has read it."
            )
        self.test_reads += 1
        return held


class Part(Protocol):
    """What belongs to one split."""

    @property
    def ids(self) -> tuple[str, ...]: ...


OfSplit = TypeVar("OfSplit", bound=Part)


class Parts(ReadOnce, Generic[OfSplit]):
    """What a model may learn from, what it is chosen by, and, once, what it is judged by: ``test()``."""

    def __init__(self, train: OfSplit, validation: OfSplit, test: OfSplit, *, rule: str = "") -> None:
        self.train, self.validation = train, validation
        self.rule = rule  # in words, for notes
        self.sizes = {"train": len(train.ids), "validation": len(validation.ids), "test": len(test.ids)}
        self._test = test

    def test(self) -> OfSplit:
        """The test split, for the final evaluation.

        Raises:
            TestSplitError: at the second call.
        """
        return self._handed_out("split", self._test)

    def again(self) -> Self:
        """The same for another run, which may read its test split once."""
        other = copy.copy(self)
        other.test_reads = 0
        return other


class Splits(Parts[Sequences]):
    """Sequences, as a file of one's own holds them."""

    def __init__(
        self,
        train: Sequences,
        validation: Sequences,
        test: Sequences,
        *,
        classes: Sequence[int | str] = (),
        rule: str = "",
    ) -> None:
        super().__init__(train, validation, test, rule=rule)
        self.classes = tuple(classes)  # none where there are no labels

    @property
    def features(self) -> int:
        """I, of a step."""
        return self.train.xs[0].shape[1]

    @property
    def outputs(self) -> int:
        """O, the numbers of a target at one step; 0 where there are none."""
        return self.train.targets[0].shape[1] if self.train.targets else 0


def split(
    path: Path | str, content: Content, rule: Rule, *, wants: Sequence[str] = (), classes: Sequence[int | str] = ()
) -> Splits:
    """Check the content of a file and split it.

    A file that says of each sequence whether it is of ``train``, ``validation`` or ``test`` is taken at its word; where
    it has no validation, that is drawn from its train by the rule. Else the rule draws both:

        u = SHA-256("seed:id") / 2**256        test if u < test, validation if u < test + validation, else train

    So a sequence keeps its split whatever else is in the file. Sequences of the same ``group`` (a speaker, a patient)
    stay together: their group stands in place of their id.

    Args:
        path: for messages.
        content: what a reader has made of the file.
        rule: the shares and the seed.
        wants: "label" or "target", or both, where the experiment cannot do without.
        classes: those that there may be; none means those that occur.

    Raises:
        DataError: one line that names file, key, row and the fix.
    """
    records = content.records
    for key in wants:
        lacking = next((record for record in records if getattr(record, key) is None), None)
        if lacking is not None:
            refuse(
                path,
                lacking.row,
                f"key {key!r}",
                what="is missing, and this experiment needs it",
                fix="give each sequence a class" if key == "label" else "give the numbers of each step",
            )
    seen: dict[str, Record] = {}
    for record in records:
        other = seen.setdefault(record.id, record)
        if other is not record:
            refuse(
                path, record.row, "key 'id'", what=f"{record.id!r} is that of {other.row} too", fix="give each its own"
            )
    check_numbers(path, content)
    known = classes_of(path, records, classes) if "label" in wants or records[0].label is not None else ()
    places, how = _places(path, records, rule)
    for name in NAMES:
        if not places[name]:
            refuse(
                path,
                f"split {name!r}",
                what=f"is empty: {how} gives " + ", ".join(f"{len(places[n])} {n}" for n in NAMES),
                fix=f"give more sequences, another data.seed or share, or the split of each ({', '.join(NAMES)})",
            )
    parts = {name: of_records([records[n] for n in places[name]], known, path) for name in NAMES}
    if known:
        for n, label in enumerate(known):
            assert parts["train"].labels is not None
            if not (parts["train"].labels == n).any():
                refuse(
                    path,
                    "split 'train', key 'label'",
                    what=f"has no sequence of the class {label!r}",
                    fix="give some, or leave the class out",
                )
    return Splits(parts["train"], parts["validation"], parts["test"], classes=known, rule=how)


def _places(path: Path | str, records: Sequence[Record], rule: Rule) -> tuple[dict[str, list[int]], str]:
    """Which records belong to each split, and by what rule, in words."""
    places: dict[str, list[int]] = {name: [] for name in NAMES}
    shares = f"the SHA-256 of seed {rule.seed} and id or group"
    if all(record.split is None for record in records):
        for n, record in enumerate(records):
            u = share(record, rule.seed)
            places["test" if u < rule.test else "validation" if u < rule.test + rule.validation else "train"].append(n)
        return places, f"{shares} ({rule.validation:g} validation, {rule.test:g} test)"
    for n, record in enumerate(records):
        name = str(record.split or "").strip().lower()
        name = ALSO.get(name, name)
        if name not in NAMES:
            refuse(
                path,
                record.row,
                "key 'split'",
                what=f"expected {', '.join(NAMES[:-1])} or {NAMES[-1]}, got {record.split!r}",
                fix="say it for every sequence, or for none",
            )
        places[name].append(n)
    if places["validation"]:
        return places, "the file"
    whole, places["train"] = places["train"], []
    for n in whole:
        places["validation" if share(records[n], rule.seed) < rule.validation else "train"].append(n)
    return places, f"the file, and within its train {shares} ({rule.validation:g} validation)"


def share(record: Record, seed: int) -> float:
    """u in [0, 1), a function of the seed and of the group or id alone."""
    return share_of(record.id if record.group in (None, "") else str(record.group), seed)


def share_of(name: str, seed: int) -> float:
    """u = SHA-256("seed:name") / 2**256."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()) / 2**256


def statistics(train: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """``(mean, sd)`` (I,) of all steps of the training split; 1 for the sd of what never changes."""
    steps = np.concatenate(train.xs).astype(np.float64)
    sd = steps.std(0)
    return steps.mean(0).astype(np.float32), np.where(sd > 0, sd, 1).astype(np.float32)
