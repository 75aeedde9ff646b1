"""jaxrnn.interop.onnx against onnxruntime, and against ONNX's reference evaluator where onnxruntime has no kernel.

onnxruntime's CPU kernels of RNN, LSTM and GRU are float32 and have ``layout=0`` alone. The reference evaluator takes
float64 and ``layout=1``, but knows neither sequence_lens, clip, input_forget nor most activations.
"""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from jaxrnn.interop import onnx as interop  # noqa: E402
from jaxrnn.interop.onnx import _exporting, _loading, _running  # noqa: E402

T, B, I, H = 5, 3, 3, 4
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
LENGTHS = np.array([3, T, 1], np.int32)

# Relative to the largest entry: some hundred operations a run, each library's in its own order. onnxruntime computes
# tanh and σ by rational approximations, good to a few units of the last place of a float32.
TOLERANCE = {"float32": 2e-6, "float64": 1e-10}


def assert_close(got, want, dtype="float32"):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype == dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * max(np.abs(b).max(initial=0), 1e-3))


def session(model):
    runtime.set_default_logger_severity(4)
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def by_runtime(model, inputs):
    s = session(model)
    return dict(zip([o.name for o in s.get_outputs()], s.run(None, inputs), strict=True))


def by_reference(model, inputs):
    return dict(zip([o.name for o in model.graph.output], ReferenceEvaluator(model).run(None, inputs), strict=True))


def ours(model, inputs):
    return jax.jit(functools.partial(interop.run, model))(inputs)


def model_of(nodes, inputs, outputs, stored=None, opset=22):
    """A model from nodes, arrays as its inputs, output ranks, stored arrays."""
    kind = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int32": TensorProto.INT32}
    kind |= {"int64": TensorProto.INT64, "bool": TensorProto.BOOL}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, kind[a.dtype.name], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, kind[dtype], [None] * rank) for n, (dtype, rank) in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (stored or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(4, helper.find_min_ir_version_for(opsets)))


def operator_model(
    kind,
    *,
    opset=22,
    dtype="float32",
    bias=True,
    lengths=None,
    initial=True,
    P=False,
    direction="forward",
    **attributes,
):
    """A model of one node with random weights, and random inputs for it; padding holds NaN."""
    rng = np.random.default_rng(len(kind) + opset)
    G, D = GATES[kind], 2 if direction == "bidirectional" else 1

    def draw(*shape):
        return (0.5 * rng.normal(size=shape)).astype(dtype)

    X = draw(T, B, I)
    stored = {"W": draw(D, G * H, I), "R": draw(D, G * H, H)}
    stored |= {"B": draw(D, 2 * G * H)} if bias else {}
    stored |= {"P": draw(D, 3 * H)} if P else {}
    inputs = {"X": X}
    if lengths is not None:
        X[np.arange(T)[:, None] >= lengths] = np.nan
        inputs["sequence_lens"] = np.asarray(lengths, np.int32)
    states = ["initial_h", "initial_c"] if kind == "LSTM" else ["initial_h"]
    inputs |= {name: draw(D, B, H) for name in states} if initial else {}
    if attributes.get("layout"):
        inputs = {name: a.swapaxes(0, 1) if a.ndim == 3 else a for name, a in inputs.items()}
    slots = ["X", "W", "R", "B", "sequence_lens", *states, *(["P"] if P else [])]
    slots = [name if name in inputs or name in stored else "" for name in slots]
    outputs = {"Y": (dtype, 4), "Y_h": (dtype, 3)} | ({"Y_c": (dtype, 3)} if kind == "LSTM" else {})
    node = helper.make_node(kind, slots, list(outputs), "cell", hidden_size=H, direction=direction, **attributes)
    return model_of([node], inputs, outputs, stored, opset), inputs


# ---- run ----------------------------------------------------------------------------------------

