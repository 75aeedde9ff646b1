"""What a training measured: lines of JSON, which a resumed run continues where its checkpoint was; TensorBoard, too."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn.training.checkpoints import CheckpointError


class Records:
    """A file of JSON lines, one a row, written at once, so that a run that stops keeps what it measured.

    Several trainings may write into one file, one after the other, their rows told apart by their labels. Half a line
    at the end, as a process that is killed leaves it, is cut off with a warning before more is written. A line that is
    no row is refused by its number (``checkpoints.CheckpointError``).

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
        if any("step" not in row for row in rows):
            raise ValueError(f"Records.append: every row needs a step, got {list(rows)!r:.80}; give {{'step': 0, …}}.")
        # The step ends the label: rows of labels that hold all of another's, and more, are others'.
        text = "".join(to_json({**a, "step": b["step"], **b}) + "\n" for a, b in zip(labels, rows, strict=True))
        if self.write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._cut_half_a_line()
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
            if self.events is not None:
                self.events.append(labels, rows)
        return text

    def rewind(self, labels: Sequence[Mapping[str, Any]] | None, step: int) -> str:
        """Forget the rows of these labels after a step: a resumed training measures them again, to the same digits.

        Returns:
            The lines of these labels that stay.
        """
        if self.write:
            self._cut_half_a_line()
        mine, kept, dropped = list[str](), list[str](), False
        wanted = [json.loads(to_json(label)) for label in labels or [{}]]
        for number, line, row in self._whole():
            its = not labels or _label_of(row) in wanted
            if its and (isinstance(row.get("step"), bool) or not isinstance(row.get("step"), int)):
                raise self._foreign(number, line.encode(), 'with a whole number as its "step"')
            if its and row["step"] <= step:
                mine.append(line)
            if not its or row["step"] <= step:
                kept.append(line)
            else:
                dropped = True
        if self.write and dropped:
            beside = self.path.with_name(f"{self.path.name}.new")
            beside.write_text("".join(kept), encoding="utf-8", newline="\n")
            beside.replace(self.path)
        return "".join(mine)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All whole rows; half a line at the end, as a process that is killed leaves it, is none."""
        for _, _, row in self._whole():
            yield row

    def _whole(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Of each whole line its number, itself and its row. A line ends where this class ends it, and nowhere else:
        strings may hold what Unicode calls the end of a line."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        for number, content in enumerate(lines, start=1):
            try:
                line = content.removesuffix(b"\r").decode() + "\n"  # \r: written on Windows
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise self._foreign(number, content, "in JSON") from None
            if not isinstance(row, dict):
                raise self._foreign(number, content, "in JSON")
            yield number, line, row

    def _foreign(self, number: int, content: bytes, expected: str) -> CheckpointError:
        came = f"{content.decode(errors='replace').strip():.80}" or "an empty line"
        return CheckpointError(f"{self.path}, line {number}: expected a row {expected}, got {came}; remove it.")

    def _cut_half_a_line(self) -> None:
        """What a process that was killed has left at the end: a row that follows would be part of it."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read() in (b"", b"\n"):
                return
        content = self.path.read_bytes()
        end, number = content.rfind(b"\n") + 1, content.count(b"\n") + 1
        os.truncate(self.path, end)
        warnings.warn(
            f"{self.path}: line {number}, the last, was half a line, as a process that is killed leaves it, and is cut "
            f"off: {content[end:].decode(errors='replace'):.80}",
            stacklevel=3,  # where append is called
        )


def _label_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What stands before the step."""
    return dict(itertools.takewhile(lambda entry: entry[0] != "step", row.items()))


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
    """JSON has no NaN and no infinity: they are written as null. What some readers take for the end of a line, and half
    a surrogate pair, which no file can hold, is written as an escape."""

    def plain(value: Any) -> Any:
        value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
