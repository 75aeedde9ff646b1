"""Files of ``jr.save``: a damaged one is refused, and nothing that happens while one is written damages it."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn as jr
from jaxrnn import load, save
from jaxrnn.saving.files import read_header, read_tensors
from tests.saved import MODELS, assert_same, randomised, saved, with_text, write


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# ---- files that are not sound ------------------------------------------------------------------


def test_a_file_cut_short_anywhere(path):
    saved(path)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    for end in (0, 5, 8, 100, start - 1, start, start + 50, len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(
            ValueError, match=rf"load: '.*model\.safetensors' \({end:,} bytes\) is no sound .*cut short"
        ):
            load(path)
    path.write_bytes(raw + b"x")
    with pytest.raises(ValueError, match=r"incomplete metadata, file not fully covered"):
        load(path)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": NaN}', "invalid JSON in header: expected value"),
        (b'{"a": -Infinity}', "invalid JSON in header: invalid number"),
        (b'{"a": 1e999}', "invalid JSON in header: number out of range"),
        (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "duplicate field `dtype`"),
        (b'{"__metadata__": {}, "__metadata__": {}}', "duplicate field `__metadata__`"),
        (b"[]", "invalid JSON in header"),
        (b'{"a": ', "invalid JSON in header: EOF"),
        (b'{"\xff": 1}', "invalid UTF-8 in header"),
        (b'{"a": ' + b"[" * 100_000, "recursion limit exceeded"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number out of range"),
        ({"a": 1}, "invalid type: integer `1`"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "missing field `data_offsets`"),
        ({"__metadata__": {"a": 1}}, "invalid type: integer `1`, expected a string"),
        ({"__metadata__": ["a"]}, "invalid type: sequence, expected a map"),
        (entry(dtype=4), "invalid type: integer `4`"),
        (entry(dtype="F5"), "unknown variant `F5`"),
        (entry(shape=(2.0,)), "invalid type: floating point `2.0`"),
        (entry(shape=(True,)), "invalid type: boolean `true`"),
        (entry(shape=(-2,)), "invalid value: integer `-2`"),
        (entry(shape=(2**70,)), "expected usize"),
        (entry(offsets=(0,)), "invalid length 1, expected a tuple of size 2"),
        (entry(offsets=(8, 0)), "invalid offset for tensor `a`"),
        (entry(offsets=(-8, 0)), "invalid value: integer `-8`"),
        (entry(offsets=(0, 4)), "invalid shape, data type, or offset for tensor"),
        (entry(shape=(2**40, 2**40)), "overflow computing buffer size"),
        (entry(offsets=(4, 12)), "invalid offset for tensor `a`"),
        ({**entry(), "b": entry()["a"]}, "invalid offset for tensor `[ab]`"),  # the same bytes twice
        ({**entry(), "b": entry(shape=(1,), offsets=(12, 16))["a"]}, "invalid offset for tensor `[ab]`"),  # a hole
        ({**entry(), "b": entry(shape=(4,), offsets=(8, 24))["a"]}, "incomplete metadata, file not fully covered"),
    ],
)
def test_a_malformed_header(header, message, path):
    write(path, header, bytes(16 if isinstance(header, dict) and "b" in header else 8))
    with pytest.raises(ValueError, match=rf"load: '.*model\.safetensors' .* is no sound safetensors file: .*{message}"):
        load(path)


def test_a_name_that_comes_twice_hides_no_numbers(path):
    """The last entry counts, as in most readers of JSON; but every byte must belong to an entry that counts."""
    text = [json.dumps(entry(offsets=offsets))[1:-1] for offsets in ((0, 8), (8, 16))]
    write(path, f"{{{text[0]}, {text[1]}}}".encode(), bytes(16))
    with pytest.raises(ValueError, match="invalid offset for tensor `a`"):
        read_tensors("test", path)
    write(path, f"{{{text[0]}, {text[0]}}}".encode(), bytes(8))
    assert read_tensors("test", path)["a"].tobytes() == bytes(8)


def test_headers_of_gigantic_length_are_not_read(path):
    write(path, b"{}", length=2**63)
    with pytest.raises(ValueError, match="header too large"):
        load(path)
    with open(path, "wb") as file:  # sparse: no disk is taken
        file.write((150_000_000).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(ValueError, match="header too large"):
        load(path)


def test_other_safetensors_files(path):
    write(path, entry(), bytes(8))
    with pytest.raises(ValueError, match=r"'.*' is a safetensors file, but not one .*a float32 \(2,\); read it with"):
        load(path)
    write(path, {"weight_ih_l0": entry()["a"]}, bytes(8))
    with pytest.raises(ValueError, match=r"torch's names: python -m jaxrnn convert"):
        load(path)
    path.write_bytes(b"\x80\x04\x95 a pickle")
    with pytest.raises(ValueError, match=r"is no safetensors file; by its content it is a pickle, which can run code"):
        load(path)


def test_files_that_are_ours_but_changed(path):
    def changed(message, kept=None, **fields):
        """Other entries in jaxrnn's text, without digests as in files of 0.1.0, and other fields of tensors."""
        header, data = saved(path)
        header = with_text(header, **(kept or {}))
        for name, other in fields.items():
            header[name].update(other)
        write(path, header, data)
        with pytest.raises(ValueError, match=rf"load: .*{message}") as caught:
            load(path)
        assert repr(str(path)) in str(caught.value)

    changed(f"the format 3 of jaxrnn {jr.__version__}, .* reads 1 and 2; upgrade", {"format": 3})
    changed("the format None of jaxrnn None", {"format": "absent", "version": "absent"})
    changed("is damaged: unhashable", {"format": []})
    for models in ("absent", [], {}, {"a": []}):
        changed("is damaged: expected models to be a dict of dicts", {"format": 2, "spec": "absent", "models": models})
    changed("is damaged: .*'NaN'", {"metadata": {"a": float("nan")}})
    changed("is damaged: expected a dict", {"metadata": []})
    for size, words in (
        (10**9, r"W_xh should be float32 \(10{9}, 16\), got float32 \(3, 16\)"),
        (10**30, "cannot be rebuilt: lstm: input_size must be at most 2,147,483,647"),
    ):
        changed(words, {"spec": {"kind": "lstm", "options": {"input_size": size, "hidden_size": 4}}})
    for spec in ({"kind": "eval"}, "lstm", {"kind": "Plan"}, None, 4):
        changed("cannot be rebuilt: .*saved by jaxrnn", {"spec": spec})
    for options in ({"input_size": 3}, {"input_size": 3, "hidden_size": [4]}):
        changed("cannot be rebuilt", {"spec": {"kind": "lstm", "options": options}})
    changed("without their model: the file has no spec", {"spec": "absent"})
    changed(r"W_xh should be float32 \(3, 16\), got float32 \(16, 3\)", W_xh={"shape": [16, 3]})
    changed(r"b should be float32 \(16,\), got int32 \(16,\)", b={"dtype": "I32"})
    changed(r"b should be float32 \(16,\), got F4 \(128,\)", b={"dtype": "F4", "shape": [128]})
    for text in ("[" * 100_000, "[]", "", "{"):
        header, data = saved(path)
        header["__metadata__"]["jaxrnn"] = text
        write(path, header, data)
        with pytest.raises(ValueError, match=r"jaxrnn's part of the metadata in .* is damaged"):
            load(path)
    header, data = saved(path)
    header["c"] = header.pop("b")
    write(path, header, data)
    with pytest.raises(ValueError, match=r"b is missing, .*; c, float32 \(16,\), is"):
        load(path)


