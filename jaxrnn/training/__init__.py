"""Training: pure steps, many blocks of them that lose nothing, checkpoints, records, batches of many lengths.

steps.py         the loop as pure functions          batches.py      which examples make a batch
fitting.py       many blocks of it                   padding.py      the batches as arrays
history.py       what the blocks measured            prefetching.py  ready before they are needed
checkpoints.py   save and restore, with orbax        records.py      measures as JSON lines, TensorBoard
locking.py       one training in a directory         stopping.py     early, and what is kept

``jaxrnn.training`` has the names below, each imported on first use; checkpoints, records and locking are modules to
import. Checkpoints need orbax: ``pip install 'jaxrnn[train]'``. Several devices and processes: ``jaxrnn.devices``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxrnn._deprecated import moved_names

if TYPE_CHECKING:
    from jaxrnn.training.batches import Batch, Bucketed, bucketed
    from jaxrnn.training.fitting import Fitted, Interrupted, NonFiniteError, fetch, fit
    from jaxrnn.training.history import BlockResult
    from jaxrnn.training.padding import Padded, padded
    from jaxrnn.training.prefetching import prefetch
    from jaxrnn.training.steps import Best, Loop, TrainState, first_nonfinite, init_best, loop, update_best
    from jaxrnn.training.stopping import patience

_HOMES = {
    "steps": ("Best", "Loop", "TrainState", "first_nonfinite", "init_best", "loop", "update_best"),
    "fitting": ("Fitted", "Interrupted", "NonFiniteError", "fetch", "fit"),
    "history": ("BlockResult",),
    "stopping": ("patience",),
    "batches": ("Batch", "Bucketed", "bucketed"),
    "padding": ("Padded", "padded"),
    "prefetching": ("prefetch",),
}

__all__ = [
    "Loop",
    "TrainState",
    "loop",
    "first_nonfinite",
    "Best",
    "init_best",
    "update_best",
    "Fitted",
    "BlockResult",
    "fit",
    "patience",
    "fetch",
    "Interrupted",
    "NonFiniteError",
    "bucketed",
    "Bucketed",
    "Batch",
    "padded",
    "Padded",
    "prefetch",
]

_moved = moved_names(
    "jaxrnn.training",
    {
        "Point": "jaxrnn.training.BlockResult",
        "no_best": "jaxrnn.training.init_best",
        "better": "jaxrnn.training.update_best",
    },
    stacklevel=4,
)


if not TYPE_CHECKING:  # type checkers know every name without it, and report those that are none

    def __getattr__(name: str) -> Any:
        for module, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(f"jaxrnn.training.{module}"), name)
        return _moved(name)
