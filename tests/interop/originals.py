"""Networks built by the libraries themselves, their weights drawn, their outputs, and what jaxrnn reads them as.

``ORIGINALS`` has one for each library. What a file gives back takes the place of the weights in ``convert``, which
holds no weights of its own: its modules are shapes.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from tests.interop.comparing import quick_jit

I, H, T, B, O = 3, 4, 4, 2, 2
BOTH = ("float32", "float64")


class Original(NamedTuple):
    """A network of several layers.

    Fields:
        weights: as its library holds them: a dict, a State, a module, a model.
        convert: by the converter's name, what jaxrnn makes of such weights, or of a file: ``(layer, params)``. The
            converter alone where none is named.
        xs: (T, B, I), what it was run on.
        ys: (T, B, O), what it gave.
    """

    weights: Any
    convert: dict[str, Callable[[Any], tuple[jr.Layer, Any]]]
    xs: np.ndarray
    ys: np.ndarray


class Row(NamedTuple):
    """A format of a converter's, for the table of ``test_files.py``.

    Fields:
        converter: as ``jaxrnn.interop`` has it, "torch.load".
        format: the file, in words; a suffix of ``registry.formats()`` stands in it.
        original: the network, by its name here, or the module beside this one whose ``original(dtype)`` makes it.
        through: ``through(weights, folder)``, what the file gives back: weights, or a path for a converter that reads.
        dtypes: those in which the original computes.
        needs: modules beside the converter's own library.
    """

    converter: str
    format: str
    original: str
    through: Callable[[Any, Any], Any]
    dtypes: tuple[str, ...] = BOTH
    needs: tuple[str, ...] = ()

    @property
    def function(self):
        return self.converter.partition(" ")[0]


def arrays(*shapes, dtype, seed=0):
    """N(0, 0.64): no bias is zero, outputs are of order 1, gates seldom saturate."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 0.8, shape).astype(dtype) for shape in shapes]


