"""Run folders as runs leave them, written by hand: nothing is trained."""

import json
import shutil

import numpy as np
import tomli_w
from matplotlib.figure import Figure

from experiments.reports.samples import Groups, Map, Said, Tile, Tiles, Words
from experiments.runner import report
from jaxrnn.training import BlockResult

HOSTILE = "<script>alert('x')</script> & \"co\""
COLUMNS = [report.Column("exact, length 2 to 3", "exact", "%"), report.Column("loss", "loss", ".3f")]


def a_run(directory, *, finished=True, models=("luong", HOSTILE), seeds=(5, 3, 8), rate=3e-3, like=None):
    """A run of `reverse` with everything that a report shows, names that are HTML among it.

    ``like``: another run, whose figures are copied, as drawing takes longer than all else; it has no samples.
    """
    directory.mkdir(parents=True)
    content = {"experiment": "reverse", "train": {"steps": 40, "learning_rate": rate, "seeds": list(seeds)}}
    content["model"] = {"attention": list(models)}
    (directory / "config.toml").write_text(tomli_w.dumps(content))
    results, rng = [], np.random.default_rng(0)
    with (directory / "metrics.jsonl").open("w") as file:
        for place, model in enumerate(models):
            blocks = []
            for step in (10, 20, 30, 40)[: 4 if finished else 2]:
                values = {"loss": 3 / step + 0.02 * place + 0.01 * rng.random(len(seeds))}
                values |= {"grad_norm": rng.random(len(seeds)), "exact": np.clip(step / 45 - 0.1 * rng.random(3), 0, 1)}
                for number, seed in enumerate(seeds):
                    row = {"model": model, "seed": seed, "step": step}
                    file.write(json.dumps({**row, **{name: of[number] for name, of in values.items()}}) + "\n")
                blocks.append(BlockResult(step, values, {}))
            results.append(report.Result(model, tuple(seeds), 1234, blocks, 12.5))
    if finished and like is None:
        curves = report.curves(results, {"loss": lambda values: values["loss"]}, title="Reversed strings")
        drawn = {"curves.png": curves, "rows.png": some_rows()}
        report.write(directory, results, COLUMNS, [f"A note on {HOSTILE}."], drawn, samples=some_samples(models))
    elif finished:
        report.write(directory, results, COLUMNS, [], {})
        for file in ("curves.png", "curves.svg", "rows.png", "rows.svg"):
            shutil.copy(like / file, directory)
    return directory


def some_rows():
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    axes.imshow(np.arange(6).reshape(2, 3))
    axes.set(title=HOSTILE, xlabel="column", ylabel="row")
    return figure


def some_samples(models):
    """One of each kind."""
    rng = np.random.default_rng(1)
    weights = np.exp(4 * np.eye(12)[::-1] + rng.random((12, 12)))
    weights = np.vstack([weights / weights.sum(1, keepdims=True), np.full(12, 1 / 12)])
    of = {model: tuple(map(tuple, np.clip(rng.random((3, 6)) * np.linspace(0.1, 1, 6), 0, 1))) for model in models}
    ramp = np.minimum(np.add.outer(np.arange(8), np.arange(8)) / 14, 1)
    return [
        Groups(title="Strings with a fault, by length", axis="attention", groups=tuple("234567"), by_model=of),
        Words(
            title="Test strings",
            header=("read", "should be", *models),
            rows=(("1 2 3", "3 2 1", Said(text="3 2 1", right=True), Said(text=HOSTILE, right=False)),),
        ),
        Map(
            title="Where it looks",
            values=tuple(map(tuple, weights.tolist())),
            rows=(*map(str, range(12, 0, -1)), "end"),
            columns=tuple(map(str, range(1, 13))),
            xlabel="symbol read",
            ylabel="symbol said",
        ),
        Map(
            title="A roll",
            values=tuple(map(tuple, (rng.random((40, 200)) > 0.9).astype(float).tolist())),
            xlabel="step",
        ),
        Tiles(
            title="Images",
            tiles=tuple(
                Tile(values=tuple(map(tuple, ramp.tolist())), caption=f"{n}, read as {HOSTILE}") for n in range(5)
            ),
        ),
    ]
