"""Activations with numbers: ONNX's alphas and betas, in a cell's options, in a spec, in a file, and out again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.cells.activations import WITH_NUMBERS, activation_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from jaxrnn.interop import onnx as interop  # noqa: E402
from tests.interop.comparing import H, I, assert_close, drawn_params  # noqa: E402
from tests.interop.onnx_models import by_runtime, operator_model  # noqa: E402

# As ONNX defines them, in NumPy: of what the numbers are, and where they matter.
DEFINED = {
    "affine": lambda x, α, β: α * x + β,
    "elu": lambda x, α: np.where(x < 0, α * (np.exp(x) - 1), x),
    "hard_sigmoid": lambda x, α, β: np.maximum(0, np.minimum(1, α * x + β)),
    "leaky_relu": lambda x, α: np.where(x < 0, α * x, x),
    "scaled_tanh": lambda x, α, β: α * np.tanh(β * x),
    "thresholded_relu": lambda x, α: np.where(x >= α, x, 0),
}
NUMBERS = (0.3, 0.6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_what_they_compute(name):
    numbers = NUMBERS[: DEFINED[name].__code__.co_argcount - 1]
    x = np.concatenate([np.linspace(-4, 4, 41), NUMBERS])
    f = activation_of("test", "activation", (name, *numbers))
    np.testing.assert_allclose(f(x), DEFINED[name](x, *numbers), rtol=1e-14, atol=1e-15)
    assert f(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    steep = jax.vmap(jax.grad(f))(jnp.array([-1e4, 1e4]))
    assert np.isfinite(steep).all()


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_in_a_spec(name):
    option = (name, *NUMBERS[: DEFINED[name].__code__.co_argcount - 1])
    cell = jr.elman(I, H, activation=option)
    again = jr.build(json.loads(json.dumps(cell.spec.to_dict())))
    assert again.spec == cell.spec and dict(again.spec.options)["activation"] == option


REFUSED = {
    "must begin with one of .*'affine'.*did you mean 'elu'": ("elo", 1.0),
    r"must be \('hard_sigmoid', alpha, beta\).*alone is the usual one": ("hard_sigmoid", 0.2),
    r"must be \('scaled_tanh', alpha, beta\).*alone is not known": ("scaled_tanh",),
    r"must be \('elu', alpha\)": ("elu", "much"),
    r"must be \('leaky_relu', alpha\) with finite numbers": ("leaky_relu", float("nan")),
    "must begin with one of": (),
    "must begin with one of .*tanh": ("tanh", 1.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(ValueError, match=f"gru: gate_activation .*{message}"):
        jr.gru(I, H, gate_activation=REFUSED[message])


# kind, activations with their numbers as ONNX has them, what the loaded cell is told.
LOADED = {
    "RNN Affine": ("RNN", ["Affine"], [0.3], [0.6], {"activation": ("affine", 0.3, 0.6)}),
    "RNN Elu": ("RNN", ["Elu"], [0.3], [], {"activation": ("elu", 0.3)}),
    "RNN LeakyRelu": ("RNN", ["LeakyRelu"], [0.3], [], {"activation": ("leaky_relu", 0.3)}),
    "RNN ScaledTanh": ("RNN", ["ScaledTanh"], [0.3], [0.6], {"activation": ("scaled_tanh", 0.3, 0.6)}),
    "RNN ThresholdedRelu": ("RNN", ["ThresholdedRelu"], [0.3], [], {"activation": ("thresholded_relu", 0.3)}),
    "RNN the usual LeakyRelu": ("RNN", ["LeakyRelu"], [], [], {"activation": "leaky_relu"}),
    "RNN the identity": ("RNN", ["Affine"], [1.0], [0.0], {"activation": "identity"}),
    "LSTM HardSigmoid by default": (
        "LSTM",
        ["HardSigmoid", "ScaledTanh", "ScaledTanh"],
        [0.2, 1.5, 1.5],
        [0.5, 0.5, 0.5],
        {"gate_activation": ("hard_sigmoid", 0.2, 0.5), "activation": ("scaled_tanh", 1.5, 0.5)},
    ),
    "GRU HardSigmoid": (
        "GRU",
        ["HardSigmoid", "Softsign"],
        [0.15],
        [0.5],
        {"gate_activation": ("hard_sigmoid", 0.15, 0.5), "activation": "softsign"},
    ),
}


@pytest.mark.parametrize("case", LOADED)
def test_load_and_export(case):
    kind, names, alphas, betas, wanted = LOADED[case]
    given = {"activations": names, "activation_alpha": alphas, "activation_beta": betas}
    model, inputs = operator_model(kind, initial=False, **{name: v for name, v in given.items() if v})
    want = by_runtime(model, inputs)["Y"][:, 0]
    layer, params = interop.load(model)
    options = dict(layer.spec.children[0].options)
    assert {name: options[name] for name in wanted} == wanted
    assert_close(layer.apply(params, inputs["X"])[1], want)
    again = interop.export(layer, params, lengths=False, carry=False)
    assert_close(by_runtime(again, inputs)["Y"], want)


@pytest.mark.usefixtures("x64")
def test_float64_keeps_the_number_that_the_attribute_is():
    model, inputs = operator_model("RNN", dtype="float64", activations=["HardSigmoid"], initial=False)
    layer, params = interop.load(model)
    α = float(np.float32(0.2))
    assert dict(layer.spec.children[0].options)["activation"] == ("hard_sigmoid", α, 0.5)
    h, hs = np.zeros(H), []
    for x in inputs["X"]:
        h = np.clip(α * (x @ params.W_xh + h @ params.W_hh + params.b) + 0.5, 0, 1)
        hs.append(h)
    assert_close(layer.apply(params, inputs["X"])[1], jnp.stack(hs), "float64")
    interop.export(layer, params)
    layer = jr.scan(jr.elman(I, H, activation=("hard_sigmoid", 0.2, 0.5), param_dtype="float64"))
    with pytest.raises(ValueError, match=r"\('hard_sigmoid', 0.2, 0.5\) in float64.*in float32"):
        interop.export(layer, drawn_params(layer))


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_gates_that_cannot_be_turned_round(kind):
    """1 - σ(a) = σ(-a) needs β = 1/2."""
    names = ["HardSigmoid", "Tanh", "Tanh"][: 3 if kind == "LSTM" else 2]
    more = {"input_forget": 1} if kind == "LSTM" else {}
    model, _ = operator_model(kind, activations=names, activation_beta=[0.4], **more)
    with pytest.raises(ValueError, match=r"gate activation HardSigmoid with alpha=0.2, beta=0.4.*1 - σ"):
        interop.load(model)
    gate = ("hard_sigmoid", 0.2, 0.4)
    layer = jr.cifg_lstm(I, H, gate_activation=gate) if kind == "LSTM" else jr.gru(I, H, gate_activation=gate)
    with pytest.raises(ValueError, match=r"the gate activation .*hard_sigmoid.*1 - σ"):
        interop.export(layer, drawn_params(layer))