def drawn(tree, dtype):
    """A tree of shapes as one of arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, map(jnp.asarray, arrays(*(a.shape for a in leaves), dtype=dtype)))


def inputs(dtype):
    return arrays((T, B, I), dtype=dtype, seed=1)[0]


def stacked(*pairs):
    """Converted layers, and a readout of the two arrays that stand last: theirs of (inputs, outputs), its bias."""
    *layers, (kernel, bias) = pairs
    readout, head = jr.readout(*kernel.shape), jr.cells.ReadoutParams(jnp.asarray(kernel), jnp.asarray(bias))
    return jr.stack(*(layer for layer, _ in layers), readout), (*(params for _, params in layers), head)


def place(held, k):
    """One of a list, which is a dict with the places as text where a file gave it back."""
    return held[k] if isinstance(held, list) or k in held else held[str(k)]


def linen(dtype):
    from flax import linen as nn

    from jaxrnn.interop.flax import from_linen

    options = {"param_dtype": dtype, "recurrent_kernel_init": nn.initializers.zeros}  # no orthogonal matrix is traced

    def lstm():
        return nn.RNN(nn.OptimizedLSTMCell(H, **options), time_major=True)

    def grus():
        return nn.Bidirectional(*(nn.RNN(nn.GRUCell(2, **options)) for _ in range(2)), time_major=True)

    class Encoder(nn.Module):
        def setup(self):
            self.run = grus()

        def __call__(self, xs):
            return self.run(xs)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, xs):
            return nn.Dense(O, param_dtype=dtype)(Encoder()(lstm()(xs)))

    def convert(variables):
        own = variables["params"]
        first = from_linen(lstm(), own["OptimizedLSTMCell_0"])
        second = from_linen(grus(), own["Encoder_0"]["run"])
        return stacked(first, second, (own["Dense_0"]["kernel"], own["Dense_0"]["bias"]))

    xs = inputs(dtype)
    variables = drawn(jax.eval_shape(Net().init, jax.random.key(0), xs), dtype)
    return Original(variables, {"flax.from_linen": convert}, xs, quick_jit(Net().apply)(variables, xs))


def nnx(dtype):
    from flax import nnx

    from jaxrnn.interop.flax import from_nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            options = {"param_dtype": dtype, "rngs": rngs}
            zeros = {"recurrent_kernel_init": nnx.initializers.zeros}
            cells = nnx.OptimizedLSTMCell(I, H, **options, **zeros), nnx.GRUCell(H, H, **options, **zeros)
            self.layers = nnx.List([nnx.RNN(cell, time_major=True) for cell in cells])
            self.head = nnx.Linear(H, O, **options)

        def __call__(self, xs):
            for layer in self.layers:
                xs = layer(xs)
            return self.head(xs)

    shapes = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))

    def convert(state):
        layers = (from_nnx(shapes.layers[k], place(state["layers"], k)) for k in range(2))
        head = (state["head"][name] for name in ("kernel", "bias"))
        return stacked(*layers, [a.get("value") if isinstance(a, dict) else jnp.asarray(a) for a in head])

    xs = inputs(dtype)
    graph, state, streams = nnx.split(shapes, nnx.Param, ...)
    state = drawn(state, dtype)
    streams = jax.tree.map(lambda a: jax.random.key(0) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else 0, streams)
    ys = quick_jit(lambda *held, xs: nnx.merge(graph, *held)(xs))(state, streams, xs=xs)
    return Original(state, {"flax.from_nnx": convert}, xs, ys)


def haiku(dtype):
    import haiku as hk

    from jaxrnn.interop.haiku import from_haiku

    class Net(hk.Module):
        def __init__(self):
            super().__init__()
            self.core = hk.DeepRNN([hk.LSTM(H), hk.GRU(H), hk.VanillaRNN(H)])
            self.head = hk.Linear(O)

        def __call__(self, xs):
            start = jax.tree.map(lambda a: a.astype(dtype), self.core.initial_state(B))
            return self.head(hk.dynamic_unroll(self.core, xs, start)[0])

    names = ["net/~/lstm", "net/~/gru", "net/~/vanilla_rnn"]

    def convert(params):
        cell, own = from_haiku([hk.LSTM, hk.GRU, hk.VanillaRNN], params, name=names)
        flat = "net/~/linear/w" in params
        head = [params[f"net/~/linear/{a}"] if flat else params["net/~/linear"][a] for a in "wb"]
        return stacked((jr.scan(cell), own), head)

    xs = inputs(dtype)
    theirs = hk.without_apply_rng(hk.transform(lambda xs: Net()(xs)))
    params = drawn(jax.eval_shape(theirs.init, jax.random.key(0), xs), dtype)
    return Original(params, {"haiku.from_haiku": convert}, xs, quick_jit(theirs.apply)(params, xs))


def equinox(dtype):
    import equinox as eqx

    from jaxrnn.interop.equinox import from_equinox

    class Net(eqx.Module):
        cells: list
        head: eqx.nn.Linear

        def __init__(self, key):
            self.cells = [eqx.nn.LSTMCell(I, H, key=key), eqx.nn.GRUCell(H, H, key=key)]
            self.head = eqx.nn.Linear(H, O, key=key)

        def __call__(self, xs):
            def step(carry, x):
                h, c = self.cells[0](x, carry[0])
                return ((h, c), k := self.cells[1](h, carry[1])), self.head(k)

            zero = jnp.zeros(H, xs.dtype)
            return jax.lax.scan(step, ((zero, zero), zero), xs)[1]

    def convert(net):
        cells, head = (net["cells"], net["head"]) if isinstance(net, dict) else (net.cells, vars(net.head))
        pairs = (from_equinox(place(cells, k)) for k in range(2))
        return stacked(*((jr.scan(cell), own) for cell, own in pairs), (head["weight"].T, head["bias"]))

    xs = inputs(dtype)
    net = drawn(eqx.filter_eval_shape(Net, jax.random.key(0)), dtype)
    ys = quick_jit(lambda net, xs: jax.vmap(net, in_axes=1, out_axes=1)(xs))(net, xs)
    return Original(net, {"equinox.from_equinox": convert}, xs, ys)


def torch(dtype):
    import torch

    from jaxrnn.interop.torch import from_torch, load

    layer = torch.nn.LSTM(I, H, num_layers=2, bidirectional=True, dtype=getattr(torch, dtype))
    shapes = [tuple(a.shape) for a in layer.parameters()]
    with torch.no_grad():
        for a, own in zip(layer.parameters(), arrays(*shapes, dtype=dtype), strict=True):
            a.copy_(torch.from_numpy(own))
    xs = inputs(dtype)
    return Original(
        layer, {"torch.load": load, "torch.from_torch": from_torch}, xs, layer(torch.tensor(xs))[0].detach()
    )


def keras(dtype):
    import keras

    from jaxrnn.interop.keras import from_keras, load
    from tests.interop.keras_cells import in_full_precision

    def made():
        kl, plain = keras.layers, {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}
        both = kl.Bidirectional(kl.LSTM(H, return_sequences=True, **plain))
        return keras.Sequential([keras.Input((T, I)), both, kl.GRU(H, return_sequences=True, **plain), kl.Dense(O)])

    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        net, twin = made(), made()
        weights = arrays(*(a.shape for a in net.get_weights()), dtype=dtype)
        net.set_weights(weights)
        twin.set_weights(weights)
        in_full_precision(*twin.layers)
        xs = inputs(dtype)
        ys = quick_jit(lambda xs: twin(xs.swapaxes(0, 1)).swapaxes(0, 1))(xs)
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
    same = from_keras(net)[0]
    convert = {
        "keras.from_keras": from_keras,
        "keras.load": load,
        "keras.load into a model": lambda path: load(path, same),
    }
    return Original(net, convert, xs, ys)


def old_keras(dtype):
    """An LSTM of Keras 2, computed by its equations: Keras 2 itself does not run beside Keras 3."""
    from jaxrnn.interop.keras import load
    from tests.interop.old_keras import lstm_by_hand, old_σ

    kernel, recurrent, bias = weights = arrays((I, 4 * H), (H, 4 * H), (4 * H,), dtype=dtype)
    xs = inputs(dtype)
    ys = lstm_by_hand(kernel, recurrent, bias, xs, old_σ["hard_sigmoid"])
    return Original(weights, {"keras.load": load}, xs, ys)


def operator(dtype):
    """ONNX's LSTM, both ways, by onnxruntime; by ONNX's own evaluator in float64, which no kernel there computes."""
    from jaxrnn.interop.onnx import load
    from tests.interop import onnx_models

    model, given = onnx_models.operator_model("LSTM", dtype=dtype, initial=False, direction="bidirectional")
    by = onnx_models.by_reference if dtype == "float64" else onnx_models.by_runtime
    ys = by(model, given)["Y"]  # (T, D, B, H)
    return Original(model, {"onnx.load": load}, given["X"], np.moveaxis(ys, 1, 2).reshape(*given["X"].shape[:2], -1))


def exported_by_dynamo(dtype):
    """A file in the tree, as writing one takes torch 3 seconds; by onnxruntime, whose kernels are float32."""
    import onnx

    from jaxrnn.interop.onnx import load
    from tests.interop import torch_exports
    from tests.interop.onnx_models import session

    assert dtype == "float32"
    data = torch_exports.stored(next(row for row in torch_exports.ROWS if row[:2] == ("LSTM", "static")))
    runtime = session(onnx.load_model_from_string(data))
    xs = torch_exports.inputs_of(torch_exports.T, torch_exports.B)
    ys = runtime.run(None, {runtime.get_inputs()[0].name: xs})[0]
    return Original(data, {"onnx.load": load}, xs, ys)


ORIGINALS = {
    make.__name__: make for make in (linen, nnx, haiku, equinox, torch, keras, old_keras, operator, exported_by_dynamo)
}


@functools.cache
def original(name, dtype):
    """Built once in a process; float64 under JAX's 64 bits."""
    return (ORIGINALS.get(name) or importlib.import_module(f"tests.interop.{name}").original)(dtype)
