"""``python -m jaxrnn inspect`` and ``convert`` without any other library: what they print, write and refuse."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxrnn as jr
from jaxrnn import load, save
from jaxrnn.__main__ import main
from jaxrnn.interop.registry import Loaded
from tests.commands import lines_of, run_command, words_of, write
from tests.saved import randomised

B, I, H = 2, 3, 4


@pytest.fixture
def run(capsys):
    return functools.partial(run_command, capsys)


MODEL = jr.stack(
    jr.embedding(9, I),
    jr.bidirectional(jr.gru(I, H, learned_carry=True), jr.gru(I, H, reset="after", activation="relu")),
    jr.dropout(0.2),
    jr.normalized(jr.peephole_lstm(2 * H, H)),
    jr.residual(jr.scan(jr.lstm(H, H, bias=False), reverse=True)),
    jr.readout(H, 2),
)


# ---- inspect -----------------------------------------------------------------------------------


def test_inspect_a_model_of_ours(run, tmp_path):
    path = tmp_path / "m.safetensors"
    params = randomised(MODEL)
    params = (*params[:-1], jax.tree.map(lambda a: a.astype("bfloat16"), params[-1]))
    save(path, MODEL, params, {"epoch": 3, "data": "ü"})
    status, report, errors = run("inspect", path)
    assert (status, errors) == (0, [])
    first, *_ = report.splitlines()
    assert first == (
        f"{path}: safetensors, {os.path.getsize(path):,} bytes; saved by jaxrnn {jr.__version__}, format 1"
    )
    assert lines_of(report, "metadata") == ["metadata  epoch: 3", 'metadata  data: "ü"']
    assert lines_of(report, "model: stack(embedding(vocabulary_size=9, output_size=3), bidirectional(gru(input_size=3")
    assert words_of(report, "0 ") == ["0", "embedding", "9", "->", "3", "27", "float32"]
    forward, backward = lines_of(report, "1.forward  "), lines_of(report, "1.backward  ")
    assert forward[0].split() == ["1.forward", "gru(learned_carry=True)", "3", "->", "4", "100", "float32"]
    assert "gru(activation='relu', reset='after'), reversed" in backward[0] and " 100 " in backward[0]
    assert words_of(report, "2 ") == ["2", "dropout(rate=0.2)", "-", "0", "-"]
    assert words_of(report, "3 ")[:6] == ["3", "peephole_lstm,", "in", "normalized", "8", "->"]
    assert words_of(report, "3 ")[7:] == ["228", "float32"]  # the scale and shift of `normalized` count
    assert "lstm(bias=False), in residual, reversed" in lines_of(report, "4 ")[0]
    assert words_of(report, "5 ")[-2:] == ["10", "bfloat16"]
    assert lines_of(report, "  ") == [
        "  gru: gates r z n; carry h; reset after the product; z multiplies the candidate; "
        "biases b, and b_hh inside the reset product",
        "  gru: gates r z n; carry h; reset before the product; z multiplies the candidate; one bias b; "
        "initial carry learned",
        "  lstm: gates i f g o; carry (h, c); no bias",
        "  peephole_lstm: gates i f g o; carry (h, c); diagonal peepholes; one bias b",
    ]
    assert words_of(report, "3.cell.U_i") == ["3.cell.U_i", "(4,)", "float32", "4"]
    assert words_of(report, "5.W_hy") == ["5.W_hy", "(4,", "2)", "bfloat16", "8"]
    total = sum(a.size for a in jax.tree.leaves(params))
    assert report.endswith(f"\n{total} parameters in {len(jax.tree.leaves(params))} tensors, bfloat16, float32\n")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (jr.elman(I, H, output_size=2), "elman: carry h; one bias b"),
        (jr.mgu(I, H, reset="after"), "mgu: gates f n; carry h; reset='after'; keep='candidate'; biases b, and b_hh"),
        (jr.cifg_lstm(I, H), "cifg_lstm: gates f g o; carry (h, c); i = 1 - f; one bias b"),
        (jr.conv_lstm(I, H, spatial_shape=(2, 2)), "conv_lstm: gates i f g o; carry (h, c); one bias b"),
        (jr.conv_gru(I, H, spatial_shape=2, reset="after"), "conv_gru: gates r z n; carry h; reset after the product"),
        (jr.lem(I, H), "lem: gates dt dt_bar z h; carry (h, z); one bias b"),
        (jr.antisymmetric_rnn(I, H), "antisymmetric_rnn: carry h; one bias b"),
        (jr.antisymmetric_rnn(I, H, gated=True), "antisymmetric_rnn: gates z n; carry h; one bias b"),
        (jr.qrnn(I, H, bias=False), "qrnn: gates n f o; carry c; no bias"),
        (jr.qrnn(I, H, window=2, pooling="ifo"), "qrnn: gates n f i o; carry (c, xs); one bias b"),
        (jr.sru(I, H), "sru: gates n f r; carry c; one bias b"),
        (jr.ctrnn(I, H), "ctrnn: carry r; one bias b"),
        (jr.ctrnn(I, H, form="current"), "ctrnn: carry x; one bias b"),
    ],
    ids=lambda value: value.spec.kind if isinstance(value, jr.Cell) else "",
)
def test_inspect_says_the_conventions_of_every_cell(cell, said, run, tmp_path):
    path = tmp_path / "m.safetensors"
    save(path, cell, randomised(cell))
    status, report, _ = run("inspect", path)
    assert status == 0 and any(line.startswith("  " + said) for line in report.splitlines())
    assert words_of(report, "- ")[0] == "-"  # the model is the cell, and has no name


def test_inspect_the_members_of_a_branch(run, tmp_path):
    path = tmp_path / "m.safetensors"
    cell = jr.branch(jr.every(jr.elman(I, H), period=2), jr.chain(jr.elman(I, 2), jr.readout(2, 1, bias=False)))
    save(path, cell, randomised(cell))
    report = run("inspect", path)[1]
    rows = [(words[0], words[-2]) for line in lines_of(report, "") if (words := line.split())[-1:] == ["float32"]]
    assert rows[:3] == [("0", "32"), ("1.0", "12"), ("1.1", "2")]
    assert lines_of(report, "  ") == ["  elman: carry h; one bias b"]


@pytest.mark.filterwarnings("ignore:save:UserWarning")
def test_inspect_a_model_without_a_spec(run, tmp_path):
    path = tmp_path / "m.safetensors"
    cell = jr.elman(I, H, activation=jnp.arctan)
    save(path, cell, randomised(cell))
    status, report, _ = run("inspect", path)
    assert status == 0
    assert words_of(report, "no model:")[2:5] == ["Spec.to_dict:", "elman's", "option"]
    assert words_of(report, "W_xh") == ["W_xh", "(3,", "4)", "float32", "12"]


def test_inspect_a_foreign_file(run, tmp_path):
    path = tmp_path / "theirs.safetensors"
    texts = {"format": "np", "note": "two\nlines, \x1b[31mred"}
    safetensors.numpy.save_file({"a.b": np.zeros((2, 3), np.int8)}, path, texts)
    status, report, _ = run("inspect", path)
    assert status == 0 and "foreign: not saved by jaxrnn" in report.splitlines()[0]
    assert lines_of(report, "metadata") == ["metadata  format: np", r"metadata  note: two lines, \x1b[31mred"]
    assert words_of(report, "a.b") == ["a.b", "(2,", "3)", "int8", "6"]


# ---- convert -----------------------------------------------------------------------------------


def of_torch():
    """A model with two recurrent modules and something else, as torch's state dict has it, in NumPy."""
    rng = np.random.default_rng(1)
    shapes = {}
    for prefix, gates in (("encoder.rnn.", 4), ("decoder.", 1)):
        names = {"weight_ih": (gates * H, I), "weight_hh": (gates * H, H), "bias_ih": (gates * H,)}
        shapes |= {f"{prefix}{name}_l0": shape for name, shape in (names | {"bias_hh": (gates * H,)}).items()}
    return {name: rng.normal(size=shape) for name, shape in (shapes | {"head.weight": (2, H)}).items()}


