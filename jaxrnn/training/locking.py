"""One process at work in a directory: a lock that a process which dies lets go of."""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxrnn.training.checkpoints import CheckpointError

_fcntl: Any
try:
    import fcntl as _fcntl
except ImportError:  # Windows
    _fcntl = None

LOCK = "lock"  # the file in the directory: who is at work in it
_held = set[int]()  # the files that this process keeps locked
_told = set[str]()  # what has no locks


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other trainings out of a directory, whether other processes run them or this one.

    The lock is the system's (flock) on a file ``lock``, which names its owner. It goes with its process, however that
    ends, and with no child that the process has forked; the file stays. Of several processes of one program the first
    holds it for all. Where the file system has no locks, or the system has none of this kind, a warning says so, once;
    in a directory that cannot be written nothing is locked.

    Args:
        directory: made where it is missing.

    Raises:
        checkpoints.CheckpointError: another one is at work in it: which process, on which host, since when. The
            directory cannot be made.

    Example:
        >>> import tempfile, pathlib
        >>> from jaxrnn.training.locking import alone
        >>> with tempfile.TemporaryDirectory() as folder, alone(pathlib.Path(folder)):
        ...     (pathlib.Path(folder) / "lock").read_text().startswith("process")
        True
    """
    file = None if jax.process_index() > 0 else _locked(Path(directory))
    try:
        yield
    finally:
        if file in _held:  # not so in a child
            _let_go(file)


def _opened(directory: Path) -> int | None:
    """The lock's file; None where nothing can be written, so that nobody can disturb anybody."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: expected a directory, or a place to make it: {error.strerror}; name another."
        ) from None
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):  # the file of another user can be locked, though not written
        try:
            return os.open(directory / LOCK, flags, 0o666)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
                raise CheckpointError(f"{directory / LOCK}: {error.strerror}; the directory cannot be used.") from None
    return None


def _locked(directory: Path) -> int | None:
    """The file, once it is locked; None where that cannot be."""
    file = _opened(directory)
    if file is None:
        return None
    if _fcntl is None:
        os.close(file)
        _warn_without("this system", directory)
        return None
    try:
        _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(file)
        os.close(file)
        if isinstance(error, BlockingIOError):
            raise CheckpointError(
                f"{directory}: another training is at work in it: {owner}; wait for its end, or stop it."
            ) from None
        _warn_without(f"this file system ({error.strerror})", directory)
        return None
    _let_go_in_children()
    _held.add(file)
    _sign(file)
    return file


def _let_go(file: int) -> None:
    _held.discard(file)
    os.close(file)  # with the last one that has it open the lock is gone


@functools.cache
def _let_go_in_children() -> None:
    """A child that is forked, as one that loads data, has the file open as well, and would keep the lock."""

    def let_go_of_all() -> None:
        for file in list(_held):
            _let_go(file)

    os.register_at_fork(after_in_child=let_go_of_all)


def _sign(file: int) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    owner = f"process {os.getpid()} on {platform.node() or 'this host'}, since {now} UTC\n"
    with contextlib.suppress(OSError):  # a full disk, or the file of another user: the lock holds without a name
        os.ftruncate(file, 0)
        os.pwrite(file, owner.encode(), 0)


def _owner(file: int) -> str:
    """As the owner has written it; it may not have come to that yet."""
    with contextlib.suppress(OSError):
        said = os.pread(file, 300, 0).decode(errors="replace").partition("\n")[0]
        if said.startswith("process ") and said.isprintable():
            return said
    return "a process that has not given its name"


def _warn_without(what: str, directory: Path) -> None:
    if what not in _told:
        _told.add(what)
        warnings.warn(
            f"{directory}: {what} has no locks: nothing keeps a second training out of the same directory; start one "
            f"alone. (This is said once.)",
            stacklevel=8,  # whoever calls training.fit
        )
