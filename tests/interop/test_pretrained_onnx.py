"""The LSTM in a graph of silero-vad's form, small: equal to onnxruntime's; the whole experiment on small files."""

import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from experiments.data.records import DataError  # noqa: E402
from experiments.pretrained import silero, sounds, speed  # noqa: E402
from tests.experiments import small_g2p  # noqa: E402
from tests.experiments.test_pretrained import run  # noqa: E402

I, H = 3, 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Frames (T, 576) -> an affine map in place of the convolutions -> LSTM -> the probability of speech."""
    rng = np.random.default_rng(0)

    def stored(name, *shape, scale=1.0):
        return numpy_helper.from_array(rng.normal(0, scale, shape).astype("f"), name)

    def shape(name, *sizes):
        return numpy_helper.from_array(np.array(sizes, np.int64), name)

    arrays = [stored("P", 576, I, scale=0.5), stored("W", 1, 4 * H, I), stored("R", 1, 4 * H, H), stored("B", 1, 8 * H)]
    arrays += [stored("output.weight", 1, H, 1), stored("output.bias", 1), shape("one", 1)]
    nodes = [
        helper.make_node("MatMul", ["input", "P"], ["products"]),
        helper.make_node("Relu", ["products"], ["features"]),
        helper.make_node("Unsqueeze", ["features", "one"], ["X"]),
        helper.make_node(
            "LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "hn", "cn"], "/recurrent/LSTM", hidden_size=H
        ),
        helper.make_node("Squeeze", ["Y", "one"], ["ys"]),
        helper.make_node("Relu", ["ys"], ["positive"]),
        helper.make_node("Transpose", ["positive"], ["turned"], perm=[1, 2, 0]),
        helper.make_node("Conv", ["turned", "output.weight", "output.bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["speech_probs"]),
    ]
    number = TensorProto.FLOAT
    states = [helper.make_tensor_value_info(name, number, [1, 1, H]) for name in ("h", "c", "hn", "cn")]
    frames = helper.make_tensor_value_info("input", number, ["T", 576])
    speech = helper.make_tensor_value_info("speech_probs", number, [1, 1, "T"])
    graph = helper.make_graph(nodes, "small", [frames, *states[:2]], [speech, *states[2:]], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    path = tmp_path_factory.mktemp("silero") / "small.onnx"
    onnx.save(model, path)
    return path


def test_both_compute_the_same_of_the_graphs_own_activations(path):
    network = silero.read(path)
    theirs = silero.theirs(network, sounds.frames(sounds.syllables(0.5, 0).samples))
    assert theirs.xs.shape == (16, 1, I) and theirs.ys.shape == (16, 1, H) and theirs.speech.shape == (16,)
    found = silero.differences(network, theirs)
    assert len(found) == 4 and max(found.values()) < 1e-5  # float32
    off = network._replace(readout=network.readout._replace(b_y=network.readout.b_y + 0.1))
    assert silero.differences(off, theirs)["speech"] > 1e-3


def test_the_node_alone_is_the_node_in_the_graph(path):
    network = silero.read(path)
    theirs = silero.theirs(network, sounds.frames(sounds.syllables(0.3, 1).samples))
    zeros = np.zeros((1, 2, H), np.float32)
    ys, h, _ = silero.alone(network).run(None, {"X": np.repeat(theirs.xs, 2, axis=1), "h": zeros, "c": zeros})
    np.testing.assert_allclose(ys[:, 0, 1:], theirs.ys, atol=1e-6)
    np.testing.assert_allclose(h[0, 0], theirs.h[0], atol=1e-6)
    rows = speed.of_silero(network, theirs, 1)
    assert [row.what for row in rows] == [
        "10 frames of 1 sound",
        "10 frames of 16 sounds",
        "1 frame, in a call of its own",
    ]
    assert all(row.theirs > 0 and row.ours > 0 for row in rows)


def test_what_is_no_such_graph_is_refused(path, tmp_path):
    model = onnx.load(path)
    model.graph.initializer[4].name = "elsewhere"
    model.graph.node[7].input[1] = "elsewhere"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(
        DataError, match=r"^files.silero: .*other.onnx: expected one LSTM, and output.weight and output.bias, "
    ):
        silero.read(tmp_path / "other.onnx")
    (tmp_path / "other.onnx").write_text("no graph")
    with pytest.raises(DataError, match=r"other.onnx: not an ONNX file"):
        silero.read(tmp_path / "other.onnx")


@pytest.mark.full
def test_a_tiny_run(path, tmp_path):
    of_g2p = small_g2p.write(tmp_path)
    assert run(tmp_path / "runs", f"files.silero={path}", f"files.g2p_en={of_g2p}") == 0
    directory = tmp_path / "runs/pretrained-001"
    summary = json.loads((directory / "summary.json").read_text())
    differences = summary["differences"]
    assert differences["words"] == [] and len(summary["timed"]) == 5
    assert max(*differences["silero-vad"].values(), *differences["g2p-en"].values()) < 1e-5
    text = (directory / "table.md").read_text()
    assert "| silero-vad | 32 frames of 1 sound |" in text and "| g2p-en | 4 words |" in text
    page = (directory / "report.html").read_text()
    assert "which letters each phoneme hangs on" in page and "Fixed and slow points of the decoder" in page