ONE = {"activation_alpha": [0.3], "activation_beta": [0.6]}
TWO = {"activation_alpha": [0.3, 0.7], "activation_beta": [0.6, 0.2]}
ALPHA = {"activation_alpha": [0.3]}
BOTH_WAYS = {"direction": "bidirectional", "lengths": LENGTHS}
RUNS = {
    "RNN without options": ("RNN", {"opset": 7, "bias": False, "initial": False}),
    "RNN reversed, clipped": ("RNN", {"opset": 14, "direction": "reverse", "lengths": LENGTHS, "clip": 0.3}),
    "RNN LeakyRelu, Affine": (
        "RNN",
        {"activations": ["LeakyRelu", "Affine"], **TWO, **BOTH_WAYS, "activation_beta": [0.6]},
    ),
    "RNN Relu, ThresholdedRelu": ("RNN", {"activations": ["Relu", "ThresholdedRelu"], **ALPHA, **BOTH_WAYS}),
    "RNN ScaledTanh, HardSigmoid": ("RNN", {"activations": ["ScaledTanh", "HardSigmoid"], **TWO, **BOTH_WAYS}),
    "RNN Elu, Softsign": ("RNN", {"activations": ["Elu", "Softsign"], **ALPHA, **BOTH_WAYS}),
    "RNN Softplus, Sigmoid": ("RNN", {"activations": ["Softplus", "Sigmoid"], **BOTH_WAYS}),
    "LSTM without options": ("LSTM", {"opset": 7, "bias": False, "initial": False}),
    "LSTM with peepholes, clipped": ("LSTM", {"opset": 14, "P": True, "clip": 0.4, **BOTH_WAYS}),
    "LSTM input_forget": ("LSTM", {"direction": "reverse", "lengths": LENGTHS, "P": True, "input_forget": 1}),
    "LSTM activations each way": (
        "LSTM",
        {
            "activations": ["HardSigmoid", "LeakyRelu", "Elu", "Sigmoid", "ScaledTanh", "Affine"],
            "activation_alpha": [0.15, 0.1, 0.8, 0.9, 0.7],  # consumed by those that have one
            "activation_beta": [0.45, 1.1, 0.2],
            **BOTH_WAYS,
        },
    ),
    "LSTM with defaults for constants": ("LSTM", {"activations": ["HardSigmoid", "LeakyRelu", "Elu"]}),
    "GRU without options": ("GRU", {"opset": 7, "bias": False, "initial": False}),
    "GRU reset before, clipped": ("GRU", {"opset": 14, "clip": 0.3, **BOTH_WAYS}),
    "GRU reset after": ("GRU", {"linear_before_reset": 1, "direction": "reverse", "lengths": LENGTHS}),
    "GRU reset after, activations": (
        "GRU",
        {"linear_before_reset": 1, "activations": ["HardSigmoid", "Softsign"], **ONE, "clip": 0.5},
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_run(case):
    kind, options = RUNS[case]
    model, inputs = operator_model(kind, **options)
    want = by_runtime(model, inputs)
    got = ours(model, inputs)
    assert_close(got, want)
    if "lengths" in options:  # Y is 0 on padded steps, whatever stands in X there
        padded = np.moveaxis(np.asarray(got["Y"]), 1, 2)[np.arange(T)[:, None] >= LENGTHS]
        assert padded.size and (padded == 0).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "options"),
    [("RNN", {}), ("LSTM", {"P": True}), ("GRU", {}), ("GRU", {"linear_before_reset": 1})],
    ids=["RNN", "LSTM", "GRU reset before", "GRU reset after"],
)
def test_run_float64_and_layout_1(kind, options):
    """By the reference evaluator; onnxruntime refuses both."""
    model, inputs = operator_model(kind, dtype="float64", layout=1, direction="bidirectional", **options)
    want = by_reference(model, inputs)
    assert_close(ours(model, inputs), want, "float64")
    with pytest.raises(Exception, match=r"layout|implementation"):
        session(model)


