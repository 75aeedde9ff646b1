"""Feed-forward cells and branches meet every converter: told by name where the other library has no such layer."""

import jax
import pytest

import jaxrnn as jr
from jaxrnn import interop

MODELS = {
    "dense": jr.dense(3, 4, activation="gelu"),
    "pointwise": jr.pointwise("relu"),
    "branch": jr.branch(jr.gru(3, 4), jr.readout(3, 2)),
}
CONVERTERS = {
    "torch": ("torch", "to_torch"),
    "keras": ("keras", "to_keras"),
    "haiku": ("haiku", "to_haiku"),
    "equinox": ("equinox", "to_equinox"),
    "linen": ("flax", "to_linen"),
    "nnx": ("flax", "to_nnx"),
    "onnx": ("onnx", "export"),
}


@pytest.mark.parametrize("name", CONVERTERS)
@pytest.mark.parametrize("kind", MODELS)
def test_what_a_library_lacks_is_refused_by_name(kind, name):
    library, function = CONVERTERS[name]
    pytest.importorskip(library)
    model = MODELS[kind]
    with pytest.raises(ValueError, match=f"{function}.*{kind}.* has no counterpart"):
        getattr(getattr(interop, library), function)(model, model.init(jax.random.key(0)))
