"""Decisions: a network under Dale's law weighs noisy evidence for left and right; psychometric curve, fixed points.

About 2 minutes on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import Field

import jaxrnn as jr
from experiments import fixed_points
from experiments.decisions import data
from experiments.fixed_points import Points, Search
from experiments.reports.samples import Groups
from experiments.runner import report, study, training
from experiments.runner.config import Many, Rate, Seed, Table, Trained
from experiments.runner.models import compute_dtype
from jaxrnn import plotting

Form = Literal["current", "rate"]
COLUMNS = (
    report.Column("held-out accuracy", "accuracy", "%"),
    report.Column("of the best observer's", "share", "%"),
    report.Column("stable points", "stable", ".1f"),
    report.Column("one for each answer", "both", "of"),
    report.Column("unstable points", "unstable", ".1f"),
)


class Model(Table):
    forms: Many[Form] = ("current",)  # the figure of fixed points is of the first
    hidden_size: int = Field(default=50, gt=1)
    excitatory: float = Field(default=0.8, gt=0, lt=1)
    tau: Rate = 100.0  # ms
    dt: Rate = 20.0
    noise: float = Field(default=0.1, ge=0)  # σ of each unit


class Task(Table):
    coherences: Many[Rate] = (0.032, 0.064, 0.128, 0.256, 0.512)  # to either side
    noise: Rate = 0.5  # of the evidence, at each step
    fixation: int = Field(default=5, ge=0)  # steps
    stimulus: int = Field(default=30, gt=0)
    answer: int = Field(default=10, gt=0)  # silent; every step of it should give the answer
    rate_cost: float = Field(default=1e-3, ge=0)  # of the mean squared rate
    held_out: int = Field(default=200, gt=0)  # trials of each coherence and side
    held_out_seed: Seed = 2**31  # no seed of training


class Settled(Search):
    starts: int = Field(default=256, gt=0)
    settle: int = Field(default=500, ge=0)  # of ReLU units


class Config(Trained):
    experiment: Literal["decisions"]
    model: Model = Model()
    task: Task = Task()
    search: Settled = Settled()


class Found(NamedTuple):
    """The fixed points of one network under one input."""

    points: Points
    answers: np.ndarray  # (M,): 1 where the readout says right

    def measures(self) -> dict[str, float]:
        stable = np.asarray(self.points.analysis.stable)
        answers = self.answers[stable].tolist()
        return {
            "stable": stable.sum(),
            "unstable": (~stable).sum(),
            "both": float(set(answers) == {0, 1}),
            "right": sum(answers),  # of the stable ones
            "slowest": np.asarray(self.points.analysis.time_constants)[stable].max(initial=0.0),  # steps
        }


def parts(config: Config, form: Form) -> tuple[jr.Cell, jr.Cell, jr.Cell]:
    """The network, its excitatory units, which alone are read out, and the readout."""
    model = config.model
    H, E = model.hidden_size, round(model.excitatory * model.hidden_size)
    dtype = compute_dtype(config.train)
    cell = jr.ctrnn(
        2,
        H,
        form=form,
        tau=model.tau,
        dt=model.dt,
        noise=model.noise,
        dale=model.excitatory,
        excitatory_input=True,
        self_connections=False,
        spectral_radius=1.0,
        dtype=dtype,
    )
    return cell, jr.pointwise(lambda r: r[..., :E]), jr.readout(E, 2, dtype=dtype)


def epochs(config: Config) -> data.Epochs:
    return data.Epochs(config.task.fixation, config.task.stimulus, config.task.answer)


def held_out(config: Config) -> data.Trials:
    """As many trials of each coherence, to the left (below 0) and to the right."""
    coherences = np.array(config.task.coherences, "float32")
    signed = jnp.asarray(np.repeat(np.concatenate([-coherences[::-1], coherences]), config.task.held_out))
    return data.draw(jax.random.key(config.task.held_out_seed), signed, epochs(config), config.task.noise)


def task(config: Config, form: Form) -> training.Task:
    settings, model = config.task, jr.stack(*parts(config, form))

    def batch(key, number, shared):
        k_c, k_side, k_draw = jax.random.split(jax.random.fold_in(key, number), 3)
        shape = (config.train.batch_size,)
        coherence = jax.random.choice(k_c, jnp.asarray(settings.coherences), shape)
        return data.draw(
            k_draw, coherence * jax.random.rademacher(k_side, shape, coherence.dtype), epochs(config), settings.noise
        )

    def loss(params, trials, key, shared):
        rates, logits = answers(config, form, params, trials.evidence, key)
        logits = logits[-settings.answer :]
        labels = jnp.broadcast_to(trials.right, logits.shape[:-1])
        wrong = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return wrong + settings.rate_cost * jnp.square(rates).mean(), {}

    def evaluate(params, shared):
        return {"accuracy": jnp.mean(choices(config, form, params, shared) == shared.right)}

    axes: Any = data.Trials(1, 0, 0)  # type: ignore[arg-type]  # axes where the arrays are
    return training.Task(model.init, batch, loss, evaluate, "accuracy", False, held_out(config), axes)


def answers(config: Config, form: Form, params: Any, evidence: jax.Array, key: Any) -> tuple[jax.Array, jax.Array]:
    """Rates (T, B, H) and logits of left and right (T, B, 2)."""
    cell, excitatory, readout = parts(config, form)
    of_cell, _, of_readout = params
    _, rates = jr.scan(cell).apply(of_cell, evidence, key=key)
    return rates, readout.step(of_readout, (), excitatory.step((), (), rates)[1])[1]


def choices(config: Config, form: Form, params: Any, trials: data.Trials) -> jax.Array:
    """(B,): 1 where the network says right at the last step, its own noise on."""
    _, logits = answers(config, form, params, trials.evidence, jax.random.key(config.task.held_out_seed + 1))
    return logits[-1].argmax(-1)


def conclude(config: Config, fits: Mapping[str, training.Fit]) -> study.Conclusion:
    trials, results = held_out(config), []
    founds: dict[str, list[dict[str, Found]]] = {}  # by form, seed and input
    curves: dict[str, np.ndarray] = {}
    ideal = data.ideal(np.abs(trials.coherence), epochs(config), config.task.noise).mean()
    for form in config.model.forms:
        result, params, _ = fits[form]
        clock = report.Clock()
        of_seeds = jax.jit(jax.vmap(lambda p, form=form: choices(config, form, p, trials)))(params)
        sides = np.asarray(of_seeds).reshape(len(of_seeds), -1, config.task.held_out)
        curves[form] = sides.mean(-1)  # (seeds, coherences to either side): the share of right
        founds[form] = [search(config, form, params, n, trials) for n in range(len(result.seeds))]
        measures = [found["silence"].measures() for found in founds[form]]
        together = {name: np.array([of_seed[name] for of_seed in measures]) for name in measures[0]}
        together["share"] = result.last("accuracy") / ideal
        results.append(result.add(together)._replace(seconds=result.seconds + clock.seconds()))
    figures = {"psychometric.png": psychometric(config, curves)}
    first = founds[config.model.forms[0]][0]["silence"]
    if len(first.answers):
        title = f"{config.model.forms[0]}, seed {config.train.seeds[0]}"
        points, analysis, _, states = first.points
        figures["fixed_points.png"] = plotting.fixed_points(points, analysis, states, components=2, title=title)
    more = {"right": {form: curve.tolist() for form, curve in curves.items()}, "ideal": float(ideal)}
    shown = [errors_by_coherence(config, curves)]
    return study.Conclusion(results, notes(config, curves, float(ideal), founds), figures, more, shown)


def inputs(config: Config) -> dict[str, tuple[float, float]]:
    """Those under which fixed points are searched: silence, and evidence without noise."""
    c = max(config.task.coherences)
    return {
        "silence": (0.0, 0.0),
        "left": ((1 + c) / 2, (1 - c) / 2),
        "neither": (0.5, 0.5),
        "right": ((1 - c) / 2, (1 + c) / 2),
    }


def search(config: Config, form: Form, params: Any, n: int, trials: data.Trials) -> dict[str, Found]:
    """The fixed points of seed n under each input, without noise, in float32, from states along held-out runs."""
    exact = config.train.model_copy(update={"precision": "float32"})
    cell, excitatory, readout = parts(config.model_copy(update={"train": exact}), form)
    own, _, of_readout = jax.tree.map(lambda a: jax.device_get(a[n]), params)
    some, given = trials.evidence[:, :: max(1, trials.evidence.shape[1] // 50)], inputs(config)
    everything = fixed_points.search(cell, own, some, jnp.array(list(given.values())), config.search)

    def found(points: Points) -> Found:
        state = points.points.carry
        rates = jnp.maximum(state, 0) if form == "current" else state  # f is relu
        logits = readout.step(of_readout, (), excitatory.step((), (), rates)[1])[1]
        return Found(points, np.asarray(logits.argmax(-1)))

    return {name: found(everything.under(number)) for number, name in enumerate(given)}


def predictor(config: Config, form: Form) -> study.Predictor:
    """Evidence (T, N, 2) -> how surely right is the answer, (N,)."""

    def examples():
        trials = held_out(config)
        return trials.evidence, trials.right

    def say(right, truth):
        return f"right with {right:.3f}" + ("" if truth is None else f"; it was {('left', 'right')[int(truth)]}")

    model = jr.stack(*parts(config, form))
    return study.Predictor(examples, lambda params, xs: jax.nn.softmax(model.apply(params, xs)[1][-1])[:, 1], say)


def accuracies(curve: np.ndarray) -> np.ndarray:
    """(seeds, coherences to either side), the share of right -> (seeds, coherences), the accuracy."""
    count = curve.shape[-1] // 2
    return (curve[:, count:] + 1 - curve[:, :count][:, ::-1]) / 2


def errors_by_coherence(config: Config, curves: Mapping[str, np.ndarray]) -> Groups:
    """Wrong answers of every seed, the best observer's below."""
    coherences = np.array(config.task.coherences)
    by_model = {form: tuple(map(tuple, (1 - accuracies(curve)).tolist())) for form, curve in curves.items()}
    best = 1 - data.ideal(coherences, epochs(config), config.task.noise)
    return Groups(
        title="Wrong answers by coherence",
        axis="form",
        groups=tuple(f"{c:g}" for c in coherences),
        by_model={**by_model, "the best observer": (tuple(best.tolist()),)},
    )


