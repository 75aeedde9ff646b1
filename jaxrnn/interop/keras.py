"""Keras 3: the weights of SimpleRNN, LSTM, GRU, Bidirectional and of a Sequential of them, in and out.

What the two say differently:

    Keras                                               jaxrnn
    gate order of GRU weights z, r, n                   r, z, n
    the GRU's z multiplies the old state                z multiplies the candidate: 1 - σ(a) = σ(-a), so its blocks of
                                                        the weights are negated
    GRU: reset_after=True, with biases (2, 3H)          reset="after", of the first two gates' biases the sum
    (B, T, I)                                           time first: ``xs.swapaxes(0, 1)``; no weight changes
    go_backwards: outputs last step first               ``jr.scan(cell, reverse=True)``: outputs in input order
    mask: masked steps repeat the last output           ``lengths`` or ``mask``: outputs are 0 there
    return_sequences, return_state, stateful            ``apply`` returns ``(carry, ys)`` and takes a carry

A file that ``model.save_weights`` wrote holds arrays alone, so a model of the same form reads it, Keras' own or one
made from ours (``path`` ends in ``.weights.h5``; a single layer goes as ``jr.stack(layer)`` with ``(params,)``):

    theirs = to_keras(model, model.init(key))
    theirs.load_weights(path)
    model, params = from_keras(theirs)

and ``to_keras(model, params).save_weights(path)`` writes one. Lists of arrays go the same way, by ``set_weights`` and
``get_weights``. Any backend of Keras serves; KERAS_BACKEND names it before Keras is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

import jaxrnn as jr
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn._spec import Spec
from jaxrnn.interop.conversion import (
    Run,
    check_options,
    check_run,
    checked_spec,
    named,
    needs,
    negated,
    no_learned_carry,
    param_dtype,
    refuse,
    reordered,
    spec_of,
)
from jaxrnn.saving.parameters import as_jax

NAMES = {"elman": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}
MERGES = {"concat": "concat", "sum": "sum", "mean": "ave", "product": "mul"}
ACTIVATIONS = {
    **{name: name for name in ("tanh", "relu", "sigmoid", "hard_sigmoid", "softplus", "softsign", "elu", "silu")},
    "identity": "linear",
}


def from_keras(source: Any) -> tuple[Cell | Layer, PyTree]:
    """The layer and the parameters of a built Keras layer or model.

    A Keras model that returns one step alone (``return_sequences=False``) is the last step of these outputs, ``ys[-1]``
    or ``jr.last(ys, lengths)``; with ``go_backwards`` it is ``ys[0]``, and of a Bidirectional the two final carries.

    Args:
        source: one of

            SimpleRNN, LSTM, GRU, or RNN of their cells or of StackedRNNCells of them: gives ``jr.scan(cell)``, of a
                ``jr.chain`` where they are stacked, wrapped in ``jr.recurrent_dropout`` where the cell drops out;
            Bidirectional of such layers, merged: gives ``jr.bidirectional``;
            Dropout, Dense without activation (``jr.readout``), also inside TimeDistributed;
            a Sequential or a list of these: gives a ``jr.stack`` (inputs count for nothing);
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
    rounds tanh to float32 in float64 layers too; ours is float64.
    """
    keras = needs("keras", "interop")
    if isinstance(source, keras.Sequential | list | tuple):
        return _stack(keras, [source] if isinstance(source, keras.Sequential) else source)
    if isinstance(source, keras.Model):
        refuse(
            "from_keras",
            f"the graph of {type(source).__name__} {source.name!r}",
            "only chains of layers are read here; where it is one, pass the list model.layers",
        )
    if type(source) in (*_cells(keras), keras.layers.StackedRNNCells):
        cell, params = _cell(keras, source)
        return cell, as_jax(params)
    member, params, _ = _member(keras, source, False)
    return (jr.scan(member) if isinstance(member, Cell) else member), as_jax(params)


def to_keras(model: Cell | Layer, params: PyTree) -> Any:
    """The built Keras layer or model that computes the same and carries the weights.

    Args:
        model: ``jr.scan`` or ``jr.bidirectional`` of ``elman``, ``lstm``, ``gru`` cells, a ``jr.chain`` of them or one
            of them in ``jr.recurrent_dropout``; ``jr.dropout`` and ``jr.readout``; a ``jr.stack`` of these; or a cell.
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
    keras = needs("keras", "interop")
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
    return keras.Sequential([keras.Input((None, size), dtype=dtype), *layers])


