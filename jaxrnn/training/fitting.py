"""Train for many blocks of steps: measure, record, save, stop, and go on where a run before was stopped."""

from __future__ import annotations

import json
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import PyTree
from jaxrnn._checks import check_choice, check_sizes
from jaxrnn._deprecated import moved_names, renamed_keywords, warn_renamed
from jaxrnn.training import checkpoints
from jaxrnn.training.history import BlockResult, from_rows, to_rows, what_is_not_finite
from jaxrnn.training.records import Records, to_json

# state -> (state, measures, for each quantity the place in the block, from 1, where it was first not finite, or 0)
Block = Callable[[PyTree], tuple[PyTree, Mapping[str, jax.Array], Mapping[str, jax.Array]]]


class Fitted(NamedTuple):
    """A training that came to its end."""

    state: PyTree
    history: list[BlockResult]
    seconds: float  # of all its runs, compilation included

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
) -> Fitted:
    """Run a compiled block of steps again and again until the steps are done, and lose nothing on the way.

    Killed at any moment, a later call with the same arguments goes on from the newest checkpoint and comes to the same
    parameters and the same records, bit by bit: whatever the block needs (keys, counters, the optimiser's state) is in
    the state. Ctrl-C and SIGTERM end the block that runs, save and raise; a second one leaves without saving.

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
        save_every: how many blocks lie between two checkpoints; the last block is saved always.
        nonfinite: "stop" raises at the first quantity that is not finite, once the state before that block is saved;
            "record" goes on; the history says where it was.
        stop_when: whether to stop before ``steps``, given the history so far: ``training.patience`` makes such a
            function.
        on_block: called with the result of each block, and before them with the last result that was restored.
        config: JSON that is kept beside the state; a training that was started with another is not resumed.

    Returns:
        A Fitted. Of a training that had ended already, what is stored.

    Raises:
        NonFiniteError: says which member, quantity and step. Interrupted: once all is saved.
        checkpoints.CheckpointError: a checkpoint cannot be written or is not of this training.

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
    check_sizes("training.fit", steps=steps, block_steps=block_steps, save_every=save_every)
    check_choice("training.fit", "nonfinite", nonfinite, ("stop", "record"))
    if steps % block_steps:
        raise ValueError(f"training.fit: steps must be a multiple of block_steps={block_steps}, got {steps}.")
    if checkpoint is not None and records is None:
        records = Records(checkpoint / "metrics.jsonl", write=jax.process_index() == 0)
    same = json.loads(to_json({"steps": steps, "block_steps": block_steps, **(config or {})}))

    with _asked_to_stop() as asked:
        began, history, step, spent, crc, finished = time.perf_counter(), list[BlockResult](), 0, 0.0, 0, False
        restored = None if checkpoint is None else checkpoints.restore(checkpoint, state)
        saved = -1
        if restored is not None:
            saved, state, note = restored
            _check_same(checkpoint, note["config"], same)
            step, spent, crc, finished = saved, note["seconds"], note["crc"], note["finished"]
        if checkpoint is not None and records is not None:
            if restored is None and labels is None and any(records.rows()):
                raise checkpoints.CheckpointError(
                    f"{records.path}: holds rows of another training, or of one whose checkpoints were removed; name "
                    f"another file, remove this one, or give labels, which tell the rows of several trainings apart."
                )
            text = records.rewind(labels, step if restored is not None else -1)
            if zlib.crc32(text.encode()) != crc:
                raise checkpoints.CheckpointError(
                    f"{records.path}: the lines up to step {step}, which is saved in {checkpoint}, are not those that "
                    f"were written: some were changed or removed. Put them back, or start a new run."
                )
            history = from_rows(text, labels)
            if history and on_block is not None:
                on_block(history[-1])

        def save() -> None:
            nonlocal saved
            if checkpoint is not None and saved < step:
                seconds = spent + time.perf_counter() - began
                note = {"config": same, "seconds": seconds, "crc": crc, "finished": finished}
                checkpoints.save(checkpoint, step, state, note)
                saved = step

        def leave_if_asked() -> None:
            if on_any_process(asked()):
                save()
                raise Interrupted(step, checkpoint is not None)

        save()  # before the first step: a disk that is full is better known at once
        while not finished:
            leave_if_asked()
            returned = block(state)
            if not isinstance(returned, tuple) or len(returned) != 3:
                raise TypeError(
                    f"training.fit: expected the block to return (state, measures, nonfinite), got "
                    f"{_outline(returned)}; with nothing to watch, nonfinite is {{}}."
                )
            after, *measured = returned
            if any(a.is_deleted() for a in jax.tree.leaves(state)):
                raise ValueError(
                    "training.fit: the block has donated its argument, but the state before a block is kept, to be "
                    "saved where the block is not finite; jit it without donate_argnums."
                )
            values, places = fetch(measured)
            first = {name: np.where(place, step + place, 0) for name, place in places.items()}
            result = BlockResult(step + block_steps, values, first)
            if nonfinite == "stop" and any(np.any(at) for at in first.values()):
                save()
                raise NonFiniteError(what_is_not_finite(result, labels, saved if checkpoint is not None else None))
            state, step = after, result.step
            history.append(result)
            if records is not None:
                crc = zlib.crc32(records.append(to_rows(result, labels), labels).encode(), crc)
            if on_block is not None:
                on_block(result)
            finished = step >= steps or (stop_when is not None and stop_when(history))
            if finished or (step // block_steps) % save_every == 0:
                save()
        leave_if_asked()
        ended = restored is not None and restored.note["finished"]
        return Fitted(state, history, spent if ended else spent + time.perf_counter() - began)


def fetch(tree: PyTree) -> PyTree:
    """The arrays as NumPy ones, whole on every process.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> training.fetch({"loss": jnp.array([0.5, 0.25])})
        {'loss': array([0.5 , 0.25], dtype=float32)}
    """
    if all(a.is_fully_addressable or a.is_fully_replicated for a in jax.tree.leaves(tree)):
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


def _outline(returned: Any) -> str:
    return f"a tuple of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__


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
    {"Point": "jaxrnn.training.history.BlockResult", "patience": "jaxrnn.training.history.patience"},
)
