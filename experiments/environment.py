"""Where figures come from: the machine, the devices, the versions."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

import jaxrnn as jr
from jaxrnn.planning.tuning_file import cpu_model


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """The machine and the versions of jaxrnn and of these packages, None for one that is not installed."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",  # on a GPU, its name
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "jaxrnn": jr.__version__,  # of a checkout, which need not be installed
        **{package: version_of(package) for package in packages},
    }


def sentence(environment: Mapping[str, Any], packages: Sequence[str]) -> str:
    """The same for the reader of a page."""
    versions = ", ".join(f"{package} {environment[package] or 'missing'}" for package in ("jaxrnn", *packages))
    others = environment.get("other_work")  # cores, known after a run that watched them
    return (
        f"As run on {environment['date']}: {environment['cpu']}, {environment['cores']} cores, "
        f"{environment['devices']}, {f'{others:.2f} cores busy with other processes; ' if others is not None else ''}"
        f"Python {environment['python']}, {versions}."
    )


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
