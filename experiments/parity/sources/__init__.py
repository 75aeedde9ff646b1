"""The models of the other libraries, each run in its own form, with random weights, biases and initial states.

One library a file, whose ``sources()`` gives functions of a draw that make a source; a new file joins the table.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from experiments.parity.compare import Make


def sources() -> Iterator[tuple[str, Make]]:
    """``(library, function of a draw that makes the source)``, library by library."""
    for library in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        for make in importlib.import_module(f"{__name__}.{library}").sources():
            yield library, make