@pytest.mark.parametrize("kind", GATES)
def test_length_0_differs_from_onnxruntime(kind):
    """The final states are the initial ones; onnxruntime's are zeros (the operators' text does not say)."""
    model, inputs = operator_model(kind, lengths=np.array([0, T, 2]))
    got, want = ours(model, inputs), by_runtime(model, inputs)
    for state in ("h", "c") if kind == "LSTM" else ("h",):
        assert (got[f"Y_{state}"][0, 0] == inputs[f"initial_{state}"][0, 0]).all()
        assert not want[f"Y_{state}"][0, 0].any()
        assert_close(got[f"Y_{state}"][:, 1:], want[f"Y_{state}"][:, 1:])
    assert_close(got["Y"], want["Y"])


def test_defaults_that_onnxruntime_does_not_take():
    """A missing alpha is the default of ONNX's operator of that name: ThresholdedRelu 1; onnxruntime takes 0."""
    model, inputs = operator_model("RNN", activations=["ThresholdedRelu"], initial=False)
    inputs["X"] *= 4
    given, _ = operator_model("RNN", activations=["ThresholdedRelu"], activation_alpha=[1.0], initial=False)
    assert_close(interop.run(model, inputs), by_runtime(given, inputs))
    assert (np.asarray(by_runtime(model, inputs)["Y"]) < 1).any(where=by_runtime(model, inputs)["Y"] > 0)


AROUND = {
    "Squeeze 11": (11, [("Squeeze", ["x"], {"axes": [1]})]),
    "Squeeze 13": (13, [("Squeeze", ["x", "one"], {})]),
    "Unsqueeze 11": (11, [("Unsqueeze", ["x"], {"axes": [0, 4]})]),
    "Unsqueeze 13": (13, [("Unsqueeze", ["x", "minus_one"], {})]),
    "Slice 9": (9, [("Slice", ["x"], {"starts": [1, -2], "ends": [9, -1], "axes": [0, 2]})]),
    "Slice 13": (13, [("Slice", ["x", "three", "least", "zero", "minus_one"], {})]),
    "Reshape": (14, [("Reshape", ["x", "shape"], {})]),
    "Transpose": (13, [("Transpose", ["x"], {})]),
    "Gather": (13, [("Gather", ["x", "one"], {"axis": 2})]),
    "ReduceSum 11": (11, [("ReduceSum", ["x"], {"axes": [1], "keepdims": 0})]),
    "ReduceProd 18": (18, [("ReduceProd", ["x", "one"], {})]),
    "Expand": (13, [("Shape", ["x"], {}), ("Expand", ["small", "0"], {})]),
    "Shapes": (
        15,
        [
            ("Shape", ["x"], {"start": 0, "end": 1}),
            ("Concat", ["0", "one"], {"axis": 0}),
            ("ConstantOfShape", ["1"], {"value": numpy_helper.from_array(np.array([2.5], np.float32))}),
        ],
    ),
}


@pytest.mark.parametrize("case", AROUND)
def test_operators_around(case):
    opset, chain = AROUND[case]
    inputs = {"x": np.random.default_rng(0).normal(size=(4, 1, 3)).astype(np.float32)}
    stored = {"one": [1], "zero": [0], "three": [3], "minus_one": [-1], "least": [-(2**31)], "shape": [0, -1]}
    stored = {name: np.array(a, np.int64) for name, a in stored.items()} | {"small": np.ones((1, 3), np.float32)}
    nodes = [helper.make_node(kind, names, [str(k)], **attrs) for k, (kind, names, attrs) in enumerate(chain)]
    probe = model_of(nodes, inputs, {}, stored, opset)
    rank = len(onnx.shape_inference.infer_shapes(probe).graph.value_info[-1].type.tensor_type.shape.dim)
    last = str(len(chain) - 1)
    model = model_of(nodes, inputs, {last: ("float32", rank)}, stored, opset)
    assert_close({k: jnp.asarray(a) for k, a in interop.run(model, inputs).items()}, by_runtime(model, inputs))


# ---- load ---------------------------------------------------------------------------------------

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
    is_run = lambda a: isinstance(a, jr.LSTMCarry)  # noqa: E731
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


# ---- export -------------------------------------------------------------------------------------

