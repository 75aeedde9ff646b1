"""Killed at any moment, a training comes, once it is started again, to the very same numbers."""

import json
import multiprocessing
import random
import signal
import time

import numpy as np
import pytest

from jaxrnn.training import checkpoints
from tests import killed as training
from tests.killed import STEPS

SECONDS = 120  # a process that takes so long hangs
# One process imports what all of them need, and each of them begins as a copy of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["orbax.checkpoint", "tests.killed"])


def start(directory, blocks, save=True):
    directory.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=training.train, args=(directory, blocks, save))
    process.start()
    return process


def end(process, code):
    """It has ended, with this exit code; a traceback stands in the captured stderr."""
    process.join(SECONDS)
    assert process.exitcode == code


def recorded(directory):
    """The last step of which a whole line stands in the metrics; 0 where none does."""
    path = directory / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def killed(directory, blocks, moment):
    """Start the training and kill it. Returns whether a checkpoint was being written."""
    before, began = recorded(directory), time.monotonic()
    process = start(directory, blocks)

    def writing():
        return list(directory.glob("checkpoints/*tmp*"))

    while process.is_alive() and time.monotonic() < began + SECONDS:
        ran = time.monotonic() - began
        trains = recorded(directory) != before
        if (
            (moment == "starts" and ran > random.uniform(0, 1))
            or (moment == "trains" and trains)
            or (moment == "writes" and trains and writing())
        ):
            break
        time.sleep(0.002)
    if moment == "trains":
        time.sleep(random.uniform(0, 0.15))
    process.kill()
    end(process, -signal.SIGKILL)
    return bool(writing())


def survives(tmp_path, kills, blocks):
    whole, broken = tmp_path / "uninterrupted", tmp_path / "broken"
    end(start(whole, blocks, save=False), 0)
    saved, torn = 0, 0
    for kill in range(kills):
        torn += killed(broken, blocks, ("trains", "writes", "trains", "starts")[kill % 4])
        now = checkpoints.latest(broken / "checkpoints") or 0
        # Each block is saved: at most the one whose line is there, but whose checkpoint is not, is lost.
        assert now >= max(saved, recorded(broken) - STEPS)
        saved = now
    assert saved < STEPS * blocks, "the training ended before the kills did: give it more blocks"
    end(start(broken, blocks), 0)
    assert torn >= kills // 8  # the test has met what it is about
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    expected, came = np.load(whole / "final.npz"), np.load(broken / "final.npz")
    assert set(expected) == set(came) and len(expected) > 20
    for name in expected:
        np.testing.assert_array_equal(came[name], expected[name], err_msg=name)


@pytest.mark.full
def test_ten_kills(tmp_path):
    survives(tmp_path, 10, 140)


@pytest.mark.full
def test_a_hundred_kills(tmp_path):
    survives(tmp_path, 100, 600)
