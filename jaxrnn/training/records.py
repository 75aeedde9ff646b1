"""What a training measured: lines of JSON, which a resumed run continues where its checkpoint was; TensorBoard, too."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn.training.checkpoints import CheckpointError


class Records:
    """A file of JSON lines, one a row, written at once, so that a run that stops keeps what it measured.

    Several trainings may write into one file, one after the other, their rows told apart by their labels.

    Args:
        path: the file; made with its directory on the first row.
        tensorboard: a directory for TensorBoard's event files, one subdirectory for each label; None writes none.
            Needs ``pip install 'jaxrnn[tensorboard]'``.
        write: whether this process writes; of several processes one does, and the others read.

    Example:
        >>> import tempfile, pathlib
        >>> from jaxrnn.training.records import Records
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     records, gru = Records(pathlib.Path(folder) / "metrics.jsonl"), [{"model": "gru"}]
        ...     written = records.append([{"step": 10, "loss": 0.5}], gru)
        ...     written_later = records.append([{"step": 20, "loss": float("nan")}], gru)
        ...     records.rewind(gru, 10) == written, list(records.rows())
        (True, [{'model': 'gru', 'step': 10, 'loss': 0.5}])
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None, write: bool = True) -> None:
        self.path = path
        self.write = write
        self.events = _Events(tensorboard) if tensorboard is not None and write else None

    def append(self, rows: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, Any]] | None = None) -> str:
        """Add rows, each with a "step" and behind its label. NaN and infinities, which JSON has not, become null.

        Returns:
            The lines.
        """
        labels = [{}] * len(rows) if labels is None else labels
        text = "".join(to_json({**a, **b}) + "\n" for a, b in zip(labels, rows, strict=True))
        if self.write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
            if self.events is not None:
                self.events.append(labels, rows)
        return text

    def rewind(self, labels: Sequence[Mapping[str, Any]] | None, step: int) -> str:
        """Forget the rows of these labels after a step: a resumed training measures them again, to the same digits.

        Returns:
            The lines of these labels that stay.
        """
        mine, kept, whole = list[str](), list[str](), self._lines()
        wanted = [json.loads(to_json(label)) for label in labels or [{}]]
        for line in whole:
            row = self._row(line)
            if row is None:  # half a line, the last: its process was killed
                continue
            its = any(all(row.get(name) == value for name, value in label.items()) for label in wanted)
            if its and row["step"] <= step:
                mine.append(line)
            if not its or row["step"] <= step:
                kept.append(line)
        if self.write and kept != whole:
            beside = self.path.with_name(f"{self.path.name}.new")
            beside.write_text("".join(kept), encoding="utf-8")
            beside.replace(self.path)
        return "".join(mine)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All whole rows."""
        for line in self._lines():
            if (row := self._row(line)) is not None:
                yield row

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []

    def _row(self, line: str) -> dict[str, Any] | None:
        try:
            return json.loads(line) if line.endswith("\n") else None
        except (ValueError, RecursionError):
            raise CheckpointError(f"{self.path}: expected a row in JSON, got {line.strip():.80}; remove it.") from None


class _Events:
    """TensorBoard's files: the label of a row says which curve it is, names such as "loss" are tags."""

    def __init__(self, directory: Path) -> None:
        try:
            # The writer that writes at once: SummaryWriter hands over to a thread, and a crash loses its queue.
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event
        except ImportError:
            raise ImportError("Records(tensorboard=…) needs tensorboardX: pip install 'jaxrnn[tensorboard]'") from None
        self.event, self.writer = Event, EventsWriter
        self.directory, self.writers = directory, dict[str, Any]()

    def append(self, labels: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
        for label, row in zip(labels, rows, strict=True):
            curve = " ".join(f"{value}" if name == "model" else f"{name}={value}" for name, value in label.items())
            if curve not in self.writers:
                (self.directory / curve).mkdir(parents=True, exist_ok=True)
                started = f".{time.time_ns()}"  # the name has seconds only: one run must not write over another
                self.writers[curve] = self.writer(str(self.directory / curve / "events"), started)
                # START: voids what an earlier run, which went beyond its checkpoint, wrote of this step and later.
                self.writers[curve].write_event(self.event(step=row["step"], session_log={"status": 1}))
            scalars = {
                name: float(value)
                for name, value in row.items()
                if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number) and name != "step"
            }
            values = [{"tag": name, "simple_value": value} for name, value in scalars.items()]
            event = self.event(wall_time=time.time(), step=row["step"], summary={"value": values})
            self.writers[curve].write_event(event)
        for writer in self.writers.values():
            writer.flush()


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON has no NaN and no infinity: they are written as null."""

    def plain(value: Any) -> Any:
        value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)