# ---- from Keras --------------------------------------------------------------------------------


def _stack(keras: ModuleType, sources: Iterable[Any]) -> tuple[Layer, PyTree]:
    layers = list(_flat(keras, sources))
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
    return jr.stack(*members), as_jax(tuple(params))


def _flat(keras: ModuleType, sources: Iterable[Any]) -> Iterator[Any]:
    """Layers one by one, those of a Sequential among them, inputs left out."""
    for layer in sources:
        if isinstance(layer, keras.Sequential):
            yield from _flat(keras, layer.layers)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


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
        return jr.bidirectional(ahead, back, merge=merge), jr.BiParams(own_ahead, own_back), False
    if type(layer) in (kinds.SimpleRNN, kinds.LSTM, kinds.GRU, kinds.RNN):  # a subclass may compute something else
        cell, params = _cell(keras, layer.cell)
        reverse = flipped != layer.go_backwards
        return (jr.scan(cell, reverse=True) if reverse else cell), params, reverse
    if isinstance(layer, kinds.TimeDistributed):
        layer = layer.layer
    if type(layer) is kinds.Dense:
        return *_readout(keras, layer), flipped
    if type(layer) is kinds.Dropout:
        if layer.noise_shape is not None:
            refuse(who, f"{layer.name}'s noise_shape={layer.noise_shape}", "jr.dropout draws for each feature and step")
        return jr.dropout(layer.rate), (), flipped
    if isinstance(layer, kinds.Masking):
        refuse(who, f"{layer.name} (Masking)", "take it out and pass lengths or mask to apply")
    known = "SimpleRNN, LSTM, GRU, RNN, Bidirectional, Dense, Dropout and Sequential are read; convert the rest apart"
    refuse(who, f"{getattr(layer, 'name', layer)!s} ({type(layer).__name__})", known)


def _readout(keras: ModuleType, layer: Any) -> tuple[Cell, PyTree]:
    who = "from_keras"
    if (activation := _name(keras, layer.activation)) != "linear":
        refuse(who, f"{layer.name}'s activation={activation!r}", "jr.readout is linear; apply it to the outputs")
    if not layer.use_bias:
        refuse(who, f"{layer.name} (Dense) with use_bias=False", "jr.readout has a bias")
    W, b = _arrays(keras, layer, "kernel", "bias")
    cell = jr.build(spec_of("readout", *W.shape, param_dtype=param_dtype(W), dtype=_compute_dtype(layer)))
    return cell, jr.cells.ReadoutParams(W, b)


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
        W_xh, W_hh = _swapped(W_xh, "zrn", "rzn"), _swapped(W_hh, "zrn", "rzn")
        b_hh = None
        if b is not None and cell.reset_after:
            b, u = _swapped(b[0], "zrn", "rzn"), _swapped(b[1], "zrn", "rzn")
            gates = 2 * cell.units
            b, b_hh = np.concatenate([b[:gates] + u[:gates], b[gates:]]), u[gates:]
        elif b is not None:
            b = _swapped(b, "zrn", "rzn")
        params: PyTree = jr.cells.GRUParams(W_xh, W_hh, b, b_hh)
    else:
        params = (jr.cells.LSTMParams if kind == "lstm" else jr.cells.ElmanParams)(W_xh, W_hh, b)
    made = jr.build(spec_of(kind, W_xh.shape[0], cell.units, **options))
    if cell.dropout or cell.recurrent_dropout:
        made = jr.recurrent_dropout(made, rate=cell.recurrent_dropout, input_rate=cell.dropout)
    return made, params


def _swapped(a: Any, theirs: str, ours: str) -> Any:
    """GRU blocks in the other library's order, z negated: its own inverse but for the order."""
    return negated(reordered(a, theirs, ours), ours.index("z"), 3)


def _arrays(keras: ModuleType, layer: Any, *names: str) -> list[Any]:
    """The variables of a layer as NumPy arrays, None for those that it does without."""
    if not layer.built:
        raise ValueError(
            f"from_keras: {layer.name} ({type(layer).__name__}) has no weights yet: it does not know the size of its "
            f"inputs. Call it once, or build it: layer.build((None, None, input_size))."
        )
    if getattr(layer, "quantization_mode", None):
        refuse("from_keras", f"{layer.name}'s quantization {layer.quantization_mode!r}", "our weights are floats")
    variables = (getattr(layer, name) for name in names)
    return [None if v is None else np.asarray(keras.ops.convert_to_numpy(v)) for v in variables]


