"""Train for many blocks of steps: measure, record, save, stop, and go on where a run before was stopped."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import PyTree
from jaxrnn._checks import check_choice
from jaxrnn._deprecated import moved_names, renamed_keywords, warn_renamed
from jaxrnn.training import checkpoints
from jaxrnn.training._description import described, other, other_measures
from jaxrnn.training.history import BlockResult, check_labels, from_rows, to_rows, what_is_not_finite
from jaxrnn.training.locking import alone
from jaxrnn.training.records import Records, to_json
from jaxrnn.training.steps import Best
from jaxrnn.training.stopping import Patience

# state -> (state, measures, for each quantity the place in the block, from 1, where it was first not finite, or 0)
Block = Callable[[PyTree], tuple[PyTree, Mapping[str, jax.Array], Mapping[str, jax.Array]]]
_log = logging.getLogger(__name__)


class Fitted(NamedTuple):
    """A training that came to its end."""

    state: PyTree
    history: list[BlockResult]
    seconds: float  # of all its runs, compilation included
    resumed: bool = False  # it went on from a checkpoint
    already_finished: bool = False  # that checkpoint was its last: everything is read from there, and nothing was run
    best: Best | None = None  # what ``training.patience(keep=…)`` has kept

    @property
    def points(self) -> list[BlockResult]:
        """The old name of ``history``."""
        warn_renamed("Fitted.points", "Fitted.history")
        return self.history


class NonFiniteError(FloatingPointError):
    """A loss or a gradient that is no finite number any more."""


class Interrupted(Exception):
    """Ctrl-C, or the end of a job's time: everything is saved."""

    def __init__(self, step: int, saved: bool) -> None:
        super().__init__(f"stopped after step {step}" + (", which is saved" if saved else "; nothing was to be saved"))


