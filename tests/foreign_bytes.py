"""Files of every kind that somebody may name, as bytes, made without the libraries that write them."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import safetensors.numpy

import jaxrnn as jr
from tests.saved import contents, randomised, with_text, write


class Evil:
    """What runs a command when it is unpickled: it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def zipped(members, method=zipfile.ZIP_STORED):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return raw.getvalue()


def npy(descr, shape, data=b""):
    """A .npy file that says what it likes of its data."""
    return npy_header(repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n") + data


def npy_header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


LONG_NPY_HEADER = b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\xff" + b"{'descr': "  # 4 GB, it says


def keras_zip(config=b"{}", method=zipfile.ZIP_STORED):
    return zipped({"metadata.json": b"{}", "config.json": config, "model.weights.h5": b"\x89HDF\r\n\x1a\n"}, method)


def inflating():
    """A sound .keras archive of 70 kB, whose configuration is 70 MB of spaces."""
    return keras_zip(b" " * 70_000_000, zipfile.ZIP_DEFLATED)


def nested(depth):
    """A spec in so many others."""
    spec = jr.elman(2, 2).spec.to_dict()
    for _ in range(depth):
        spec = {"kind": "residual", "options": {}, "children": [spec]}
    return spec


BEYOND = {  # what is in a file that holds the three tensors of an elman
    "of a billion units": {"kind": "elman", "options": {"input_size": 1, "hidden_size": 10**9}},
    "of more units than numbers can count": {"kind": "elman", "options": {"input_size": 1, "hidden_size": 10**30}},
    "of more cells than tensors": {"kind": "stack", "children": [jr.lstm(1, 1).spec.to_dict()] * 4000},
    "of too many members": {"kind": "stack", "children": [jr.dropout(0.1).spec.to_dict()] * 4096},
    "nested too deep": nested(64),
    "of lists nested too deep": {"kind": "elman", "options": {"input_size": json.loads("[" * 300 + "]" * 300)}},
    "of no kind": {"kind": "Plan"},
}


def ours(folder, *arguments):
    jr.save(folder / "ours", *arguments)
    return (folder / "ours").read_bytes()


def kinds(folder, marker):
    """By kind, files that are sound, at least as such; the pickles among them make ``marker`` if they are executed."""
    cell, other = jr.leaky(jr.elman(1, 2), rate=0.25), jr.stack(jr.gru(1, 2), jr.readout(2, 1))
    params = randomised(cell)
    a = np.arange(6.0, dtype=np.float32)
    evil = pickle.dumps({"a": Evil(marker)}, protocol=2)
    jr.save(folder / "said", cell, params)
    header, data = contents(folder / "said")
    found = {}
    for what, spec in BEYOND.items():
        write(folder / "said", with_text(header, spec=spec), data)
        found[f"a spec {what}"] = (folder / "said").read_bytes()
    found |= {
        "one model": ours(folder, cell, params, {"epoch": 7}),
        "several": ours(folder, {"a": (cell, params), "b": (other, randomised(other))}),
        "torch's names": safetensors.numpy.save({"weight_ih_l0": a.reshape(2, 3), "weight_hh_l0": a[:4].reshape(2, 2)}),
        "foreign": safetensors.numpy.save({"a": a}, {"note": "x"}),
        "nothing": b"",
        "zeros": bytes(100),
        "text": b"a text,\nof two lines\n",
        "json": json.dumps(cell.spec.to_dict()).encode(),
        "nested json": b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        "nested json as a header": (20_007).to_bytes(8, "little") + b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        "pickle": evil,
        "torch zip": zipped({"archive/data.pkl": evil, "archive/version": b"3\n", "archive/data/0": a.tobytes()}),
        "keras zip": keras_zip(),
        "keras zip that inflates": inflating(),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + bytes(80),
        "npy": npy("<f4", (6,), a.tobytes()),
        "npy of objects": npy("|O", (1,), evil),
        "npy of terabytes": npy("<f8", (10**12,), bytes(8)),
        "npy with a header of gigabytes": LONG_NPY_HEADER,
        "npy with a deep header": npy_header(b"-" * 9000 + b"1\n"),
        "several npy": npy("<f4", (6,), a.tobytes()) + npy("<f4", (), a[:1].tobytes()),
        "msgpack of Flax": b"\x81\xa1a\xc7\x11\x01\x93\x91\x01\xa7float32\xc4\x04" + a[:1].tobytes(),
        "npz": zipped({"a.npy": npy("<f4", (6,), a.tobytes())}),
        "npz of objects": zipped({"a.npy": npy("|O", (1,), evil)}),
        "gzip": b"\x1f\x8b\x08\x00" + bytes(20),
        "protobuf of deep groups": b"\x0b" * 20_000,
        "protobuf of a length beyond the file": b"\x3a\xff\xff\xff\xff\x07",
    }
    try:
        from jaxrnn.interop.onnx import export

        layer = jr.scan(jr.elman(1, 2))
        found["onnx"] = export(layer, randomised(layer)).SerializeToString()
    except ImportError:
        pass
    return found
