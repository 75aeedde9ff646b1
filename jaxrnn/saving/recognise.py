"""What a file is by its first bytes, and which function reads it. Nothing of it is run, little of it is read."""

from __future__ import annotations

import os
import zipfile
from typing import NamedTuple


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


HDF5 = Kind("an HDF5 file, as Keras writes them", _read_by("keras"), ".h5")
KERAS = Kind("a .keras archive", _read_by("keras"), ".keras")
TORCH = Kind("a file of torch.save", _read_by("torch"), ".pt")
TORCHSCRIPT = Kind("a TorchScript archive", _read_by("torch"), ".pt")
NPZ = Kind("an archive of NumPy arrays", "read it with numpy.load, and give its arrays to a model's params", ".npz")
ZIP = Kind("a zip archive", "unpack it, and use what reads the files in it", ".zip")
BROKEN_ZIP = Kind(
    "a zip archive that is cut short, damaged, or of a later version of the format",
    "fetch or save it once more",
    ".zip",
)
NPY = Kind("a NumPy array", "read it with numpy.load", ".npy")
PICKLE = Kind(
    "a pickle, which can run code when it is opened",
    "read what you trust with what wrote it (torch.load(…, weights_only=True)), and save its tensors",
    ".pkl",
)
ONNX = Kind("an ONNX model", _read_by("onnx"), ".onnx")
GGUF = Kind("a GGUF file", "no converter reads it", ".gguf")
DIRECTORY = Kind("a directory", "give the name of a file", "/")
ORBAX = Kind(
    "a directory of orbax", "restore it with orbax, and give its arrays to jaxrnn.interop.flax.from_linen", "/"
)
SAVED_MODEL = Kind("a directory of TensorFlow (SavedModel)", "load it in TensorFlow, and save it as .keras or .h5", "/")

MAGIC = {b"\x89HDF\r\n\x1a\n": HDF5, b"\x93NUMPY": NPY, b"GGUF": GGUF}


def recognised(path: str | os.PathLike[str]) -> Kind | None:
    """What a file or directory is; None for safetensors and for what is not known.

    Raises:
        OSError: there is no such file.
    """
    if os.path.isdir(path):
        inside = set(os.listdir(path))
        return ORBAX if "_CHECKPOINT_METADATA" in inside else SAVED_MODEL if "saved_model.pb" in inside else DIRECTORY
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        start = file.read(16)
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
    return None


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