@renamed_keywords(enough="stop_when", on_point="on_block")
@checks_arguments(who="training.fit")
def fit(
    block: Block,
    state: PyTree,
    *,
    steps: int,
    block_steps: int,
    records: Records | None = None,
    labels: Sequence[Mapping[str, Any]] | None = None,
    checkpoint: Path | None = None,
    save_every: int = 5,
    nonfinite: str = "stop",
    stop_when: Callable[[Sequence[BlockResult]], bool] | None = None,
    on_block: Callable[[BlockResult], None] | None = None,
    config: Mapping[str, Any] | None = None,
    model: Any = None,
    strict: bool = False,
) -> Fitted:
    """Run a compiled block of steps again and again until the steps are done, and lose nothing on the way.

    Killed at any moment, a later call with the same arguments goes on from the newest checkpoint and comes to the same
    parameters and the same records, bit by bit: whatever the block needs (keys, counters, the optimiser's state) is in
    the state. Ctrl-C and SIGTERM end the block that runs, save and raise; a second one leaves without saving.

    A training that has ended is read, not run: ``Fitted.already_finished`` says so. Whether the checkpoint is of *this*
    training is judged by what is kept beside the state. Another ``config``, other labels, other shapes or dtypes are
    refused. Another tree of the state, such as an optimiser of other parts has, other specs of ``model``, other names
    of measures are told by a warning, or refused with ``strict``. Other code that computes with the same shapes (a
    loss, a learning rate, data) cannot be seen: put what may change into ``config``, and a version of the code.

    Args:
        block: ``state -> (state, measures, nonfinite)``, jitted, without donation: ``block_steps`` steps. Measures are
            numbers, or (N,) for an ensemble. Nonfinite has an entry for each quantity that is watched, such as "loss":
            the place in the block (from 1) where it was first not finite, or 0, as ``training.first_nonfinite`` gives.
        state: before the first step: a pytree of JAX arrays.
        steps: all steps, a multiple of ``block_steps``.
        block_steps: of one call.
        records: where each block's measures are written, a row for each member. None with a checkpoint means
            ``metrics.jsonl`` beside the checkpoints: a resumed training has its history from there.
        labels: what the rows of a member begin with, ``{"model": "gru", "seed": 3}``, N of them; None where measures
            are plain numbers. They also tell this training's rows from others in the same file.
        checkpoint: the directory of this training's checkpoints; None saves nothing. On several processes the same one.
            While the training runs it is locked: a second one is refused (``training.locking.alone``).
        save_every: how many blocks lie between two checkpoints; the last block is saved always.
        nonfinite: "stop" raises at the first quantity that is not finite, once the state before that block is saved;
            "record" goes on; the history says where it was.
        stop_when: whether to stop before ``steps``, given the history so far: ``training.patience`` makes such a
            function, and says what is kept of the best block.
        on_block: called with the result of each block, and before them with the last result that was restored.
        config: JSON that is kept beside the state; a training that was started with another is not resumed.
        model: the cells or layers that are trained, one or a tree of them, whose specs are kept beside the state.
        strict: whether a checkpoint that was written by another training, as far as can be seen, is refused; else it is
            told by a warning.

    Returns:
        A Fitted. Of a training that had ended already, what is stored.

    Raises:
        NonFiniteError: says which member, quantity and step. Interrupted: once all is saved.
        checkpoints.CheckpointError: a checkpoint cannot be written or is not of this training; another training is at
            work in its directory.
        TypeError: a block that returns something else, a config that is no JSON, a model that is none.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxrnn import training
        >>> learn = training.loop(lambda key: jnp.ones(2), lambda w, x, key: ((w - x) @ (w - x), {}), optax.sgd(0.1))
        >>> @jax.jit
        ... def block(state):
        ...     state, measures = learn.run(state, lambda key, n: jnp.array([3.0, 4.0]), 10)
        ...     return state, {"loss": measures["loss"][-1]}, {"loss": training.first_nonfinite(measures["loss"])}
        >>> fitted = training.fit(block, learn.init(jax.random.key(0)), steps=50, block_steps=10)
        >>> [result.step for result in fitted.history], [round(float(w), 2) for w in fitted.state.params]
        ([10, 20, 30, 40, 50], [3.0, 4.0])
    """
    check_choice("training.fit", "nonfinite", nonfinite, ("stop", "record"))
    if not callable(block):
        raise TypeError(f"training.fit: block must be a function of the state, got {block!r} ({type(block).__name__}).")
    if not jax.tree.leaves(state):
        raise ValueError(f"training.fit: state must hold arrays, got {state!r}.")
    _check_state(state)
    if steps % block_steps:
        raise ValueError(f"training.fit: steps must be a multiple of block_steps={block_steps}, got {steps}.")
    check_labels(labels)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    if checkpoint is not None and records is None:
        records = Records(checkpoint / "metrics.jsonl", write=jax.process_index() == 0)
    own = {"steps": steps, "block_steps": block_steps}  # a config may have its own, of another meaning
    theirs = {f"config.{n}" if n in own and own[n] != v else n: v for n, v in (config or {}).items()}
    same = _as_json({**own, **theirs})
    description = described(state, model, labels)
    patience, members = stop_when if isinstance(stop_when, Patience) else None, None if labels is None else len(labels)
    kept = None if patience is None else patience.kept(state, members)
    if patience is not None and kept is not None:
        description["keeps"] = {"best": patience.measure, "lower": patience.lower}

    with _asked_to_stop() as asked, nullcontext() if checkpoint is None else alone(checkpoint):
        began, history, step, spent, crc, finished = time.perf_counter(), list[BlockResult](), 0, 0.0, 0, False
        restored = None if checkpoint is None else _restored(checkpoint, _stored(state, kept), same, description)
        saved = -1
        if restored is not None:
            saved, stored, note = restored
            state, kept = (stored, None) if kept is None else (stored["state"], stored["best"])
            step, spent, crc, finished = saved, note["seconds"], note["crc"], note["finished"]
            before = note.get("training", description)  # earlier versions kept none
            _tell(checkpoint, other(before, description), strict)
            if finished and isinstance(block, jax.stages.Wrapped):  # of other blocks, running them would tell
                _tell(checkpoint, other_measures(before["measures"], _names(jax.eval_shape(block, state))), strict)
            description["measures"] = before["measures"]
            _log.info("%s: %s", checkpoint, _progress(step, finished))
        if checkpoint is not None and records is not None:
            history = _rewound(records, labels, checkpoint, -1 if restored is None else step, crc)
            if history and on_block is not None:
                on_block(history[-1])

        def save() -> None:
            nonlocal saved
            if checkpoint is not None and saved < step:
                seconds = spent + time.perf_counter() - began
                note = {"config": same, "seconds": seconds, "crc": crc, "finished": finished, "training": description}
                checkpoints.save(checkpoint, step, _stored(state, kept), note)
                saved = step

        def leave_if_asked() -> None:
            if on_any_process(asked()):
                save()
                raise Interrupted(step, checkpoint is not None)

        save()  # before the first step: a disk that is full is better known at once
        while not finished:
            leave_if_asked()
            returned = block(state)
            names = _names(returned)
            if restored is not None and step == restored.step:
                _tell(checkpoint, other_measures(description["measures"], names), strict)
            description["measures"] = names
            after, *measured = returned
            _check_state(after, state)
            values, places = fetch(measured)
            first = {name: np.where(place, step + place, 0) for name, place in places.items()}
            result = BlockResult(step + block_steps, values, first)
            rows = to_rows(result, labels)
            if nonfinite == "stop" and any(np.any(at) for at in first.values()):
                save()
                raise NonFiniteError(what_is_not_finite(result, labels, saved if checkpoint is not None else None))
            state, step = after, result.step
            history.append(result)
            kept = None if patience is None else patience.kept(state, members, kept, history)
            if records is not None:
                crc = zlib.crc32(records.append(rows, labels).encode(), crc)
            if on_block is not None:
                on_block(result)
            finished = step >= steps or (stop_when is not None and stop_when(history))
            if finished or (step // block_steps) % save_every == 0:
                save()
        leave_if_asked()
        ended = restored is not None and restored.note["finished"]
        seconds = spent if ended else spent + time.perf_counter() - began
        best = None if patience is None else patience.best(history, kept)
        return Fitted(state, history, seconds, restored is not None, ended, best)


def fetch(tree: PyTree) -> PyTree:
    """The arrays as NumPy ones, whole on every process.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> training.fetch({"loss": jnp.array([0.5, 0.25])})
        {'loss': array([0.5 , 0.25], dtype=float32)}
    """
    for path, a in jax.tree_util.tree_leaves_with_path(tree):
        if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            raise TypeError(
                f"training.fetch: tree{jax.tree_util.keystr(path)} is a key, which NumPy does not have; give "
                f"jax.random.key_data of it."
            )
    arrays = [a for a in jax.tree.leaves(tree) if isinstance(a, jax.Array)]  # others are the host's already
    if all(a.is_fully_addressable or a.is_fully_replicated for a in arrays):
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def on_any_process(flag: bool) -> bool:
    """Whether it is true of one process: what all of them must do, or none."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, or SIGTERM came; a second time they interrupt."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():  # signals are not its to handle
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_state(state: PyTree, before: PyTree = None) -> None:
    """A state holds JAX arrays; a later one those of the one before, or no checkpoint of it could be resumed.

    The one before is still there.
    """
    for path, a in jax.tree_util.tree_leaves_with_path(state):
        if not isinstance(a, jax.Array):
            raise TypeError(
                f"training.fit: state{jax.tree_util.keystr(path)} must be an array of JAX, got {type(a).__name__}; use "
                f"jnp.asarray."
            )
    if before is None:
        return
    trees: list[Any] = [jax.tree.structure(tree) for tree in (before, state)]
    types = [[f"{a.dtype}{list(a.shape)}" for a in jax.tree.leaves(tree)] for tree in (before, state)]
    if trees[0] != trees[1] or types[0] != types[1]:
        was, now = trees if trees[0] != trees[1] else next((a, b) for a, b in zip(*types, strict=True) if a != b)
        raise TypeError(
            f"training.fit: expected the block to return a state like the one it was given, {was}, got {now}; cast it "
            f"back with .astype, or start from a state of that kind."
        )
    if any(a.is_deleted() for a in jax.tree.leaves(before)):
        raise ValueError(
            "training.fit: the block has donated its argument, but the state before a block is kept, to be saved where "
            "the block is not finite; jit it without donate_argnums."
        )


def _names(returned: Any) -> list[str]:
    """Of what a block has returned, or will: the names of its measures."""
    if not isinstance(returned, tuple) or len(returned) != 3:
        came = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__
        raise TypeError(
            f"training.fit: expected the block to return (state, measures, nonfinite), got {came}; with nothing to "
            f"watch, nonfinite is {{}}."
        )
    for what, numbers in zip(("measures", "nonfinite"), returned[1:], strict=True):
        if not isinstance(numbers, Mapping):
            raise TypeError(
                f"training.fit: expected the block to return its {what} as a dict, got {type(numbers).__name__}; give "
                f"{{'loss': …}}."
            )
    return sorted(returned[1])


def _progress(step: int, finished: bool) -> str:
    return f"had ended after step {step}, is read, not run" if finished else f"goes on after step {step}"


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(to_json(dict(config)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"training.fit: config must be JSON: {error}; give numbers, strings, lists and dicts."
        ) from None


def _tell(checkpoint: Path | None, differences: str, strict: bool) -> None:
    """A checkpoint that another training has written, as far as can be seen."""
    if not differences:
        return
    said = (
        f"{checkpoint}: was written by another training: {differences}. Resume it with the program that it was started "
        f"with, or name another directory."
    )
    if strict:
        raise checkpoints.CheckpointError(said)
    if jax.process_index() == 0:
        warnings.warn(f"{said} It is used all the same; strict=True refuses it.", stacklevel=5)


def _stored(state: PyTree, kept: PyTree) -> PyTree:
    return state if kept is None else {"state": state, "best": kept}


def _restored(
    checkpoint: Path, expected: PyTree, same: Mapping[str, Any], description: Mapping[str, Any]
) -> checkpoints.Restored | None:
    """The newest checkpoint, once what it says of its training was compared: that is told before shapes are."""
    note = checkpoints.note(checkpoint)
    if note is None:
        return None
    before = note.get("training", {**description, "keeps": None})  # earlier versions kept none
    _check_same(checkpoint, note["config"], same)
    for name in ("labels", "keeps"):
        _check_same(checkpoint, {name: before[name]}, {name: description[name]})
    return checkpoints.restore(checkpoint, expected)


def _rewound(
    records: Records, labels: Sequence[Mapping[str, Any]] | None, checkpoint: Path, step: int, crc: int
) -> list[BlockResult]:
    """The history up to a step that was restored, -1 for none; the records end with it, too."""
    if step < 0 and labels is None and any(records.rows()):
        raise checkpoints.CheckpointError(
            f"{records.path}: holds rows of another training, or of one whose checkpoints were removed; name another "
            f"file, remove this one, or give labels, which tell the rows of several trainings apart."
        )
    text = records.rewind(labels, step)
    if zlib.crc32(text.encode()) != crc:
        raise checkpoints.CheckpointError(
            f"{records.path}: the lines up to step {step}, which is saved in {checkpoint}, are not those that were "
            f"written: some were changed or removed. Put them back, or start a new run."
        )
    return from_rows(text, labels)


def _check_same(checkpoint: Path | None, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        lines = [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed]
        raise checkpoints.CheckpointError(
            f"{checkpoint}: belongs to a training with other settings: {'; '.join(lines)}. Resume it with those that "
            f"it was started with, or start a new run."
        )


__getattr__ = moved_names(
    "jaxrnn.training.fitting",
    {"Point": "jaxrnn.training.history.BlockResult", "patience": "jaxrnn.training.stopping.patience"},
)
