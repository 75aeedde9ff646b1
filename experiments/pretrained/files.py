"""Where the networks are: files of the packages silero-vad and g2p-en, which are found and never imported."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.data.files import path_of
from experiments.data.records import DataError

EXTRA = (
    "pip install 'jaxrnn[pretrained]', or pip install onnx onnxruntime and pip install --no-deps silero-vad==6.2.3 "
    "g2p-en==2.1.0: their files alone are read"
)


def found(key: str, path: str, package: str, name: str) -> Path:
    """The file of that name in a package, or the one at ``path``.

    Raises:
        DataError: there is none, in one line that begins with the key of the config.
    """
    if path:
        if not path_of(path).is_file():
            what = "is a folder" if path_of(path).is_dir() else "no such file"
            raise DataError(f"{key}: {path}: {what}; give a file like {name} of the package {package}")
        return path_of(path)
    module = importlib.util.find_spec(package)
    if not module or not module.submodule_search_locations:
        raise DataError(f"{key}: {package}, whose network the experiment runs, is not installed; {EXTRA}")
    file = Path(module.submodule_search_locations[0], name)
    if not file.is_file():
        raise DataError(f"{key}: this {package} has no {name}; {EXTRA}, or give --set {key}=FILE")
    return file


def imported(key: str, name: str) -> ModuleType:
    """onnx or onnxruntime.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"{key}: {name} cannot be imported ({_first_line(error)}); {EXTRA}") from None


def _first_line(error: Any) -> str:
    return re.sub(r"\s+", " ", str(error))[:120]
