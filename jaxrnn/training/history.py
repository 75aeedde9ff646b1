"""What the blocks of a training measured: their results, as rows of a file and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxrnn._deprecated import warn_renamed
from jaxrnn.training.records import to_json

Labels = Sequence[Mapping[str, Any]] | None


class BlockResult(NamedTuple):
    """What one block measured; each value () or, of an ensemble, (N,)."""

    step: int  # the last of the block
    values: dict[str, np.ndarray]
    nonfinite: Mapping[str, np.ndarray] = MappingProxyType({})  # of each quantity: the first step it was not, or 0

    @property
    def lost(self) -> Mapping[str, np.ndarray]:
        """The old name of ``nonfinite``."""
        warn_renamed("BlockResult.lost", "BlockResult.nonfinite")
        return self.nonfinite


def check_labels(labels: Any) -> None:
    """Labels are one mapping or more, in JSON, that name nothing which a row has."""
    if labels is None:
        return
    mappings = isinstance(labels, Sequence) and all(isinstance(label, Mapping) for label in labels)
    if not mappings or not labels:
        raise (ValueError if mappings else TypeError)(
            f"training.fit: labels must be dicts, one a member, got {labels!r:.80}; give [{{'seed': 0}}], say, or None "
            f"where measures are plain numbers."
        )
    if taken := {"step", "not_finite"} & {name for label in labels for name in label}:
        raise ValueError(
            f"training.fit: {', '.join(map(repr, sorted(taken)))} cannot stand in a label: a row has it already; take "
            f"another name."
        )
    try:
        written = [to_json(dict(sorted(label.items()))) for label in labels]
    except (TypeError, ValueError) as error:
        raise TypeError(f"training.fit: labels must be JSON: {error}; give numbers and strings.") from None
    if twice := [label for label in written if written.count(label) > 1]:
        raise ValueError(
            f"training.fit: labels must tell the members apart, got {twice[0]} {len(twice)} times; add a number, such "
            f"as {{'seed': 0}}, to each."
        )


def to_rows(result: BlockResult, labels: Labels) -> list[dict[str, Any]]:
    """A row for each member; without labels, one."""
    taken = {"step", "not_finite", *(name for label in labels or [] for name in label)} & set(result.values)
    if taken:
        raise ValueError(
            f"training.fit: {', '.join(map(repr, sorted(taken)))} cannot be the name of a measure: a row has it "
            f"already; take another name."
        )
    if labels is None:
        if several := [f"{name!r}, of shape {np.shape(at)}" for name, at in result.nonfinite.items() if np.shape(at)]:
            raise ValueError(
                f"training.fit: nonfinite holds one place for each quantity, got more for {several[0]}; give labels, "
                f"one for each member."
            )
        return [{"step": result.step, **result.values, **_not_finite(result.nonfinite)}]
    for what, measured in (("measure", result.values), ("nonfinite", result.nonfinite)):
        for name, values in measured.items():
            if np.shape(values)[:1] != (len(labels),):
                raise ValueError(
                    f"training.fit: there are {len(labels)} labels, one for each member, but the {what} {name!r} has "
                    f"the shape {np.shape(values)}; give as many labels as it leads with members, or measure "
                    f"({len(labels)},)."
                )
    return [
        {
            "step": result.step,
            **{name: values[n] for name, values in result.values.items()},
            **_not_finite({name: at[n] for name, at in result.nonfinite.items()}),
        }
        for n in range(len(labels))
    ]


def _not_finite(steps: Mapping[str, Any]) -> dict[str, Any]:
    first = {name: int(at) for name, at in steps.items() if at}
    return {"not_finite": first} if first else {}


def from_rows(text: str, labels: Labels) -> list[BlockResult]:
    """The results from the lines of this training; each block wrote a row for each member."""
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    names_of_labels = {name for label in labels or [] for name in label}
    members, history = len(labels or [{}]), []
    for of_step in (rows[at : at + members] for at in range(0, len(rows), members)):
        names = [name for name in of_step[0] if name not in ("step", "not_finite") and name not in names_of_labels]
        values = {name: _array([row[name] for row in of_step], labels) for name in names}
        quantities = {name: None for row in of_step for name in row.get("not_finite", {})}
        nonfinite = {
            name: _array([row.get("not_finite", {}).get(name, 0) for row in of_step], labels) for name in quantities
        }
        history.append(BlockResult(of_step[0]["step"], values, nonfinite))
    return history


def _array(values: list[Any], labels: Labels) -> np.ndarray:
    """null stands for what was no finite number; JSON's floats are the float32 that they were."""
    array = np.array([np.nan if value is None else value for value in values])
    narrow = array.astype(np.float32) if array.dtype == np.float64 else array
    array = narrow if np.array_equal(narrow, array, equal_nan=True) else array
    return array if labels is not None else array[0]


def what_is_not_finite(result: BlockResult, labels: Labels, saved: int | None) -> str:
    """A sentence: of each member the first quantity that is not finite."""
    lines = []
    for n, label in enumerate(labels or [{}]):
        steps = [(int(np.atleast_1d(at)[n]), name) for name, at in result.nonfinite.items() if np.atleast_1d(at)[n]]
        if steps:
            step, name = min(steps)
            who = ", ".join(str(value) if key == "model" else f"{key} {value}" for key, value in label.items())
            are = "are" if name.endswith("s") and not name.endswith("ss") else "is"  # parameters, a loss
            lines.append(f"{who}{': ' if who else ''}the {name} {are} not finite at step {step}")
    kept = "" if saved is None else f" The state after step {saved} is saved."
    return "; ".join(lines) + "." + kept
