"""Keras' layers, with masks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from experiments.parity.compare import B, Draw, H, I, Make, Source, T, by_jax, in_words
from jaxrnn._base import flatten


def keras_source(cell: str, layers: int, merge: str | None, options: dict[str, Any], draw: Draw) -> Source:
    import keras

    from jaxrnn.interop.keras import from_keras

    dtype = draw(1).dtype.name

    def layer():
        own = getattr(keras.layers, cell)(H, return_sequences=True, return_state=True, dtype=dtype, **options)
        return own if merge is None else keras.layers.Bidirectional(own, merge_mode=merge, dtype=dtype)

    members = [layer() for _ in range(layers)]
    size = I
    for member in members:
        member.build((B, T, size))
        size = H * (2 if merge == "concat" else 1)
    counts = [len(member.get_weights()) for member in members]
    weights = [draw(*w.shape) for member in members for w in member.get_weights()]

    def tanh_of_cells(tanh):
        """On JAX Keras' own tanh rounds to float32, whatever the dtype: JAX's takes its place while Keras runs."""
        for member in members:
            runs = [member] if merge is None else [member.forward_layer, member.backward_layer]
            for run in runs:
                if run.cell.activation in (keras.activations.tanh, jnp.tanh):
                    run.cell.activation = tanh

    def read(weights):
        rest = iter(weights)
        tanh_of_cells(keras.activations.tanh)
        for member, count in zip(members, counts, strict=True):
            member.set_weights([next(rest) for _ in range(count)])
        return from_keras(members[0] if layers == 1 else members)

    def run(weights, xs, carry, lengths):
        tanh_of_cells(jnp.tanh if dtype == "float64" else keras.activations.tanh)
        leaves, treedef = flatten(carry)
        rest, states, x, ends = iter(weights), iter(leaves), jnp.swapaxes(xs, 0, 1), []
        of_each = len(leaves) // layers
        mask = jnp.arange(T) < jnp.asarray(lengths)[:, None]
        for member, count in zip(members, counts, strict=True):
            own = [next(states) for _ in range(of_each)]
            variables = [next(rest) for _ in range(count)], [v.value for v in member.non_trainable_variables]
            (x, *end), _ = member.stateless_call(*variables, x, initial_state=own, mask=mask)
            ends += end
        return treedef.unflatten(ends), jnp.swapaxes(x, 0, 1)

    said = [f"{name}={value}" for name, value in options.items()] + [f"merge_mode={merge}"] * (merge is not None)
    return Source("Keras", cell, in_words(layers, 1 + (merge is not None), *said), weights, read, by_jax(run))


def sources() -> Iterator[Make]:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("SimpleRNN", {}),
        ("LSTM", {}),
        ("GRU", {}),
        ("GRU", {"reset_after": False}),
    ]
    for cell, options in kinds:
        for layers, merge in ((1, None), (1, "concat"), (2, "sum")):
            yield functools.partial(keras_source, cell, layers, merge, options)
    for merge in ("ave", "mul"):
        yield functools.partial(keras_source, "LSTM", 1, merge, {})
    unusual = {"activation": "relu", "recurrent_activation": "hard_sigmoid", "use_bias": False}
    for cell in ("LSTM", "GRU"):
        yield functools.partial(keras_source, cell, 1, None, unusual)
