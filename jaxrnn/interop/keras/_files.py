"""Keras' files: ``load``, and what ``python -m jaxrnn convert`` reads by it. No code that a file brings is run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

import jaxrnn as jr
from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree, check_model
from jaxrnn.interop.keras._from_keras import with_notes
from jaxrnn.interop.keras._heaps import check_heaps
from jaxrnn.interop.keras._layers import Stored
from jaxrnn.interop.keras._names import LIBRARY, old_hard_sigmoid
from jaxrnn.interop.keras._to_keras import to_keras
from jaxrnn.interop.registry import Format, Loaded
from jaxrnn.saving.recognise import HDF5, KERAS, recognised

MOST_INFLATED = 64  # times the bytes of the file
WEIGHTS_ALONE = (
    "holds weights without the layers' options; in Python, make the model of the same form in jaxrnn, and read them by "
    "jaxrnn.interop.keras.load(path, model)"
)


@checks_arguments
def load(path: str | os.PathLike[str], model: Cell | Layer | None = None) -> tuple[Cell | Layer, PyTree]:
    """The layer and the parameters of a file that Keras wrote: ``.keras``, or HDF5 (``.h5``) of Keras 1, 2 or 3.

    The version that wrote the file decides what its names mean: ``hard_sigmoid`` is clip(0.2 x + 0.5, 0, 1) in Keras 1
    and 2 and becomes ``("hard_sigmoid", 0.2, 0.5)``. CuDNNLSTM and CuDNNGRU become ``lstm`` and ``gru(reset="after")``.

    Args:
        path: a model, a Sequential or a chain of layers; or weights alone (``save_weights``), for which ``model`` says
            what they are weights of.
        model: of weights alone: the layer that has the file's layers, those without weights left out or not.

    Returns:
        ``(layer, params)``, as :func:`from_keras` gives them; a model that is given comes back.

    Raises:
        ValueError: other files, damaged ones, layers that have no counterpart, weights that do not fit the model.
        TypeError: float64 weights while JAX's 64 bits are off. OSError: no such file.

    Example:
        >>> import os, tempfile, keras
        >>> from jaxrnn.interop.keras import load
        >>> theirs = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(9, 3),
        ...                            keras.layers.GRU(5, return_sequences=True)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     theirs.save(os.path.join(folder, "model.keras"))
        ...     model, params = load(os.path.join(folder, "model.keras"))
        >>> [part.kind for part in model.spec.children], params[1].W_hh.shape
        (['embedding', 'gru'], (5, 15))
    """
    if model is not None:
        check_model("load", model)
        return model, _weights("load", os.fspath(path), model)
    model, params, notes = _read("load", os.fspath(path))
    for note in notes:
        warnings.warn(f"load: {note}", stacklevel=2)
    return model, params


def _read(who: str, path: str) -> Loaded:
    with open(path, "rb"):  # as open says it where there is none
        kind = recognised(path)
    keras = _keras()
    if kind == KERAS:
        source: Any = _keras_archive(keras, who, path)
    elif kind == HDF5:
        source = _hdf5_model(keras, who, path)
    else:
        said = f"by its content it is {kind.title}: {kind.fix}" if kind else "save it with model.save"
        raise ValueError(f"{who}: {path!r} is no file of Keras, neither a .keras archive nor HDF5; {said}.")
    return Loaded(*with_notes(keras, source))


def _keras() -> ModuleType:
    # Keras takes TensorFlow where nothing is said, installed or not; any backend reads weights.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return LIBRARY.load()


def _keras_archive(keras: ModuleType, who: str, path: str) -> Any:
    """The model, read by Keras once nothing in the file is seen to name code."""
    try:
        with zipfile.ZipFile(path) as file:
            if any(info.flag_bits & 1 for info in file.infolist()):
                raise ValueError("it is encrypted; unpack it with its password, and zip it again without")
            size = sum(info.file_size for info in file.infolist())
            texts = [b"", b""]
            if size <= (most := MOST_INFLATED * os.path.getsize(path)):
                texts = [file.read(name) for name in ("config.json", "metadata.json")]
    except Exception as error:  # zipfile and zlib raise anything
        raise ValueError(
            f"{who}: {path!r} cannot be read: {str(error).rstrip('.')}; save the model once more with model.save."
        ) from error
    if size > most:
        raise ValueError(f"{who}: {path!r} would inflate to {size:,} bytes, which no file of Keras does.")
    config, metadata = (_json(who, path, text) for text in texts)
    if foreign := sorted(set(_foreign(config))):
        raise ValueError(
            f"{who}: {path!r} names code that is not Keras' own ({', '.join(foreign[:5])}), which is not run; where "
            f"you trust it, load it by keras.saving.load_model, and pass the layers to from_keras."
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises anything
        raise ValueError(f"{who}: Keras does not load {path!r}: {error}") from error
    if _major(metadata.get("keras_version")) < 3:
        for layer in _inner(model):
            if isinstance(layer, keras.layers.RNN):
                continue  # it shows those of its cell
            for option in ("activation", "recurrent_activation"):
                if getattr(layer, option, None) is keras.activations.hard_sigmoid:
                    setattr(layer, option, old_hard_sigmoid(keras))
    return model


def _foreign(config: Any) -> Iterator[str]:
    """What a config names that is not Keras' own: modules, Lambda layers, registered classes."""
    if isinstance(config, Mapping):
        if isinstance(kind := config.get("class_name"), str):
            module = config.get("module") or "keras"
            own = str(module).split(".")[0] in ("keras", "builtins", "tf_keras") and "ambda" not in kind
            if not own or str(config.get("registered_name") or kind) not in (kind, "function"):
                yield f"{module}.{kind}"
        for value in config.values():
            yield from _foreign(value)
    elif isinstance(config, list):
        for value in config:
            yield from _foreign(value)