def notes(
    config: Config,
    curves: Mapping[str, np.ndarray],
    ideal: float,
    founds: Mapping[str, Sequence[Mapping[str, Found]]],
) -> tuple[str, ...]:
    task, count = config.task, len(config.task.coherences)
    best = data.ideal(np.array(task.coherences), epochs(config), task.noise)

    def listed(shares):
        return " | ".join(f"{100 * share:.1f}" for share in shares)

    def counted(form, name):
        """Stable points, unstable ones, and how many of the stable are read out as right, over all seeds."""
        each = [found[name].measures() for found in founds[form]]
        stable, unstable, right = (sum(int(of[key]) for of in each) for key in ("stable", "unstable", "right"))
        return f"{name} {stable} | {unstable} | {right}"

    def slowest(form):
        return " | ".join(f"{found['silence'].measures()['slowest']:.1f}" for found in founds[form])

    return (
        f"{report.spread(config.train.seeds).capitalize()}; {2 * count * task.held_out:,} held-out trials, the units' "
        f"own noise on. The best observer, who sums the evidence, is right in {100 * ideal:.1f} %. Stable and unstable "
        f"points: fixed points in silence that Newton's method reaches from {config.search.starts:,} states near the "
        f"runs, and from where these are {config.search.settle:,} steps later. One for each answer: the seeds with "
        f"stable points that are read out as left and as right. Seconds: all seeds together, compilation and search "
        f"included.",
        f"Accuracy in per cent at coherences {', '.join(f'{c:g}' for c in task.coherences)}: "
        + "; ".join(f"{form} {listed(accuracies(curve).mean(0))}" for form, curve in curves.items())
        + f"; the best observer {listed(best)}.",
        f"Stable points | unstable ones | how many of the stable are read out as right, all seeds together, in silence "
        f"and while evidence of coherence {max(task.coherences):g} or 0 comes, without noise: "
        + "; ".join(f"{form} {', '.join(counted(form, name) for name in inputs(config))}" for form in curves)
        + ".",
        "Time constant of the slowest mode at a stable point in silence, in steps, seed by seed: "
        + "; ".join(f"{form} {slowest(form)}" for form in curves)
        + ".",
    )


def psychometric(config: Config, curves: Mapping[str, np.ndarray]) -> Figure:
    """The share of right by signed coherence, of every seed, beside the best observer."""
    coherences = np.array(config.task.coherences)
    signed = np.concatenate([-coherences[::-1], coherences])
    dense = np.linspace(signed.min(), signed.max(), 200)
    figure = Figure(figsize=(5 * len(curves) + 0.5, 4), layout="constrained")
    panels: Sequence[Any] = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (form, of_seeds) in zip(panels, curves.items(), strict=True):
        axes.plot(dense, data.ideal(dense, epochs(config), config.task.noise), color="grey", label="best observer")
        for seed, colour, curve in zip(config.train.seeds, plotting.COLOURS, of_seeds, strict=False):
            axes.plot(signed, curve, "o-", color=colour, markersize=4, linewidth=1, label=f"seed {seed}")
        axes.set(xlabel="coherence, above 0 to the right", ylabel="answers right", title=f'form="{form}"')
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    return figure


STUDY = study.Study(
    lambda config: config.model.forms,
    task,
    lambda config, form: config.train,
    lambda config: COLUMNS,
    conclude,
    predictor,
)
