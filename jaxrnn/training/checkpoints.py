"""Checkpoints: the state of a training on disk, whole or not at all. Written and read by orbax.

    run/checkpoints/gru/1500/state   the arrays, one entry a leaf, named by its path
    run/checkpoints/gru/1500/note    JSON: the leaves' shapes, a checksum of all bits, and what the caller adds

A directory holds the newest two steps. A save that is killed leaves them as they were, and its rest is removed by the
next one. With several processes all of them call these functions, on one shared directory, and each writes the shards
that it holds.
"""

from __future__ import annotations

import gc
import json
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrnn._base import PyTree
from jaxrnn.training._leaves import checksum, described, differences, leaves_by_path, nonempty, rebuilt
from jaxrnn.training._quiet import quiet
from jaxrnn.training.batches import check_counts

FORMAT = "jaxrnn-checkpoint-1"
KEPT = 2  # should the last one turn out unreadable, there is one before it


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or must not be used, and why."""


class Restored(NamedTuple):
    """What ``restore`` found."""

    step: int
    state: PyTree
    note: dict[str, Any]


def save(directory: Path, step: int, state: PyTree, note: dict[str, Any] | None = None) -> None:
    """Write a checkpoint: once this returns, a crash at any moment leaves it or a later one.

    Args:
        directory: of this training alone; made where it is missing. On several hosts, one that all of them see.
        step: a number that grows from save to save. One that is there already is left as it is, a smaller one refused.
        state: a pytree of JAX arrays, typed keys included, placed and sharded in any way.
        note: JSON to keep beside it.

    Raises:
        CheckpointError: the disk is full, the directory cannot be written. Older checkpoints stay as they were. If
            nothing but the removal of an old one failed, a warning says so.
        ValueError: a step before the newest that is there.

    Example:
        >>> import tempfile, pathlib, jax, jaxrnn as jr
        >>> from jaxrnn.training import checkpoints
        >>> params = jr.gru(3, 4).init(jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints.save(pathlib.Path(folder), 100, params, {"lesson": 1})
        ...     step, restored, note = checkpoints.restore(pathlib.Path(folder), params)
        >>> step, note, bool((restored.W_hh == params.W_hh).all())
        (100, {'lesson': 1}, True)
    """
    ocp = _orbax()
    directory = Path(directory)
    check_counts("checkpoints.save", step=step)
    leaves = leaves_by_path(state)
    record = {
        "format": FORMAT,
        "leaves": described(leaves),
        "checksum": int(checksum(leaves)),
        "jax": jax.__version__,
        "note": note or {},
    }
    try:
        record["crc"] = _crc(record)
    except (TypeError, ValueError) as error:
        raise TypeError(f"checkpoints.save: note must be JSON: {error}; give numbers, strings, lists, dicts.") from None
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(nonempty(leaves)), note=ocp.args.JsonSave(record))
    try:
        with _manager(directory) as manager:
            steps = manager.all_steps()
            before = max(steps, default=step)
            if step not in steps and step >= before:
                manager.save(step, args=args)
    except Exception as error:
        with quiet():
            gc.collect()
        for rest in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(rest, ignore_errors=True)
        there = latest(directory)
        if there == step:
            warnings.warn(f"{directory}: an older checkpoint could not be removed: {_cause(error)}.", stacklevel=2)
            return
        kept = "no older checkpoint exists" if there is None else f"the checkpoint of step {there} is intact"
        raise CheckpointError(
            f"{directory}: the checkpoint of step {step} could not be written: {_cause(error)}; {kept}."
        ) from None
    if step not in steps and step < before:
        raise ValueError(
            f"checkpoints.save: {directory} has a checkpoint of step {before}, which is beyond step {step}; count on "
            f"from there, or name another directory."
        )


def latest(directory: Path) -> int | None:
    """The newest step that is whole; None where there is none."""
    return max(_steps(Path(directory)), default=None)


def restore(directory: Path, like: PyTree) -> Restored | None:
    """Read the newest checkpoint; None where there is none.

    Args:
        directory: as it was given to ``save``.
        like: the state that is expected: arrays or ``jax.ShapeDtypeStruct``, whose shardings the restored arrays get,
            on whatever devices and processes there are now.

    Raises:
        CheckpointError: files are damaged or missing, the checksum is another, the arrays are those of another model
            or optimiser, or somebody else's checkpoint lies there.
    """
    directory = Path(directory)
    step = latest(directory)
    if step is None:
        return None
    try:
        return _restore(directory, step, like)
    except CheckpointError:
        if latest(directory) in (step, None):
            raise
    return restore(directory, like)  # a training that runs has replaced it meanwhile


def _restore(directory: Path, step: int, like: PyTree) -> Restored:
    where = directory / str(step)
    ocp = _orbax()
    fix = _fix(directory, step)
    record = _record(where, fix)
    expected = leaves_by_path(like)
    differing = differences(record["leaves"], described(expected))
    if differing:
        raise CheckpointError(
            f"{where}: holds another state than the one expected: {differing}; it was written by a run with another "
            f"model, optimiser or seeds. Resume with the config that it was started with, or start a new run."
        )
    abstract = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in nonempty(expected).items()
    }
    try:
        with _manager(directory, read_only=True) as manager:
            arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(abstract, restore_args=arguments))
            leaves = manager.restore(step, args=args)["state"]
    except Exception as error:
        damage = _cause(error)
    else:
        damage = "" if int(checksum(leaves)) == record["checksum"] else "the checksum of its arrays is another"
    if damage:
        with quiet():
            gc.collect()
        raise CheckpointError(f"{where}: damaged: {damage}; {fix}.")
    return Restored(step, rebuilt(leaves, like), record["note"])


def note(directory: Path) -> dict[str, Any] | None:
    """What ``save`` was given beside the newest state, without reading the arrays; None where there is none."""
    directory = Path(directory)
    step = latest(directory)
    return None if step is None else _record(directory / str(step), _fix(directory, step))["note"]


def _fix(directory: Path, step: int) -> str:
    older = [number for number in _steps(directory) if number < step]
    return f"remove {directory / str(step)} to go on from " + (f"step {max(older)}" if older else "the start")


def _record(where: Path, fix: str) -> dict[str, Any]:
    try:
        record = json.loads((where / "note" / "metadata").read_text(encoding="utf-8"))
        written_by, crc = record.get("format"), record.pop("crc", None)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where}: damaged, or not a checkpoint of jaxrnn: {_cause(error)}; {fix}.") from None
    if written_by != FORMAT:
        raise CheckpointError(
            f"{where}: expected a checkpoint of the format {FORMAT!r}, got {written_by!r}: another program's, or "
            f"another version's; name another directory."
        )
    if crc != _crc(record):
        raise CheckpointError(f"{where}: damaged: the checksum of its note is another; {fix}.")
    return record


def _crc(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _steps(directory: Path) -> list[int]:
    """The steps that were written to their end."""
    if not directory.is_dir():
        return []
    ocp = _orbax()
    with quiet():
        return sorted(ocp.path.step.checkpoint_steps(directory.resolve()))


@contextmanager
def _manager(directory: Path, *, read_only: bool = False) -> Iterator[Any]:
    """Whoever reads must not clean up: another process may be writing."""
    ocp = _orbax()
    with quiet():
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else KEPT,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        manager = ocp.CheckpointManager(directory.resolve(), options=options)
        try:
            yield manager
        finally:
            manager.close()


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise ImportError("jaxrnn.training.checkpoints needs orbax-checkpoint: pip install 'jaxrnn[train]'") from None
    return ocp


def _cause(error: Exception) -> str:
    """The end of what tensorstore says, "No space left on device", without the path and the settings of its files."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].split(" [")[0]
    return text.split(" See full TensorStore details")[0].rsplit('": ', 1)[-1].rstrip(".")
