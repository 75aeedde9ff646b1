"""jaxrnn.interop.onnx.export against onnxruntime; round trips; layers that are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from jaxrnn.interop import onnx as interop  # noqa: E402
from tests.interop.comparing import LENGTHS, B, H, I, T, assert_close, assert_same, drawn_params  # noqa: E402
from tests.interop.onnx_models import (  # noqa: E402
    by_reference,
    by_runtime,
    operator_model,
    ours,
    session,
)

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
    params = drawn_params(layer, "float32")
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


@pytest.mark.usefixtures("x64")
def test_export_float64():
    """By the reference evaluator, which knows no lengths; onnxruntime has no float64 kernels."""
    layer = jr.stack(jr.bidirectional(jr.lstm(I, H), jr.lstm(I, H)), jr.gru(2 * H, H), jr.readout(H, 2))
    params = drawn_params(layer, "float64")
    model = interop.export(layer, params, lengths=False)
    inputs = inputs_of(model, "float64")
    assert_close(jax.jit(functools.partial(by_layer, layer))(params, inputs), by_reference(model, inputs), "float64")
    with pytest.raises(Exception, match="does not support double"):
        by_runtime(model, inputs)


def test_dynamic_axes_and_files(tmp_path):
    """One session takes other lengths and batches; a file is what was returned."""
    layer = jr.scan(jr.gru(I, H))
    params = drawn_params(layer, "float32")
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
    params = drawn_params(layer, "float32", seed=data.draw(st.integers(0, 9)))
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
        interop.export(layer, drawn_params(layer), **options)


def test_export_checks_params():
    with pytest.raises(ValueError, match=r"onnx.export: params.W_xh should have shape \(3, 12\), got \(3, 15\)"):
        interop.export(jr.gru(I, H), drawn_params(jr.gru(I, H + 1)))


@pytest.mark.usefixtures("x64")
def test_float64_of_constants_that_attributes_round():
    layer = jr.gru(I, H, gate_activation="hard_sigmoid")
    with pytest.raises(ValueError, match=r"hard_sigmoid in float64.*stores its constants in float32"):
        interop.export(layer, drawn_params(layer, "float64"))
