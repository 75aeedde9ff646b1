"""``from_keras``: Keras' layers and models as ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn.cells.fused import block, gate_order
from jaxrnn.combine import BiParams
from jaxrnn.interop.conversion import param_dtype, refuse, refuse_class, spec_of
from jaxrnn.interop.keras._chains import chain_of
from jaxrnn.interop.keras._names import (
    ACTIVATIONS,
    LIBRARY,
    MERGES,
    NAMES,
    OLD_HARD_SIGMOID,
    from_their_gates,
    old_hard_sigmoid,
    refuse_activation,
)
from jaxrnn.saving.parameters import as_jax


def from_keras(source: Any) -> tuple[Cell | Layer, PyTree]:
    """The layer and the parameters of a built Keras layer or model.

    A Keras model that returns one step alone (``return_sequences=False``) is the last step of these outputs, ``ys[-1]``
    or ``jr.last(ys, lengths)``; with ``go_backwards`` it is ``ys[0]``, and of a Bidirectional the two final carries.

    Args:
        source: one of

            SimpleRNN, LSTM, GRU, or RNN of their cells or of StackedRNNCells of them: gives ``jr.scan(cell)``, of a
                ``jr.chain`` where they are stacked, wrapped in ``jr.recurrent_dropout`` where the cell drops out;
            Bidirectional of such layers, merged: gives ``jr.bidirectional``;
            Dropout, Dense (``jr.readout``, with an activation ``jr.dense``), also inside TimeDistributed;
            Embedding: gives ``jr.embedding``, which puts out NaN for tokens that it has not;
            a Sequential, a functional model that is a chain, or a list of these: gives a ``jr.stack``. Inputs count
                for nothing; of Masking and ``mask_zero`` a warning says which ``mask`` to pass;
            a cell, SimpleRNNCell, LSTMCell, GRUCell, StackedRNNCells: gives a Cell.

    Returns:
        ``(layer, params)``, the parameters in the dtype of the variables; under a mixed policy the cell computes in
        the policy's dtype. A layer after one with ``go_backwards`` reads its outputs last step first, as Keras hands
        them on: that one runs in reverse too.

    Raises:
        ValueError: layers that are not built, and layers, options or activations with no counterpart, by name.
        TypeError: float64 weights while JAX's 64 bits are off.

    Example:
        >>> import keras
        >>> from jaxrnn.interop.keras import from_keras
        >>> theirs = keras.Sequential([keras.Input((7, 3)), keras.layers.GRU(5), keras.layers.Dense(2)])
        >>> model, params = from_keras(theirs)
        >>> [part.kind for part in model.spec.children], params[0].W_hh.shape
        (['gru', 'readout'], (5, 15))

    Differs: stateful and unroll concern how Keras runs, initialisers, regularisers and constraints how it trains: none
    of them comes along. Where Keras' cells drop out they may draw a mask for each gate; ours is one for all gates.
    Under a mixed policy Keras keeps its states in the narrow dtype, we keep them in float32. On its JAX backend Keras
    rounds tanh to float32 in float64 layers too; ours is float64. Names mean what they mean in Keras 3: a file of Keras
    1 or 2 that Keras 3 has loaded has its ``hard_sigmoid`` already; :func:`load` reads it as it was.
    """
    model, params, notes = with_notes(LIBRARY.load(), source)
    for note in notes:
        warnings.warn(f"from_keras: {note}", stacklevel=2)
    return model, params


def with_notes(keras: ModuleType, source: Any) -> tuple[Cell | Layer, PyTree, list[str]]:
    """The same, and what the user should know."""
    for layer in source if isinstance(source, list | tuple) else [source]:
        refuse_class("from_keras", layer)
    if isinstance(source, list | tuple | keras.Model):
        return _stack(keras, [source] if isinstance(source, keras.Model) else source)
    if type(source) in (*_cells(keras), keras.layers.StackedRNNCells):
        cell, params = _cell(keras, source)
        return cell, as_jax("from_keras", params), []
    member, params, _ = _member(keras, source, False)
    return (
        (jr.scan(member) if isinstance(member, Cell) else member),
        as_jax("from_keras", params),
        _notes(keras, [source]),
    )


def _notes(keras: ModuleType, layers: Iterable[Any]) -> list[str]:
    """Which layers say what is padding: here whoever calls does."""
    how = []
    for layer in layers:
        if isinstance(layer, keras.layers.Masking):
            how.append(f"{layer.name} (Masking) is left out: pass mask=(xs != {layer.mask_value}).any(-1) to apply")
        elif isinstance(layer, keras.layers.Embedding) and layer.mask_zero:
            how.append(f"{layer.name} masks token 0: pass mask=(xs != 0) to apply")
    return [f"{note}, or lengths." for note in how]


def _stack(keras: ModuleType, sources: Iterable[Any]) -> tuple[Layer, PyTree, list[str]]:
    every = list(_flat(keras, sources))
    layers = [layer for layer in every if not isinstance(layer, keras.layers.Masking)]
    members: list[Any] = []
    params: list[PyTree] = []
    flipped = False  # whether Keras hands the outputs on last step first
    for place, layer in enumerate(layers):
        member, own, flipped = _member(keras, layer, flipped)
        if isinstance(layer, keras.layers.Bidirectional) and not layer.return_sequences and place + 1 < len(layers):
            refuse(
                "from_keras",
                f"{layer.name}, a Bidirectional with return_sequences=False below {layers[place + 1].name},",
                "the two last outputs are of different steps; convert the two parts apart, and hand on the carries",
            )
        members.append(member)
        params.append(own)
    if not members:
        raise ValueError("from_keras: there is no layer in it; pass a model or a list that holds some.")
    return jr.stack(*members), as_jax("from_keras", tuple(params)), _notes(keras, every)


def _flat(keras: ModuleType, sources: Iterable[Any]) -> Iterator[Any]:
    """Layers one by one, those of a Sequential or of a chain among them, inputs left out."""
    for layer in sources:
        if isinstance(layer, keras.Sequential):
            yield from _flat(keras, layer.layers)
        elif isinstance(layer, keras.Model):
            yield from _flat(keras, _chained(layer))
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


def _chained(model: Any) -> list[Any]:
    """The layers of a functional model, where it is a chain."""
    try:
        config = model.get_config()
    except NotImplementedError:
        config = {}
    if "output_layers" not in config:
        refuse(
            "from_keras",
            f"{type(model).__name__} {model.name!r}, a model of one's own,",
            "what it computes is not known here; pass the list of its layers",
        )
    return [model.get_layer(name) for name in chain_of("from_keras", config)]


def _member(keras: ModuleType, layer: Any, flipped: bool) -> tuple[Cell | Layer, PyTree, bool]:
    """A layer as ours, its params, and whether Keras' outputs stand last step first."""
    who, kinds = "from_keras", keras.layers
    if isinstance(layer, kinds.Bidirectional):
        if layer.merge_mode is None:
            refuse(who, f"{layer.name}'s merge_mode=None", "jr.bidirectional merges; convert the two layers apart")
        for one in (layer.forward_layer, layer.backward_layer):
            if type(one) not in (kinds.SimpleRNN, kinds.LSTM, kinds.GRU, kinds.RNN):
                refuse(who, f"{layer.name} of a {type(one).__name__}", "recurrent layers alone are read in it")
        if flipped or layer.forward_layer.go_backwards:
            refuse(who, f"{layer.name}, whose forward layer runs backwards,", "jr.bidirectional's first runs forward")
        ahead, own_ahead = _cell(keras, layer.forward_layer.cell)
        back, own_back = _cell(keras, layer.backward_layer.cell)
        (merge,) = (ours for ours, theirs in MERGES.items() if theirs == layer.merge_mode)
        return jr.bidirectional(ahead, back, merge=merge), BiParams(own_ahead, own_back), False
    if type(layer) in (kinds.SimpleRNN, kinds.LSTM, kinds.GRU, kinds.RNN):  # a subclass may compute something else
        cell, params = _cell(keras, layer.cell)
        reverse = flipped != layer.go_backwards
        return (jr.scan(cell, reverse=True) if reverse else cell), params, reverse
    if isinstance(layer, kinds.TimeDistributed):
        layer = layer.layer
    if type(layer) is kinds.Dense:
        return *_dense(keras, layer), flipped
    if type(layer) is kinds.Dropout:
        if layer.noise_shape is not None:
            refuse(who, f"{layer.name}'s noise_shape={layer.noise_shape}", "jr.dropout draws for each feature and step")
        return jr.dropout(layer.rate), (), flipped
    if type(layer) is kinds.Embedding:
        (table,) = _arrays(keras, layer, "embeddings")
        own: dict[str, Any] = {"param_dtype": param_dtype(table), "dtype": _compute_dtype(layer)}
        return jr.build(spec_of("embedding", *table.shape, **own)), jr.cells.EmbeddingParams(table), flipped
    if isinstance(layer, kinds.Masking):
        refuse(who, f"{layer.name} (Masking)", "it has no weights; pass lengths or mask to apply")
    known = "SimpleRNN, LSTM, GRU, RNN, Bidirectional, Dense, Embedding, Dropout and chains of them are read"
    refuse(who, f"{getattr(layer, 'name', layer)!s} ({type(layer).__name__})", f"{known}; convert the rest apart")


