"""Options of the LSTM and GRU that no other library's layer has: every converter refuses them, by name."""

import importlib
import os

import jax
import pytest

import jaxrnn as jr

os.environ.setdefault("KERAS_BACKEND", "jax")

I, H = 3, 4
CONVERTERS = {  # with the library that each needs
    "torch.to_torch": "torch",
    "keras.to_keras": "keras",
    "flax.to_linen": "flax",
    "flax.to_nnx": "flax",
    "haiku.to_haiku": "haiku",
    "equinox.to_equinox": "equinox",
    "onnx.export": "onnx",
}
OF_LAYERS = ("torch.to_torch", "onnx.export")  # these take whole runs; the others cells


@pytest.mark.parametrize("place", CONVERTERS)
@pytest.mark.parametrize(
    ("options", "said"),
    [({"layer_norm": "ba2016"}, "layer_norm='ba2016'"), ({"heads": 2}, "heads=2")],
    ids=["layer_norm", "heads"],
)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_converters_refuse(place, kind, options, said):
    pytest.importorskip(CONVERTERS[place])
    module, _, name = place.rpartition(".")
    convert = getattr(importlib.import_module(f"jaxrnn.interop.{module}"), name)
    resets = {"reset": "before" if module == "haiku" else "after"} if kind == "gru" else {}  # as they have it
    cell = getattr(jr, kind)(I, H, **options, **resets)
    params = jax.tree.map(lambda a: jax.numpy.ones(a.shape, a.dtype), jax.eval_shape(cell.init, jax.random.key(0)))
    with pytest.raises(ValueError, match=f"{kind}'s {said} has no counterpart"):
        convert(jr.scan(cell) if place in OF_LAYERS else cell, params)
