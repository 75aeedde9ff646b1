"""What the blocks of a training measured: their results, as rows of a file and back, and when to stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._checks import check_sizes, nearest
from jaxrnn._deprecated import warn_renamed

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


@checks_arguments(who="training.patience")
def patience(measure: str, blocks: int, *, lower: bool = True) -> Callable[[Sequence[BlockResult]], bool]:
    """Early stopping: a ``stop_when`` that is true once no member has had a better measure for so many blocks.

    Args:
        measure: the name of a measure.
        blocks: how many blocks without a new best value; what is not finite is none.
        lower: whether small values are good.

    Example:
        >>> import numpy as np
        >>> from jaxrnn import training
        >>> losses = [3.0, 2.0, 2.5, 2.1]
        >>> history = [training.BlockResult(10 * n, {"loss": np.array(loss)}) for n, loss in enumerate(losses, start=1)]
        >>> stop_when = training.patience("loss", 2)
        >>> stop_when(history[:3]), stop_when(history)
        (False, True)
    """
    check_sizes("training.patience", blocks=blocks)

    def stop_when(history: Sequence[BlockResult]) -> bool:
        known = history[-1].values
        if measure not in known:
            raise ValueError(
                f"training.patience: there is no measure {measure!r}{nearest(measure, known)}; the block gives "
                f"{', '.join(known)}."
            )
        values = np.stack([result.values[measure] for result in history]).astype(float)
        losses = np.where(np.isfinite(values), values if lower else -values, np.inf)
        return bool((len(history) - 1 - losses.argmin(0) >= blocks).all())

    return stop_when


def to_rows(result: BlockResult, labels: Labels) -> list[dict[str, Any]]:
    taken = {"step", "not_finite", *(name for label in labels or [] for name in label)} & set(result.values)
    if taken:
        raise ValueError(
            f"training.fit: {', '.join(map(repr, sorted(taken)))} cannot be the name of a measure: a row has it "
            f"already; take another name."
        )
    if labels is None:
        return [{"step": result.step, **result.values, **_not_finite(result.nonfinite)}]
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
    rows = [json.loads(line) for line in text.splitlines()]
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
