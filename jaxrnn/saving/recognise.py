"""What a file is by its first bytes, and which function reads it. Nothing of it is run, little of it is read."""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from typing import IO, NamedTuple

import numpy as np


class Kind(NamedTuple):
    """A kind of file that is not ours.

    Fields:
        title: in words, "a Keras model (HDF5)".
        fix: what reads it.
        suffix: as such files are called, by which ``python -m jaxrnn convert`` finds who reads them.
    """

    title: str
    fix: str
    suffix: str


def _read_by(library: str, function: str = "load(path)") -> str:
    return f"use jaxrnn.interop.{library}.{function}, or python -m jaxrnn convert"


GIVE = "and give what it holds to jaxrnn.interop's from_linen, from_nnx, from_haiku or from_equinox"

HDF5 = Kind("an HDF5 file, as Keras writes them", _read_by("keras"), ".h5")
KERAS = Kind("a .keras archive", _read_by("keras"), ".keras")
TORCH = Kind("a file of torch.save", _read_by("torch"), ".pt")
TORCHSCRIPT = Kind("a TorchScript archive", _read_by("torch"), ".pt")
NPZ = Kind("an archive of NumPy arrays", f"read it with numpy.load, {GIVE}, or its arrays to a model's params", ".npz")
ZIP = Kind("a zip archive", "unpack it, and use what reads the files in it", ".zip")
BROKEN_ZIP = Kind(
    "a zip archive that is cut short, damaged, or of a later version of the format",
    "fetch or save it once more",
    ".zip",
)
NPY = Kind("a NumPy array", "read it with numpy.load", ".npy")
PICKLE = Kind(
    "a pickle, which can run code when it is opened",
    "read what you trust with what wrote it (torch.load(…, weights_only=True), or pickle.load for a dict of Haiku's or "
    f"Flax's), {GIVE}, or save its tensors",
    ".pkl",
)
ONNX = Kind("an ONNX model", _read_by("onnx"), ".onnx")
GGUF = Kind("a GGUF file", "no converter reads it", ".gguf")
DIRECTORY = Kind("a directory", "give the name of a file", "/")
ORBAX = Kind("a directory of orbax", "", "/")
MSGPACK = Kind(
    "a msgpack file of Flax",
    f"read it with flax.serialization.msgpack_restore(open(path, 'rb').read()), {GIVE}",
    ".msgpack",
)
EQUINOX = Kind(
    "a file of Equinox's tree_serialise_leaves",
    "read it with equinox.tree_deserialise_leaves, and give its cells to jaxrnn.interop.equinox.from_equinox",
    ".eqx",
)
SAVED_MODEL = Kind("a directory of TensorFlow (SavedModel)", "load it in TensorFlow, and save it as .keras or .h5", "/")

MAGIC = {b"\x89HDF\r\n\x1a\n": HDF5, b"GGUF": GGUF}
# A map in msgpack, its first key a text; and an array of Flax's in it: an extension of type 1, of shape, dtype, bytes.
MAP = re.compile(rb"(?:[\x81-\x8f]|\xde..|\xdf....)(?:[\xa0-\xbf]|\xd9.|\xda..)", re.DOTALL)
ARRAY = re.compile(rb"(?:[\xd4-\xd8]|\xc7.|\xc8..|\xc9....)\x01\x93[\x90-\x9f]|__msgpack_chunked_array__", re.DOTALL)
SEEN = 1 << 16  # bytes from the beginning of a file in which a first array is looked for


def recognised(path: str | os.PathLike[str]) -> Kind | None:
    """What a file or directory is; None for safetensors and for what is not known.

    Raises:
        OSError: there is no such file.
    """
    if os.path.isdir(path):
        return _directory(os.fspath(path))
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        start = file.read(SEEN)
        if start.startswith(b"\x93NUMPY"):
            return EQUINOX if _several_arrays(file, start) else NPY
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return kind
    if start.startswith(b"PK\x03\x04"):
        return _archive(path)
    if start[:1] == b"\x80" and b"\x02" <= start[1:2] <= b"\x05" and start[8:9] != b"{":
        return PICKLE
    if (
        start[:1] == b"\x08" and start[1:2] < b"\x20" and start[2:3] in (b"\x12", b":", b"B")
    ):  # version; producer, graph
        return ONNX
    if start[8:9] != b"{" and MAP.match(start) and ARRAY.search(start):
        return MSGPACK
    if start.startswith(b"{") and start.partition(b"\n")[2].startswith(b"\x93NUMPY"):  # a line of options before them
        return EQUINOX
    return None


def _several_arrays(file: IO[bytes], start: bytes) -> bool:
    """Whether another array follows the first, as no file of one does."""
    head = io.BytesIO(start)
    try:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[np.lib.format.read_magic(head)](head)
        if dtype.hasobject or min(shape, default=0) < 0:
            return False
        file.seek(head.tell() + dtype.itemsize * math.prod(shape))
        return file.read(6) == b"\x93NUMPY"
    except (
        Exception
    ):  # of NumPy's and Python's parsers, for no sound header; of the system, for a place beyond all files
        return False


TREE = {"_METADATA", "manifest.ocdbt"}  # in a folder that orbax restores as one tree
STEP = "_CHECKPOINT_METADATA"  # in that folder, or in the one above it


def _directory(path: str) -> Kind:
    inside = _inside(path)
    if "saved_model.pb" in inside:
        return SAVED_MODEL
    tree = _tree_of_orbax(path)
    if tree is None and STEP not in inside:
        return DIRECTORY
    place = "os.path.abspath(path)" + (f" + {f'/{tree}'!r}" if tree else "")
    return ORBAX._replace(fix=f"restore it with orbax.checkpoint.StandardCheckpointer().restore({place}), {GIVE}")


def _tree_of_orbax(path: str) -> str | None:
    """Where the tree stands in a folder: "" here, "default" in that of a step, "3/default" in that of several."""
    if TREE & _inside(path):
        return ""
    folders = [name for name in _inside(path) if os.path.isdir(os.path.join(path, name))]
    for name in sorted(folders, key=_step, reverse=True):
        below = os.path.join(path, name)
        if not os.path.islink(below) and {STEP, *TREE} & _inside(below):
            tree = _tree_of_orbax(below)
            if tree is not None:
                return f"{name}/{tree}".removesuffix("/")
    return None


def _step(name: str) -> tuple[int, str]:
    """The number at the end of a folder's name."""
    number = re.search(r"\d{1,18}$", name)
    return int(number[0]) if number else -1, name


def _inside(path: str) -> set[str]:
    try:
        return set(os.listdir(path))
    except OSError:  # not for us to read
        return set()


def _archive(path: str | os.PathLike[str]) -> Kind:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return BROKEN_ZIP
    last = {name.rpartition("/")[2] for name in names}
    if "config.json" in names and any(name.startswith("model.weights.") for name in names):
        return KERAS
    if "data.pkl" in last:
        return TORCHSCRIPT if "constants.pkl" in last else TORCH
    return NPZ if names and all(name.endswith(".npy") for name in names) else ZIP