def _inner(layer: Any) -> Iterator[Any]:
    """A layer and every layer and cell in it."""
    yield layer
    held = [getattr(layer, name, None) for name in ("cell", "layer", "forward_layer", "backward_layer")]
    for inner in [*held, *getattr(layer, "layers", ()), *getattr(layer, "cells", ())]:
        if inner is not None and inner is not layer:
            yield from _inner(inner)


@contextlib.contextmanager
def _hdf5(who: str, path: str) -> Iterator[Any]:
    """The file, opened; whatever h5py finds wrong with it is told in its name."""
    check_heaps(who, path)
    try:
        with LIBRARY.load("h5py").File(path, "r") as file:
            yield file
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, UnicodeError) as error:
        raise ValueError(f"{who}: {path!r} is a damaged HDF5 file: {error}; save it once more.") from error


def _hdf5_model(keras: ModuleType, who: str, path: str) -> list[Any]:
    with _hdf5(who, path) as file:
        said = file.attrs.get("model_config")
        if said is None:
            raise ValueError(f"{who}: {path!r} {WEIGHTS_ALONE}.")
        version = _major(file.attrs.get("keras_version"))
        arrays = _arrays(who, path, file["model_weights"])
    config = _json(who, path, said)
    try:
        return Stored(keras, who, arrays, version).model(config)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, UnicodeError) as error:
        raise ValueError(f"{who}: the model's description in {path!r} is damaged: {error!r}.") from error


def _arrays(who: str, path: str, group: Any) -> dict[str, list[np.ndarray]]:
    """The arrays of each layer, as ``save_weights`` of Keras 1 and 2, and ``save`` of any, put them into HDF5."""
    return {
        layer: [_array(who, path, group, f"{layer}/{name}") for name in _texts(group[layer].attrs, "weight_names")]
        for layer in _texts(group.attrs, "layer_names")
    }


def _array(who: str, path: str, group: Any, name: str) -> np.ndarray:
    h5py = LIBRARY.load("h5py")
    for end in range(1, name.count("/") + 2):
        way = "/".join(name.split("/")[:end])
        if not isinstance(group.get(way, getlink=True), h5py.HardLink):
            raise ValueError(f"{who}: {name} in {path!r} is not there, or is a link to somewhere else.")
    data = group[name]
    sound = isinstance(data, h5py.Dataset) and not data.external and not data.is_virtual and data.dtype.kind == "f"
    if not sound or data.nbytes > MOST_INFLATED * os.path.getsize(path):
        raise ValueError(f"{who}: {name} in {path!r} is no array of floats in this file, or inflates beyond measure.")
    return np.asarray(data)


def _texts(attributes: Any, name: str) -> list[str]:
    """A list of texts; a long one stands in pieces, name0, name1 …"""
    pieces = itertools.takewhile(attributes.__contains__, (f"{name}{k}" for k in itertools.count()))
    names = [name] if name in attributes else list(pieces)
    return [_text(one) for piece in names for one in attributes[piece]]


def _text(a: Any) -> str:
    return a.decode() if isinstance(a, bytes) else str(a)


def _json(who: str, path: str, text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{who}: the model's description in {path!r} is damaged: {error}.") from error


def _major(version: Any) -> int:
    """3 of "3.15.1"; a file that says nothing is of Keras 1."""
    first = "1" if version is None else _text(version).partition(".")[0]
    return int(first) if first.isdigit() else 3


def _weights(who: str, path: str, model: Cell | Layer) -> PyTree:
    """The parameters of a model from a file of weights alone."""
    with open(path, "rb"):
        kind = recognised(path)
    if kind != HDF5:
        raise ValueError(f"{who}: {path!r} is no file of weights of Keras, which is HDF5; leave the model out.")
    keras = _keras()
    whole = jr.stack(model) if model.spec is None or model.spec.kind != "stack" else model
    shapes = jax.eval_shape(whole.init, jax.random.key(0))
    theirs = to_keras(whole, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes))
    with _hdf5(who, path) as file:
        group = file.get("model_weights", file)
        stored = _arrays(who, path, group) if _texts(group.attrs, "layer_names") else None
    if stored is None:
        theirs.load_weights(path)
    else:
        held = [layer for layer in theirs.layers if layer.weights]
        given = {name: arrays for name, arrays in stored.items() if arrays}
        if len(held) != len(given):
            raise ValueError(
                f"{who}: {path!r} has the weights of {len(given)} layers ({', '.join(given)}), the model {len(held)}."
            )
        for layer, (name, arrays) in zip(held, given.items(), strict=True):
            Stored(keras, who, {name: arrays}, 2).fill(layer, name)
    _, params, _ = with_notes(keras, theirs)
    return params if whole is model else params[0]


def _format(path: str) -> Loaded:
    return _read("convert", path)


FORMATS = dict.fromkeys((".keras", ".h5", ".hdf5"), Format("Keras models", _format))
REFUSED = {".weights.h5": f"it {WEIGHTS_ALONE}"}
