"""The directory of a run: made, and what lies where in it."""

from __future__ import annotations

import itertools
import re
import zlib
from pathlib import Path

import jax
import numpy as np

from jaxrnn.training.records import Records


class RunError(Exception):
    """Why a run directory cannot be used."""


def new_directory(out: Path, name: str, config: str | None = None) -> Path:
    """Make ``out/name-001``, or the next number that is free, and put the config there; no older run is touched.

    Of several processes the first makes it, and tells the others.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        made = _new_directory(out, name, config) if jax.process_index() == 0 else None
        number = multihost_utils.broadcast_one_to_all(np.int32(made.name.rsplit("-", 1)[1] if made else 0))
        return out / f"{name}-{int(number):03d}"
    return _new_directory(out, name, config)


def _new_directory(out: Path, name: str, config: str | None) -> Path:
    for number in itertools.count(1):
        directory = out / f"{name}-{number:03d}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        if config is not None:
            (directory / "config.toml").write_text(config, encoding="utf-8")
        return directory
    raise AssertionError("unreachable")


def records(directory: Path, tensorboard: bool) -> Records:
    """The metrics of a run; of several processes the first writes them."""
    events = directory / "tensorboard" if tensorboard else None
    return Records(directory / "metrics.jsonl", tensorboard=events, write=jax.process_index() == 0)


def checkpoint(directory: Path, model: str) -> Path:
    """Where the checkpoints of a model lie."""
    plain = re.sub(r"[^\w.=-]+", "_", model)[:80]
    # Two names may look alike without their commas and blanks.
    return directory / "checkpoints" / (plain if plain == model else f"{plain}-{zlib.crc32(model.encode()):08x}")
