"""The gradient_flow experiment: what it measures, and the files that it leaves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from experiments import gradient_flow
from experiments.runner.command import main
from tests.experiments.tiny import left_by_a_run


def config(**model):
    data = {"steps": 20, "batch_size": 3, "input_size": 2, "seeds": [0, 1]}
    return gradient_flow.Config.model_validate(
        {"experiment": "gradient_flow", "model": {"hidden_size": 5, **model}, "data": data}
    )


def test_a_linear_network_by_hand(monkeypatch):
    """With weights 0.5 · Q every lag halves the gradient: λ₁ = log 0.5, whatever is read."""
    monkeypatch.setitem(gradient_flow.CELLS, "tanh", lambda I, H: jr.elman(I, H, activation="identity"))
    measured = gradient_flow.measure(config(), "tanh", 0.5)
    ratios = measured.curve / measured.curve[:, :1]
    np.testing.assert_allclose(ratios, np.broadcast_to(0.5 ** np.arange(20), (2, 20)), rtol=1e-4)
    np.testing.assert_allclose(measured.spectrum.exponents, np.full((2, 5), np.log(0.5)), rtol=1e-4)
    name, gain, *shares, exponent, constant, words = gradient_flow.row(measured, [10, 19])
    assert (name, gain, shares) == ("tanh", "0.5", ["9.8e-04", "1.9e-06"])
    assert (exponent, constant, words) == ("-0.693 ± 0.000", "1.4", "vanishing")


def test_gain_multiplies_the_recurrent_weights_alone():
    key = jax.random.key(3)
    one, two = (gradient_flow.cell_and_data(config(), "lstm", gain, key) for gain in (1.0, 2.0))
    np.testing.assert_array_equal(2 * one[1].W_hh, two[1].W_hh)
    np.testing.assert_array_equal(one[1].W_xh, two[1].W_xh)
    np.testing.assert_array_equal(one[2], two[2])
    assert float(jnp.abs(one[2]).max()) > 0


def test_a_dead_network_is_told():
    zero = jr.gradients.LyapunovSpectrum(np.full((2, 5), -np.inf), np.full((2, 20, 5), -np.inf))
    dead = gradient_flow.Measured("relu", 1.0, np.broadcast_to(np.eye(1, 20), (2, 20)), zero)
    *_, exponent, _, words = gradient_flow.row(dead, [19])
    assert (exponent, words) == ("-∞", "vanishing")
    assert "exactly 0" in str(gradient_flow.diagnosis(dead))


@pytest.mark.full
@pytest.mark.parametrize("cells", [["tanh", "lstm"]])
def test_a_tiny_run_leaves_files_that_agree(cells, tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'experiment = "gradient_flow"\nmodel = {{cells = {json.dumps(cells)}, hidden_size = 4, gains = [1.0, 2.0]}}\n'
        "data = {steps = 12, batch_size = 2, seeds = [0, 1]}\n"
    )
    assert main(["run", str(path), "--out", str(tmp_path)]) == 0
    run = tmp_path / "gradient_flow-001"
    files = left_by_a_run("gradient_norms", "lyapunov", "singular_values", "gates")
    assert {file.name for file in run.iterdir()} == files
    measured = json.loads((run / "summary.json").read_text())["measured"]
    assert [(m["cell"], m["gain"]) for m in measured] == [(c, g) for g in (1.0, 2.0) for c in cells]
    assert np.shape(measured[0]["curve"]) == (2, 12) and np.shape(measured[1]["exponents"]) == (2, 8)
    table = (run / "table.md").read_text().splitlines()
    assert len(table[2:6]) == 4 and all(m["verdict"] in line for m, line in zip(measured, table[2:6], strict=True))
    assert f"written to {run}" in capsys.readouterr().out
