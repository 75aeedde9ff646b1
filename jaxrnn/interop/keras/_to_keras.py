"""``to_keras``: our layers and models as Keras'."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

import jaxrnn as jr
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn._spec import Spec
from jaxrnn.cells.fused import block
from jaxrnn.interop.conversion import Run, check_options, check_run, checked_spec, named, no_learned_carry, refuse
from jaxrnn.interop.keras._names import (
    ACTIVATIONS,
    GATES,
    LIBRARY,
    MERGES,
    NAMES,
    OLD_HARD_SIGMOID,
    old_hard_sigmoid,
    refuse_activation,
    to_their_gates,
)


def to_keras(model: Cell | Layer, params: PyTree) -> Any:
    """The built Keras layer or model that computes the same and carries the weights.

    Args:
        model: ``jr.scan`` or ``jr.bidirectional`` of ``elman``, ``lstm``, ``gru`` cells, a ``jr.chain`` of them or one
            of them in ``jr.recurrent_dropout``; ``jr.dropout``, ``jr.embedding``, ``jr.readout`` and ``jr.dense``;
            a ``jr.stack`` of these; or a cell.
        params: its parameters.

    Returns:
        A Layer gives SimpleRNN, LSTM, GRU, RNN of StackedRNNCells, Bidirectional, Dropout or Dense; a stack a
        Sequential of them, which can be saved; a Cell gives Keras' cell. Recurrent layers have
        ``return_sequences=True``; for others, build one from ``get_config()`` and hand on ``get_weights()``. After a
        reversed layer Keras' outputs stand last step first, until the next reversed one.

    Raises:
        ValueError: what Keras has no counterpart for, with the reason.

    Example:
        >>> import jax, jaxrnn as jr
        >>> from jaxrnn.interop.keras import to_keras
        >>> model = jr.stack(jr.bidirectional(jr.lstm(3, 5), jr.lstm(3, 5)), jr.readout(10, 2))
        >>> theirs = to_keras(model, model.init(jax.random.key(0)))
        >>> theirs.output_shape
        (None, None, 2)
    """
    keras = LIBRARY.load()
    spec = checked_spec("to_keras", model, params)
    if isinstance(model, Cell) and spec.kind in (*NAMES, "recurrent_dropout", "chain"):
        cell = _keras_cell(keras, spec, params)
        return _built(keras, cell, (None, model.input_size), [(cell, spec, params)])
    if spec.kind != "stack":
        return _keras_layer(keras, spec, params, False)[0]
    layers: list[Any] = []
    flipped = False
    for child, own in _members(spec, params):
        layer, flipped = _keras_layer(keras, child, own, flipped)
        layers.append(layer)
    sizes = (jr.build(child).input_size for child, _ in _members(spec, params))
    size = next((size for size in sizes if size is not None), None)
    # Keras casts what enters to the dtype that is declared; dropout has no weights to say one.
    dtype = next((layer.compute_dtype for layer in layers if layer.weights), "float32")
    for layer in layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.dtype_policy = dtype
    if layers and isinstance(layers[0], keras.layers.Embedding):
        return keras.Sequential([keras.Input((None,), dtype="int32"), *layers])
    return keras.Sequential([keras.Input((None, size), dtype=dtype), *layers])


def _members(spec: Spec, params: PyTree) -> Iterator[tuple[Spec, PyTree]]:
    """The members of a stack one by one, those of stacks in it among them."""
    for child, own in zip(spec.children, params, strict=True):
        if child.kind == "stack":
            yield from _members(child, own)
        else:
            yield child, own


def _keras_layer(keras: ModuleType, spec: Spec, params: PyTree, flipped: bool) -> tuple[Any, bool]:
    """A layer, built and filled, and whether its outputs stand last step first."""
    who, options = "to_keras", dict(spec.options)
    reverse, cell = (options.get("reverse", False), spec.children[0]) if spec.kind == "scan" else (False, spec)
    if cell.kind == "dropout":
        return keras.layers.Dropout(dict(cell.options)["rate"]), flipped
    if cell.kind == "embedding":
        table = np.asarray(params.table)
        layer = keras.layers.Embedding(*table.shape, embeddings_initializer="zeros", dtype=_policy(cell, table))
        layer.build(None)
        layer.embeddings.assign(table)
        return layer, flipped
    if cell.kind in ("readout", "dense"):
        run, (I, O) = Run(cell, params), params.W_hy.shape
        check_options(who, run, "output_size", "activation", "bias")
        activation = "linear" if run.option("activation") is None else _theirs(keras, run, "activation", "identity")
        dense = keras.layers.Dense(O, activation, use_bias=params.b_y is not None, dtype=_policy(cell, params.W_hy))
        dense.build((None, None, I))
        dense.kernel.assign(np.asarray(params.W_hy))
        if params.b_y is not None:
            dense.bias.assign(np.asarray(params.b_y))
        return dense, flipped
    shape = (None, None, jr.build(cell).input_size)
    if cell.kind == "bidirectional":
        merge = options.get("merge", "concat")
        if callable(merge):
            refuse(who, "a merge that is a function", f"Keras has {', '.join(MERGES.values())}")
        check_run(who, spec)
        if flipped:
            refuse(who, "a bidirectional layer above a reversed one", "Keras hands its outputs on last step first")
        ahead, back = (_rnn(keras, own, p, go) for own, p, go in zip(cell.children, params, (False, True), strict=True))
        if merge == "concat" and ahead.cell.output_size != back.cell.output_size:
            refuse(who, "bidirectional of different sizes", "Keras' Bidirectional takes both for the first's")
        policy = ahead.dtype_policy.name  # to which Bidirectional casts the outputs
        layer = keras.layers.Bidirectional(ahead, merge_mode=MERGES[merge], backward_layer=back, dtype=policy)
        cells = (layer.forward_layer.cell, layer.backward_layer.cell)
        return _built(keras, layer, shape, list(zip(cells, cell.children, params, strict=True))), False
    layer = _rnn(keras, cell, params, flipped != reverse)
    return _built(keras, layer, shape, [(layer.cell, cell, params)]), reverse


def _rnn(keras: ModuleType, spec: Spec, params: PyTree, go_backwards: bool) -> Any:
    """SimpleRNN, LSTM, GRU, or RNN of a chain; not built."""
    options = {"return_sequences": True, "go_backwards": go_backwards}
    if spec.kind == "chain":
        stacked = _keras_cell(keras, spec, params)
        return keras.layers.RNN(stacked, dtype=stacked.cells[-1].dtype_policy.name, **options)
    name, own = _config(keras, spec, params)
    return getattr(keras.layers, name)(**own, **options)


def _keras_cell(keras: ModuleType, spec: Spec, params: PyTree) -> Any:
    """A cell, not built."""
    if spec.kind == "chain":
        cells = [_keras_cell(keras, child, own) for child, own in zip(spec.children, params, strict=True)]
        return keras.layers.StackedRNNCells(cells, dtype=cells[-1].dtype_policy.name)
    name, own = _config(keras, spec, params)
    return getattr(keras.layers, f"{name}Cell")(**own)


def _config(keras: ModuleType, spec: Spec, params: PyTree) -> tuple[str, dict[str, Any]]:
    """The name of Keras' layer, and the options of its cell."""
    who, dropped = "to_keras", {}
    if spec.kind == "recurrent_dropout":
        rates = dict(spec.options)
        if "kind" in rates:
            refuse(who, f"recurrent_dropout's kind={rates['kind']!r}", "Keras has gal2016, the default")
        dropped = {"recurrent_dropout": rates["rate"], "dropout": rates.get("input_rate", 0.0)}
        (spec,) = spec.children
    if spec.kind not in NAMES:
        refuse(who, spec.kind, f"Keras has the recurrences {', '.join(NAMES)}; convert other parts apart")
    run = Run(spec, params)
    no_learned_carry(who, run, "Keras")
    check_options(who, run, "activation", "gate_activation", "bias", "reset")
    config = {
        "units": params.W_hh.shape[0],
        "activation": _theirs(keras, run, "activation", "tanh"),
        "use_bias": params.b is not None,
        "dtype": _policy(spec, params.W_hh),
    }
    if spec.kind != "elman":
        config["recurrent_activation"] = _theirs(keras, run, "gate_activation", "sigmoid")
    if spec.kind == "gru":
        config["reset_after"] = run.option("reset", "before") == "after"
    return NAMES[spec.kind], config | dropped


