"""The user's file of constants, which ``python -m jaxrnn tune`` writes: where it is, what it holds, if it is taken.

It is JSON: the version of its format, the jaxlib and the machine that it was measured with, and the constants by name.
A file that differs in any of the first is not taken.
"""

from __future__ import annotations

import json
import math
import os
import platform
import reprlib
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib

VARIABLE = "JAXRNN_TUNING"  # of the environment: "off", or the path of another file
FORMAT = 1
LARGEST = 2**16  # bytes; such a file has less than a thousand


class Found(NamedTuple):
    path: str
    constants: dict[str, float]


def is_off() -> bool:
    """Whether the environment says that no file is read."""
    return os.environ.get(VARIABLE, "").lower() in ("off", "0")


def is_default() -> bool:
    """Whether the environment names no other file than the user's own."""
    return is_off() or not os.environ.get(VARIABLE)


def tuning_path() -> str:
    """Of the file: the one that the environment names, else the user's own.

    Raises:
        ImportError: platformdirs, which knows where the user's own is, is not installed.
    """
    if not is_default():
        return os.path.expanduser(os.environ[VARIABLE])
    try:
        import platformdirs
    except ImportError as error:
        raise ImportError(
            f"jaxrnn.planning needs platformdirs, a dependency of jaxrnn: pip install platformdirs; or name a file "
            f"by {VARIABLE}=PATH."
        ) from error
    return str(platformdirs.user_config_path("jaxrnn") / "tuning.json")


def conditions() -> dict[str, Any]:
    """What a file and the process that reads it must agree on."""
    return {
        "format": FORMAT,
        "jaxlib": jaxlib.__version__,
        "platform": jax.default_backend(),
        "device": jax.local_devices()[0].device_kind,
        "cpu": _cpu(),
    }


def cpu_model() -> str:
    """The processor's name."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _cpu() -> str:
    """The name, with what tells the processor from others of that name."""
    info = _cpu_info()
    numbers = [f"{name} {info[name]}" for name in ("cpu family", "model", "CPU part") if name in info]
    return ", ".join([cpu_model(), *numbers, f"{os.cpu_count()} cores"])


def _cpu_info() -> dict[str, str]:
    """What Linux says of the first processor."""
    file = Path("/proc/cpuinfo")
    found: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def file_text(constants: Mapping[str, float]) -> str:
    """What a file with these constants holds, on this machine."""
    return json.dumps({**conditions(), "constants": dict(constants)}, indent=2) + "\n"


def read_constants(known: Collection[str]) -> Found | None:
    """What the file says; None where there is none, or where it does not hold for this process, with a warning."""
    if is_off():
        return None
    try:
        path = tuning_path()
    except ImportError:
        return None  # without platformdirs none was written there
    if is_default() and not os.path.exists(path):
        return None
    try:
        return Found(path, _constants_in(read_file(path), known))
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    warnings.warn(
        f"jaxrnn: the tuning file {path!r} is ignored: {reason}. Plans choose by the defaults. Write it anew with "
        f"python -m jaxrnn tune, remove it with python -m jaxrnn tune --remove, or set {VARIABLE}=off.",
        stacklevel=2,
    )
    return None


def read_file(path: str) -> dict[str, Any]:
    """The JSON of a file that may be a tuning file.

    Raises:
        OSError, ValueError: it is none; the error says why.
    """
    with open(path, "rb") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not sound JSON") from None
    if not isinstance(held, dict) or not isinstance(held.get("constants"), dict) or "format" not in held:
        raise ValueError("it holds no format and constants, as a tuning file does")
    return held


def _constants_in(held: Mapping[str, Any], known: Collection[str]) -> dict[str, float]:
    for name, here in conditions().items():
        there = held.get(name)
        if type(there) is not type(here) or there != here:
            raise ValueError(f"it was written for {name} {reprlib.repr(there)}, here it is {here!r}")
    for name, value in held["constants"].items():
        if name not in known:
            raise ValueError(f"it holds a constant {reprlib.repr(name)}, which this version of jaxrnn does not have")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise ValueError(f"its {name} is {reprlib.repr(value)}, which is no number above 0")
    return dict(held["constants"])
