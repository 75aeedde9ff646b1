"""jaxrnn.interop.onnx.load: what onnxruntime and torch compute, library cells compute; graphs that are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("hypothesis")

from onnx import helper, numpy_helper  # noqa: E402

from jaxrnn.interop import onnx as interop  # noqa: E402
from tests.interop.comparing import LENGTHS, B, H, I, T, assert_close  # noqa: E402
from tests.interop.onnx_models import (  # noqa: E402
    BOTH_WAYS,
    SQUEEZE,
    by_runtime,
    chained,
    model_of,
    operator_model,
    ours,
)

LOADS = {
    "elman": ("RNN", {"activations": ["Relu"]}),
    "elman hard_sigmoid": ("RNN", {"activations": ["HardSigmoid"], "activation_alpha": [1 / 6]}),
    "lstm": ("LSTM", {**BOTH_WAYS}),
    "peephole_lstm": ("LSTM", {"P": True, "direction": "reverse", "lengths": LENGTHS}),
    "cifg_lstm": ("LSTM", {"input_forget": 1, "activations": ["Sigmoid", "Softsign", "Softsign"]}),
    "gru before": ("GRU", {"bias": False}),
    "gru after": ("GRU", {"linear_before_reset": 1, **BOTH_WAYS}),
}


def applied(layer, params, inputs):
    """A layer's outputs as a one-node model's outputs, from such a model's inputs."""
    states = [inputs[name] for name in ("initial_h", "initial_c") if name in inputs]
    runs = [jr.LSTMCarry(*(s[d] for s in states)) if len(states) == 2 else states[0][d] for d in range(len(states[0]))]
    carry = jr.BiCarry(*runs) if len(runs) == 2 else runs[0]
    end, ys = layer.apply(params, inputs["X"], carry, lengths=inputs.get("sequence_lens"))
    ends = end if len(runs) == 2 else (end,)
    named = {"Y": jnp.stack(jnp.split(ys, len(runs), axis=-1), axis=1)}
    named["Y_h"] = jnp.stack([getattr(e, "h", e) for e in ends])
    return named | ({"Y_c": jnp.stack([e.c for e in ends])} if len(states) == 2 else {})


@pytest.mark.parametrize("case", LOADS)
def test_load(case):
    kind, options = LOADS[case]
    model, inputs = operator_model(kind, **options)
    layer, params = interop.load(model)
    assert case.split()[0] in repr(layer.spec)
    assert_close(jax.jit(functools.partial(applied, layer))(params, inputs), by_runtime(model, inputs))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["peephole_lstm", "cifg_lstm", "gru before"])
def test_load_gives_the_gradients_of_run(case):
    kind, options = LOADS[case]
    model, inputs = operator_model(kind, dtype="float64", **options)
    inputs["X"] = np.nan_to_num(inputs["X"])
    floats = {name: a for name, a in inputs.items() if name != "sequence_lens"}
    lens = {name: a for name, a in inputs.items() if name == "sequence_lens"}
    layer, params = interop.load(model)
    weights = np.random.default_rng(3).normal(size=T * B * H)

    def loss(compute, floats):
        return sum(jnp.vdot(a, weights[: a.size]) for a in compute({**floats, **lens}).values())

    gradients = [
        jax.jit(jax.grad(functools.partial(loss, compute)))(floats)
        for compute in (functools.partial(applied, layer, params), functools.partial(interop.run, model))
    ]
    assert_close(*gradients, "float64")


def torch_model(net, inputs, names, outputs, **options):
    import io
    import warnings

    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {name: {0: "T", 1: "B"} if name == "x" else {1: "B"} for name in names}
        torch.onnx.export(
            net, inputs, file, dynamo=False, input_names=names, output_names=outputs, dynamic_axes=axes, **options
        )
    return file.getvalue()


