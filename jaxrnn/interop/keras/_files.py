"""Keras files for ``python -m jaxrnn convert``."""

from __future__ import annotations

import os
import zipfile

from jaxrnn.interop.keras._from_keras import from_keras
from jaxrnn.interop.keras._names import LIBRARY
from jaxrnn.interop.registry import Format, Loaded


def _read(path: str) -> Loaded:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path!r} is no .keras file, which is a zip archive; save or fetch it once more.")
    # Keras takes TensorFlow where nothing is said, installed or not; any backend reads weights.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    theirs = LIBRARY.load().saving.load_model(path, compile=False, safe_mode=True)  # safe: no code that the file brings
    return Loaded(*from_keras(theirs))


FORMATS = {".keras": Format("Keras models", _read)}
REFUSED = dict.fromkeys(
    (".weights.h5", ".h5", ".hdf5"),
    "it holds weights without the layers' options; in Python, build the Keras model, load_weights, then "
    "model.save('….keras'), or jaxrnn.interop.keras.from_keras and jr.save",
)
