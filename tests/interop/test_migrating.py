"""docs/migrating.md runs from top to bottom, and what it calls expected is what jaxrnn gives."""

import os

import numpy as np
import pytest

from tests.documents import sections


def test_the_guide_runs(tmp_path, monkeypatch):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    for library in ("torch", "keras", "haiku", "equinox", "onnx", "orbax.checkpoint"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    compared = []
    for title, text, names in sections("docs/migrating.md"):
        if "expected =" in text:
            expected, ys, lengths = (np.asarray(names[name]) for name in ("expected", "ys", "lengths"))
            padded = "lengths=lengths" in text
            on = (np.arange(7)[:, None] < (lengths if padded else 7))[..., None]
            # float32; each library rounds some ten operations a step in its own order
            np.testing.assert_allclose(ys * on, np.where(on, expected, 0), rtol=0, atol=2e-6)
            assert np.abs(expected).max() > 0.05
            compared.append(title)
    files = "Files of Flax, Haiku and Equinox"
    assert compared == ["PyTorch", "Keras", "TensorFlow 1", "Flax", "Haiku", "Equinox", files, "ONNX"]
    assert names["metadata"] == {"step": 100}
