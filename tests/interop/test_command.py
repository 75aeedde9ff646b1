"""``python -m jaxrnn convert`` and ``inspect`` with other libraries' files."""

import functools
import os

import jax
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import load, save
from jaxrnn.saving.records import described
from tests.commands import lines_of, run_command, words_of
from tests.interop.comparing import B, H, I, T, assert_same, drawn_params

os.environ.setdefault("KERAS_BACKEND", "jax")


@pytest.fixture
def run(capsys):
    return functools.partial(run_command, capsys)


def test_inspect_onnx(run, tmp_path):
    onnx = pytest.importorskip("onnx")
    from jaxrnn.interop.onnx import export

    layer = jr.bidirectional(jr.lstm(I, H), jr.lstm(I, H))
    path = tmp_path / "m.onnx"
    onnx.save(export(layer, drawn_params(layer)), path)
    status, report, errors = run("inspect", path)
    assert (status, errors) == (0, [])
    assert report.startswith(f"{path}: ONNX, ")
    assert words_of(report, "forward  ") == ["forward", "lstm", "3", "->", "4", "128", "float32"]
    assert "lstm, reversed" in lines_of(report, "backward  ")[0]
    assert lines_of(report, "  lstm: gates i f g o; carry (h, c); one bias b")
    assert report.endswith("\n256 parameters in 6 tensors, float32\n")


def test_inspect_onnx_lists_the_recurrent_nodes(run, tmp_path):
    onnx = pytest.importorskip("onnx")
    from jaxrnn.interop.onnx import export

    layer = jr.stack(jr.lstm(I, H), jr.gru(H, H + 1))
    model, path = export(layer, drawn_params(layer), lengths=False, carry=False), tmp_path / "m.onnx"
    onnx.save(model, path)
    status, report, _ = run("inspect", path)
    first = f"LSTM_outputs.0: LSTM {I} -> {H}, forward; X = X"
    second = f"GRU_outputs.1: GRU {H} -> {H + 1}, forward; X = outputs.0.squeezed"
    assert status == 0 and f"\n\nrecurrent nodes\n  {first}\n  {second}" in report
    assert words_of(report, "1  ")[:5] == ["1", "gru", str(H), "->", str(H + 1)]
    model.graph.node.append(onnx.helper.make_node("Softmax", ["Y"], ["p"], "head"))
    model.graph.output[0].name = "p"
    onnx.save(model, path)
    status, report, errors = run("inspect", path)
    assert (status, errors) == (0, []) and f"  {first}\n  {second}" in report
    assert report.splitlines()[-1].startswith("not one layer: onnx.load: Softmax node 'head': this operator")


SIZE = 4 * H * (I + H + 1) + 4 * H * (H + H + 1)  # the numbers in two LSTMs


@pytest.mark.parametrize("learned", [False, True], ids=["zero carry", "learned carry"])
@pytest.mark.usefixtures("x64")
def test_to_onnx_and_back(learned, run, tmp_path):
    pytest.importorskip("onnx")
    model = jr.stack(jr.lstm(I, H, learned_carry=learned), jr.lstm(H, H, learned_carry=learned))
    params = drawn_params(model, "float64")  # bitwise, also where the test's own 64 bits would be off
    source, middle, target = (tmp_path / name for name in ("a.safetensors", "b.onnx", "c.safetensors"))
    save(source, model, params)
    with jax.enable_x64(False):
        said = f"{middle}: {described(model.spec)}, {SIZE + 2 * H * 2 * learned} parameters, float64\n"
        assert run("convert", source, middle) == (0, said, [])
        assert run("convert", middle, target)[0] == 0
    assert_same(load(target)[1], params)


@pytest.mark.usefixtures("x64")
def test_torch_computes_the_same(run, tmp_path):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    source, target = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    theirs = torch.nn.GRU(I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    library.save_file(theirs.state_dict(), source)
    assert run("convert", source, target)[0] == 0
    model, params, _ = load(target)
    xs = np.random.default_rng(0).normal(size=(T, B, I))
    with torch.no_grad():
        want, _ = theirs(torch.tensor(xs))
    np.testing.assert_allclose(jax.jit(model.apply)(params, xs)[1], want, rtol=0, atol=1e-10)


def test_from_keras(run, tmp_path):
    keras = pytest.importorskip("keras")
    source, target = tmp_path / "theirs.keras", tmp_path / "ours.safetensors"
    theirs = keras.Sequential([keras.Input((T, I)), keras.layers.LSTM(H, return_sequences=True), keras.layers.Dense(2)])
    theirs.save(source)
    assert run("convert", source, target)[0] == 0
    model, params, _ = load(target)
    xs = np.random.default_rng(0).normal(size=(T, B, I)).astype("float32")
    want = np.asarray(theirs(xs.swapaxes(0, 1))).swapaxes(0, 1)
    # One rounding of each of some hundred products and sums, in either library's own order.
    np.testing.assert_allclose(jax.jit(model.apply)(params, xs)[1], want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("broken.onnx", "b.safetensors", "broken.onnx"),
        ("mgu.safetensors", "b.onnx", "mgu"),
        ("text.keras", "b.onnx", "'text.keras' is no file of Keras"),
    ],
)
def test_one_line_for_what_cannot_be_converted(source, target, message, run, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("keras")
    (tmp_path / "broken.onnx").write_bytes(b"\x80\x04nothing\nof the kind")
    (tmp_path / "text.keras").write_bytes(b"text")
    save("mgu.safetensors", jr.mgu(I, H), drawn_params(jr.mgu(I, H)))
    before = sorted(os.listdir())
    status, said, errors = run("convert", source, target)
    assert (status, said, len(errors)) == (1, "", 1)
    assert errors[0].startswith("convert: ") and message in errors[0]
    assert sorted(os.listdir()) == before


def test_the_commands_go_by_the_content(run, tmp_path):
    """A torch file called .onnx is read as what it is, and what nothing reads is named."""
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.GRU(3, 4).state_dict(), tmp_path / "theirs.onnx")
    status, report, _ = run("inspect", tmp_path / "theirs.onnx")
    assert status == 0 and "torch state dicts" in report and "gru(reset='after')" in report
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.onnx")
    status, _, errors = run("convert", tmp_path / "a.onnx", tmp_path / "b.safetensors")
    assert status == 1 and "is not taken: by its content it is a NumPy array; read it with" in errors[0]