def test_dtypes_that_are_not_known_here(path):
    write(path, entry(dtype="F4", shape=(16,)), bytes(8))
    assert read_header("test", path).tensors == {"a": ((16,), "F4")}
    with pytest.raises(ValueError, match=r"test: '.*' holds dtypes that jaxrnn does not read: a \(F4\)"):
        read_tensors("test", path)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_changed_byte_gives_a_clear_error_or_other_numbers(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("changed") / "m.safetensors"
    saved(path)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 8 + int.from_bytes(raw[:8], "little")))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        model, params, _ = load(path)
    except (ValueError, TypeError) as error:
        assert str(error).startswith("load: ") and repr(str(path)) in str(error)
    else:
        wanted = jax.eval_shape(model.init, jax.random.key(0))
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)


@pytest.mark.filterwarnings("ignore:save:UserWarning")
def test_booleans_are_0_or_1(path):
    cell = jr.Cell(
        lambda key: jnp.array([True]), lambda params, batch_shape=(): (), lambda params, carry, x: (carry, x)
    )
    save(path, cell, jnp.array([True]))
    path.write_bytes(path.read_bytes()[:-1] + b"\x02")  # the one byte of data
    with pytest.raises(ValueError, match="is boolean, but has bytes other than 0 and 1"):
        load(path, cell)


def test_no_file_and_no_regular_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file.*absent'"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"load: '.*' is a directory"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"save: '.*' is a directory"):
        save(tmp_path, MODELS["no parameters"], ())
    with pytest.raises(FileNotFoundError, match=r"save: cannot write in a folder that is not there: '.*absent'"):
        save(tmp_path / "absent" / "m.safetensors", MODELS["no parameters"], ())
    os.mkfifo(tmp_path / "pipe")
    for run in (load, lambda path: save(path, MODELS["no parameters"], ())):
        with pytest.raises(ValueError, match="is no regular file"):
            run(tmp_path / "pipe")


# ---- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_an_error_on_the_way_leaves_the_old_file_and_no_other(call, path, monkeypatch):
    params = randomised(MODELS["cell"])
    save(path, MODELS["cell"], params)

    def fail(*args):
        raise OSError("no space left")

    if call == "write":
        monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="no space left"):
        save(path, MODELS["cell"], jax.tree.map(jnp.zeros_like, params))
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    assert_same(load(path)[1], params)


def test_permissions_are_those_of_a_usual_file(path):
    old = os.umask(0o027)
    try:
        save(path, MODELS["no parameters"], ())
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o664)
        save(path, MODELS["no parameters"], ())
        assert stat.S_IMODE(path.stat().st_mode) == 0o664
    finally:
        os.umask(old)


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(target)
    for step in range(2):  # a link to nothing, then one to a file
        save(link, MODELS["no parameters"], (), {"step": step})
        assert link.is_symlink() and load(target)[2] == {"step": step}
    assert os.listdir(target.parent) == [target.name]


SAVING = """
import sys, jax, jax.numpy as jnp, jaxrnn as jr
from jaxrnn import save
model = jr.scan(jr.elman(500, 500))
shapes = jax.eval_shape(model.init, jax.random.key(0))
versions = [jax.tree.map(lambda a: jnp.full(a.shape, n, a.dtype), shapes) for n in (1, 2)]
save(sys.argv[1], model, versions[0], {"version": 1})
print("ready", flush=True)
while True:
    for n in (2, 1):
        save(sys.argv[1], model, versions[n - 1], {"version": n})
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    paths = [tmp_path / f"{n}.safetensors" for n in range(3)]
    command = [sys.executable, "-c", SAVING]
    running = [subprocess.Popen([*command, path], stdout=subprocess.PIPE, text=True) for path in paths]
    try:
        for process, path in zip(running, paths, strict=True):
            assert process.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0.01, 0.1))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            _, params, metadata = load(path)
            assert metadata["version"] in (1, 2)
            assert all((np.asarray(a) == metadata["version"]).all() for a in jax.tree.leaves(params))
    finally:
        for process in running:
            process.kill()
            process.communicate()


LIMITED = """
import resource, sys
import jax, jaxrnn as jr
model = jr.embedding(1000, 100)
params = model.init(jax.random.key(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    jr.save(sys.argv[1], model, params)
except OSError as error:
    print(error)
"""


def test_a_full_disk(path):
    save(path, MODELS["no parameters"], ())
    run = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"save: {str(path)!r} cannot be written: Error while serializing: I/O error")
    assert os.listdir(path.parent) == [path.name]
    load(path)


LOADING = """
import resource, sys
from jaxrnn import load
load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, params, _ = load(sys.argv[2])
params[0].table.block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_loading_takes_the_memory_of_the_file(tmp_path):
    paths = [tmp_path / "small", tmp_path / "large"]
    for path, rows in zip(paths, (2, 5_000), strict=True):
        model = jr.stack(jr.embedding(rows, 1000), *(jr.readout(1000, 1000) for _ in range(24)))
        save(
            path,
            model,
            jax.tree.map(lambda a: np.ones(a.shape, a.dtype), jax.eval_shape(model.init, jax.random.key(0))),
        )
    run = subprocess.run([sys.executable, "-c", LOADING, *paths], capture_output=True, text=True, check=True)
    file, grown = paths[1].stat().st_size, 1024 * int(run.stdout)
    assert grown < 1.25 * file  # a copy of each tensor would make it 2