@pytest.mark.usefixtures("x64")
def test_from_a_torch_state_dict(run, tmp_path):
    source, target = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    state = of_torch()
    write(source, {name.removeprefix("encoder.rnn."): a for name, a in state.items() if name.startswith("encoder")})
    status, said, errors = run("convert", source, target)
    assert (status, errors) == (0, []) and said.startswith(f"{target}: scan(lstm(input_size=3, hidden_size=4")
    model, params, _ = load(target)
    assert [child.kind for child in model.spec.children] == ["lstm"]
    np.testing.assert_array_equal(params.W_xh, state["encoder.rnn.weight_ih_l0"].T)
    np.testing.assert_array_equal(params.b, state["encoder.rnn.bias_ih_l0"] + state["encoder.rnn.bias_hh_l0"])


@pytest.mark.usefixtures("x64")
def test_a_recurrent_module_inside_a_torch_model(run, tmp_path):
    source, target = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    state = of_torch()
    write(source, state)

    def refused(message, *options):
        status, said, errors = run("convert", source, target, *options)
        assert (status, said, target.exists()) == (1, "", False)
        assert len(errors) == 1 and errors[0].startswith("convert: ") and message in errors[0]

    refused("there are 2 recurrent modules; choose one with --prefix: 'encoder.rnn.', 'decoder.'.")
    refused("no recurrent module is called 'head.'; --prefix may be 'encoder.rnn.', 'decoder.'", "--prefix", "head.")
    refused("does not say its nonlinearity; give --nonlinearity tanh or relu", "--prefix", "decoder.")
    status, _, errors = run("convert", source, target, "--prefix", "decoder.", "--nonlinearity", "relu")
    assert status == 0 and "head.weight" in errors[0] and errors[0].startswith("left out, as no part of decoder.: ")
    model, params, _ = load(target)
    assert dict(model.spec.children[0].options)["activation"] == "relu"
    np.testing.assert_array_equal(params.W_hh, state["decoder.weight_hh_l0"].T)


