"""Training: pure steps, a driver that loses nothing, checkpoints, batches, devices, ensembles.

steps.py        the loop as pure functions          fitting.py   many blocks of it: records, saves, resumes
checkpoints.py  save and restore, with orbax        records.py   measures as JSON lines, TensorBoard
batches.py      sequences of many lengths           devices.py   several devices
ensemble.py     many members in one program         processes.py several processes

``from jaxrnn import training`` gives the names below, each imported on first use; checkpoints and records are modules
to import. Checkpoints need orbax: ``pip install 'jaxrnn[train]'``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrnn.training.batches import Batch, Bucketed, Padded, bucketed, padded, prefetch
    from jaxrnn.training.fitting import Fitted, Interrupted, NonFiniteError, Point, fetch, fit, patience
    from jaxrnn.training.steps import Best, Loop, TrainState, better, first_nonfinite, loop, no_best

_HOMES = {
    "steps": ("Best", "Loop", "TrainState", "better", "first_nonfinite", "loop", "no_best"),
    "batches": ("Batch", "Bucketed", "Padded", "bucketed", "padded", "prefetch"),
    "fitting": ("Fitted", "Interrupted", "NonFiniteError", "Point", "fetch", "fit", "patience"),
}

__all__ = [
    "Loop",
    "TrainState",
    "loop",
    "first_nonfinite",
    "Best",
    "no_best",
    "better",
    "Fitted",
    "Point",
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


def __getattr__(name: str) -> Any:
    import importlib

    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"jaxrnn.training.{module}"), name)
    raise AttributeError(f"module 'jaxrnn.training' has no attribute {name!r}")
