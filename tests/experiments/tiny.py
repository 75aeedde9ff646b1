"""The experiments at their smallest, as the tests of the command line run them."""

import contextlib
import shutil
from pathlib import Path

import pytest

from experiments.runner import terminal
from experiments.runner.command import main

ROOT = Path(__file__).parents[2]
TINY = {
    "digits": ["model.cells=['elman','gru']", "model.hidden_size=3", "train.batch_size=4"],
    "adding": ["model.cells=['elman']", "model.hidden_size=3", "task.lengths=[6]", "task.held_out=8"],
    "copy_memory": ["model.cells=['elman']", "model.hidden_size=3", "task.delay=2", "task.held_out=8"],
    "flip_flop": ["model.cells=['elman']", "model.hidden_size=3", "task.length=5", "task.held_out=8"],
    "reverse": [
        "model.attention=['luong']",
        "model.hidden_size=3",
        "task.shortest=2",
        "task.longest=3",
        "task.longer=[4]",
    ],
    "clipping": ["clip.variants=['value']", "model.hidden_size=3", "task.length=5", "task.held_out=8"],
}
TINY["reverse"] += ["model.embedding_size=3", "task.validation=8", "task.test=4"]
TINY["flip_flop"] += ["search.starts=4", "search.steps=5"]
STEPS = ["train.steps=12", "train.log_every=2", "train.seeds=[5,3]"]


def left_by_a_run(*figures):
    """The names of the files of every run, and of each figure."""
    drawn = {f"{figure}.{ending}" for figure in figures for ending in ("png", "svg")}
    return {"config.toml", "summary.json", "table.md", "report.html", "lock", *drawn}


def options(*settings):
    return [option for setting in settings for option in ("--set", setting)]


def run(experiment, out, *settings):
    """Returns the status."""
    config = str(ROOT / f"configs/{experiment}.toml")
    return main(["run", config, "--out", str(out), *options(*TINY[experiment], *STEPS, *settings)])


@contextlib.contextmanager
def copied(directory, *moments):
    """Copies of a run directory as a kill at some moments, (model, step), would leave it: a list that fills."""
    copies, update = [], terminal.Display.update

    def watched(display, model, block):
        update(display, model, block)
        if (model, block.step) in moments:
            copies.append(shutil.copytree(directory, directory.with_name(f"killed-{len(copies)}")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal.Display, "update", watched)
        yield copies