def _compute_dtype(layer: Any) -> str | None:
    """What a mixed policy computes in; None for the dtype of the weights."""
    return None if layer.compute_dtype == layer.variable_dtype else layer.compute_dtype


def _name(keras: ModuleType, activation: Any) -> str:
    """A built-in activation's name, which names the same thing again; else a description of the function."""
    name = getattr(activation, "__name__", type(activation).__name__)
    return name if getattr(keras.activations, name, None) is activation else f"{name}, a function or layer"


def _ours(keras: ModuleType, cell: Any, option: str, default: str) -> str | None:
    """The name of our activation; None for the default."""
    theirs = _name(keras, getattr(cell, option))
    ours = next((ours for ours, name in ACTIVATIONS.items() if name == theirs), None)
    if ours is None:
        _refuse_activation("from_keras", f"{cell.name}'s {option}={theirs!r}", theirs)
    return None if ours == default else ours


def _refuse_activation(who: str, what: str, name: Any) -> None:
    why = {
        "gelu": "by that name Keras means the exact form, jaxrnn the tanh form",
        "leaky_relu": "its slope is 0.2 in Keras and 0.01 in jaxrnn",
    }
    refuse(who, what, why.get(name, f"both know {', '.join(ACTIVATIONS)} (Keras: linear)"))


# ---- to Keras ----------------------------------------------------------------------------------


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
    if cell.kind == "readout":
        check_options(who, Run(cell, params), "output_size")
        I, O = params.W_hy.shape
        dense = keras.layers.Dense(O, dtype=_policy(cell, params.W_hy))
        dense.build((None, None, I))
        dense.kernel.assign(np.asarray(params.W_hy))
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
    name, own = _config(spec, params)
    return getattr(keras.layers, name)(**own, **options)


def _keras_cell(keras: ModuleType, spec: Spec, params: PyTree) -> Any:
    """A cell, not built."""
    if spec.kind == "chain":
        cells = [_keras_cell(keras, child, own) for child, own in zip(spec.children, params, strict=True)]
        return keras.layers.StackedRNNCells(cells, dtype=cells[-1].dtype_policy.name)
    name, own = _config(spec, params)
    return getattr(keras.layers, f"{name}Cell")(**own)


def _config(spec: Spec, params: PyTree) -> tuple[str, dict[str, Any]]:
    """The name of Keras' layer, and the options of its cell."""
    who, dropped = "to_keras", {}
    if spec.kind == "recurrent_dropout":
        rates = dict(spec.options)
        dropped = {"recurrent_dropout": rates["rate"], "dropout": rates.get("input_rate", 0.0)}
        (spec,) = spec.children
    if spec.kind not in NAMES:
        refuse(who, spec.kind, f"Keras has the recurrences {', '.join(NAMES)}; convert other parts apart")
    run = Run(spec, params)
    no_learned_carry(who, run, "Keras")
    check_options(who, run, "activation", "gate_activation", "bias", "reset")
    config = {
        "units": params.W_hh.shape[0],
        "activation": _theirs(run, "activation", "tanh"),
        "use_bias": params.b is not None,
        "dtype": _policy(spec, params.W_hh),
    }
    if spec.kind != "elman":
        config["recurrent_activation"] = _theirs(run, "gate_activation", "sigmoid")
    if spec.kind == "gru":
        config["reset_after"] = run.option("reset", "before") == "after"
    return NAMES[spec.kind], config | dropped


def _theirs(run: Run, option: str, default: str) -> str:
    ours = named(run.option(option, default))
    if ours not in ACTIVATIONS:
        _refuse_activation("to_keras", f"{run.cell.kind}'s {option}={ours!r}", ours)
    return ACTIVATIONS[ours]


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
    W_xh, W_hh, b = (None if a is None else np.asarray(a) for a in params[:3])
    if spec.kind == "gru":
        W_xh, W_hh = _swapped(W_xh, "rzn", "zrn"), _swapped(W_hh, "rzn", "zrn")
        if b is not None:
            b = _swapped(b, "rzn", "zrn")
        if b is not None and cell.reset_after:
            u = np.zeros_like(b)
            u[2 * cell.units :] = params.b_hh
            b = np.stack([b, u])
    cell.kernel.assign(W_xh)
    cell.recurrent_kernel.assign(W_hh)
    if b is not None:
        cell.bias.assign(b)
