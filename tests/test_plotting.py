"""Figures show the numbers that they were given, with labels."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import plotting

CELL = jr.lstm(2, 4)
PARAMS = CELL.init(jax.random.key(0))
XS = jax.random.normal(jax.random.key(1), (12, 3, 2))


def drawn(figure, tmp_path):
    """The figure's axes, after it was really drawn."""
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            assert axes.get_xlabel() or axes.get_ylabel() or axes.get_title()
    return figure.axes


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.full
def test_gradient_norms(tmp_path):
    flow = jr.gradients.gradient_flow(CELL, PARAMS, XS, lambda carry, ys: ys[-1].sum())
    seeds = np.array([[1.0, 0.1, 0.0], [4.0, 0.4, 0.0]])  # at lag 2 it has vanished: there is no logarithm
    figure = plotting.gradient_norms({"h": flow.states.h, "two seeds": seeds})
    (axes,) = drawn(figure, tmp_path)
    h, two = axes.lines
    np.testing.assert_allclose(h.get_ydata(), flow.states.h.mean[::-1], rtol=1e-6)
    np.testing.assert_allclose(two.get_ydata(), [2.0, 0.2, np.nan])  # geometric means
    assert axes.get_yscale() == "log" and legend_of(figure) == ["h", "two seeds"]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(0.1) and band.max() == pytest.approx(4.0)


def test_singular_values(tmp_path):
    logs = jr.gradients.log_singular_values(CELL, PARAMS, XS, lag=3)
    figure = plotting.singular_values(logs, lag=3)
    (axes,) = drawn(figure, tmp_path)
    median = np.median(np.exp(np.asarray(logs).reshape(4, -1) / 3), axis=1)
    line = next(line for line in axes.lines if len(line.get_xdata()) == 4)
    np.testing.assert_allclose(line.get_ydata(), median, rtol=1e-5)
    assert line.get_xdata().tolist() == [3, 6, 9, 12]
    assert legend_of(figure) == ["all", "middle 80 %", "middle 50 %", "median"]


def test_gates(tmp_path):
    traced = jr.trace_gates(CELL, PARAMS, XS)
    figure = plotting.gates(traced, sequence=2)
    panels = [axes for axes in drawn(figure, tmp_path) if axes.images]
    assert [axes.get_ylabel() for axes in panels] == [f"{name}\nunit" for name in "ifgoch"]
    np.testing.assert_allclose(panels[1].images[0].get_array(), traced.f[:, 2].T, rtol=1e-6)
    assert panels[1].images[0].get_clim() == (0, 1)
    low, high = panels[2].images[0].get_clim()
    assert low == -high and high == pytest.approx(float(jnp.abs(traced.g[:, 2]).max()))


def test_learning_curves(tmp_path):
    losses = {"a": np.array([[3.0, 1.0], [1.0, 0.5]]), "b": ([10, 20, 30], [1.0, 2.0, 3.0])}
    figure = plotting.learning_curves(losses, steps=[10, 20], baselines={"chance": 2.5})
    (axes,) = drawn(figure, tmp_path)
    a, b, chance = axes.lines
    assert a.get_ydata().tolist() == [2.0, 0.75] and b.get_xdata().tolist() == [10, 20, 30]
    assert chance.get_ydata()[0] == 2.5 and legend_of(figure) == ["a", "b", "chance"]


def test_eigenvalues(tmp_path):
    figure = plotting.eigenvalues({"W": np.array([[0.5 + 0.5j, -2.0]])})
    (axes,) = drawn(figure, tmp_path)
    points = axes.collections[0].get_offsets()
    assert points.tolist() == [[0.5, 0.5], [-2.0, 0.0]]
    np.testing.assert_allclose(np.hypot(*axes.lines[0].get_data()), 1)


def test_lyapunov(tmp_path):
    spectrum = jr.gradients.lyapunov_spectrum(CELL, PARAMS, XS, k=3)
    figure = plotting.lyapunov({"lstm": spectrum})
    left, right = drawn(figure, tmp_path)
    np.testing.assert_allclose(left.lines[0].get_ydata(), spectrum.exponents.mean(0), rtol=1e-5)
    np.testing.assert_allclose(right.lines[0].get_ydata()[-1], spectrum.growth[..., 0].mean(), rtol=1e-4)


@pytest.mark.parametrize("components", [2, 3])
def test_fixed_points(components, tmp_path):
    rng = np.random.default_rng(0)
    states = jr.LSTMCarry(rng.normal(size=(5, 3, 4)), rng.normal(size=(5, 3, 4)))
    points = jr.gradients.FixedPoints(
        jax.tree.map(lambda a: jnp.asarray(a[0]), states), jnp.zeros(3), jnp.ones(3), jnp.arange(3)
    )
    stable = jnp.array([True, True, False])
    analysis = jr.gradients.LinearAnalysis(None, None, None, None, stable, None)
    figure = plotting.fixed_points(points, analysis, states, components=components)
    (axes,) = drawn(figure, tmp_path)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["stable (2)", "unstable (1)"]
    assert len(axes.lines) == 3  # a run each
    flat = np.concatenate([states.h, states.c], -1).reshape(15, 8)
    directions = np.linalg.svd(flat - flat.mean(0))[2][:components]
    expected = (np.concatenate([states.h[0], states.c[0]], -1)[:2] - flat.mean(0)) @ directions.T
    offsets = axes.collections[0]
    shown = np.stack(offsets._offsets3d, -1) if components == 3 else offsets.get_offsets()
    np.testing.assert_allclose(np.abs(np.sort(shown, 0)), np.abs(np.sort(expected, 0)), atol=1e-5)


def found():
    return jr.gradients.FixedPoints(np.ones((2, 4)), np.ones(2), np.ones(2, int), np.arange(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.gradient_norms([1.0]), "gradient_norms: flows must be a dict"),
        (lambda: plotting.gradient_norms({"a": np.ones((2, 2, 2))}), "'a' must be (T,) by lag or (seeds, T)"),
        (
            lambda: plotting.singular_values(np.ones(3)),
            "expected logs (n, *B, N) from jr.gradients.log_singular_values",
        ),
        (lambda: plotting.gates(np.ones(3)), "gates: expected the NamedTuple"),
        (lambda: plotting.learning_curves({"a": [1.0, 2.0]}, steps=[1]), "'a' has 2 points but 1 steps"),
        (lambda: plotting.fixed_points(found(), components=4), "components must be 2 or 3, got 4"),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises((ValueError, TypeError)) as info:
        call()
    assert message in str(info.value)


def test_missing_matplotlib_names_the_extra():
    code = "import sys; sys.modules['matplotlib'] = None; import jaxrnn.plotting"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: jaxrnn.plotting needs matplotlib: pip install 'jaxrnn[plot]'\n")
