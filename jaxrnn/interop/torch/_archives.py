"""The files of ``torch.save`` and ``torch.jit.save``: zip archives of a pickle and the bytes of its tensors.

The pickle is read as data. Of what it would build, tensors are taken, the containers and modules that they stand in,
and plain values; every other object is passed over.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn.interop.torch._pickles import Made, Named, tree_of
from jaxrnn.interop.torch._states import DEEPEST

STORAGES = {
    **{"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64"},
}
LARGEST_PICKLE = 1 << 27  # bytes
MOST_VISITS = 1 << 18
HOW = (
    "where you trust the file, read it in Python and save its tensors: "
    "torch.save(model.state_dict(), 'weights.pt'), of a TorchScript file torch.jit.load(…).state_dict()"
)


class StoredTensor:
    """A tensor in an archive; NumPy reads it where it is used."""

    def __init__(self, archive: Archive, key: str, dtype: str, offset: int, shape: tuple, strides: tuple):
        self.shape, self.dtype = shape, np.dtype(jnp.dtype(dtype))
        self._archive, self._key, self._offset, self._strides = archive, key, offset, strides

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        data = np.frombuffer(self._archive.read(f"data/{self._key}"), np.uint8)
        size = self.dtype.itemsize
        last = self._offset + sum((n - 1) * step for n, step in zip(self.shape, self._strides, strict=True))
        if (last + 1) * size > len(data) or math.prod(self.shape) * size > len(data):
            raise ValueError(f"{self._archive.title} is damaged: a tensor of {self.shape} is more than its bytes.")
        stored = data[self._offset * size : len(data) // size * size].view(self.dtype)
        a = np.lib.stride_tricks.as_strided(stored, self.shape, [step * size for step in self._strides])
        return np.array(a, dtype)


class Archive:
    """A zip archive as torch writes it: every record as it is, in one folder."""

    def __init__(self, title: str, path: str):
        self.title, self.path = title, path
        with zipfile.ZipFile(path) as file:
            self._records = {info.filename: info for info in file.infolist()}
        pickles = [name for name in self._records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"it holds {len(pickles)} files called data.pkl, and torch writes one")
        self._folder = pickles[0].removesuffix("data.pkl")

    def __contains__(self, name: str) -> bool:
        return self._folder + name in self._records

    def read(self, name: str, most: int | None = None) -> bytes:
        """A record; one that inflates, or is larger than its file, is none of torch's."""
        info = self._records.get(self._folder + name)
        if info is None:
            raise ValueError(f"{self.title} is damaged: it has no {name}.")
        limit = os.path.getsize(self.path) if most is None else most
        if info.flag_bits & 1:
            raise ValueError("it is encrypted, which torch does not write; unpack it, and zip its files stored")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
            raise ValueError(
                f"{self.title}: {name} is compressed or larger than {limit:,} bytes, which torch does not write."
            )
        try:
            with zipfile.ZipFile(self.path) as file:
                return file.read(info)
        except Exception as error:  # zipfile and zlib raise anything
            raise ValueError(f"{self.title} is damaged: {error}.") from error


def is_archive(path: str) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # some of them are told so
        return False


def read_archive(title: str, path: str) -> dict[str, Any]:
    """The state dict, checkpoint or module in a file of torch's: dicts in dicts of tensors and plain values.

    Args:
        title: what errors begin with: who reads, and the path.
        path: the file.

    Raises:
        ValueError: files in torch's older form, or damaged.
    """
    if not is_archive(path):
        raise ValueError(
            f"{title} is no archive as torch.save has written since its version 1.6. An older file is one "
            f"pickle with everything in it, which is not run here: {HOW}."
        )
    try:
        archive = Archive(title, path)
        if "byteorder" in archive and archive.read("byteorder", 16).strip() != b"little":
            raise ValueError("it was written on a big-endian machine")
        tree = tree_of(archive.read("data.pkl", LARGEST_PICKLE))
        found = _Reading(archive).plain(tree)
    except Exception as error:  # a file can say anything
        why = str(error).removesuffix(".") or type(error).__name__
        raise ValueError(f"{title} cannot be read as tensors: {why}; {HOW}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{title} holds a {type(tree).__name__} and no state dict; {HOW}.")
    return found


class _Reading:
    """What a pickle would build as dicts, tensors, text and numbers; None for anything else."""

    def __init__(self, archive: Archive):
        self.archive = archive
        self.visits = 0  # shared parts are walked each time that they come up

    def plain(self, tree: Any, depth: int = 0) -> Any:
        """A dict, a module (its parameters by name), a tensor …"""
        if isinstance(tree, list | tuple):
            tree = dict(enumerate(tree))
        if isinstance(tree, dict):
            self._count(depth)
            own = {str(name): self.plain(value, depth + 1) for name, value in tree.items()}
            return {name: value for name, value in own.items() if value is not None}
        if isinstance(tree, Made):
            self._count(depth)
            if tree.by == "torch._utils _rebuild_parameter":
                return self.plain(tree.args[0], depth + 1)
            if tree.by in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
                return self._tensor(*tree.args[:4])
            if _is_module(tree):
                flat = ((name, self.plain(value, depth + 1)) for name, value in self._flat(tree, 0))
                return {name: value for name, value in flat if value is not None and not isinstance(value, dict)}
            return None
        return tree if isinstance(tree, str | int | float) else None

    def _flat(self, module: Made, depth: int) -> Iterator[tuple[str, Any]]:
        """The tensors and plain attributes of a module and of those in it, as its state dict would name them."""
        self._count(depth)
        state = {name: value for name, value in module.state.items() if isinstance(name, str)}
        for held in ("_parameters", "_buffers", "_modules"):
            inner = state.pop(held, None)
            state |= inner if isinstance(inner, dict) else {}
        for name, value in state.items():
            if isinstance(value, Made) and _is_module(value):
                yield from ((f"{name}.{below}", a) for below, a in self._flat(value, depth + 1))
            elif isinstance(value, Made | str | int | float):
                yield name, value

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor | None:
        """``torch._utils._rebuild_tensor_v2``, of which the storage is a persistent id."""
        kind, type_, key, _, _ = storage.args
        sound = storage.by == "persistent" and kind == "storage" and isinstance(key, str) and len(shape) == len(strides)
        if not sound or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
            raise ValueError("a tensor in it is damaged")
        dtype = STORAGES.get(type_.name.removeprefix("torch ")) if isinstance(type_, Named) else None
        return None if dtype is None else StoredTensor(self.archive, key, dtype, offset, tuple(shape), tuple(strides))

    def _count(self, depth: int) -> None:
        self.visits += 1
        if depth > DEEPEST or self.visits > MOST_VISITS:
            raise ValueError(f"it is nested deeper than {DEEPEST}, or has more than {MOST_VISITS:,} parts")


def _is_module(made: Made) -> bool:
    """A module that was saved whole: by TorchScript, or by its class."""
    state = made.state
    return isinstance(state, dict) and (made.by.startswith(("__torch__.", "__torch__ ")) or "_modules" in state)