def _theirs(keras: ModuleType, run: Run, option: str, default: str) -> Any:
    """The name of Keras' activation, or the function where no name of Keras 3 says it."""
    ours = named(run.option(option, default))
    if ours not in ACTIVATIONS:
        refuse_activation("to_keras", f"{run.cell.kind}'s {option}={ours!r}", ours)
    theirs = ACTIVATIONS[ours]
    return old_hard_sigmoid(keras) if theirs == OLD_HARD_SIGMOID else theirs


def _policy(spec: Spec, W: Any) -> str:
    """Keras' name for the dtypes of the weights and of the work."""
    weights = np.dtype(W.dtype).name
    work = dict(spec.options).get("dtype") or weights
    if work == weights:
        return weights
    if weights != "float32" or work not in ("float16", "bfloat16"):
        refuse("to_keras", f"computing in {work} with weights in {weights}", "Keras mixes float32 with narrower floats")
    return f"mixed_{work}"


Part = tuple[Any, Spec, PyTree]  # a Keras cell, what it is here, its params


def _built(keras: ModuleType, layer: Any, shape: tuple[int | None, ...], parts: list[Part]) -> Any:
    """A layer or cell, built and filled, its own initialisers kept for whoever clones it but not run: they take
    seconds to compile, move Keras' seed, and fail in bfloat16.
    """
    parts = [part for whole in parts for part in _flat_parts(*whole)]
    names = ("kernel_initializer", "recurrent_initializer")
    kept = [[getattr(cell, name) for name in names] for cell, _, _ in parts]
    for cell, _, _ in parts:
        for name in names:
            setattr(cell, name, keras.initializers.Zeros())
    layer.build(shape)
    for (cell, spec, params), own in zip(parts, kept, strict=True):
        for name, value in zip(names, own, strict=True):
            setattr(cell, name, value)
        _fill(cell, spec, params)
    return layer


def _flat_parts(cell: Any, spec: Spec, params: PyTree) -> Iterator[Part]:
    if spec.kind == "chain":
        for one, child, own in zip(cell.cells, spec.children, params, strict=True):
            yield from _flat_parts(one, child, own)
    else:
        yield cell, spec.children[0] if spec.kind == "recurrent_dropout" else spec, params


def _fill(cell: Any, spec: Spec, params: PyTree) -> None:
    """Assign the weights of a built cell."""
    W_xh, W_hh, b = (None if a is None else to_their_gates(spec.kind, np.asarray(a)) for a in params[:3])
    if spec.kind == "gru" and b is not None and cell.reset_after:
        u = np.zeros_like(b)
        u[block(GATES["gru"], "n", cell.units)] = params.b_hh
        b = np.stack([b, u])
    cell.kernel.assign(W_xh)
    cell.recurrent_kernel.assign(W_hh)
    if b is not None:
        cell.bias.assign(b)
