"""Feed-forward cells and branches meet every converter: told by name where the other library has no such layer."""

import jax
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import interop
from tests.interop.comparing import B, I, T, assert_close

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


def test_keras_dense():
    """Activations and biases; a layer of ours without an activation is a linear one of Keras."""
    keras = pytest.importorskip("keras")
    kl, from_keras = keras.layers, interop.keras.from_keras
    layers = [kl.Dense(4, "relu"), kl.Dense(3, "softplus", use_bias=False), kl.Dense(2, use_bias=False)]
    theirs = keras.Sequential([keras.Input((T, I)), *layers])
    rng = np.random.default_rng(0)
    theirs.set_weights([rng.normal(size=w.shape) for w in theirs.get_weights()])
    xs = rng.normal(size=(T, B, I)).astype("float32")
    model, params = from_keras(theirs)
    ours = jr.stack(
        jr.dense(I, 4, activation="relu"),
        jr.dense(4, 3, activation="softplus", bias=False),
        jr.readout(3, 2, bias=False),
    )
    assert model.spec == ours.spec
    want = np.asarray(theirs(xs.swapaxes(0, 1))).swapaxes(0, 1)
    assert_close(jax.jit(model.apply)(params, xs)[1], want, "float32")
    back = interop.keras.to_keras(jr.stack(*map(jr.build, ours.spec.children[:2]), jr.dense(3, 2, bias=False)), params)
    np.testing.assert_array_equal(np.asarray(back(xs.swapaxes(0, 1))).swapaxes(0, 1), want)
    assert from_keras(back)[0].spec == ours.spec