EXPORTS = {
    "elman": (lambda: jr.elman(I, H, activation="relu"), {"opset": 7}),
    "elman reversed, own readout": (lambda: jr.scan(jr.elman(I, H, output_size=2), reverse=True), {}),
    "lstm": (lambda: jr.scan(jr.lstm(I, H, bias=False)), {"opset": 14}),
    "lstm learned": (lambda: jr.scan(jr.lstm(I, H, learned_carry=True)), {"opset": 7, "carry": False}),
    "lstm sum": (lambda: jr.bidirectional(jr.lstm(I, H), jr.lstm(I, H), merge="sum"), {"opset": 11}),
    "peephole_lstm": (lambda: jr.scan(jr.peephole_lstm(I, H), reverse=True), {}),
    "cifg_lstm mean": (lambda: jr.bidirectional(jr.cifg_lstm(I, H), jr.cifg_lstm(I, H), merge="mean"), {"opset": 14}),
    "gru before product": (lambda: jr.bidirectional(jr.gru(I, H), jr.gru(I, H), merge="product"), {}),
    "gru after, activations": (
        lambda: jr.bidirectional(
            jr.gru(I, H, reset="after", activation="softsign"),
            jr.gru(I, H, reset="after", activation="leaky_relu", gate_activation="hard_sigmoid"),
        ),
        {"opset": 14},
    ),
    "stack": (
        lambda: jr.stack(
            jr.bidirectional(jr.gru(I, H, learned_carry=True), jr.gru(I, H)),
            jr.dropout(0.3),
            jr.lstm(2 * H, H),
            jr.readout(H, 2),
        ),
        {"carry": False},
    ),
    "stack of two alike": (lambda: jr.stack(jr.gru(I, I), jr.gru(I, I)), {"opset": 7}),
    "stack without lengths": (lambda: jr.stack(jr.lstm(I, H), jr.gru(H, H), jr.readout(H, 2)), {"lengths": False}),
}


def randomised(layer, dtype="float32", seed=0):
    """Parameters drawn anew, biases and learned carries too; dtype None keeps the layer's."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(layer.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray((0.5 * rng.normal(size=a.shape)).astype(dtype or a.dtype)), shapes)


def inputs_of(model, dtype="float32"):
    """Random inputs for an exported model; NaN in the padding."""
    rng = np.random.default_rng(5)
    sizes = {"T": T, "B": B}
    inputs = {}
    for entry in model.graph.input:
        shape = [d.dim_value or sizes[d.dim_param] for d in entry.type.tensor_type.shape.dim]
        inputs[entry.name] = (0.5 * rng.normal(size=shape)).astype(dtype)
    if "sequence_lens" in inputs:
        inputs["sequence_lens"] = LENGTHS
        inputs["X"][np.arange(T)[:, None] >= LENGTHS] = np.nan
    return inputs


def levels_in(carry):
    """(label, runs) for each recurrent member of a carry, as an exported graph names its states."""
    members = [a for a in (carry if type(carry) is tuple else (carry,)) if jax.tree.leaves(a)]
    labels = [f"_{k}" for k in range(len(members))] if len(members) > 1 else [""]
    return [(label, a if isinstance(a, jr.BiCarry) else (a,)) for label, a in zip(labels, members, strict=True)]


def by_layer(layer, params, inputs):
    """What the layer makes of an exported model's inputs, named as the model's outputs."""
    carry = layer.initial_carry(params, (B,))
    if any(name.startswith("initial") for name in inputs):
        leaves = [
            inputs[f"initial_{state}{label}"][d]
            for label, runs in levels_in(carry)
            for d, run in enumerate(runs)
            for state in "hc"[: len(jax.tree.leaves(run))]
        ]
        carry = jax.tree.unflatten(jax.tree.structure(carry), leaves)
    end, ys = layer.apply(params, inputs["X"], carry, lengths=inputs.get("sequence_lens"))
    named = {"Y": ys}
    for label, runs in levels_in(end):
        named[f"Y_h{label}"] = jnp.stack([getattr(run, "h", run) for run in runs])
        if isinstance(runs[0], jr.LSTMCarry):
            named[f"Y_c{label}"] = jnp.stack([run.c for run in runs])
    return named


@pytest.mark.parametrize("case", EXPORTS)
def test_export(case):
    make, options = EXPORTS[case]
    made = make()
    layer = made if isinstance(made, jr.Layer) else jr.scan(made)
    params = randomised(layer)
    model = interop.export(made, params, **options)
    inputs = inputs_of(model)
    assert_close(jax.jit(functools.partial(by_layer, layer))(params, inputs), by_runtime(model, inputs))
    if case == "stack":
        assert_close(ours(model, inputs), by_runtime(model, inputs))
    if "own readout" in case:  # loaded, it is a member of its own
        params = (params._replace(W_hy=None, b_y=None), jr.cells.ReadoutParams(params.W_hy, params.b_y))
    if case == "stack":
        params = tuple(p for p in params if p != ())  # dropout is left out
    assert_same(interop.load(model)[1], params)


def assert_same(got, want):
    """Bit for bit, zero's sign apart."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("x64")
