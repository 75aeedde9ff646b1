"""Models and nodes as ONNX stores them: read, checked, named in errors."""

from __future__ import annotations

import functools
import os
from typing import Any, NoReturn

import numpy as np

from jaxrnn.interop.onnx._tensors import check_tensors
from jaxrnn.interop.registry import Library

LIBRARY = Library("ONNX", "onnx", extra="interop")
OLDEST = 7  # the operator set in which RNN, LSTM and GRU took the form that they still have
STANDARD = ("", "ai.onnx")  # the domain of ONNX's own operators
VERSIONS = (OLDEST, 14, 22)  # in which they changed: 14 added layout, 22 a dtype


def fail(where: str, why: str) -> NoReturn:
    """The error for a model that cannot be what ONNX defines, or that asks for what is not here."""
    raise ValueError(f"{where}: {why}" if why.endswith("?") else f"{where}: {why}.")


def read(who: str, model: Any) -> Any:
    """The model, from a path, bytes or a ModelProto, checked by ONNX's own checker.

    Raises:
        TypeError: something else. ValueError: what is not a model, a model that breaks ONNX's rules, an operator set
            before 7.
    """
    onnx = LIBRARY.load()
    checker = LIBRARY.load("onnx.checker")
    folder, what = None, "the model"
    if isinstance(model, bytes):
        what = f"{len(model)} bytes"
        proto = _parsed(who, onnx, onnx.load_model_from_string, model, what)
    elif isinstance(model, str | os.PathLike):
        path = os.fspath(model)
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError(f"{who}: {path} is no regular file; pass the path of an ONNX model.")
        folder, what = os.path.dirname(os.path.abspath(path)), f"the file {path}"
        parse = functools.partial(onnx.load_model, load_external_data=False)
        proto = _parsed(who, onnx, parse, path, what)
    elif isinstance(model, onnx.ModelProto):
        proto = model
    else:
        raise TypeError(f"{who}: expected a path, bytes or an onnx.ModelProto, got {type(model).__name__}.")
    check_tensors(who, LIBRARY, proto, folder)
    try:
        checker.check_model(proto)
    except checker.ValidationError as error:
        raise ValueError(
            f"{who}: ONNX's checker refuses {what}: {' '.join(str(error).split()).rstrip('.')}; export it once more."
        ) from error
    if opset_of(proto) < OLDEST:
        fail(who, f"the model's operator set is {opset_of(proto)}; convert it to {OLDEST} or a later one")
    for kind in ("RNN", "LSTM", "GRU"):
        version = LIBRARY.load("onnx.defs").get_schema(kind, opset_of(proto), "").since_version
        if version not in VERSIONS:
            fail(who, f"version {version} of {kind} is newer than this library; convert the model to operator set 22")
    if proto.functions:
        proto = LIBRARY.load("onnx.inliner").inline_local_functions(proto)
    return proto


def _parsed(who: str, onnx: Any, parse: Any, source: Any, what: str) -> Any:
    if isinstance(source, str) and not os.path.exists(source):
        raise FileNotFoundError(f"{who}: {what} is not there.")
    try:
        return parse(source)
    except Exception as error:  # protobuf's own class differs between its implementations
        raise ValueError(f"{who}: {what} cannot be read as an ONNX model (cut short, or of another kind?)") from error


def opset_of(proto: Any) -> int:
    """The version of ONNX's own operators that the model is written in."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def name_of(who: str, node: Any) -> str:
    """How errors call a node: by its name, or by what it computes where it has none."""
    called = repr(node.name) if node.name else f"that computes {next(filter(None, node.output), '')!r}"
    return f"{who}: {node.op_type} node {called}"


def attributes_of(node: Any) -> dict[str, Any]:
    """The attributes by name; texts as str, tensors as NumPy arrays."""
    helper = LIBRARY.load("onnx.helper")
    numpy_helper = LIBRARY.load("onnx.numpy_helper")

    def plain(value):
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, list):
            return [plain(v) for v in value]
        return numpy_helper.to_array(value) if type(value).__name__ == "TensorProto" else value

    return {attribute.name: plain(helper.get_attribute_value(attribute)) for attribute in node.attribute}


def initializers_of(who: str, proto: Any) -> dict[str, np.ndarray]:
    """The arrays that the model stores, by name."""
    numpy_helper = LIBRARY.load("onnx.numpy_helper")
    if proto.graph.sparse_initializer:
        fail(who, "the model stores sparse arrays; write them as dense ones")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
