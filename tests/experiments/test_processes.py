"""Two processes train one model, one of them dies, and another number of processes goes on."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.runner.command import main
from tests.experiments.tiny import ROOT, TINY, options

SECONDS = 120  # a process that takes so long hangs
SETTINGS = [*TINY["adding"], "train.log_every=2", "train.seeds=[5,3]", "train.batch_size=4"]
SETTINGS += ["train.save_every=2", "task.stop_below=0.0"]


def processes(*arguments):
    """Both of them, on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(rank),
        }
        command = [sys.executable, "-m", "experiments", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    return started


def metrics(directory):
    path = directory / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


# Devices that divide each batch; with 1 the processes divide the seeds.
@pytest.mark.parametrize("batch", [2, 1])
@pytest.mark.full
def test_a_dead_process_and_another_number_of_them(tmp_path, batch):
    config = ROOT / "configs/adding.toml"
    steps = 20 if batch == 1 else 160
    few = [*SETTINGS, f"train.steps={steps}"]
    assert main(["run", str(config), "--out", str(tmp_path / "one"), *options(*few)]) == 0
    expected = metrics(tmp_path / "one/adding-001")

    directory = tmp_path / "two/adding-001"
    both = processes("run", config, "--out", tmp_path / "two", *options(*few, f"mesh.batch={batch}"))
    if batch == 2:
        deadline = time.monotonic() + SECONDS
        while not list(directory.glob("checkpoints/elman*/8")) and time.monotonic() < deadline:
            assert all(process.poll() is None for process in both), [process.communicate() for process in both]
            time.sleep(0.01)
        for process in reversed(
            both
        ):  # the second dies first; the first would end by itself, once its peer is given up
            process.kill()
            process.communicate(timeout=SECONDS)
        assert 0 < len(metrics(directory)) < len(expected)
        assert main(["run", "--resume", str(directory), *options("mesh.batch=1")]) == 0  # one process, one device each
    else:
        said = [process.communicate(timeout=SECONDS)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert ["written to" in text for text in said] == [True, False]  # one of them speaks

    came = metrics(directory)
    names = ("model", "seed", "step")
    assert [[line[name] for name in names] for line in came] == [[line[name] for name in names] for line in expected]
    for name in ("loss", "grad_norm", "held_out_error"):
        # Sums over the batch in another order; 160 steps of Adam carry the rounding on.
        a, b = (np.array([line[name] for line in lines]) for lines in (came, expected))
        np.testing.assert_allclose(a, b, rtol=1e-3 if batch == 2 else 1e-4, atol=1e-5)
    assert json.loads((directory / "summary.json").read_text())["models"][0]["steps"] == steps
