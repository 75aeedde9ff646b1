"""Files are known by their content, whatever they are called, and what reads them is named."""

import io
import pickle
import zipfile

import numpy as np
import pytest

import jaxrnn as jr
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