def torch_gradients(net, suffix):
    """Those by one run's W_ih, W_hh and b as ours: transposed, the z of a GRU (its second block) negated.

    Two biases of which the sum matters each have the gradient of the one that they become.
    """
    sign = np.repeat([1.0, -1.0, 1.0], H) if isinstance(net, pytest.importorskip("torch").nn.GRU) else 1.0
    names = [name for name in ("weight_ih", "weight_hh", "bias_ih") if hasattr(net, name + suffix)]
    return [getattr(net, name + suffix).grad.numpy().T * sign for name in names]


TORCH = {
    "lstm, 2 layers, both ways": ("LSTM", {"num_layers": 2, "bidirectional": True}, 14, False),
    "gru, 2 layers, states passed": ("GRU", {"num_layers": 2}, 20, True),
    "rnn without biases": ("RNN", {"nonlinearity": "relu", "bias": False}, 11, False),
    "lstm, batch first": ("LSTM", {"batch_first": True}, 17, False),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", TORCH)
def test_load_what_torch_exports(case):
    torch = pytest.importorskip("torch")
    kind, options, opset, passed = TORCH[case]
    torch.manual_seed(0)
    net = getattr(torch.nn, kind)(I, H, **options).double()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    fed = x.transpose(0, 1) if options.get("batch_first") else x
    h0 = torch.randn(2, B, H, dtype=torch.float64, requires_grad=True)
    inputs = (fed.detach(), h0.detach()) if passed else (fed.detach(),)
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    data = torch_model(net, inputs, ["x", "h0"][: len(inputs)], ["y", *states], opset_version=opset)
    layer, params = interop.load(data)

    y, end = net(fed, h0) if passed else net(fed)
    end = end if kind == "LSTM" else (end,)
    y = y.transpose(0, 1) if options.get("batch_first") else y
    weight = torch.randn(y.shape, dtype=torch.float64)
    (y * weight).sum().backward()

    def loss(params, xs, carry):
        end, ys = layer.apply(params, xs, carry)
        return jnp.vdot(ys, weight.numpy()), (end, ys)

    carry = tuple(h0.detach().numpy()) if passed else layer.initial_carry(params, (B,))
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    (d_params, d_xs, d_carry), (ends, ys) = gradients(params, x.detach().numpy(), carry)
    assert_close(ys, y.detach().numpy(), "float64")
    assert_close(d_xs, x.grad.numpy(), "float64")
    by_run = jax.tree.leaves(d_params, is_leaf=lambda a: hasattr(a, "W_xh"))
    suffixes = [name.removeprefix("weight_ih") for name, _ in net.named_parameters() if "weight_ih" in name]
    for own, suffix in zip(by_run, suffixes, strict=True):
        got = [a for a in (own.W_xh, own.W_hh, own.b) if a is not None]
        assert_close(got, torch_gradients(net, suffix), "float64")
        if kind == "GRU":  # of the bias inside the reset product
            assert_close(own.b_hh, getattr(net, "bias_hh" + suffix).grad.numpy()[2 * H :], "float64")

    def is_run(a):
        return isinstance(a, jr.LSTMCarry)

    runs = [a if is_run(a) else (a,) for a in jax.tree.leaves(ends, is_leaf=is_run)]
    assert_close(
        tuple(jnp.stack(s) for s in zip(*runs, strict=True)), tuple(s.detach().numpy() for s in end), "float64"
    )
    if passed:
        assert_close(jnp.stack(d_carry), h0.grad.numpy(), "float64")
    # the graph itself, with the shapes that it computes
    passed_in = {"x": inputs[0].numpy(), **({"h0": inputs[1].numpy()} if passed else {})}
    got = ours(data, passed_in)
    assert_close(got["y"], net(*inputs)[0].detach().numpy(), "float64")


# ---- what is refused ----------------------------------------------------------------------------


NOT_LOADED = {
    "clip=0.5 has no counterpart.*run": ("RNN", {"clip": 0.5}),
    "Tanh for the candidate and Relu": ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}),
    "input_forget with peepholes": ("LSTM", {"input_forget": 1, "P": True}),
    "gate activation Relu.*share i": (
        "LSTM",
        {"input_forget": 1, "activations": ["Relu", "Tanh", "Tanh"]},
    ),
    "gate activation Tanh.*share z": ("GRU", {"activations": ["Tanh", "Tanh"]}),
}