def test_export_float64():
    """By the reference evaluator, which knows no lengths; onnxruntime has no float64 kernels."""
    layer = jr.stack(jr.bidirectional(jr.lstm(I, H), jr.lstm(I, H)), jr.gru(2 * H, H), jr.readout(H, 2))
    params = randomised(layer, "float64")
    model = interop.export(layer, params, lengths=False)
    inputs = inputs_of(model, "float64")
    assert_close(jax.jit(functools.partial(by_layer, layer))(params, inputs), by_reference(model, inputs), "float64")
    with pytest.raises(Exception, match="does not support double"):
        by_runtime(model, inputs)


def test_dynamic_axes_and_files(tmp_path):
    """One session takes other lengths and batches; a file is what was returned."""
    layer = jr.scan(jr.gru(I, H))
    params = randomised(layer)
    model = interop.export(layer, params, tmp_path / "gru.onnx", carry=False)
    assert onnx.load_model(tmp_path / "gru.onnx") == model
    for source in (tmp_path / "gru.onnx", str(tmp_path / "gru.onnx"), model.SerializeToString()):
        assert_same(interop.load(source)[1], params)
    s = session(model)
    for steps, batch in ((2, 1), (7, 4)):
        X = np.random.default_rng(0).normal(size=(steps, batch, I)).astype(np.float32)
        lengths = np.full(batch, steps - 1, np.int32)
        Y, Y_h = s.run(None, {"X": X, "sequence_lens": lengths})
        end, ys = layer.apply(params, X, lengths=lengths)
        assert_close((ys, end[None]), (Y, Y_h))


KINDS = {
    "elman": ({"activation": ["tanh", "relu", "identity", "softplus", "elu"]}, jr.elman),
    "lstm": ({"activation": ["tanh", "softsign"], "gate_activation": ["sigmoid", "hard_sigmoid"]}, jr.lstm),
    "peephole_lstm": ({"activation": ["tanh", "relu"]}, jr.peephole_lstm),
    "cifg_lstm": ({"gate_activation": ["sigmoid", "hard_sigmoid"]}, jr.cifg_lstm),
    "gru": ({"reset": ["before", "after"], "activation": ["tanh", "leaky_relu"]}, jr.gru),
}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_round_trip_from_jaxrnn(data):
    """The same layer, by its spec, and the same parameters, bit for bit."""

    def cell(kind, input_size, hidden_size):
        choices, factory = KINDS[kind]
        options = {name: data.draw(st.sampled_from(values)) for name, values in choices.items()}
        options |= {"bias": data.draw(st.booleans()), "learned_carry": learned}
        defaults = {"activation": "tanh", "gate_activation": "sigmoid", "reset": "before", "bias": True}
        defaults |= {"learned_carry": False}
        return factory(input_size, hidden_size, **{n: v for n, v in options.items() if v != defaults[n]})

    learned = data.draw(st.booleans())
    size, members = data.draw(st.integers(1, 4)), []
    for _ in range(data.draw(st.integers(1, 3))):
        kind, hidden = data.draw(st.sampled_from(sorted(KINDS))), data.draw(st.integers(1, 4))
        one = cell(kind, size, hidden)
        both = data.draw(st.booleans())
        merge = data.draw(st.sampled_from(["concat", "sum", "mean", "product"]))
        reverse = {"reverse": True} if data.draw(st.booleans()) else {}
        same = jr.bidirectional(one, one, merge=merge) if merge != "concat" else jr.bidirectional(one, one)
        members.append(same if both else jr.scan(one, **reverse))
        size = hidden * (2 if both and merge == "concat" else 1)
    layer = members[0] if len(members) == 1 else jr.stack(*members)
    params = randomised(layer, seed=data.draw(st.integers(0, 9)))
    opset = data.draw(st.sampled_from([7, 14, 18, 22]))
    again, loaded = interop.load(interop.export(layer, params, opset=opset, carry=not learned))
    assert_same(loaded, params)
    assert again.spec == layer.spec