def _dense(keras: ModuleType, layer: Any) -> tuple[Cell, PyTree]:
    activation = _ours(keras, layer, "activation", "identity")
    W, b = _arrays(keras, layer, "kernel", "bias")
    options: dict[str, Any] = {
        "activation": activation,
        "bias": None if layer.use_bias else False,
        "param_dtype": param_dtype(W),
        "dtype": _compute_dtype(layer),
    }
    kind = "readout" if activation is None else "dense"
    return jr.build(spec_of(kind, *W.shape, **options)), jr.cells.ReadoutParams(W, b)


def _cells(keras: ModuleType) -> dict[type, str]:
    return {getattr(keras.layers, f"{name}Cell"): kind for kind, name in NAMES.items()}


def _cell(keras: ModuleType, cell: Any) -> tuple[Cell, PyTree]:
    """A Keras cell as ours, and its params."""
    if isinstance(cell, keras.layers.StackedRNNCells):
        ours = [_cell(keras, one) for one in cell.cells]
        return jr.chain(*(one for one, _ in ours)), tuple(params for _, params in ours)
    kind = _cells(keras).get(type(cell))  # the type itself: what a subclass computes is not known
    if kind is None:
        refuse("from_keras", f"the cell {type(cell).__name__}", f"its equations are not those of {', '.join(NAMES)}")
    W_xh, W_hh, b = _arrays(keras, cell, "kernel", "recurrent_kernel", "bias")
    W_xh, W_hh = from_their_gates(kind, W_xh), from_their_gates(kind, W_hh)
    options = {
        "activation": _ours(keras, cell, "activation", "tanh"),
        "bias": None if cell.use_bias else False,
        "param_dtype": param_dtype(W_xh),
        "dtype": _compute_dtype(cell),
    }
    if kind != "elman":
        options["gate_activation"] = _ours(keras, cell, "recurrent_activation", "sigmoid")
    if kind == "gru":
        options["reset"] = "after" if cell.reset_after else None
        b_hh = None
        if b is not None and cell.reset_after:
            b, u = (from_their_gates(kind, a) for a in b)
            n = block(gate_order(kind), "n", cell.units)
            b_hh, u[n] = u[n].copy(), 0  # the candidate's stays apart, inside the reset product
            b = b + u
        elif b is not None:
            b = from_their_gates(kind, b)
        params: PyTree = jr.cells.GRUParams(W_xh, W_hh, b, b_hh)
    else:
        b = None if b is None else from_their_gates(kind, b)
        params = (jr.cells.LSTMParams if kind == "lstm" else jr.cells.ElmanParams)(W_xh, W_hh, b)
    made = jr.build(spec_of(kind, W_xh.shape[0], cell.units, **options))
    if cell.dropout or cell.recurrent_dropout:
        made = jr.recurrent_dropout(made, rate=cell.recurrent_dropout, input_rate=cell.dropout)
    return made, params


