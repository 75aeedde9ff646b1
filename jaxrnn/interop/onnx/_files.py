"""ONNX files for ``python -m jaxrnn convert`` and ``inspect``."""

from __future__ import annotations

from pathlib import Path

from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn._spec import Spec
from jaxrnn.interop.onnx._exporting import export
from jaxrnn.interop.onnx._inspecting import inspect
from jaxrnn.interop.onnx._loading import load
from jaxrnn.interop.registry import Format, Loaded


def _read(path: str) -> Loaded:
    return Loaded(*load(path))


def _write(path: str, model: Cell | Layer, params: PyTree) -> None:
    learned = model.spec is not None and _is_learned(model.spec)
    proto = export(model, params, carry=not learned)  # a learned carry stands in the graph, and is no input of it
    Path(path).write_bytes(proto.SerializeToString())


def _is_learned(spec: Spec) -> bool:
    return bool(dict(spec.options).get("learned_carry")) or any(map(_is_learned, spec.children))


def _parts(path: str) -> list[str]:
    return [str(node) for node in inspect(path)]


FORMATS = {".onnx": Format("ONNX", _read, _write, parts=_parts)}
