"""Larger sources of torch's weights: checkpoints, whole modules, parametrizations, archives; pickles are never run."""

import io
import os
import pickle
import re
import zipfile

import jax
import numpy as np
import pytest

import jaxrnn as jr
from tests.commands import run_command
from tests.interop.comparing import B, H, I, T, assert_same

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from jaxrnn.interop.torch import from_torch, load, parts  # noqa: E402


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.RNN(I, H, 2, nonlinearity="relu", dropout=0.25)})
        self.cells = nn.ModuleList([nn.LSTMCell(I, H), nn.LSTMCell(H, H)])
        self.decoder = nn.GRU(I, H, bidirectional=True)
        self.head = nn.Linear(2 * H, 2)

    def forward(self, x):
        return self.head(self.decoder(x)[0]) + self.encoder["rnn"](x)[0].sum()


PARTS = {
    "encoder.rnn.": "RNN, 3 -> 4, 2 layers",
    "cells.0.": "LSTMCell, 3 -> 4",
    "cells.1.": "LSTMCell, 4 -> 4",
    "decoder.": "GRU, 3 -> 4, both directions",
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model()


def test_parts_of_a_module_and_of_its_state_dict(model):
    assert parts(model) == parts(model.state_dict()) == PARTS
    wrapped = {"epoch": 3, "model_state_dict": {f"module.{name}": w for name, w in model.state_dict().items()}}
    assert parts(wrapped) == {f"model_state_dict.module.{name}": words for name, words in PARTS.items()}
    assert parts(nn.DataParallel(model)) == {f"module.{name}": words for name, words in PARTS.items()}


CHECKPOINTS = {
    "state dict": lambda state: state,
    "nested": lambda state: {"epoch": 3, "model_state_dict": state, "optimizer": {"state": {0: {"step": np.ones(2)}}}},
    "deep": lambda state: {"a": {"b": {"state_dict": state}}, "args": ["x"]},
    "data parallel": lambda state: {"state_dict": {f"module.{name}": w for name, w in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{name}": w for name, w in state.items()},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_part_of_a_checkpoint(name, model):
    """By the name that the model has for it, whatever stands around."""
    checkpoint = CHECKPOINTS[name](model.state_dict())
    layer, params = from_torch(model.decoder)
    for prefix in ("decoder", "decoder.", next(part for part in parts(checkpoint) if part.endswith("decoder."))):
        again, same = from_torch(checkpoint, prefix=prefix)
        assert again.spec == layer.spec
        assert_same(same, params)


def test_the_only_part_needs_no_name(model):
    state = {f"module.{name}": w for name, w in model.decoder.state_dict().items()}
    assert_same(from_torch({"step": 1, "model": state})[1], from_torch(model.decoder)[1])


def test_a_part_of_a_module_says_its_options_itself(model):
    layer, _ = from_torch(model, prefix="rnn")
    assert layer.spec == from_torch(model.encoder["rnn"])[0].spec
    assert "relu" in str(layer.spec) and "0.25" in str(layer.spec)


@pytest.mark.parametrize("source", ["cells", "list", "state dict"])
def test_cells_become_a_stack(source, model):
    """The two LSTMCells in their own loop beside ours."""
    prefixes = ("cells.0", "cells.1")
    given = {
        "cells": lambda: from_torch(model.cells),
        "list": lambda: from_torch([model.cells[0], model.cells[1]]),
        "state dict": lambda: from_torch(model.state_dict(), prefix=prefixes),
    }
    layer, params = given[source]()
    assert layer.spec == jr.stack(jr.lstm(I, H), jr.lstm(H, H)).spec
    xs = np.random.default_rng(0).normal(size=(T, B, I)).astype("float32")
    states, want = [None, None], []
    with torch.no_grad():
        for x in torch.tensor(xs):
            for k, cell in enumerate(model.cells):
                states[k] = cell(x, states[k])
                x = states[k][0]
            want.append(x.numpy())
    np.testing.assert_allclose(jax.jit(layer.apply)(params, xs)[1], want, rtol=0, atol=1e-6)


MISTAKEN = {
    "there are 4 recurrent modules; choose one with prefix=: 'encoder.rnn.', 'cells.0.', 'cells.1.', 'decoder.'": {},
    "no recurrent module is called 'decodr'; prefix= may be 'encoder.rnn.', 'cells.0.', 'cells.1.', 'decoder.'; "
    "did you mean 'decoder.'?": {"prefix": "decodr"},
    "no recurrent module is called 'head'": {"prefix": "head"},
    "2 recurrent modules end with 'rnn.': 'a.rnn.', 'b.rnn.'; give more of the name": {"prefix": "rnn"},
    "unknown keys 'head.weight', 'head.bias'; pass the state dict of one recurrent module, or name the part of a "
    "larger one: prefix='decoder.'": {},
    "'weight_hh_l0_orig', 'weight_hh_l0_u', 'weight_hh_l0_v' parametrize weight_hh_l0 in a way that has no": {},
}


@pytest.mark.parametrize("message", MISTAKEN)
def test_mistaken(message, model):
    state = model.state_dict()
    if "end with" in message:
        state = {f"{x}.rnn.{name}": w for x in "ab" for name, w in model.decoder.state_dict().items()}
    if "unknown" in message:
        state = {name: w for name, w in state.items() if name.startswith(("decoder", "head"))}
    if "parametrize" in message:
        state = nn.utils.spectral_norm(nn.GRU(I, H), "weight_hh_l0").state_dict()
    with pytest.raises(ValueError, match=f"^from_torch: {re.escape(message)}"):
        from_torch(state, **MISTAKEN[message])


def test_a_module_with_parts_wants_a_name(model):
    with pytest.raises(TypeError, match=r"got Model; pass the recurrent module inside it, .* 'encoder\.rnn\.'"):
        from_torch(model)
    with pytest.raises(TypeError, match=r"got Sequential; pass the recurrent module inside it, .* may be '1\.'"):
        from_torch(nn.Sequential(nn.Linear(2, I), nn.GRU(I, H)))
    for wrong in ([], [model.decoder, 3], nn.ModuleList()):
        with pytest.raises(TypeError, match=r"from_torch: expected nn\.RNN, .* got (list|ModuleList)"):
            from_torch(wrong)


# ---- parametrizations ---------------------------------------------------------------------------


def old_weight_norm(module, dim):
    return nn.utils.weight_norm(nn.utils.weight_norm(module, "weight_hh_l0", dim), "weight_ih_l0_reverse", dim)


def new_weight_norm(module, dim):
    for name in ("weight_hh_l0", "weight_ih_l0_reverse"):
        nn.utils.parametrizations.weight_norm(module, name, dim)
    return module


def pruned(module, dim):
    return nn.utils.prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)


BOTH = jr.bidirectional(*(jr.lstm(I, H, param_dtype="float64") for _ in range(2)))
run_both = jax.jit(BOTH.apply)  # compiled once


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("parametrize", [old_weight_norm, new_weight_norm, pruned])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.usefixtures("x64")
def test_parametrizations_are_folded_in(parametrize, dim):
    """As torch's own next forward pass computes them: trained g and v, and masks."""
    import torch.nn.utils.prune

    torch.manual_seed(1)
    theirs = parametrize(nn.LSTM(I, H, bidirectional=True, dtype=torch.float64), dim)
    with torch.no_grad():
        for w in theirs.parameters():
            w.mul_(1 + torch.rand_like(w))
    xs = np.random.default_rng(0).normal(size=(T, B, I))
    with torch.no_grad():
        want, _ = theirs(torch.tensor(xs))
    state = theirs.state_dict()
    assert "weight_hh_l0" not in state
    for source in (theirs, state, {"rnn." + name: w for name, w in state.items()}):
        layer, params = from_torch(source)
        assert layer.spec == BOTH.spec
        np.testing.assert_allclose(run_both(params, xs)[1], want, rtol=0, atol=1e-12)
    assert list(parts({"rnn." + name: w for name, w in state.items()}).values()) == ["LSTM, 3 -> 4, both directions"]


def test_other_parametrizations_are_read_off_the_module():
    theirs = nn.utils.parametrizations.orthogonal(nn.RNN(I, H), "weight_hh_l0")
    _, params = from_torch(theirs)
    np.testing.assert_allclose(params.W_hh @ params.W_hh.T, np.eye(H), atol=1e-6)
    with pytest.raises(ValueError, match=r"original.* parametrize weight_hh_l0 in a way that has no counterpart"):
        from_torch(theirs.state_dict())


# ---- files --------------------------------------------------------------------------------------


def scripted(model, path):
    torch.jit.script(Scriptable(model)).save(path)


def traced(model, path):
    torch.jit.trace(model.eval(), torch.ones(T, B, I)).save(path)


class Scriptable(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.decoder, self.rnn = model.decoder, model.encoder["rnn"]

    def forward(self, x):
        return self.decoder(x)[0], self.rnn(x)[0]


FILES = {
    "state dict": lambda model, path: torch.save(model.state_dict(), path),
    "checkpoint": lambda model, path: torch.save({"epoch": 3, "model": model.state_dict(), "args": {1, 2}}, path),
    "protocol 4": lambda model, path: torch.save(model.state_dict(), path, pickle_protocol=4),
    "whole": torch.save,
    "scripted": scripted,
    "traced": traced,
}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.filterwarnings("ignore")  # torch's own: that TorchScript is on its way out, that tracing is not exact
def test_files(form, model, tmp_path, capsys):
    path = str(tmp_path / "theirs.pt")
    FILES[form](model, path)
    layer, params = load(path, prefix="decoder")
    want_layer, want = from_torch(model.decoder)
    assert layer.spec == want_layer.spec
    assert_same(params, want)
    if form in ("whole", "scripted"):  # which say the nonlinearity
        rnn, _ = load(path, prefix="rnn")
        assert "relu" in str(rnn.spec)
    else:
        with pytest.raises(ValueError, match="does not say its nonlinearity; give nonlinearity='tanh' or 'relu'"):
            load(path, prefix="rnn")
    target = tmp_path / "ours.safetensors"
    assert run_command(capsys, "convert", path, target, "--prefix", "decoder")[0] == 0
    assert_same(jr.load(target)[1], want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes_and_views_in_files(dtype, tmp_path):
    """Tensors that share a storage, stand in it transposed, or begin inside it."""
    module = nn.GRU(I, H, dtype=getattr(torch, dtype))
    flat = torch.cat([w.detach().t().reshape(-1) for w in module.state_dict().values()])
    state, start = {}, 0
    for name, w in module.state_dict().items():
        part = flat[start : start + w.numel()]
        state[name], start = (part.view(w.t().shape).t() if w.ndim == 2 else part), start + w.numel()
    torch.save(state, tmp_path / "views.pt")
    assert_same(load(tmp_path / "views.pt")[1], from_torch(module)[1])


def test_older_files_are_refused(tmp_path):
    torch.save(nn.GRU(I, H).state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"is no archive .* one pickle .* not run here: where you trust the file"):
        load(tmp_path / "old.pt")


# ---- pickles are never run ----------------------------------------------------------------------


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def archive(path, change, state=None):
    """An archive of torch's with its pickle changed."""
    buffer = io.BytesIO()
    torch.save(nn.GRU(I, H).state_dict() if state is None else state, buffer)
    with zipfile.ZipFile(buffer) as sound, zipfile.ZipFile(path, "w") as bad:
        for info in sound.infolist():
            own = sound.read(info)
            bad.writestr(info, change(own) if info.filename.endswith("data.pkl") else own)


def programs(marker):
    payload = Payload(marker)
    yield pickle.dumps(payload, 2)
    yield pickle.dumps({"weight_ih_l0": payload, "weight_hh_l0": payload}, 4)
    yield pickle.dumps({"state_dict": {"a": payload}}, 0)
    yield f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    yield f"(S'touch {marker}'\niposix\nsystem\n.".encode()  # INST
    yield f"(cposix\nsystem\nS'touch {marker}'\no.".encode()  # OBJ


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl", ".safetensors", ".onnx", ".keras", ".h5"])
def test_a_pickle_is_never_run(suffix, tmp_path, capsys):
    """By no way in which a file enters, alone or in an archive, under any name."""
    marker = tmp_path / "ran"
    for k, program in enumerate(programs(marker)):
        bare, packed = tmp_path / f"bare{k}{suffix}", tmp_path / f"packed{k}{suffix}"
        bare.write_bytes(program)
        archive(packed, lambda _, program=program: program)
        for path in (bare, packed):
            for read in (load, parts, jr.load):
                with pytest.raises(ValueError):
                    if read(path) == {}:  # parts: there is none
                        raise ValueError
            for command in (("inspect", path), ("convert", path, tmp_path / "out.safetensors")):
                status, _, errors = run_command(capsys, *command)
                assert status == 1 and len(errors) == 1
    assert not marker.exists()
    pickle.loads(next(programs(marker)))
    assert marker.exists()  # the payload is a real one


def nested(levels):
    return b"\x80\x02" + b"}X\x01\x00\x00\x00a" * levels + b"}" + b"s" * levels + b"."


HOSTILE = {
    "nested deeper than 64": nested(10_000),
    "more than 1,000 parts": b"\x80\x02}" + b"q\x000}X\x01\x00\x00\x00ah\x00sX\x01\x00\x00\x00bh\x00s" * 40 + b".",
    "the operation EXT1 is not read": b"\x80\x02\x82\x01.",
    "pickle exhausted before seeing STOP": b"\x80\x02}",
    "holds a int and no state dict": b"\x80\x02K\x01.",
    "a tensor in it is damaged": pickle.dumps({"weight_ih": None}, 2).replace(
        b"N",
        b"ctorch._utils\n_rebuild_tensor_v2\n(((X\x07\x00\x00\x00storagectorch\nFloatStorage\nK\x01K\x01K\x01tQK"
        b"\x00(K\xfft(K\x01t\x89NtR".replace(b"(((", b"(("),
    ),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_programs(message, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrnn.interop.torch._archives.MOST_VISITS", 1000)
    archive(tmp_path / "bad.pt", lambda _: HOSTILE[message])
    with pytest.raises(ValueError, match=f"load: .*bad.pt.*{message}"):
        load(tmp_path / "bad.pt")


def test_damaged_archives_are_told(tmp_path):
    """A byte changed or the end cut off, anywhere: the same numbers, or a refusal in the reader's name."""
    module, path = nn.GRU(I, H), tmp_path / "bad.pt"
    torch.save(module.state_dict(), path)
    raw, want = path.read_bytes(), from_torch(module)[1]
    rng = np.random.default_rng(0)
    refused = 0
    for k in range(120):
        at = int(rng.integers(len(raw)))
        path.write_bytes(
            raw[:at] if k % 3 == 0 else raw[:at] + bytes([raw[at] ^ 1 << int(rng.integers(8))]) + raw[at + 1 :]
        )
        try:
            _, params = load(path)
        except ValueError as error:
            assert str(error).startswith("load: ") and "bad.pt" in str(error)
            refused += 1
        else:
            assert_same(params, want)
    assert refused > 60


def test_a_tensor_larger_than_its_bytes(tmp_path):
    """An expanded one, which a few bytes would make gigabytes of, and one that ends outside."""
    whole = {"weight_hh": torch.ones(4, 4), "weight_ih": torch.ones(4, 3)}
    shape, strides, offset = b"K\x04K\x04\x86q\x08", b"K\x04K\x01\x86q\t", b"QK\x00K\x04K\x04"
    for changes in (
        {shape: b"K\x05K\x04\x86q\x08"},
        {shape: b"J\xff\xff\xff\x7fK\x04\x86q\x08", strides: b"K\x00K\x00\x86q\t"},  # a view of one number
        {offset: b"QK\x04K\x04K\x04"},
    ):

        def change(program, changes=changes):
            for old, new in changes.items():
                assert program.count(old) == 1
                program = program.replace(old, new)
            return program

        archive(tmp_path / "large.pt", change, whole)
        with pytest.raises(ValueError, match=r"a tensor of \(\d+, 4\) is more than its bytes"):
            load(tmp_path / "large.pt", nonlinearity="tanh")
