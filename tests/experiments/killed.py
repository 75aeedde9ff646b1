"""Every experiment at its smallest, on data written for it, in a process of its own that may be killed."""

import contextlib
import itertools
import json
import os
import signal
import sys

import jax
import numpy as np

from experiments import EXPERIMENTS
from experiments.runner import report, terminal
from experiments.runner.command import main
from tests.experiments.tiny import ROOT, TINY, options

STEPS = ["train.steps=6", "train.log_every=2", "train.save_every=1", "train.seeds=[5]", "train.batch_size=4"]
KILLED_AT = 4
ONE_MODEL = {  # most are handed ``data.path`` too
    "charlm": ["model.hidden_size=3", "model.embedding_size=2", "task.window=4", "task.lead=3", "task.streams=2"],
    "digits": ["model.cells=['elman']", "model.hidden_size=3"],
    "decisions": ["model.hidden_size=10", "task.held_out=5", "task.stimulus=4", "search.starts=4", "search.steps=5"],
    "forecast": ["task.series=['co2']", "task.co2.window=60", "task.co2.stride=20", "model.hidden_size=3"],
    "g2p": ["model.kinds=['ctc']", "model.hidden_size=2", "model.embedding_size=2", "data.buckets=1"],
    "music": ["model.only=['gru-46']", "model.variants.gru-46.hidden_size=2", "model.variants.gru-46.steps=6"],
    "vowels": ["model.cells=['gru']", "model.hidden_size=2", "data.buckets=1", "task.held_out=test"],  # no folds
}
ONE_MODEL["charlm"] += ["task.order=3", "task.written=8", "task.prompt=6"]
ONE_MODEL["g2p"] += ["data.validation=0.2", "data.test=0.3"]
OF_ITS_OWN = {  # what has no STUDY
    "gradient_flow": ["model={cells=['tanh'],hidden_size=4,gains=[1.0]}", "data={steps=12,batch_size=2,seeds=[0]}"],
    "long_memory": ["runs=['scan']", "task.length=20", "train.blocks=2", "train.block_steps=2", "train.seeds=[0]"],
    "mackey_glass": ["model.hidden_sizes=[8]", "model.ridges=[1e-6]", "task.steps=60", "task.washout=5"],
    "memory_rl": ["tasks=['t_maze']", "networks=['gru']", "hidden_size=4", "seeds=[7]", "episodes=5"],
    "online_copy": ["data={steps=200,batch_size=4,bound=9.0}", "model.hidden_size=4", "learn.rates=[0.01]"],
    "online_drift": ["data.steps=120", "learn.rules=['chunk']", "learn.chunks=[4]", "learn.rates=[0.01]"],
}
OF_ITS_OWN["long_memory"] += ["model.cells=['gru']", "model.hidden_sizes={gru=4}", "task.validation=2", "task.test=2"]
OF_ITS_OWN["mackey_glass"] += ["task.starts=2", "task.warm_up=20", "task.horizon=5", "task.seeds=[0]"]
OF_ITS_OWN["memory_rl"] += ["ppo={updates=3,environments=4,steps=4}"]
OF_ITS_OWN["online_copy"] += ["learn.dense=['bptt']", "learn.sparse=['bptt']", "learn.windows=[4]"]
OF_ITS_OWN["online_copy"] += ["learn.seeds=[0]", "learn.validation_seeds=[9]"]
OF_ITS_OWN["online_drift"] += ["learn.seeds=[0]", "learn.validation_seeds=[9]", "model.hidden_size=3"]


def settings(name, folder):
    """A few steps of one model and one seed, and where its data are."""
    if name in OF_ITS_OWN:
        return OF_ITS_OWN[name]
    few = ONE_MODEL.get(name) or TINY[name]
    path = written(name, folder)
    return [*few, *STEPS, *([] if path is None else [f"data.path={path}"])]


def written(name, folder):
    """The path of a file of its own with a little to learn from."""
    rng = np.random.default_rng(0)
    if name == "charlm":
        path, text = folder / "text.txt", "the cat sat on the mat, and the hat sat on the cat. " * 12
    elif name == "g2p":
        words = ["".join(word) for n in (1, 2, 3) for word in itertools.product("abk", repeat=n)]
        path, text = folder / "words.dict", "\n".join(f"{word} {' '.join(word.upper())}" for word in words)
    elif name == "music":
        pieces = {split: rng.integers(40, 80, (8, 5, 4)).tolist() for split in ("train", "valid", "test")}
        path, text = folder / "pieces.json", json.dumps(pieces)
    elif name == "vowels":
        rows = [f"s{n},{(n * t) % 5},{n % 2}" for n in range(40) for t in range(3 + n % 2)]
        path, text = folder / "sequences.csv", "\n".join(["sequence,height,label", *rows])
    else:
        return None
    path.write_text(text + "\n", encoding="utf-8")
    return path


def without_statsmodels(folder):
    """A package of that name with a short series, and the seasonal naive forecast in the place of its models."""
    from experiments.forecast import classical

    place = folder / "statsmodels" / "datasets" / "co2"
    place.mkdir(parents=True, exist_ok=True)
    (folder / "statsmodels" / "__init__.py").write_text("raise ImportError('only found')")
    weeks = [f"{n},{'' if n % 41 == 7 else f'{300 + 0.03 * n + n % 5:.2f}'}" for n in range(600)]
    (place / "co2.csv").write_text("\n".join(["date,co2", *weeks]) + "\n")
    sys.path.insert(0, str(folder))
    fit = classical.fit
    classical.fit = lambda model, *of: fit("naive", *of)


def dies():
    """The process kills itself: after a block of steps, or before what has no STUDY writes its table."""
    update = terminal.Display.update

    def watched(display, model, block):
        update(display, model, block)
        if block.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    terminal.Display.update = watched
    report.write_table = lambda *of, **more: os.kill(os.getpid(), signal.SIGKILL)


def begin(name, folder, command, killed=False):
    """All of a process: a command of the experiments; what it says stands in a file."""
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_disable_most_optimizations", True)
    if name == "forecast":
        without_statsmodels(folder)
    if killed:
        dies()
    with (folder / "said.txt").open("a") as said, contextlib.redirect_stderr(said):
        sys.exit(main([*command, "--quiet"]))


def starts(name, folder, out):
    """The command that runs an experiment from its first step."""
    return ["run", str(ROOT / EXPERIMENTS[name].config), "--out", str(out), *options(*settings(name, folder))]
