"""One training at a time in a directory: others are refused with its name, and a process that dies lets go."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxrnn import training
from jaxrnn.training import locking
from jaxrnn.training.checkpoints import CheckpointError

ROOT = Path(__file__).parents[1]
SECONDS = 120  # a process that takes so long hangs

# Holds the lock, its own child too where it forks one, says so, and waits to be killed.
HOLDER = """
import os, pathlib, sys, time, warnings
warnings.simplefilter("ignore")
from jaxrnn.training.locking import alone
with alone(pathlib.Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "forks" else 0
    if sys.argv[2] != "forks" or child:
        print(os.getpid(), child, flush=True)
    time.sleep(600)
"""


def fit(directory, **options):
    def block(state):
        return state + 1, {"loss": 1.0 / (state + 1)}, {}

    state = jnp.zeros((), jnp.int32)
    return training.fit(block, state, steps=2, block_steps=1, checkpoint=directory, **options)


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_the_lock_goes_with_its_process(tmp_path, how):
    """However it ends, and though a child that it has forked lives on."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path), how]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    holder = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        pid, child = map(int, holder.stdout.readline().split())
        with pytest.raises(CheckpointError) as refused:
            fit(tmp_path)
        owner = rf"process {pid} on .+, since \d{{4}}-\d\d-\d\d [\d:]{{8}} UTC"
        said = f"{tmp_path}: another training is at work in it: {owner}; wait for its end, or stop it."
        assert re.fullmatch(said, str(refused.value))
        assert os.listdir(tmp_path) == ["lock"]  # nothing was touched
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=SECONDS)
        assert int(fit(tmp_path).state) == 2
        if child:
            os.kill(child, 0)  # is there still
    finally:
        holder.kill()
        if child:
            os.kill(child, signal.SIGKILL)
        holder.communicate(timeout=SECONDS)


def test_two_trainings_of_one_process_are_two(tmp_path):
    """In another thread, and one within the other; after an error and after the end the directory is free."""
    refused = []

    def second(result):
        for start in (lambda work: work(), run_in_thread):
            with pytest.raises(CheckpointError) as caught:
                start(lambda: fit(tmp_path))
            refused.append(str(caught.value))
        assert int(fit(tmp_path / "another").state) == 2
        raise KeyError

    def run_in_thread(work):
        errors = []

        def guarded():
            try:
                work()
            except CheckpointError as error:
                errors.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
        raise errors[0]

    with pytest.raises(KeyError):
        fit(tmp_path, on_block=second)
    assert len(refused) == 2 and all(f"at work in it: process {os.getpid()} on " in said for said in refused)
    assert not fit(tmp_path).already_finished and fit(tmp_path).already_finished


def test_a_forked_child_leaves_the_lock_to_its_parent(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of any fork
        with locking.alone(tmp_path):
            child = os.fork()
            if child == 0:
                os._exit(len(locking._held))
            assert os.waitpid(child, 0)[1] == 0
            with pytest.raises(CheckpointError, match="another training is at work in it"), locking.alone(tmp_path):
                pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, code):
    def refuse(*given):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locking._fcntl, "flock", refuse)
    monkeypatch.setattr(locking, "_told", set())
    said = f"{tmp_path}: this file system ({os.strerror(code)}) has no locks: nothing keeps a second training out of"
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with pytest.warns(UserWarning, match=re.escape(said)) as caught:
        assert int(fit(tmp_path).state) == 2
        fit(tmp_path / "another")
    assert [warning.filename for warning in caught] == [__file__]
    assert opened is None or len(os.listdir("/proc/self/fd")) <= opened


def test_a_system_without_locks_is_told(tmp_path, monkeypatch):
    """Windows has no fcntl."""
    monkeypatch.setattr(locking, "_fcntl", None)
    monkeypatch.setattr(locking, "_told", set())
    with pytest.warns(UserWarning, match="this system has no locks") as caught:
        for directory in (tmp_path / "a", tmp_path / "b"):
            with locking.alone(directory), locking.alone(directory):
                pass
    assert len(caught) == 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_what_cannot_be_written_is_read_without_a_lock(tmp_path, monkeypatch, code):
    """An archive, another user's results: a training that has ended is read."""
    fit(tmp_path)
    (tmp_path / "lock").unlink()
    opens = os.open

    def refuse(path, flags, *given, **named):
        if str(path).endswith("lock") and flags & os.O_CREAT:
            raise OSError(code, os.strerror(code))
        return opens(path, flags, *given, **named)

    monkeypatch.setattr(locking.os, "open", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(tmp_path).already_finished
    (tmp_path / "lock").write_text("\x1b[31mnot a name\n")  # another user's, which is locked all the same
    with locking.alone(tmp_path), pytest.raises(CheckpointError, match="it: a process that has not given its name"):
        fit(tmp_path)


def test_a_place_for_no_directory_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(CheckpointError, match=f"{place}: expected a directory, or a place to make it: .*; name"):
            fit(place)
    (tmp_path / "lock").mkdir()
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'lock'}: Is a directory; the directory cannot be used"):
        fit(tmp_path)


def test_a_path_as_text_is_locked_too(tmp_path):
    with locking.alone(str(tmp_path)), pytest.raises(CheckpointError, match="another training is at work in it"):
        fit(tmp_path)


def test_the_first_of_several_processes_locks_for_all(tmp_path, monkeypatch):
    with locking.alone(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with locking.alone(tmp_path / "not made"):
            pass
    assert os.listdir(tmp_path) == ["lock"]
