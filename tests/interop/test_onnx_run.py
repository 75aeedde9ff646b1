"""jaxrnn.interop.onnx.run against onnxruntime and the reference evaluator; models and inputs that are malformed."""

import jax.numpy as jnp
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("hypothesis")

from onnx import helper, numpy_helper  # noqa: E402

from jaxrnn.interop import onnx as interop  # noqa: E402
from tests.interop.comparing import LENGTHS, T, assert_close  # noqa: E402
from tests.interop.onnx_models import (  # noqa: E402
    BOTH_WAYS,
    GATES,
    SQUEEZE,
    by_reference,
    by_runtime,
    chained,
    model_of,
    operator_model,
    ours,
    session,
)

ONE = {"activation_alpha": [0.3], "activation_beta": [0.6]}
TWO = {"activation_alpha": [0.3, 0.7], "activation_beta": [0.6, 0.2]}
ALPHA = {"activation_alpha": [0.3]}

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
    "Flatten": (
        13,
        [("Flatten", ["x"], {"axis": 2}), ("Tanh", ["0"], {}), ("Relu", ["1"], {}), ("Sigmoid", ["2"], {})],
    ),
    "Gemm": (13, [("Flatten", ["x"], {}), ("Gemm", ["0", "0", "two"], {"transB": 1, "alpha": 0.5, "beta": 2.0})]),
    "Div": (13, [("Shape", ["x"], {}), ("Div", ["0", "three"], {}), ("ConstantOfShape", ["1"], {})]),
    "DequantizeLinear": (13, [("DequantizeLinear", ["bytes", "scales", "zeros"], {"axis": 1})]),
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
    stored |= {"two": np.array([[1.5]], np.float32), "scales": np.array([0.5, 2], np.float32)}
    stored |= {"bytes": np.array([[1, 200], [7, 9]], np.uint8), "zeros": np.array([3, 128], np.uint8)}
    nodes = [helper.make_node(kind, names, [str(k)], **attrs) for k, (kind, names, attrs) in enumerate(chain)]
    probe = model_of(nodes, inputs, {}, stored, opset)
    rank = len(onnx.shape_inference.infer_shapes(probe).graph.value_info[-1].type.tensor_type.shape.dim)
    last = str(len(chain) - 1)
    model = model_of(nodes, inputs, {last: ("float32", rank)}, stored, opset)
    assert_close({k: jnp.asarray(a) for k, a in interop.run(model, inputs).items()}, by_runtime(model, inputs))


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
    unknown = chained(SQUEEZE, helper.make_node("Selu", ["flat"], ["out"], "selu"))
    with pytest.raises(ValueError, match="Selu node 'selu': the operator is not one that runs here; there are RNN"):
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
