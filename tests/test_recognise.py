"""Files are known by their content, whatever they are called, and what reads them is named."""

import io
import pickle
import re
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization

import jaxrnn as jr
from jaxrnn.__main__ import main
from jaxrnn.saving import recognise
from jaxrnn.saving.recognise import recognised
from tests.saved import MODELS, randomised


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


def numpy_file(save):
    buffer = io.BytesIO()
    save(buffer, np.ones(2))
    return buffer.getvalue()


def msgpack_of(tree):
    return serialization.to_bytes(jax.tree.map(np.asarray, tree))


def npy_of(*arrays):
    buffer = io.BytesIO()
    for a in arrays:
        np.save(buffer, a)
    return buffer.getvalue()


ARRAYS = {"params": {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4)}}
MSGPACK = (
    r"a msgpack file of Flax: read it with flax\.serialization\.msgpack_restore\(.*\), and give what .* from_linen"
)
EQUINOX = "a file of Equinox's tree_serialise_leaves: read it with equinox.tree_deserialise_leaves, and give its cells"

FILES = {
    "an HDF5 file, as Keras writes them: use jaxrnn.interop.keras.load": b"\x89HDF\r\n\x1a\n" + bytes(9),
    "a .keras archive: use jaxrnn.interop.keras.load": zipped("metadata.json", "config.json", "model.weights.h5"),
    "a file of torch.save: use jaxrnn.interop.torch.load": zipped("a/data.pkl", "a/version"),
    "a TorchScript archive: use jaxrnn.interop.torch.load": zipped("a/data.pkl", "a/constants.pkl"),
    "an archive of NumPy arrays: read it with numpy.load": numpy_file(np.savez),
    "a NumPy array: read it with numpy.load": numpy_file(np.save),
    "a zip archive: unpack it": zipped("a.txt"),
    "a pickle, which can run code when it is opened: read what you trust": pickle.dumps({"a": 1}),
    "an ONNX model: use jaxrnn.interop.onnx.load": b"\x08\x08\x12\x07pytorch",
    "a GGUF file": b"GGUF\x03",
}


@pytest.mark.parametrize("message", FILES)
def test_load_says_what_a_file_is(message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[message])
    with pytest.raises(ValueError, match=f"load: .* is no safetensors file; by its content it is {message}"):
        jr.load(path)


BY_OTHERS = {
    "a tree": (MSGPACK, msgpack_of(ARRAYS)),
    "many names, a long one first": (MSGPACK, msgpack_of({f"{'layer' * 9}_{k}": ARRAYS for k in range(20)})),
    "a training's state": (MSGPACK, msgpack_of({"step": 3, "name": "run", **ARRAYS})),
    "a narrow, a scalar, a long array": (
        MSGPACK,
        msgpack_of({"a": np.float32(1), "b": np.ones(99, ml_dtypes.bfloat16)}),
    ),
    "two arrays": (EQUINOX, npy_of(np.ones((3, 4), np.float32), np.ones(4))),
    "numbers": (EQUINOX, npy_of(np.array(3), np.array(True), np.ones(2, ml_dtypes.bfloat16))),
    "after a line of options": (EQUINOX, b'{"width": 4}\n' + npy_of(np.ones(3))),
    "an empty array": ("a NumPy array: read it with numpy.load", npy_of(np.ones((0, 3)))),
}


@pytest.mark.parametrize("name", BY_OTHERS)
def test_files_that_flax_and_equinox_read(name, tmp_path, capsys):
    message, raw = BY_OTHERS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"load: .* is no safetensors file; by its content it is {message}"):
        jr.load(path)
    for renamed in (path, tmp_path / "a.msgpack", tmp_path / "a.eqx", tmp_path / "a"):
        renamed.write_bytes(raw)
        assert main(["inspect", str(renamed)]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and re.search(message.replace(": read", "; read"), said)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x81\xa6params\x84",  # cut before the first array
        b"\x81\xa1a\xa1b",  # msgpack of texts
        b'{"width": 4}\n{"depth": 2}',
        b"{" + bytes(80),
        b"\x93NUMPY\x03",
    ],
)
def test_other_bytes_are_not_taken_for_them(raw, tmp_path):
    (tmp_path / "a").write_bytes(raw)
    assert recognised(tmp_path / "a") in (None, recognise.NPY)


FOLDERS = {
    "": ["_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA"],
    "/default": ["_CHECKPOINT_METADATA", "default/_METADATA"],
    "/10/state": ["9/_CHECKPOINT_METADATA", "9/state/_METADATA", "10/_CHECKPOINT_METADATA", "10/state/manifest.ocdbt"],
    "/checkpoint_3": ["checkpoint_3/_METADATA", "checkpoint_3/_CHECKPOINT_METADATA", "notes/a.txt"],
}


@pytest.mark.parametrize("tree", FOLDERS)
def test_where_the_tree_of_orbax_stands(tree, tmp_path, capsys):
    for name in FOLDERS[tree]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    place = f" + {tree!r}" if tree else ""
    call = f"orbax.checkpoint.StandardCheckpointer().restore(os.path.abspath(path){place})"
    said = f"a directory of orbax; restore it with {call}, and give what it holds to jaxrnn.interop's from_linen"
    with pytest.raises(ValueError, match=re.escape(said)):
        jr.load(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


def test_a_folder_that_links_to_itself(tmp_path):
    (tmp_path / "_CHECKPOINT_METADATA").write_bytes(b"")
    (tmp_path / "a").symlink_to(tmp_path, target_is_directory=True)
    assert recognised(tmp_path).title == "a directory of orbax"


@pytest.mark.parametrize("inside", ["", "saved_model.pb", "_CHECKPOINT_METADATA"])
def test_directories(inside, tmp_path):
    said = {"": "a directory; give the name", "saved_model.pb": "TensorFlow", "_CHECKPOINT_METADATA": "orbax; restore"}
    if inside:
        (tmp_path / inside).write_bytes(b"")
    with pytest.raises(ValueError, match=f"load: .* is a directory.*{said[inside]}" if inside else said[inside]):
        jr.load(tmp_path)


def test_ours_and_what_is_not_known(tmp_path):
    """No safetensors file is taken for something else, whatever the length of its header."""
    jr.save(tmp_path / "a", MODELS["cell"], randomised(MODELS["cell"]))
    assert recognised(tmp_path / "a") is None
    for length in (*range(0x70, 0x90), 0x280, 0x380, 0x480, 0x1208, 0x4208):
        text = b'{"__metadata__":{"a":"b"}}'.ljust(length)
        (tmp_path / "b").write_bytes(length.to_bytes(8, "little") + text)
        assert recognised(tmp_path / "b") is None, hex(length)
    for text in (b"", b"\x80", b"PK", b"text"):
        (tmp_path / "c").write_bytes(text)
        assert recognised(tmp_path / "c") is None
    (tmp_path / "c").write_bytes(b"PK\x03\x04 cut short")
    assert recognised(tmp_path / "c").title.startswith("a zip archive that is cut short")
