"""onnx.inspect, and onnx.load of recurrent nodes in larger graphs, against onnxruntime's run of those graphs."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("hypothesis")

from onnx import helper, numpy_helper  # noqa: E402

from jaxrnn.interop import onnx as interop  # noqa: E402
from tests.interop import torch_exports  # noqa: E402
from tests.interop.comparing import B, H, I, T, assert_close, quick_jit  # noqa: E402
from tests.interop.onnx_graphs import TOKENS, F, V, X, drawn, node, opened, recurrent, sizes, weights  # noqa: E402
from tests.interop.onnx_models import by_runtime, model_of  # noqa: E402


def translator():
    """Tokens (B, T) -> embedding -> LSTM both ways -> GRU -> Gemm over all steps as one batch -> Softmax."""
    nodes = [
        node("Gather", "table tokens", "vectors"),
        node("Transpose", "vectors", "x", perm=[1, 0, 2]),
        recurrent("LSTM", "enc", "x", outputs=["enc.h", "enc.c"], direction="bidirectional"),
        node("Transpose", "enc.Y", "turned", perm=[0, 2, 1, 3]),
        node("Reshape", "turned joined", "memory"),
        node("Slice", "enc.h zero one zero", "start"),
        recurrent("GRU", "dec", "memory", "", "start", outputs=["dec.h"]),
        node("Squeeze", "dec.Y one", "states"),
        node("Reshape", "states flat", "rows"),
        node("Gemm", "rows M b", "scores", transB=1, alpha=0.5, beta=2.0),
        node("Reshape", "scores apart", "y"),
        node("Softmax", "y", "p", axis=-1),
    ]
    stored = {"table": drawn(V, I), "M": drawn(F, H), "b": drawn(F)}
    stored |= weights("LSTM", "enc", I, 2) | weights("GRU", "dec", 2 * H)
    stored |= sizes(zero=[0], one=[1], joined=[0, 0, -1], flat=[-1, H], apart=[T, B, F])
    outputs = dict.fromkeys(["p", "memory", "y", "start", "dec.h"], ("float32", 3))
    return model_of(nodes, {"tokens": TOKENS}, outputs, stored)


def kinds(layer):
    """The cells of each member of a stack."""
    return [", ".join(cell.kind for cell in member.children) for member in layer.spec.children]


def test_inspect():
    enc, dec = interop.inspect(translator())
    outputs = ("enc.Y", "enc.h", "enc.c")
    assert enc == interop.RecurrentNode("enc", "LSTM", I, H, "bidirectional", {"X": "x"}, outputs)
    assert (dec.kind, dec.input_size, dec.inputs) == ("GRU", 2 * H, {"X": "memory", "initial_h": "start"})
    assert str(dec) == f"dec: GRU {2 * H} -> {H}, forward; X = memory, initial_h = start"


def test_inspect_gives_every_node_a_name_of_its_own():
    model = translator()
    model.graph.node[2].name = model.graph.node[6].name = "same"
    assert [one.name for one in interop.inspect(model)] == ["enc.Y", "dec.Y"]
    model.graph.node[2].name = ""
    assert [one.name for one in interop.inspect(model)] == ["enc.Y", "same"]
    model = model_of([node("Identity", "x", "y")], {"x": X}, {"y": ("float32", 3)})
    assert interop.inspect(model) == []


def test_load_takes_nodes_out():
    model = translator()
    want = by_runtime(model, {"tokens": TOKENS})
    tokens = TOKENS.T.astype(np.int32)

    layer, params = interop.load(model, node="enc")
    assert kinds(layer) == ["embedding", "lstm, lstm"]
    assert_close(quick_jit(layer.apply)(params, tokens)[1], want["memory"])

    layer, params = interop.load(model, node=["dec"])
    assert kinds(layer) == ["gru", "readout"]
    carry, ys = quick_jit(layer.apply)(params, want["memory"], (want["start"][0], ()))
    assert_close(ys, want["y"])
    assert_close(carry[0], want["dec.h"][0])


def test_load_takes_a_chain_out():
    model = translator()
    model.graph.node[6].input[5] = ""  # the decoder starts from zeros
    layer, params = interop.load(model, node=["dec", "enc"])
    assert kinds(layer) == ["embedding", "lstm, lstm", "gru", "readout"]
    want = by_runtime(model, {"tokens": TOKENS})
    assert_close(quick_jit(layer.apply)(params, TOKENS.T.astype(np.int32))[1], want["y"])


def test_a_readout_belongs_to_the_chain_only_where_nothing_else_reads_its_input():
    model = translator()
    model.graph.node.append(node("Softmax", "states", "attention", axis=-1))
    layer, _ = interop.load(model, node="dec")
    assert layer.spec.kind == "scan"


def test_nodes_that_cannot_be_taken():
    model = translator()
    with pytest.raises(ValueError, match=r"node 'dec': an initial_h that the graph computes.*node= takes"):
        interop.load(model)
    model.graph.node[6].input[5] = ""
    with pytest.raises(ValueError, match=r"Softmax node 'Softmax p': this operator.*node=…\) takes out.*'enc', 'dec'"):
        interop.load(model)
    with pytest.raises(ValueError, match=r"onnx.load: no recurrent node is named 'end'.*there are 'enc', 'dec'"):
        interop.load(model, node="end")
    with pytest.raises(TypeError, match="node must be the name of a recurrent node or a list of names, got 3"):
        interop.load(model, node=3)
    with pytest.raises(ValueError, match="node is empty; name one of 'enc', 'dec'"):
        interop.load(model, node=[])
    model.graph.node[4].op_type = "Relu"
    del model.graph.node[4].input[1:]
    with pytest.raises(ValueError, match="a layer of 'enc', 'dec' has no counterpart: each must read the outputs"):
        interop.load(model, node=["enc", "dec"])


# ---- chains with other nodes around them, loaded whole ------------------------------------------


def side_by_side(join, **more):
    """A forward and a reverse GRU that read the same, joined, as converters from TensorFlow write them."""
    nodes = [
        recurrent("GRU", "a", "x"),
        recurrent("GRU", "b", "x", direction="reverse"),
        node("Squeeze", "a.Y one", "ahead"),
        node("Squeeze", "b.Y one", "back"),
        node(join, "ahead back", "y", **more),
    ]
    return nodes, weights("GRU", "a", I) | weights("GRU", "b", I)


def one_by_one(cut, join, **more):
    """Both directions of an LSTM, cut apart and joined."""
    both = recurrent("LSTM", "a", "x", direction="bidirectional")
    return [both, *cut, node(join, "ahead back", "y", **more)], weights("LSTM", "a", I, 2)


SPLIT = [
    helper.make_node("Split", ["a.Y", "ones"], ["front", "rear"], "split", axis=1),
    node("Squeeze", "front one", "ahead"),
    node("Squeeze", "rear one", "back"),
]
GATHER = [node("Gather", "a.Y first", "ahead", axis=1), node("Gather", "a.Y last", "back", axis=1)]

AROUND = {
    "two nodes concatenated": lambda: side_by_side("Concat", axis=2),
    "two nodes added": lambda: side_by_side("Add"),
    "directions split and concatenated": lambda: one_by_one(SPLIT, "Concat", axis=-1),
    "directions gathered and multiplied": lambda: one_by_one(GATHER, "Mul"),
    "readouts before and after": lambda: (
        [
            node("MatMul", "x P", "product"),
            node("Add", "p product", "projected"),
            recurrent("RNN", "a", "projected"),
            node("Squeeze", "a.Y one", "states"),
            node("MatMul", "states M", "unbiased"),
            node("Add", "unbiased b", "y"),
        ],
        weights("RNN", "a", F) | {"P": drawn(I, F), "p": drawn(F), "M": drawn(H, F), "b": drawn(1, 1, F)},
    ),
    "an initial state that is learned": lambda: (
        [
            node("Shape", "x", "size", start=1, end=2),
            node("Concat", "one size one", "times", axis=0),
            node("Expand", "h0 times", "start"),
            recurrent("GRU", "a", "x", "", "start"),
            node("Squeeze", "a.Y one", "y"),
        ],
        weights("GRU", "a", I) | {"h0": drawn(1, 1, H)},
    ),
    "sizes by division, layout 0 and -1": lambda: (
        [
            recurrent("GRU", "a", "x"),
            node("Shape", "x", "size"),
            node("Gather", "size steps", "T"),
            node("Mul", "T two", "twice"),
            node("Div", "twice two", "again"),
            node("Concat", "again minus units", "shape", axis=0),
            node("Flatten", "a.Y", "flat", axis=2),
            node("Reshape", "flat shape", "y"),
        ],
        weights("GRU", "a", I),
    ),
}


@pytest.mark.parametrize("case", AROUND)
def test_chains(case):
    nodes, stored = AROUND[case]()
    stored |= sizes(one=[1], two=[2], ones=[1, 1], first=0, last=-1, steps=[0], minus=[-1], units=[H])
    model = opened(model_of(nodes, {"x": X}, {"y": ("float32", 3)}, stored), x=("steps", "batch"))
    layer, params = interop.load(model)
    for xs in (X, X[:2, :1]):
        assert_close(quick_jit(layer.apply)(params, xs)[1], by_runtime(model, {"x": xs})["y"])


REFUSED = {
    "one direction of two": (
        lambda: ([recurrent("GRU", "a", "x", direction="bidirectional"), GATHER[1]], weights("GRU", "a", I, 2)),
        "back",
    ),
    "node 'Concat y': Concat of outputs": (lambda: one_by_one(GATHER, "Concat", axis=0), "y"),
    "node 'Concat y': a graph that branches": (
        lambda: ((made := side_by_side("Concat", axis=2))[0][:1] + [recurrent("GRU", "b", "x")] + made[0][2:], made[1]),
        "y",
    ),
    "node 'Slice y': Slice of outputs": (
        lambda: ([recurrent("GRU", "a", "x"), node("Slice", "a.Y first_1 two first_1", "y")], weights("GRU", "a", I)),
        "y",
    ),
    "node 'Transpose y': Transpose of outputs": (
        lambda: (
            [recurrent("GRU", "a", "x"), node("Transpose", "a.Y", "y", perm=[0, 2, 1, 4])],
            weights("GRU", "a", I),
        ),
        "y",
    ),
    "node 'Cast y': Cast of outputs": (
        lambda: (
            [recurrent("GRU", "a", "x"), node("Cast", "a.Y", "y", to=onnx.TensorProto.FLOAT16)],
            weights("GRU", "a", I),
        ),
        "y",
    ),
    "node 'Concat y': Concat of outputs with the axes T, B, H": (
        lambda: (
            (made := one_by_one(SPLIT, "Concat", axis=2))[0][:-1] + [node("Concat", "back ahead", "y", axis=2)],
            made[1],
        ),
        "y",
    ),
    "node 'a': an initial_h that the graph computes": (
        lambda: (
            [recurrent("GRU", "b", "x", outputs=["h"]), recurrent("GRU", "a", "x", "", "h")],
            weights("GRU", "a", I) | weights("GRU", "b", I),
        ),
        "a.Y",
    ),
    "node 'Reshape y': Reshape of outputs": (
        lambda: (
            [
                recurrent("GRU", "a", "x"),
                node("Transpose", "a.Y", "t", perm=[2, 0, 1, 3]),
                node("Reshape", "t mix", "y"),
            ],
            weights("GRU", "a", I),
        ),
        "y",
    ),
}


BESIDE = [recurrent("GRU", "a", "x", outputs=["h"]), recurrent("GRU", "b", "x", outputs=["k"])]
REFUSED |= {
    "the output 'k', of a node beside the others": (
        lambda: ([*BESIDE, node("Identity", "a.Y", "y")], weights("GRU", "a", I) | weights("GRU", "b", I)),
        ("k", "y"),
    ),
    "the output 'y', of a node beside the others": (
        lambda: ([*BESIDE, node("Concat", "h k", "y", axis=0)], weights("GRU", "a", I) | weights("GRU", "b", I)),
        ("y",),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_chains_that_are_refused(message):
    make, outputs = REFUSED[message]
    outputs = dict.fromkeys([outputs] if isinstance(outputs, str) else outputs, ("float32", 3))
    nodes, stored = make()
    stored |= sizes(
        one=[1],
        two=[2],
        ones=[1, 1],
        first=0,
        last=-1,
        first_1=[0],
        mix=[-1, 2 * B, 2],
    )
    model = opened(model_of(nodes, {"x": X}, outputs, stored), x=("steps", "batch"))
    with pytest.raises(ValueError, match=message):
        interop.load(model)


@pytest.mark.parametrize(("declared", "loads"), [((T, "batch", H), True), ((T, "steps", H), False), ((), False)])
def test_numbers_of_an_example_for_open_sizes(declared, loads):
    """A number stands for an open size where the file says which axis is which; elsewhere it might mix the axes."""
    nodes, stored = [recurrent("GRU", "a", "x"), node("Reshape", "a.Y shape", "y")], weights("GRU", "a", I)
    model = model_of(nodes, {"x": X}, {"y": ("float32", 3)}, stored | sizes(shape=[T, -1, H]))
    for dim, size in zip(model.graph.output[0].type.tensor_type.shape.dim, declared, strict=False):
        setattr(dim, "dim_value" if isinstance(size, int) else "dim_param", size)
    model = opened(model, x=("steps", "batch"))
    if not loads:
        with pytest.raises(ValueError, match="node 'Reshape y': Reshape of outputs"):
            interop.load(model)
        return
    layer, params = interop.load(model)
    for xs in (X, X[:, :2]):
        assert_close(quick_jit(layer.apply)(params, xs)[1], by_runtime(model, {"x": xs})["y"])


# ---- the form that is written step by step ------------------------------------------------------


def test_unrolled_networks_whose_steps_are_read_elsewhere():
    """Such a graph stays as it is, and is refused by name."""
    row = next(row for row in torch_exports.ROWS if row[:2] == ("RNN", "static"))
    model = onnx.load_model_from_string(torch_exports.stored(row))
    assert len(interop.inspect(model)) > 0
    inner = next(n for n in model.graph.node if n.op_type in ("Relu", "Tanh")).output[0]
    model.graph.node.append(helper.make_node("Identity", [inner], ["inner"]))
    model.graph.output.append(helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, [None] * 3))
    assert interop.inspect(model) == []
    with pytest.raises(ValueError, match=r"onnx.load: .* node .*of outputs"):
        interop.load(model)


def folded(model):
    """The first step's product of a zero state, which is the bias alone, becomes another number."""
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [1, torch_exports.B, torch_exports.H]:
            tensor.CopyFrom(numpy_helper.from_array(1 + numpy_helper.to_array(tensor), tensor.name))


def longer(model):
    """One step more than the graph computes."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value += 1
    del model.graph.value_info[:]


@pytest.mark.parametrize("change", [folded, longer])
def test_unrolled_networks_that_compute_something_else(change):
    model = onnx.load_model_from_string(torch_exports.stored(("RNN", "static", 19, 1, False, False)))
    assert len(interop.inspect(model)) == 1
    change(model)
    assert interop.inspect(model) == []
