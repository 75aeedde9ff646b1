"""Graphs of several nodes: their parts, with random stored weights."""

import numpy as np
from onnx import helper

from tests.interop.comparing import B, H, I, T
from tests.interop.onnx_models import GATES

V, F = 7, 2  # tokens, features of a readout
RNG = np.random.default_rng(5)
TOKENS = RNG.integers(0, V, (B, T))
X = RNG.normal(size=(T, B, I)).astype("float32")


def drawn(*shape):
    return (0.5 * RNG.normal(size=shape)).astype("float32")


def weights(kind, name, size, directions=1, units=H):
    """Stored W, R and B of a node."""
    rows = GATES[kind] * units
    return {
        f"{name}.W": drawn(directions, rows, size),
        f"{name}.R": drawn(directions, rows, units),
        f"{name}.B": drawn(directions, 2 * rows),
    }


def recurrent(kind, name, reads, *more, outputs=(), **options):
    given = [reads, f"{name}.W", f"{name}.R", f"{name}.B", *more]
    return helper.make_node(kind, given, [f"{name}.Y", *outputs], name, hidden_size=H, **options)


def node(kind, given, out, **attributes):
    return helper.make_node(kind, given.split(), [out], f"{kind} {out}", **attributes)


def sizes(**arrays):
    return {name: np.asarray(a, np.int64) for name, a in arrays.items()}


def opened(model, **axes):
    """The model with the sizes of its inputs left open: names in the place of numbers."""
    for entry in model.graph.input:
        for dim, name in zip(entry.type.tensor_type.shape.dim, axes.get(entry.name, ()), strict=False):
            if name:
                dim.dim_param = name
    return model