@pytest.mark.usefixtures("x64")
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.sampled_from(["RNN", "LSTM", "GRU"]),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.booleans(),
    st.booleans(),
)
def test_round_trip_from_onnx(kind, direction, bias, option):
    """Two biases become one: the same outputs, not the same arrays."""
    options = {"LSTM": {"P": option}, "GRU": {"linear_before_reset": int(option)}}.get(kind, {})
    model, inputs = operator_model(kind, dtype="float64", direction=direction, bias=bias, **options)
    again = interop.export(*interop.load(model), lengths=False)
    want = by_reference(model, inputs)
    Y = want.pop("Y")
    want = {"Y": np.moveaxis(Y, 1, 2).reshape(T, B, -1)} | want
    assert_close(by_reference(again, inputs), want, "float64")


# ---- what is refused ----------------------------------------------------------------------------


def user_cell():
    return jr.Cell(lambda key: (), lambda params, batch_shape=(): jnp.zeros(batch_shape), lambda p, c, x: (c, x))


NOT_EXPORTED = {
    "activation gelu": (lambda: jr.elman(I, H, activation="gelu"), {}),
    "activation a function": (lambda: jr.lstm(I, H, activation=jnp.sin), {}),
    "full peepholes": (lambda: jr.peephole_lstm(I, H, peephole="full"), {}),
    "projection_size": (lambda: jr.lstm(I, H, projection_size=2), {}),
    "leaky has no counterpart": (lambda: jr.leaky(jr.elman(I, H), rate=0.1), {}),
    "learned initial carry.*carry=False": (lambda: jr.gru(I, H, learned_carry=True), {}),
    "use 11, or lengths=False": (lambda: jr.stack(jr.gru(I, H), jr.readout(H, 2)), {"opset": 10}),
    "bidirectional layer of lstm of 4 and lstm of 5": (lambda: jr.bidirectional(jr.lstm(I, H), jr.lstm(I, H + 1)), {}),
    "gru of 4 and gru of 4": (lambda: jr.bidirectional(jr.gru(I, H), jr.gru(I, H, reset="after")), {}),
    "output_size in a bidirectional": (lambda: jr.bidirectional(*[jr.elman(I, H, output_size=2)] * 2), {}),
    "merge that is a function": (lambda: jr.bidirectional(jr.gru(I, H), jr.gru(I, H), merge=jnp.maximum), {}),
    "gate activation relu of gru": (lambda: jr.gru(I, H, gate_activation="relu"), {}),
    "bfloat16.*cast them": (lambda: jr.gru(I, H, param_dtype=jnp.bfloat16), {}),
    "dtype='bfloat16'": (lambda: jr.gru(I, H, dtype=jnp.bfloat16), {}),
    "a readout in a bidirectional": (lambda: jr.bidirectional(jr.readout(I, 2), jr.readout(I, 2)), {}),
    "without a recurrent cell": (lambda: jr.readout(I, H), {}),
    "user's own cell": (user_cell, {}),
    "opset must be .* got 6": (lambda: jr.gru(I, H), {"opset": 6}),
}


@pytest.mark.parametrize("message", NOT_EXPORTED)
def test_export_refuses(message):
    make, options = NOT_EXPORTED[message]
    layer = make()
    with pytest.raises(ValueError, match=message):
        interop.export(layer, randomised(layer, None), **options)