@pytest.mark.parametrize("message", NOT_LOADED)
def test_load_refuses(message):
    kind, options = NOT_LOADED[message]
    with pytest.raises(ValueError, match=f"onnx.load: {kind} node 'cell'.*({message})"):
        interop.load(operator_model(kind, **options)[0])


GRAPHS = {
    "node 'second': an X with the axes T, D, B, H": lambda: chained(second="Y"),
    "node 'relu': Relu of outputs": lambda: chained(
        SQUEEZE, helper.make_node("Relu", ["flat"], ["y"], "relu"), second="y"
    ),
    "node 'last'.*Gather of outputs": lambda: chained(helper.make_node("Gather", ["Y", "one"], ["out"], "last")),
    "node 'twice'.*Add of outputs": lambda: chained(
        SQUEEZE, helper.make_node("Add", ["flat", "flat"], ["out"], "twice")
    ),
    "node 'skip'.*branches": lambda: chained(
        SQUEEZE,
        helper.make_node("GRU", ["flat", "W2", "R"], ["Z"], "second", hidden_size=H),
        helper.make_node("Squeeze", ["Z", "one"], ["z"], "squeeze 2"),
        helper.make_node("Add", ["flat", "z"], ["out"], "skip"),
    ),
    r"output 'out' with the axes T\*B, 1, H": lambda: chained(
        helper.make_node("Constant", [], ["sizes"], value_ints=[-1, 1, H]),
        helper.make_node("Reshape", ["Y", "sizes"], ["out"], "mixed"),
    ),
    "output 'flat' of a node below": lambda: chained(SQUEEZE, second="flat", outputs=("flat", "out")),
    "some nodes have sequence_lens": lambda: chained(SQUEEZE, second="flat", lens=("sequence_lens", "")),
    "node 'readout'.*after nodes with sequence_lens": lambda: chained(
        SQUEEZE, helper.make_node("MatMul", ["flat", "M"], ["out"], "readout"), lens=("sequence_lens", "")
    ),
    "node 'head'.*arithmetic on the inputs": lambda: chained(helper.make_node("MatMul", ["Y_h", "M"], ["out"], "head")),
    "node 'first'.*a sequence that is not an input": lambda: model_of(
        [
            helper.make_node("Slice", ["x", "one", "end"], ["X"], "cut"),
            helper.make_node("GRU", ["X", "W", "R"], ["out"], "first", hidden_size=H),
        ],
        {"x": np.ones((T, B, I), np.float32)},
        {"out": ("float32", 4)},
        {
            **{name: np.ones((1, 3 * H, size), np.float32) for name, size in (("W", I), ("R", H))},
            **{"one": np.array([1], np.int64), "end": np.array([4], np.int64)},
        },
    ),
    "node 'scaled'.*arithmetic": lambda: model_of(
        [helper.make_node("Mul", ["X", "X"], ["out"], "scaled")],
        {"X": np.ones((T, B, I), np.float32)},
        {"out": ("float32", 3)},
    ),
    "no RNN, LSTM or GRU": lambda: model_of(
        [helper.make_node("Identity", ["X"], ["out"])], {"X": np.ones((T, B, I), np.float32)}, {"out": ("float32", 3)}
    ),
}


@pytest.mark.parametrize("message", GRAPHS)
def test_load_refuses_graphs(message):
    with pytest.raises(ValueError, match=message):
        interop.load(GRAPHS[message]())


def test_load_refuses_computed_weights():
    model, inputs = operator_model("GRU", initial=False)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    inputs["R"] = stored.pop("R")
    model = model_of(list(model.graph.node), inputs, {"Y": ("float32", 4)}, stored)
    with pytest.raises(ValueError, match="node 'cell': R that is not stored"):
        interop.load(model)
    assert_close(ours(model, inputs)["Y"], by_runtime(model, inputs)["Y"])  # run computes it
