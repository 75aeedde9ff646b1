"""Figures of gradients, gates, spectra and of training."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from jaxrnn._arguments import checks_arguments
from jaxrnn.gradients.flow import Flow, StateFlow, norm_by_lag
from jaxrnn.gradients.lyapunov import LyapunovSpectrum
from jaxrnn.plotting._axes import COLOURS, Axes, Figure, MaxNLocator, colours, finished, new_figure, plain, with_names

GATES_FROM_0_TO_1 = ("i", "f", "o", "r", "z")


@checks_arguments
def gradient_norms(flows: Mapping[str, Any], *, title: str = "Gradient norm by lag") -> Figure:
    """How far back the gradient reaches: ‖∂L/∂h_t‖ over the lag T - 1 - t, on a logarithmic scale.

    Args:
        flows: a curve for each name: a :class:`jaxrnn.gradients.StateFlow` of a forward run, an array (T,) by lag (as
            ``jr.gradients.norm_by_lag`` gives it), or (seeds, T), drawn as the geometric mean with the band from the
            smallest to the largest.
        title: above the axes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell, xs = jr.lstm(3, 8), jnp.ones((50, 2, 3))
        >>> flow = jr.gradients.gradient_flow(cell, cell.init(jax.random.key(0)), xs, lambda carry, ys: ys[-1].sum())
        >>> figure = jr.plotting.gradient_norms({"h": flow.states.h, "c": flow.states.c})
    """
    figure, axes = new_figure(title)
    draw_gradient_norms(axes, with_names("gradient_norms", "flows", flows))
    return finished(figure, axes)


@checks_arguments
def draw_gradient_norms(axes: Axes, flows: Mapping[str, Any]) -> None:
    """:func:`gradient_norms` on axes of your own.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> import jaxrnn as jr
        >>> axes = Figure().subplots()
        >>> jr.plotting.draw_gradient_norms(axes, {"decay": 0.9 ** jnp.arange(50)})
        >>> axes.get_yscale()
        'log'
    """
    styles = itertools.cycle(("-", "--"))  # curves that lie on each other show both
    for colour, style, (name, flow) in zip(colours(), styles, flows.items(), strict=False):
        if isinstance(flow, Flow):
            raise TypeError(
                f"draw_gradient_norms: {name!r} is a whole Flow; give one of its states, such as flow.states.h."
            )
        curve = np.asarray(norm_by_lag(flow.norm) if isinstance(flow, StateFlow) else flow, float)
        if curve.ndim not in (1, 2):
            raise ValueError(
                f"draw_gradient_norms: {name!r} must be (T,) by lag or (seeds, T), got shape {curve.shape}."
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(np.where(curve > 0, curve, np.nan).reshape(-1, curve.shape[-1]))
        lags = np.arange(curve.shape[-1])
        axes.plot(
            lags, np.exp(logs.mean(0)), color=colour, linestyle=style, label=name
        )  # NaN, where it vanished, leaves a gap
        if len(logs) > 1:
            low, high, shown = np.exp(logs.min(0)), np.exp(logs.max(0)), np.isfinite(logs).all(0)
            axes.fill_between(lags, low, high, where=shown, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="lag (steps back from the end)", ylabel="‖∂L/∂h‖", yscale="log")
    plain(axes)


@checks_arguments
def singular_values(logs: ArrayLike, *, lag: int = 1, title: str | None = None) -> Figure:
    """The singular values of the Jacobian products along a run, as bands over time, one step's share of each.

    Args:
        logs: (n, *B, N), from ``jr.gradients.log_singular_values`` with the same ``lag``; of all sequences of a batch.
        lag: the steps of each product; values are shown to the power 1/lag.
        title: above the axes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell, xs = jr.gru(3, 8), jnp.ones((50, 3))
        >>> params = cell.init(jax.random.key(0))
        >>> figure = jr.plotting.singular_values(jr.gradients.log_singular_values(cell, params, xs))
    """
    logs = np.asarray(logs, float)
    if logs.ndim < 2:
        raise ValueError(
            f"singular_values: expected logs (n, *B, N) from jr.gradients.log_singular_values, got shape {logs.shape}."
        )
    figure, axes = new_figure(title or f"Singular values of Jacobians over {lag} step{'s' * (lag > 1)}")
    values = np.exp(np.maximum(logs.reshape(len(logs), -1) / lag, -80))
    times = lag * (1 + np.arange(len(logs)))
    for share, alpha in ((0, 0.15), (10, 0.2), (25, 0.3)):
        low, high = np.percentile(values, [share, 100 - share], axis=1)
        label = "all" if share == 0 else f"middle {100 - 2 * share} %"
        axes.fill_between(times, low, high, color=COLOURS[2], alpha=alpha, linewidth=0, label=label)
    axes.plot(times, np.median(values, axis=1), color=COLOURS[2], label="median")
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    of = "σ of ∂hₜ/∂hₜ₋₁" if lag == 1 else f"σ of ∂hₜ/∂hₜ₋ₖ, to the power 1/k, k = {lag}"
    axes.set(xlabel="step t" if lag == 1 else "step, from the first product's first", ylabel=of, yscale="log")
    return finished(figure, axes)


@checks_arguments
def gates(gates: Any, *, sequence: int = 0, title: str = "Gate activations") -> Figure:
    """The gates of one sequence as heat maps: time to the right, a row for each unit.

    Args:
        gates: from ``jr.trace_gates``: a NamedTuple of arrays (T, *B, H).
        sequence: which of the batch.
        title: above the panels.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.lstm(3, 8)
        >>> traced = jr.trace_gates(cell, cell.init(jax.random.key(0)), jnp.ones((20, 2, 3)))
        >>> figure = jr.plotting.gates(traced)
    """
    if not hasattr(gates, "_asdict"):
        raise TypeError(f"gates: expected the NamedTuple that jr.trace_gates gives, got {type(gates).__name__}.")
    arrays = {name: np.asarray(a, float) for name, a in gates._asdict().items()}
    for name, a in arrays.items():
        if a.ndim < 2 or sequence >= (batch := math.prod(a.shape[1:-1])):
            held = f"{batch} sequences" if a.ndim > 1 else f"the shape {a.shape}"
            raise ValueError(
                f"gates: sequence must be one of the batch, got {sequence} where {name} has {held}; give 0 or above, "
                f"below that number, and gates (T, *B, H)."
            )
    figure = Figure(figsize=(9, 1.1 + 1.25 * len(arrays)), layout="constrained")
    panels = figure.subplots(len(arrays), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, a) in zip(panels, arrays.items(), strict=True):
        image = a.reshape(len(a), -1, a.shape[-1])[:, sequence].T
        if name in GATES_FROM_0_TO_1:
            shown = axes.imshow(image, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=1)
        else:
            top = max(float(np.abs(image).max(initial=0)), 1e-12)
            shown = axes.imshow(image, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-top, vmax=top)
        axes.set_ylabel(f"{name}\nunit")
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        figure.colorbar(shown, ax=axes, pad=0.01)
    panels[-1].set_xlabel("step t")
    figure.suptitle(title, fontsize=11)
    return figure


@checks_arguments
def learning_curves(
    curves: Mapping[str, Any],
    steps: Sequence[int] | None = None,
    *,
    ylabel: str = "loss",
    yscale: str = "log",
    baselines: Mapping[str, float] | None = None,
    title: str = "Learning curves",
) -> Figure:
    """What is measured over training: the mean of the seeds, and the band from the lowest to the highest.

    Args:
        curves: for each name (seeds, points), or (points,) for one seed; or a pair ``(steps, values)`` where models
            were measured at different steps.
        steps: the training step of each point; None counts points from 1.
        ylabel, yscale: of the vertical axis; "linear" or "log".
        baselines: horizontal lines with a name.
        title: above the axes.

    Example:
        >>> import numpy as np
        >>> import jaxrnn as jr
        >>> losses = {"lstm": np.array([[3.0, 2.0, 1.0], [3.0, 1.5, 0.9]])}  # two seeds
        >>> figure = jr.plotting.learning_curves(losses, steps=[10, 20, 30])
    """
    figure, axes = new_figure(title)
    named = {
        name: values if isinstance(values, tuple) else (steps, values)
        for name, values in with_names("learning_curves", "curves", curves).items()
    }
    draw_learning_curves(axes, named, ylabel=ylabel, yscale=yscale, baselines=baselines)
    return finished(figure, axes)


@checks_arguments
def draw_learning_curves(
    axes: Axes,
    curves: Mapping[str, tuple[Sequence[int] | None, Any]],
    *,
    ylabel: str,
    yscale: str,
    baselines: Mapping[str, float] | None,
) -> None:
    """:func:`learning_curves`, ``(steps, values)`` each, on axes of your own.

    Example:
        >>> from matplotlib.figure import Figure
        >>> import jaxrnn as jr
        >>> axes, curves = Figure().subplots(), {"gru": ([10, 20], [[0.5, 0.3], [0.6, 0.2]])}
        >>> jr.plotting.draw_learning_curves(axes, curves, ylabel="loss", yscale="linear", baselines={"chance": 0.7})
        >>> axes.get_legend_handles_labels()[1]
        ['gru', 'chance']
    """
    if yscale not in ("linear", "log"):
        raise ValueError(f"draw_learning_curves: yscale must be 'linear' or 'log', got {yscale!r}.")
    for name, value in (baselines or {}).items():
        if not isinstance(value, numbers.Real):
            raise TypeError(f"draw_learning_curves: baselines[{name!r}] must be a number, got {value!r}.")
    for colour, (name, (steps, values)) in zip(colours(), curves.items(), strict=False):
        values = np.atleast_2d(np.asarray(values, float))
        at = np.arange(1, values.shape[1] + 1) if steps is None else np.asarray(steps)
        if at.shape != values.shape[1:]:
            raise ValueError(f"draw_learning_curves: {name!r} has {values.shape[1]} points but {len(at)} steps.")
        with np.errstate(invalid="ignore"):
            axes.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(at, values.mean(0), color=colour, label=name)
    for (name, value), style in zip((baselines or {}).items(), itertools.cycle(("--", ":", "-.")), strict=False):
        axes.axhline(value, color="grey", linewidth=1, linestyle=style, label=name)
    axes.set(xlabel="training step", ylabel=ylabel, yscale=yscale)
    plain(axes)


@checks_arguments
def eigenvalues(spectra: ArrayLike | Mapping[str, ArrayLike], *, title: str = "Eigenvalues") -> Figure:
    """Eigenvalues in the complex plane, beside the unit circle: inside it a mode dies out, outside it grows.

    Args:
        spectra: an array of complex numbers, any shape, or one for each name, such as ``LinearAnalysis.eigenvalues``.
        title: above the axes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> W = jr.elman(3, 50).init(jax.random.key(0)).W_hh
        >>> eigenvalues = jnp.linalg.eigvals(W)
        >>> figure = jr.plotting.eigenvalues({"orthogonal": eigenvalues, "× 0.8": 0.8 * eigenvalues})
    """
    figure, axes = new_figure(title, size=(7.5, 5.5))  # the legend stands beside a square
    angle = np.linspace(0, 2 * np.pi, 400)
    axes.plot(np.cos(angle), np.sin(angle), color="grey", linewidth=1, label="unit circle")
    named = spectra if isinstance(spectra, Mapping) else {"": spectra}
    if not isinstance(spectra, Mapping) and np.asarray(spectra).dtype.kind not in "fc":
        raise TypeError(f"eigenvalues: spectra must be an array of eigenvalues, or a dict of them, got {spectra!r}.")
    for colour, (name, values) in zip(colours(), with_names("eigenvalues", "spectra", named).items(), strict=False):
        values = np.asarray(values).reshape(-1)
        axes.scatter(values.real, values.imag, s=14, color=colour, alpha=0.7, linewidth=0, label=name or None)
    axes.set(xlabel="Re λ", ylabel="Im λ")
    axes.set_aspect("equal", adjustable="datalim")
    return finished(figure, axes)


@checks_arguments
def lyapunov(spectra: Mapping[str, LyapunovSpectrum], *, title: str = "Lyapunov spectrum") -> Figure:
    """The Lyapunov exponents in order, and how the leading one settled along the run.

    Args:
        spectra: a :class:`jaxrnn.gradients.LyapunovSpectrum` for each name; of a batch the mean is drawn, with the band
            from the smallest to the largest.
        title: above the panels.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.gru(3, 8)
        >>> params = cell.init(jax.random.key(0))
        >>> figure = jr.plotting.lyapunov({"gru": jr.gradients.lyapunov_spectrum(cell, params, jnp.ones((100, 2, 3)))})
    """
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (name, spectrum) in zip(colours(), with_names("lyapunov", "spectra", spectra).items(), strict=False):
        exponents = np.asarray(spectrum.exponents, float)
        exponents = exponents.reshape(-1, exponents.shape[-1])
        leading = np.asarray(spectrum.growth, float)[..., 0].reshape(len(spectrum.growth), -1)
        settled = np.cumsum(leading, axis=0) / np.arange(1, len(leading) + 1)[:, None]
        for axes, at, values in (
            (left, np.arange(1, exponents.shape[1] + 1), exponents.T),
            (right, np.arange(1, len(settled) + 1), settled),
        ):
            with np.errstate(invalid="ignore"):
                axes.plot(
                    at, values.mean(1), color=colour, label=name, marker="." if len(at) < 40 else "", markersize=4
                )
                axes.fill_between(at, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)
    left.set(xlabel="index i", ylabel="exponent λᵢ (per step)", title="in order")
    left.set_ylim(bottom=max(left.get_ylim()[0], -8.0))  # what shrinks below exp(-8) a step is dead
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="steps averaged", ylabel="λ₁ (per step)", title="the leading one, as it settles")
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=0.8, linestyle="--")
        plain(axes)
    left.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure
