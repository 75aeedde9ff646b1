"""``python -m jaxrnn inspect`` on any bytes: a report, or one line and the status 1; nothing of a file is executed."""

import os
import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn as jr
from jaxrnn.__main__ import main
from jaxrnn.commands.inspect import OURS
from jaxrnn.interop.registry import formats, refused
from tests.foreign_bytes import kinds

SUFFIXES = sorted({OURS, *formats(), *refused(), ".txt", ""})


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    return folder, kinds(folder, folder / "executed")


def inspect(path, capsys):
    """The status and what was printed, once it is seen to be a report or one line."""
    status = main(["inspect", str(path)])
    said, errors = capsys.readouterr()
    errors = errors.splitlines()
    if status == 0:
        assert said.startswith(f"{path}: ") and not errors
    else:
        assert (status, said, len(errors)) == (1, "", 1), errors
        assert errors[0].startswith("inspect: ") and len(errors[0]) < 3000
    return status, errors


def test_every_kind_under_every_suffix(sound, tmp_path, capsys):
    folder, files = sound
    read = set()
    for kind, raw in files.items():
        for suffix in SUFFIXES:
            path = tmp_path / f"x{suffix}"
            path.write_bytes(raw)
            status, _ = inspect(path, capsys)
            read |= {(kind, suffix)} if status == 0 else set()
    right = {(kind, OURS) for kind in ("one model", "several", "torch's names", "foreign")}
    assert right <= read and (("onnx", ".onnx") in read) == ("onnx" in files)
    assert not (folder / "executed").exists()


HOW = st.sampled_from(["flip", "cut", "overwrite", "insert"])
STEPS = st.lists(st.tuples(HOW, st.integers(0, 2**20), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


def changed(raw, steps):
    raw = bytearray(raw)
    for how, place, piece in steps:
        at = place % max(len(raw), 1)
        if how == "flip" and raw:
            raw[at] ^= 1 << piece[0] % 8
        elif how == "cut":
            raw = raw[:at]
        elif how == "overwrite":
            raw[at : at + len(piece)] = piece
        elif how == "insert":
            raw[at:at] = piece
    return bytes(raw)


@pytest.mark.parametrize("examples", [150, pytest.param(5000, marks=pytest.mark.full)])
def test_files_of_every_kind_with_changes(examples, sound, tmp_path, capsys):
    """Half of them what is read, under its own suffix."""
    folder, files = sound
    small = [kind for kind, raw in files.items() if len(raw) < 30_000]
    read = [("one model", OURS), ("several", OURS), ("foreign", OURS), *[("onnx", ".onnx")] * ("onnx" in files)]
    pairs = [*read * 10, *((kind, suffix) for kind in small for suffix in sorted({OURS, *formats()}))]

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(pair=st.sampled_from(pairs), steps=STEPS)
    def run(pair, steps):
        kind, suffix = pair
        path = tmp_path / f"x{suffix}"
        path.write_bytes(changed(files[kind], steps))
        inspect(path, capsys)

    run()
    assert not (folder / "executed").exists()


def test_random_bytes(tmp_path, capsys):
    rng = random.Random(0)
    for n in range(60):
        path = tmp_path / f"x{SUFFIXES[n % len(SUFFIXES)]}"
        path.write_bytes(rng.randbytes(rng.randrange(200)))
        assert inspect(path, capsys)[0] == 1


def test_what_is_no_file(tmp_path, capsys):
    """A pipe would never end, and a device either."""
    for suffix in SUFFIXES:
        (tmp_path / f"folder{suffix}").mkdir()
        os.mkfifo(tmp_path / f"pipe{suffix}")
        (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
        for name in ("folder", "pipe", "device", "absent"):
            assert inspect(tmp_path / f"{name}{suffix}", capsys)[0] == 1


@pytest.mark.parametrize(
    "error", [RecursionError("deep"), MemoryError(), KeyError("a\nb"), AssertionError(), Exception("x" * 9000)]
)
def test_whatever_a_reader_raises_is_one_line(error, tmp_path, capsys, monkeypatch):
    """And what it warns of, or has begun to say, is not printed."""

    def failing(*arguments):
        warnings.warn("a library's own", stacklevel=1)
        raise error

    monkeypatch.setattr("jaxrnn.commands.inspect.kept_in", failing)
    jr.save(tmp_path / "x.safetensors", jr.dropout(0.1), ())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert inspect(tmp_path / "x.safetensors", capsys)[0] == 1
    assert not told
