"""The heaps of an HDF5 file, in which its texts stand, looked through before the HDF5 library reads them.

On a heap with a free object of no size, the library (2.0) walks on the spot for ever, where no time limit of Python's
reaches it; for one that is larger than the file it asks for the memory.
"""

from __future__ import annotations

SIGNATURE = b"GCOL\x01\x00\x00\x00"  # a heap of version 1; then its size (8 bytes), then its objects
HEAD = 16  # bytes of a heap's and of an object's header


def check_heaps(who: str, path: str) -> None:
    """Every heap lies in the file, and each of its objects has a size that leads to the next.

    Raises:
        ValueError: one does not.
    """
    with open(path, "rb") as file:
        raw = file.read()
    heap = raw.find(SIGNATURE)
    while heap >= 0:
        at, end = heap + HEAD, heap + int.from_bytes(raw[heap + 8 : heap + 16], "little")
        if end > len(raw):
            raise ValueError(f"{who}: {path!r} is damaged: a heap in it is larger than the file.")
        while at + HEAD <= end:
            index, size = (int.from_bytes(raw[at + a : at + b], "little") for a, b in ((0, 2), (8, 16)))
            if index == 0 and size < HEAD:  # free space, whose size counts its header
                raise ValueError(f"{who}: {path!r} is damaged: a heap in it has an object without a size.")
            at += size if index == 0 else HEAD + -(-size // 8) * 8
        heap = raw.find(SIGNATURE, heap + 1)
