"""A save that fails, wherever it does, leaves the checkpoint before it; the next one is as if nothing had been."""

import builtins
import errno
import os
import shutil

import jax.numpy as jnp
import pytest

from jaxrnn.training import checkpoints
from jaxrnn.training.checkpoints import CheckpointError


def state(step):
    return {"w": jnp.full((40, 30), float(step)), "n": jnp.asarray(step)}


def assert_holds(directory, step):
    came, restored, note = checkpoints.restore(directory, state(0))
    assert (came, int(restored["n"]), bool((restored["w"] == step).all()), note) == (step, step, True, {"step": step})


def contents(directory):
    """Of the checkpoints, every byte."""
    files = [path for step in ("2", "3") for path in (directory / step).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files}


class Disk:
    """Counts what is made, opened to be written and renamed in a directory, and refuses it from the k-th on."""

    def __init__(self, monkeypatch, directory):
        self.count, self.from_on = 0, None
        for module, name in ((os, "mkdir"), (os, "rename"), (os, "replace"), (builtins, "open")):
            monkeypatch.setattr(module, name, self.guarded(getattr(module, name), name, str(directory)))

    def guarded(self, function, name, directory):
        def called(path, *given, **named):
            written = name != "open" or (given or [named.get("mode", "r")])[0][0] in "wax"
            if written and str(path).startswith(directory):
                self.count += 1
                if self.from_on is not None and self.count >= self.from_on:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return function(path, *given, **named)

        return called


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of threads that orbax has left
def test_wherever_a_save_fails_the_one_before_stays(tmp_path, monkeypatch, request):
    """At every fourth operation, and the last; at every one of them under ``--full``."""
    directory = tmp_path / "checkpoints"
    for step in (1, 2):
        checkpoints.save(directory, step, state(step), {"step": step})
    with monkeypatch.context() as patch:
        disk = Disk(patch, directory)
        checkpoints.save(directory, 3, state(3), {"step": 3})
        operations, before = disk.count, contents(directory)
        for k in sorted({*range(1, operations + 1, 1 if request.config.getoption("--full") else 4), operations}):
            disk.count, disk.from_on = 0, k
            said = "step 4 could not be written: .*; the checkpoint of step 3 is intact"
            with pytest.raises(CheckpointError, match=said):
                checkpoints.save(directory, 4, state(4), {"step": 4})
            assert contents(directory) == before
    assert operations >= 8
    assert_holds(directory, 3)
    checkpoints.save(directory, 4, state(4), {"step": 4})
    assert_holds(directory, 4)
    assert sorted(os.listdir(directory)) == ["3", "4"]


def test_an_old_one_that_cannot_be_removed_is_told(tmp_path, monkeypatch):
    """What was to be saved is."""
    for step in (1, 2):
        checkpoints.save(tmp_path, step, state(step), {"step": step})
    remove = shutil.rmtree

    def refuse(path, *given, **named):
        if str(path) == str(tmp_path / "1"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        return remove(path, *given, **named)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.warns(UserWarning, match=f"{tmp_path}: an older checkpoint could not be removed: .*busy"):
        checkpoints.save(tmp_path, 3, state(3), {"step": 3})
    assert_holds(tmp_path, 3)


def test_a_smaller_step_is_refused(tmp_path):
    """It would not be the newest, and nobody would read it."""
    checkpoints.save(tmp_path, 20, state(20), {"step": 20})
    with pytest.raises(ValueError, match=f"{tmp_path} has a checkpoint of step 20, which is beyond step 3; count on"):
        checkpoints.save(tmp_path, 3, state(3), {"step": 3})
    checkpoints.save(tmp_path, 20, state(3), {"step": 3})  # is there already
    assert_holds(tmp_path, 20)
