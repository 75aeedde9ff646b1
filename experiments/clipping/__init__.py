"""Gradient clipping where gradients explode: the same SGD without clipping, and with it, four ways.

About 2 minutes on 2 CPU cores.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

import jaxrnn as jr
from experiments.clipping import data
from experiments.runner import config as configuration
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Trained
from experiments.runner.models import compute_dtype
from jaxrnn import plotting

Variant = Literal["none", "global_norm", "value", "adaptive", "cotangent"]
ERROR = report.Column("held-out MSE", "held_out_error")
COLUMNS = (ERROR, report.Column("diverged", "not_finite", "of"), report.Column("learned", "learned", "of"))
HIGHEST = (1e2, 1e6)  # the top of the figure: a loss or gradient norm beyond it has exploded


class Model(Table):
    hidden_size: int = Field(default=64, gt=0)
    gain: Rate = 1.8  # W_hh is normal with a standard deviation of gain / √H: above 1 the network is chaotic


class Clip(Table):
    variants: Many[Variant] = get_args(Variant)
    global_norm: Rate = 1.0  # of the whole gradient
    value: Rate = 0.02  # of each of its numbers
    adaptive: Rate = 0.05  # of each unit's gradient, as a share of the norm of its weights
    cotangent: Rate = 1e-3  # of what goes back from step to step, for each sequence


class Train(configuration.Train):
    clip: Literal["none"] = "none"  # [clip] says what is compared
    optimizer: Literal["sgd"] = "sgd"  # Adam divides by the gradient's own size, which is a cure of its own
    learning_rate: Rate = 0.05
    nonfinite: Literal["stop", "skip", "record"] = "record"  # what explodes is to be seen


class Task(Table):
    length: int = Field(default=100, gt=0)  # T
    held_out: int = Field(default=256, gt=0)  # sequences
    held_out_seed: Seed = 2**31  # no seed of training: a batch is never held out
    learned_below: float = Field(default=0.25, gt=0, lt=1)  # a share of the error of answering 0


class Config(Trained):
    experiment: Literal["clipping"]
    model: Model = Model()
    clip: Clip = Clip()
    train: Train = Train()
    task: Task = Task()


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    of_zero, explosion = baseline(config.task), growth(config)
    results = []
    for result, *_ in fits.values():
        learned = result.last(ERROR.name) < config.task.learned_below * of_zero
        not_finite = np.array([seed in result.diverged() for seed in result.seeds])
        results.append(result.add({"not_finite": not_finite, "learned": learned}))
    figures = {"curves.png": curves(results, of_zero)}
    return study.Conclusion(results, notes(config, explosion), figures, {"baseline": of_zero, "growth": explosion})


def settings(config: Config, variant: Variant) -> configuration.Train:
    """``[train]`` with the variant's clipping; that of cotangents is within the network instead."""
    clipped = {} if variant in ("none", "cotangent") else {"clip": variant, "clip_at": getattr(config.clip, variant)}
    return configuration.Train(**{**config.train.model_dump(), **clipped})


def network(config: Config, variant: Variant = "none") -> jr.Cell:
    """An Elman network with a gain above 1."""
    scale = config.model.gain / config.model.hidden_size**0.5

    def normal(key, shape, dtype):
        return scale * jax.random.normal(key, shape, dtype)

    dtype = compute_dtype(config.train)
    cell = jr.elman(1, config.model.hidden_size, recurrent_init=normal, dtype=dtype)
    return jr.cotangent_clip(cell, max_norm=config.clip.cotangent) if variant == "cotangent" else cell


def model_of(config: Config, variant: Variant) -> jr.Layer:
    return jr.stack(network(config, variant), jr.readout(config.model.hidden_size, 1))


def task(config: Config, variant: Variant) -> training.Task:
    length, model = config.task.length, model_of(config, variant)

    def batch(key, number, shared):
        return data.draw(jax.random.fold_in(key, number), length, config.train.batch_size)

    def error(params, sequences):
        return jnp.mean((model.apply(params, sequences.levels)[1] - sequences.waves) ** 2)

    return training.Task(
        model.init,
        batch,
        loss=lambda params, batch, key, shared: (error(params, batch), {}),
        evaluate=lambda params, shared: {ERROR.name: error(params, shared)},
        score=ERROR.name,
        shared=held_out(config.task),
        stop_when=lambda block: not np.isfinite(block.values["loss"]).any(),
        until="no seed has a finite loss any more",
    )


