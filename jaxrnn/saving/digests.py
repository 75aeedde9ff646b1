"""Digests of a file's tensors and of jaxrnn's own text, by which ``load`` sees a changed bit.

SHA-256, as every Python has it, every system can compute it apart from this library, and it reads about a gigabyte a
second. It tells damage, not intent: who changes a file on purpose can write the digests anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

ENTRY = "sha256"  # of jaxrnn's text; files of 0.1.0, and those that other programs write, have none
AGAIN = "fetch or save the file once more"


def digest_of(name: str, a: np.ndarray) -> str:
    """The digest of a tensor: its name, dtype and shape, as JSON has them, and its bytes, little end first."""
    digest = hashlib.sha256(json.dumps([name, a.dtype.name, a.shape]).encode())
    little = a.astype(a.dtype.newbyteorder("<"), order="C", copy=False)
    digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def with_digests(kept: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """jaxrnn's text, with the digest of each tensor, and of the text itself."""
    sealed = {**kept, ENTRY: {"tensors": {name: digest_of(name, a) for name, a in tensors.items()}}}
    sealed[ENTRY]["text"] = _digest_of_text(sealed)
    return json.dumps(sealed, allow_nan=False)


def _digest_of_text(kept: Mapping[str, Any]) -> str:
    """Of what the text says, in one order: where the digest itself stands in it, it is left out."""
    own = {name: value for name, value in kept[ENTRY].items() if name != "text"}
    return hashlib.sha256(json.dumps({**kept, ENTRY: own}, sort_keys=True).encode()).hexdigest()


def has_digests(kept: Mapping[str, Any]) -> bool:
    return ENTRY in kept


def check_text(kept: Mapping[str, Any]) -> None:
    """jaxrnn's text says what was written.

    Raises:
        ValueError: it says something else.
    """
    if ENTRY not in kept:
        return
    digests = kept[ENTRY]
    if not isinstance(digests, dict) or not isinstance(digests.get("tensors"), dict):
        raise ValueError(f"expected {ENTRY} to be a dict with a dict of tensors")
    if digests.get("text") != _digest_of_text(kept):
        raise ValueError(f"its digest is another than when it was saved; {AGAIN}")


def check_tensor(who: str, path: Any, kept: Mapping[str, Any], name: str, a: np.ndarray) -> None:
    """A tensor is the one that was saved, as far as the file has digests.

    Raises:
        ValueError: it is another.
    """
    if ENTRY in kept and kept[ENTRY]["tensors"].get(name) != digest_of(name, a):
        raise ValueError(
            f"{who}: the tensor {name} in {os.fspath(path)!r} is damaged: its digest is another than when it was "
            f"saved; {AGAIN}."
        )
