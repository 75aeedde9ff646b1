"""The arrays that a model stores, checked before their memory is asked for: their dtypes, their sizes, their files."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from typing import Any, NoReturn

from jaxrnn.interop.registry import Library

# The field that holds the entries of a tensor without raw bytes, by element type; others go in raw bytes alone.
FIELDS = {
    **dict.fromkeys(("FLOAT",), "float_data"),
    **dict.fromkeys(("DOUBLE",), "double_data"),
    **dict.fromkeys(("INT64",), "int64_data"),
    **dict.fromkeys(("UINT32", "UINT64"), "uint64_data"),
    **dict.fromkeys(("INT32", "INT16", "INT8", "UINT16", "UINT8", "BOOL", "FLOAT16", "BFLOAT16"), "int32_data"),
}
SMALL = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # bits


def check_tensors(who: str, library: Library, proto: Any, folder: str | None) -> None:
    """Every tensor of a model has the bytes that its dtype and dimensions ask for; external ones are read.

    Args:
        folder: of the model's file, in which external data must lie; None for a model that comes from no file.

    Raises:
        ValueError: with the tensor's name.
    """
    for tensor in _tensors(proto):
        _check(f"{who}: the tensor {tensor.name!r}", library, tensor, folder)


def _tensors(proto: Any) -> Iterator[Any]:
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs += attribute.graphs
    for function in proto.functions:
        for node in function.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t


def _fail(where: str, why: str) -> NoReturn:
    raise ValueError(f"{where} {why}.")


def _check(where: str, library: Library, tensor: Any, folder: str | None) -> None:
    kinds = type(tensor).DataType
    known = {value: name for name, value in kinds.items()}
    kind = known.get(tensor.data_type, "UNDEFINED")
    if kind == "UNDEFINED":
        _fail(where, f"has the element type {tensor.data_type}, which ONNX does not define")
    if any(size < 0 for size in tensor.dims):
        _fail(where, f"has the shape {tuple(tensor.dims)}, with a negative size")
    if kind == "STRING":
        return
    count = math.prod(tensor.dims)
    dtype = library.load("onnx.helper").tensor_dtype_to_np_dtype(tensor.data_type)
    want = -(-count * SMALL.get(kind, 8 * dtype.itemsize) // 8)
    asked = f"but {kind} of the shape {tuple(tensor.dims)} takes"
    if tensor.data_location == tensor.EXTERNAL:
        tensor.raw_data = _external(where, tensor, folder, want, asked)
        tensor.data_location = tensor.DEFAULT
        del tensor.external_data[:]
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != want:
            _fail(where, f"holds {len(tensor.raw_data)} bytes, {asked} {want}; export the model once more")
    elif kind in FIELDS:
        came = len(getattr(tensor, FIELDS[kind]))
        if came != count:
            _fail(where, f"holds {came} numbers of its element type, {asked} {count}; export the model once more")


def _external(where: str, tensor: Any, folder: str | None, want: int, asked: str) -> bytes:
    """The bytes of a tensor that stands in a file of its own."""
    if folder is None:
        _fail(where, "stands in a file of its own; pass the path of the model, beside which it lies")
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    path = os.path.realpath(os.path.join(folder, location))
    home = os.path.realpath(folder)
    if not location or os.path.isabs(location) or os.path.commonpath([home, path]) != home:
        _fail(where, f"stands in the file {location!r}, which leaves the model's folder")
    if not os.path.exists(path):
        _fail(where, f"stands in the file {location!r}, which is not there")
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        _fail(where, f"stands in {location!r}, which is no regular file")
    offset, length = (_number(where, given, key) for key in ("offset", "length"))
    offset = offset or 0
    length = status.st_size - offset if length is None else length
    if length != want:
        _fail(where, f"holds {length} bytes of the file {location!r}, {asked} {want}")
    if offset + length > status.st_size:
        _fail(where, f"ends at byte {offset + length} of the file {location!r}, which has {status.st_size}")
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _number(where: str, given: dict[str, str], key: str) -> int | None:
    text = given.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        _fail(where, f"has the {key} {text!r} in its file; expected a number of bytes")
    return int(text)