def test_export_checks_params():
    with pytest.raises(ValueError, match=r"onnx.export: params.W_xh should have shape \(3, 12\), got \(3, 15\)"):
        interop.export(jr.gru(I, H), randomised(jr.gru(I, H + 1)))


@pytest.mark.usefixtures("x64")
def test_float64_of_constants_that_attributes_round():
    layer = jr.gru(I, H, gate_activation="hard_sigmoid")
    with pytest.raises(ValueError, match=r"hard_sigmoid in float64.*stores its constant in float32"):
        interop.export(layer, randomised(layer, "float64"))
    options = {"activations": ["HardSigmoid"], "activation_alpha": [1 / 6]}
    with pytest.raises(ValueError, match="attributes are float32"):
        interop.load(operator_model("RNN", dtype="float64", **options)[0])


NOT_LOADED = {
    "clip=0.5 has no counterpart.*run": ("RNN", {"clip": 0.5}),
    "ThresholdedRelu with alpha=1": ("RNN", {"activations": ["ThresholdedRelu"]}),
    "HardSigmoid with alpha=0.2, beta=0.5": ("RNN", {"activations": ["HardSigmoid"]}),
    "Tanh for the candidate and Relu": ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}),
    "input_forget with peepholes": ("LSTM", {"input_forget": 1, "P": True}),
    "gate activation relu.*input_forget|gate activation relu": (
        "LSTM",
        {"input_forget": 1, "activations": ["Relu", "Tanh", "Tanh"]},
    ),
    "gate activation tanh.*share z": ("GRU", {"activations": ["Tanh", "Tanh"]}),
}


@pytest.mark.parametrize("message", NOT_LOADED)
def test_load_refuses(message):
    kind, options = NOT_LOADED[message]
    with pytest.raises(ValueError, match=f"onnx.load: {kind} node 'cell'.*({message})"):
        interop.load(operator_model(kind, **options)[0])


def chained(*after, second=None, outputs=("out",), lens=("", "")):
    """A graph of a GRU, the nodes given, and a second GRU reading ``second``."""
    model, inputs = operator_model("GRU", initial=False, lengths=LENGTHS)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    stored |= {"W2": stored["R"], "one": np.array([1], np.int64), "M": np.ones((H, 2), np.float32)}
    nodes = [helper.make_node("GRU", ["X", "W", "R", "B", lens[0]], ["Y", "Y_h"], "first", hidden_size=H), *after]
    if second:
        nodes.append(helper.make_node("GRU", [second, "W2", "R", "", lens[1]], ["out"], "second", hidden_size=H))
    return model_of(nodes, inputs, {name: ("float32", 3) for name in outputs}, stored)


