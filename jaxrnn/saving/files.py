"""safetensors files of anybody's: their header, their tensors, and how a file is written whole or not at all.

The safetensors library writes and reads the format, and judges files before their numbers are believed.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn.saving.recognise import recognised

# The dtypes that can be saved and loaded: the format's words for them, and NumPy's.
DTYPES = {
    **{"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16", "BF16": "bfloat16"},
    **{"F32": "float32", "F64": "float64", "C64": "complex64"},
}


def safetensors_library() -> ModuleType:
    """The safetensors library, imported where a file is read or written and not before."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("jaxrnn.saving needs safetensors, a dependency of jaxrnn: pip install safetensors") from error
    return safetensors


class Tensor(NamedTuple):
    """What a file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # as NumPy calls it; the format's own word for one that is not in DTYPES

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Header(NamedTuple):
    """What a file says of itself."""

    tensors: dict[str, Tensor]  # in the order of their bytes
    metadata: dict[str, str]

    @property
    def is_ours(self) -> bool:
        return "jaxrnn" in self.metadata


def read_header(who: str, path: str | os.PathLike[str]) -> Header:
    """What any safetensors file says of itself."""
    with opened(who, path) as (_, header):
        return header


def read_tensors(who: str, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of any safetensors file, in NumPy."""
    with opened(who, path) as (file, header):
        return dict(zip(header.tensors, read_named(who, path, file, header, header.tensors), strict=True))


@contextlib.contextmanager
def opened(who: str, path: str | os.PathLike[str]) -> Iterator[tuple[Any, Header]]:
    """The file, opened by the library, which judges the header against the format and the size of the file."""
    library = safetensors_library()
    check_readable(who, path)
    with open(path, "rb") as plain:  # the library says of whatever it cannot open that it is not there
        size = os.fstat(plain.fileno()).st_size
    try:
        # pread: mapped memory would count twice while it is copied, and kill the process if the file is cut meanwhile.
        with library.safe_open(path, framework="np", backend="pread") as file:
            tensors = {name: _tensor(file.get_slice(name)) for name in file.offset_keys()}
            yield file, Header(tensors, file.metadata() or {})
    except library.SafetensorError as error:
        if kind := recognised(path):
            raise ValueError(
                f"{who}: {os.fspath(path)!r} is no safetensors file; by its content it is {kind.title}: {kind.fix}."
            ) from error
        what = str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(
            f"{who}: {os.fspath(path)!r} ({size:,} bytes) is no sound safetensors file: {what}. If it was one, it was "
            f"cut short or changed; save or fetch it once more."
        ) from error


def _tensor(view: Any) -> Tensor:
    code = view.get_dtype()
    return Tensor(tuple(view.get_shape()), DTYPES.get(code, code))


def read_named(who: str, path: Any, file: Any, header: Header, names: Iterable[str]) -> Iterator[np.ndarray]:
    """The named tensors, one after the other."""
    dtypes = {name: header.tensors[name].dtype for name in names}
    if unknown := [f"{name} ({dtype})" for name, dtype in dtypes.items() if dtype not in DTYPES.values()]:
        raise ValueError(
            f"{who}: {os.fspath(path)!r} holds dtypes that jaxrnn does not read: {few(unknown)}; cast the tensors "
            f"before they are saved."
        )
    whole: dict[str, Any] = {}
    if any(dtype.startswith("float8") for dtype in dtypes.values()):  # the library looks for them in NumPy, in vain
        with open(path, "rb") as plain:
            whole = dict(safetensors_library().deserialize(plain.read()))
    for name, dtype in dtypes.items():
        if whole:
            a = np.frombuffer(whole[name]["data"], jnp.dtype(dtype)).reshape(whole[name]["shape"])
        else:
            a = file.get_tensor(name)
        if dtype == "bool" and a.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"{who}: {name} in {os.fspath(path)!r} is boolean, but has bytes other than 0 and 1.")
        yield a


def write_atomically(who: str, path: str | os.PathLike[str], write: Callable[[str], Any]) -> None:
    """Give a file its name when ``write``, which takes a path, has written it and it is on disk."""
    target = os.path.realpath(path)  # a symbolic link stays one
    folder = check_place(who, path)
    with tempfile.TemporaryDirectory(prefix=".jaxrnn-", dir=folder) as private:
        unfinished = os.path.join(private, "unfinished")
        with open(unfinished, "wb"):
            mode = os.stat(target if os.path.exists(target) else unfinished).st_mode
        write(unfinished)
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(unfinished, stat.S_IMODE(mode))  # the library makes private files
        os.replace(unfinished, target)


def check_place(who: str, path: str | os.PathLike[str]) -> str:
    """The folder of a file that can be written.

    Raises:
        ValueError, OSError: it cannot.
    """
    target = os.path.realpath(path)
    check_regular(who, path)
    if not os.fspath(path):
        raise FileNotFoundError(errno.ENOENT, f"{who}: the path has no name of a file", "")
    if os.path.exists(target) and not os.access(target, os.W_OK):  # as open would; a rename does not ask
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"{who}: cannot write in a folder that is not there", folder)
    return folder


def check_readable(who: str, path: str | os.PathLike[str]) -> None:
    """What is there under this name is a file; of a directory the error says what reads it.

    Raises:
        ValueError: it is something else.
    """
    if os.path.isdir(path) and (kind := recognised(path)):
        raise ValueError(f"{who}: {os.fspath(path)!r} is {kind.title}; {kind.fix}.")
    check_regular(who, path)


def check_regular(who: str, path: str | os.PathLike[str]) -> None:
    """What is there under this name is a file, and no device or pipe, which may have no end.

    Raises:
        ValueError: it is something else.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        what = "a directory" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{who}: {os.fspath(path)!r} is {what}; give the name of a file.")


def few(items: Sequence[str], joint: str = ", ") -> str:
    """The first five of some names, and how many more there are."""
    more = [f"and {len(items) - 5} more"] if len(items) > 5 else []
    return joint.join([*items[:5], *more])