def test_a_copy_of_ours_keeps_metadata(run, tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(source, MODEL, randomised(MODEL), {"epoch": 3})
    assert run("convert", source, target)[0] == 0
    assert target.read_bytes() == source.read_bytes()


def test_parameters_kept_alone_are_told(run, tmp_path, monkeypatch):
    cell = jr.elman(I, H, activation=jnp.arctan)
    monkeypatch.setattr("jaxrnn.commands.convert._read", lambda *_: (Loaded(cell, randomised(cell)), {}))
    (tmp_path / "a.safetensors").touch()
    status, _, errors = run("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert status == 0 and len(errors) == 1 and errors[0].startswith("save: '") and "without their model" in errors[0]


# ---- what is refused ----------------------------------------------------------------------------


def test_overwriting_takes_force(run, tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(source, jr.lstm(I, H), randomised(jr.lstm(I, H)))
    target.write_text("old")
    status, _, errors = run("convert", source, target)
    assert (status, errors) == (
        1,
        [f"convert: {str(target)!r} exists; name another target, or replace it with --force."],
    )
    assert target.read_text() == "old"
    assert run("convert", source, target, "--force")[0] == 0
    assert target.read_bytes() == source.read_bytes()
    status, _, errors = run("convert", source, source, "--force")
    assert status == 1 and "are one file; name another target" in errors[0]


@pytest.mark.filterwarnings("ignore:save:UserWarning")
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a.pkl", "b.onnx", "'a.pkl' is not taken: it is a pickle, which can run code"),
        ("a.PICKLE", "b.onnx", "torch.save(model.state_dict(), 'weights.pt')"),
        ("broken.pt", "b.onnx", "'broken.pt' is no archive as torch.save has written since its version 1.6"),
        ("text.safetensors", "b.onnx", "'text.safetensors' (4 bytes) is no sound safetensors file"),
        ("a.weights.h5", "b.onnx", "it holds weights without the layers' options; in Python, make the model of"),
        ("a.txt", "b.onnx", "'a.txt' should end with one of .safetensors, .onnx, .keras"),
        ("a.safetensors", "b.keras", "'b.keras' should end with one of .safetensors, .onnx"),
        ("a.safetensors", "b.onnx", "'a.safetensors' is not there"),
        (
            "folder.onnx",
            "b.safetensors",
            "'folder.onnx' is not taken: by its content it is a directory; give",
        ),
        (
            "broken.keras",
            "b.safetensors",
            "'broken.keras' is not taken: by its content it is a pickle, which",
        ),
        ("broken.safetensors", "b.onnx", "'broken.safetensors' is not taken: by its content it is a pickle"),
        ("foreign.safetensors", "b.onnx", "is a safetensors file, but not one that jaxrnn saved"),
        ("own.safetensors", "b.onnx", "'own.safetensors' holds parameters without their model"),
        ("mgu.safetensors", "absent/b.safetensors", "cannot write in"),
    ],
)
def test_one_line_for_what_cannot_be_converted(source, target, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    for name in ("text.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"text")
    for name in ("broken.keras", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x04nothing\nof the kind")
    write(tmp_path / "foreign.safetensors", {"a": np.ones(2)})
    for name, cell in (("own", jr.elman(I, H, activation=jnp.arctan)), ("mgu", jr.mgu(I, H))):
        save(f"{name}.safetensors", cell, randomised(cell))
    before = sorted(os.listdir())
    status, said, errors = run("convert", source, target)
    assert (status, said, len(errors)) == (1, "", 1)
    assert errors[0].startswith("convert: ") and message in errors[0]
    assert sorted(os.listdir()) == before


def test_options_of_torch_for_what_is_not_torchs(run, tmp_path):
    source = tmp_path / "a.safetensors"
    save(source, jr.lstm(I, H), randomised(jr.lstm(I, H)))
    status, _, errors = run("convert", source, tmp_path / "b.safetensors", "--prefix", "x.")
    assert status == 1 and errors[0].startswith("convert: --prefix are for torch state dicts, which ")


def test_inspect_errors(run, tmp_path):
    absent = str(tmp_path / "absent.safetensors")
    assert run("inspect", absent) == (1, "", [f"inspect: No such file or directory: {absent!r}"])
    assert run("inspect", "a.pt") == (1, "", ["inspect: No such file or directory: 'a.pt'"])
    assert "should end with one of .safetensors, .onnx" in run("inspect", "a.txt")[2][0]


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_help_and_usage(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0 and "The exit status is 0 where all went well, 1" in " ".join(
        capsys.readouterr().out.split()
    )
    with pytest.raises(SystemExit) as left:
        main([command])
    assert left.value.code == 2


def test_the_command_line(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"{}")
    ran = subprocess.run([sys.executable, "-m", "jaxrnn", "inspect", path], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (1, "", 1)
    assert "(2 bytes) is no sound safetensors file: header too small" in ran.stderr