def predictor(config: Config, variant: Variant) -> study.Predictor:
    """Levels (T, N, 1) -> the waves, (N, T)."""

    def examples():
        levels, waves = held_out(config.task)
        return levels, waves[..., 0].T

    def say(wave, truth):
        last = ", ".join(f"{value:.3f}" for value in wave[-3:])
        return f"… {last}" + ("" if truth is None else f"; MSE {np.mean((wave - truth) ** 2):.4f}")

    model, H = model_of(config, variant), config.model.hidden_size
    return study.Predictor(
        examples,
        lambda params, levels: model.apply(params, levels)[1][..., 0].T,
        say,
        jr.chain(network(config, variant), jr.readout(H, 1)),
    )


def held_out(task: Task) -> data.Waves:
    return data.draw(jax.random.key(task.held_out_seed), task.length, task.held_out)


def baseline(task: Task) -> float:
    """The held-out error of answering 0."""
    return float(jnp.mean(held_out(task).waves ** 2))


def growth(config: Config) -> list[float]:
    """For each seed, before training: ‖∂L/∂h‖ at the first step over that at the last, L being the last step's error.

    The mean over the held-out sequences of either norm. The gradient explodes where this is large.
    """
    model, sequences = model_of(config, "none"), held_out(config.task)
    cell, readout = network(config), jr.readout(config.model.hidden_size, 1)

    def of_seed(key):
        params, readout_params = model.init(jax.random.split(key)[0])  # as training.loop starts

        def last_error(carry, hs):
            return jnp.mean((readout.step(readout_params, (), hs[-1])[1] - sequences.waves[-1]) ** 2)

        by_step = jr.gradients.gradient_flow(cell, params, sequences.levels, last_error).states.mean
        return by_step[0] / by_step[-1]

    return jax.lax.map(of_seed, jnp.stack([jax.random.key(seed) for seed in config.train.seeds])).tolist()


def notes(config: Config, explosion: Sequence[float]) -> tuple[str, ...]:
    task = config.task
    middle = np.exp(np.mean(np.log(explosion)))
    return (
        f"Held-out MSE: {report.spread(config.train.seeds)}, of {task.held_out:,} sequences; answering 0 has "
        f"{baseline(task):.4f}. Diverged: the seeds whose loss stopped being a finite number; training ends when none "
        f"is left. Learned: the seeds that end below {task.learned_below:g} of the error of answering 0. Before "
        f"training the gradient of the last step's error is {middle:.1e} times larger at the first step than at the "
        f"last (geometric mean of the seeds, from {min(explosion):.1e} to {max(explosion):.1e}). Seconds: all seeds "
        "together, compilation included.",
    )


def curves(results: Sequence[report.Result], zero: float) -> Figure:
    """Loss and gradient norm over the steps: a column for each variant, a line for each seed."""
    figure = Figure(figsize=(2.6 * len(results) + 0.6, 5.2), layout="constrained")
    panels = figure.subplots(2, len(results), sharex=True, sharey="row", squeeze=False)
    for result, column in zip(results, panels.T, strict=True):
        for axes, name in zip(column, ("loss", "grad_norm"), strict=True):
            steps, values = report.curve(result, operator.itemgetter(name))
            for seed, colour, of_seed in zip(result.seeds, plotting.COLOURS, values, strict=False):
                shown = np.where(np.isfinite(of_seed), of_seed, np.nan)
                axes.plot(steps, shown, color=colour, linewidth=1, label=f"seed {seed}")
                after = [step for step, finite in zip(steps, np.isfinite(of_seed), strict=True) if not finite]
                if after:  # at the top, where the last numbers went
                    axes.plot(after[0], 0.97, "x", color=colour, transform=axes.get_xaxis_transform(), clip_on=False)
            axes.set_yscale("log")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        column[0].axhline(zero, color="grey", linewidth=1, linestyle="--", label="answering 0")
        column[0].set_title(result.model, fontsize=11)
        column[1].set_xlabel("training step")
    panels[0, 0].set_ylabel("training loss (MSE)")
    panels[1, 0].set_ylabel("gradient norm")
    for axes, top in zip(panels[:, 0], HIGHEST, strict=True):
        axes.set_ylim(top=top)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle("Plain SGD, by what clips the gradient (×: the loss is no finite number any more)", fontsize=11)
    return figure


STUDY = study.Study(lambda config: config.clip.variants, task, settings, lambda config: COLUMNS, conclude, predictor)
