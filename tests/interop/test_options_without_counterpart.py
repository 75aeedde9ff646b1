"""Options of the LSTM and GRU that no other library's layer has: every converter refuses them, by name."""

import jax
import pytest

import jaxrnn as jr
from jaxrnn.interop import equinox, haiku, keras, torch
from jaxrnn.interop.flax import to_linen, to_nnx
from jaxrnn.interop.onnx import export

I, H = 3, 4
CONVERTERS = {
    "to_torch": torch.to_torch,
    "to_keras": keras.to_keras,
    "to_linen": to_linen,
    "to_nnx": to_nnx,
    "to_haiku": haiku.to_haiku,
    "to_equinox": equinox.to_equinox,
    "export": export,
}


@pytest.mark.parametrize("name", CONVERTERS)
@pytest.mark.parametrize(
    ("options", "said"),
    [({"layer_norm": "ba2016"}, "layer_norm='ba2016'"), ({"heads": 2}, "heads=2")],
    ids=["layer_norm", "heads"],
)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_converters_refuse(name, kind, options, said):
    more = {"reset": "before" if name == "to_haiku" else "after"} if kind == "gru" else {}
    cell = getattr(jr, kind)(I, H, **options, **more)
    model = jr.scan(cell) if name in ("to_torch", "to_keras", "export") else cell
    with pytest.raises(ValueError, match=rf"{kind}'s {said} has no counterpart"):
        CONVERTERS[name](model, cell.init(jax.random.key(0)))