def _arrays(keras: ModuleType, layer: Any, *names: str) -> list[Any]:
    """The variables of a layer as NumPy arrays, None for those that it does without."""
    if not layer.built:
        raise ValueError(
            f"from_keras: {layer.name} ({type(layer).__name__}) has no weights yet: it does not know the size of its "
            f"inputs. Call it once, or build it: layer.build((None, None, input_size))."
        )
    if getattr(layer, "quantization_mode", None):
        refuse("from_keras", f"{layer.name}'s quantization {layer.quantization_mode!r}", "our weights are floats")
    return [None if v is None else _array(keras, layer, v) for v in (getattr(layer, name) for name in names)]


def _array(keras: ModuleType, layer: Any, variable: Any) -> np.ndarray:
    a = np.asarray(keras.ops.convert_to_numpy(variable))
    if a.dtype != (meant := jnp.dtype(variable.dtype)):
        raise TypeError(
            f"from_keras: the weights of {layer.name} are {meant}, but were made {a.dtype} while JAX's 64 bits were "
            f"off; set jax.config.update('jax_enable_x64', True) before the layer is made or the file is loaded."
        )
    return a


def _compute_dtype(layer: Any) -> str | None:
    """What a mixed policy computes in; None for the dtype of the weights."""
    return None if layer.compute_dtype == layer.variable_dtype else layer.compute_dtype


def _name(keras: ModuleType, activation: Any) -> str:
    """A built-in activation's name, which names the same thing again; else a description of the function."""
    if activation is old_hard_sigmoid(keras):
        return OLD_HARD_SIGMOID
    name = getattr(activation, "__name__", type(activation).__name__)
    return name if getattr(keras.activations, name, None) is activation else f"{name}, a function or layer"


def _ours(keras: ModuleType, cell: Any, option: str, default: str) -> Any:
    """The name of our activation; None for the default."""
    theirs = _name(keras, getattr(cell, option))
    ours = next((ours for ours, name in ACTIVATIONS.items() if name == theirs), None)
    if ours is None:
        refuse_activation("from_keras", f"{cell.name}'s {option}={theirs!r}", theirs)
    return None if ours == default else ours