SQUEEZE = helper.make_node("Squeeze", ["Y", "one"], ["flat"], "squeeze")
GRAPHS = {
    "node 'second': an X with the axes T, D, B, H": lambda: chained(second="Y"),
    "node 'relu'.*this operator": lambda: chained(
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
    "node 'mixed'.*Reshape of outputs": lambda: chained(
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


# ---- malformed models and inputs ----------------------------------------------------------------


@pytest.mark.parametrize("read", [interop.load, lambda model: interop.run(model, {})], ids=["load", "run"])
def test_malformed_models(read, tmp_path):
    model, _ = operator_model("LSTM")
    data = model.SerializeToString()
    for end in range(0, len(data) - 1, 101):  # cut short anywhere
        with pytest.raises(ValueError, match=r"cannot be read|checker refuses"):
            read(data[:end])
    with pytest.raises(ValueError, match="cannot be read"):
        read(b"not a model")
    with pytest.raises(FileNotFoundError, match=r"nowhere.onnx is not there"):
        read(tmp_path / "nowhere.onnx")
    with pytest.raises(TypeError, match=r"expected a path, bytes or an onnx.ModelProto, got list"):
        read([])
    model.graph.node[0].output[1] = "other"
    with pytest.raises(ValueError, match="checker refuses the model: Graph output 'Y_h'"):
        read(model)
    model.graph.node[0].input[1] = "V"
    with pytest.raises(ValueError, match=r"checker refuses.*cell"):
        read(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": (1, 12, 3)}, r"W must have the shape \(1, 16, 3\), got \(1, 12, 3\)"),
        ({"R": (4, 4)}, r"R must have 3 axes, got the shape \(4, 4\)"),
        ({"R": (1, 16, 5)}, "hidden_size is 4, but R has the shape"),
        ({"B": (1, 16)}, r"B must have the shape \(1, 32\)"),
        ({"P": (1, 4)}, r"P must have the shape \(1, 12\)"),
        ({"direction": "sideways"}, "direction must be one of forward, reverse, bidirectional"),
        ({"activations": ["Sigmoid", "Tanh"]}, "activations must name 3 functions"),
        ({"activations": ["Sigmoid", "Tanh", "Sine"]}, "'Sine' is not one of"),
        ({"activations": ["Sigmoid", "Tanh", "Affine"]}, "Affine has no default alpha"),
        ({"activations": ["Elu", "Tanh", "Tanh"], "activation_alpha": [1.0, 2.0]}, "2 values for the 1 of its"),
        ({"clip": -1.0}, "clip must be positive"),
    ],
)
def test_malformed_nodes(change, message):
    model, inputs = operator_model("LSTM", P=True)
    for name, value in change.items():
        if isinstance(value, tuple):
            stored = next(tensor for tensor in model.graph.initializer if tensor.name == name)
            stored.CopyFrom(numpy_helper.from_array(np.ones(value, np.float32), name))
        else:
            attributes = [a for a in model.graph.node[0].attribute if a.name != name]
            del model.graph.node[0].attribute[:]
            model.graph.node[0].attribute.extend([*attributes, helper.make_attribute(name, value)])
    for who, compute in (("run", lambda: interop.run(model, inputs)), ("load", lambda: interop.load(model))):
        with pytest.raises(ValueError, match=f"onnx.{who}: LSTM node 'cell': .*{message}"):
            compute()


def test_inputs_that_do_not_fit():
    model, inputs = operator_model("GRU", lengths=LENGTHS)
    for change, message in (
        ({"X": inputs["X"].astype(np.float16)}, "'X' is float16 but the model declares float32"),
        ({"X": inputs["X"][:, :2]}, r"'X' has the shape \(5, 2, 3\) but the model declares \(5, 3, 3\)"),
        ({"Z": inputs["X"]}, "no input 'Z'"),
        ({"sequence_lens": LENGTHS + 1}, r"node 'cell': sequence_lens must lie between 0 and the 5 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.run(model, {**inputs, **change})
    with pytest.raises(ValueError, match="the model's input 'initial_h' is missing"):
        interop.run(model, {name: a for name, a in inputs.items() if name != "initial_h"})
    unknown = chained(SQUEEZE, helper.make_node("Relu", ["flat"], ["out"], "relu"))
    with pytest.raises(ValueError, match="Relu node 'relu': the operator is not one that runs here; there are RNN"):
        interop.run(unknown, {"X": inputs["X"], "sequence_lens": LENGTHS})
    turn = helper.make_node("Transpose", ["flat"], ["out"], "turn", perm=[0, 1])
    odd = chained(SQUEEZE, turn)
    with pytest.raises(ValueError, match="Transpose node 'turn': it does not fit its inputs of the shapes"):
        interop.run(odd, {"X": inputs["X"], "sequence_lens": LENGTHS})


def test_float64_needs_64_bits():
    model, inputs = operator_model("RNN", dtype="float64")
    for compute in (lambda: interop.run(model, inputs), lambda: interop.load(model)):
        with pytest.raises(TypeError, match="jax_enable_x64"):
            compute()


def test_old_operator_sets():
    model, _ = operator_model("RNN")
    model.opset_import[0].version = 6
    with pytest.raises(ValueError, match="operator set is 6; convert it to 7"):
        interop.load(model)


@pytest.mark.parametrize("module", [_running, _loading, _exporting], ids=lambda module: module.__name__)
def test_docstrings(module):
    assert doctest.testmod(module).failed == 0
