"""Gradient flow: how far back the gradient of the last step reaches; every cell at several gains, untrained.

About 1 minute on 2 CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Console

import jaxrnn as jr
from experiments.environment import environment
from experiments.reports import figures as drawings
from experiments.runner import report
from experiments.runner.config import Many, Rate, Seed, Table
from jaxrnn import plotting

Name = Literal["tanh", "relu", "irnn", "gru", "lstm", "peephole_lstm"]

CELLS: dict[Name, Callable[[int, int], jr.Cell]] = {
    "tanh": jr.elman,
    "relu": lambda I, H: jr.elman(I, H, activation="relu"),
    "irnn": lambda I, H: jr.elman(I, H, activation="relu", recurrent_init="identity"),
    "gru": jr.gru,
    "lstm": jr.lstm,
    "peephole_lstm": jr.peephole_lstm,
}


class Model(Table):
    cells: Many[Name] = get_args(Name)
    hidden_size: int = Field(default=64, gt=0)
    gains: Many[Rate] = (0.8, 1.0, 1.5)  # what the orthogonal (irnn: identity) recurrent weights are multiplied by


class Data(Table):
    steps: int = Field(default=200, gt=1)  # T
    batch_size: int = Field(default=16, gt=0)
    input_size: int = Field(default=8, gt=0)
    input_sd: Rate = 0.5  # of the normal noise that is read
    seeds: Many[Seed] = (0, 1, 2, 3)


class Config(Table):
    experiment: Literal["gradient_flow"]
    model: Model = Model()
    data: Data = Data()


class Measured(NamedTuple):
    """One cell at one gain, each array (seeds, …)."""

    name: Name
    gain: float
    curve: np.ndarray  # (seeds, T): the norm by lag
    spectrum: jr.gradients.LyapunovSpectrum  # of the first sequence


def run(config: Config, directory: Path) -> None:
    """Measure every cell at every gain."""
    console = Console()
    everything = []
    for gain in config.model.gains:
        for name in config.model.cells:
            everything.append(measure(config, name, gain))
            console.print(f"{name}, gain {gain:g}: {diagnosis(everything[-1])}", highlight=False, soft_wrap=True)
    report.write_table(directory, rows(everything), [note(config)])
    summary = {"measured": [summarized(m) for m in everything], "environment": environment(report.PACKAGES)}
    (directory / "summary.json").write_text(report.to_json(summary, indent=2) + "\n", encoding="utf-8")
    for file, figure in figures(config, everything).items():
        drawings.save(figure, directory / file)
    console.print(f"{note(config)}\nwritten to {directory}", highlight=False, soft_wrap=True)


def cell_and_data(config: Config, name: Name, gain: float, key: jax.Array) -> tuple[jr.Cell, Any, jax.Array]:
    """The cell, its parameters with recurrent weights times ``gain``, and noise to read (T, B, I)."""
    settings = config.data
    k_params, k_xs = jax.random.split(key)
    cell = CELLS[name](settings.input_size, config.model.hidden_size)
    params = cell.init(k_params)
    shape = (settings.steps, settings.batch_size, settings.input_size)
    return cell, params._replace(W_hh=gain * params.W_hh), settings.input_sd * jax.random.normal(k_xs, shape)


def measure(config: Config, name: Name, gain: float) -> Measured:
    def of_seed(key):
        cell, params, xs = cell_and_data(config, name, gain, key)
        direction = jax.random.normal(jax.random.fold_in(key, 2), (config.model.hidden_size,))
        flow = jr.gradients.gradient_flow(cell, params, xs, lambda carry, ys: (ys[-1] @ direction).mean())
        memory: Any = getattr(flow.states, "c", flow.states)  # an LSTM remembers in c
        spectrum = jr.gradients.lyapunov_spectrum(cell, params, xs[:, 0], burn_in=config.data.steps // 5)
        return jr.gradients.norm_by_lag(memory.norm), spectrum

    keys = jnp.stack([jax.random.key(seed) for seed in config.data.seeds])
    curve, spectrum = jr.devices.ensemble(of_seed)(keys)
    return Measured(name, gain, np.asarray(curve), jax.tree.map(np.asarray, spectrum))


def diagnosis(m: Measured) -> jr.gradients.Diagnosis:
    """Of all seeds together."""
    leading, steps = m.spectrum.exponents[:, 0], m.curve.shape[1]
    exponent, finite = float(leading.mean()), bool(np.isfinite(leading).all())
    return jr.gradients.Diagnosis(
        exponent, float(leading.std(ddof=1)) if finite else 0.0, steps, jr.gradients.classify_exponent(exponent, steps)
    )


def rows(everything: list[Measured]) -> list[tuple[str, ...]]:
    T = everything[0].curve.shape[1]
    lags = [lag for lag in (10, 50, T - 1) if lag < T]
    header = ("cell", "gain", *(f"lag {lag}" for lag in lags), "λ₁", "time constant", "verdict")
    return [header, *(row(m, lags) for m in everything)]


def row(m: Measured, lags: list[int]) -> tuple[str, ...]:
    found = diagnosis(m)
    with np.errstate(divide="ignore"):
        logs = np.log(m.curve / m.curve[:, :1]).mean(0)
    shares = [f"{np.exp(logs[lag]):.1e}" if logs[lag] > -np.inf else "0" for lag in lags]
    exponent = f"{found.exponent:+.3f} ± {found.sd:.3f}" if np.isfinite(found.exponent) else "-∞"
    constant = f"{found.time_constant:.1f}" if found.time_constant < 10 * found.steps else f"> {10 * found.steps}"
    return m.name, f"{m.gain:g}", *shares, exponent, constant, found.regime


def note(config: Config) -> str:
    return (
        "lag: the norm of the gradient by the state so many steps before the last, over that at the last (geometric "
        f"mean of {len(config.data.seeds)} seeds; by c in an LSTM). λ₁: the leading Lyapunov exponent a step, mean ± "
        "standard deviation of the seeds; time constant: 1/|λ₁| steps."
    )


def summarized(m: Measured) -> dict[str, Any]:
    return {
        "cell": m.name,
        "gain": m.gain,
        "curve": m.curve.tolist(),
        "exponents": m.spectrum.exponents.tolist(),
        "verdict": diagnosis(m).regime,
    }


def figures(config: Config, everything: list[Measured]) -> dict[str, Figure]:
    """The norm by lag at every gain; spectra, singular values and gates at the gain nearest to 1."""
    gains = config.model.gains
    flow = Figure(figsize=(4.2 * len(gains) + 1.6, 4), layout="constrained")
    for axes, gain in zip(flow.subplots(1, len(gains), squeeze=False)[0], gains, strict=True):
        plotting.draw_gradient_norms(axes, {m.name: m.curve for m in everything if m.gain == gain})
        axes.set_title(f"recurrent weights × {gain:g}", fontsize=11)
    flow.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    seeds = len(config.data.seeds)
    flow.suptitle(
        f"Gradient of the last step by lag ({seeds} seeds: mean, and from the lowest to the highest)", fontsize=11
    )

    middle = min(gains, key=lambda gain: abs(gain - 1))
    spectra = {m.name: m.spectrum for m in everything if m.gain == middle}
    first = config.model.cells[0]
    cell, params, xs = cell_and_data(config, first, max(gains), jax.random.key(config.data.seeds[0]))
    made = {
        "gradient_norms.png": flow,
        "lyapunov.png": plotting.lyapunov(
            spectra_by_seed(spectra), title=f"Lyapunov spectra, recurrent weights × {middle:g}"
        ),
        "singular_values.png": plotting.singular_values(
            jr.gradients.log_singular_values(cell, params, xs[:, 0]),
            title=f"Step Jacobians of {first}, weights × {max(gains):g}",
        ),
    }
    gated = [name for name in config.model.cells if CELLS[name](1, 1).gates is not None]
    if gated:
        cell, params, xs = cell_and_data(config, gated[-1], middle, jax.random.key(config.data.seeds[0]))
        made["gates.png"] = plotting.gates(jr.trace_gates(cell, params, xs), title=f"Gates of an untrained {gated[-1]}")
    return made


def spectra_by_seed(spectra: dict[Name, jr.gradients.LyapunovSpectrum]) -> dict[str, jr.gradients.LyapunovSpectrum]:
    """Seeds as the batch that the figure takes: growth (seeds, T, k) as (T, seeds, k)."""
    return {name: s._replace(growth=jnp.moveaxis(s.growth, 0, 1)) for name, s in spectra.items()}
