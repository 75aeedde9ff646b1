"""PyTorch: the weights of nn.RNN, nn.LSTM and nn.GRU and of their cells, in and out.

What the two say differently (G gates: 1, 4 or 3):

    PyTorch                                             jaxrnn
    weight_ih (G*H, I), a row for each output           W_xh (I, G*H)
    two biases, of which only the sum counts            b; in the GRU's candidate also b_hh, inside the reset product
    the GRU's z multiplies the old state                z multiplies the candidate: 1 - σ(a) = σ(-a), so its blocks of
                                                        the weights are negated
    batch_first                                         always time first: ``xs.swapaxes(0, 1)``; no weight changes
    h_0, c_0 (layers * directions, B, H)                a carry for each layer, ``BiCarry`` of two directions
    PackedSequence                                      ``lengths``
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn._checks import check_choice
from jaxrnn._spec import Spec
from jaxrnn.cells.fused import GateOrder, block, gate_order
from jaxrnn.interop.conversion import (
    Level,
    Run,
    check_options,
    levels_of,
    model_of,
    named,
    no_learned_carry,
    own_dtype,
    param_dtype,
    refuse,
    reordered,
    spec_of,
)
from jaxrnn.interop.registry import Format, Library, Loaded, Option
from jaxrnn.saving.files import read_header, read_tensors
from jaxrnn.saving.parameters import as_jax
from jaxrnn.saving.records import kept_in

__all__ = ["from_torch", "to_torch"]

LIBRARY = Library("PyTorch", "torch", extra="torch")

KEY = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(\d+)(_reverse)?)?")
KINDS = {1: "elman", 3: "gru", 4: "lstm"}  # by the number of gates
GATES: dict[str, GateOrder] = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}  # in torch's fused arrays


def from_torch(
    source: Any,
    *,
    prefix: str = "",
    nonlinearity: str | None = None,
    dropout: float | None = None,
) -> tuple[Cell | Layer, PyTree]:
    """The layer and the parameters of a ``torch.nn`` recurrent module, or of its state dict.

    ``b`` is the sum of PyTorch's two biases, in the dtype of the weights. A state dict does not hold every option, so
    two of them can be named here; a module says them itself.

    Args:
        source: nn.RNN, nn.LSTM or nn.GRU, nn.RNNCell, nn.LSTMCell or nn.GRUCell, or the state dict of one, its values
            tensors or NumPy arrays (as ``safetensors.numpy.load_file`` reads them).
        prefix: of a state dict: reads the keys that start so, "encoder.rnn." in that of a larger model.
        nonlinearity: of the state dict of an nn.RNN or nn.RNNCell: "tanh" (None) or "relu".
        dropout: of the state dict of several layers: the rate between them; None is 0.

    Returns:
        ``(layer, params)``. One layer gives ``jr.scan(cell)`` or ``jr.bidirectional``; several a ``jr.stack`` of them,
        with a ``jr.dropout`` after each but the last where there is dropout. A cell module gives a Cell. The layer is
        time-major, whatever ``batch_first`` says.

    Raises:
        ValueError: keys that are unknown or missing, shapes that fit no kind, options that a module or kind says
            itself. TypeError: another module; float64 weights while JAX's 64 bits are off.

    Example:
        >>> import torch
        >>> from jaxrnn.interop.torch import from_torch
        >>> layer, params = from_torch(torch.nn.LSTM(3, 5, num_layers=2, bidirectional=True))
        >>> [part.kind for part in layer.spec.children], params[1].backward.W_xh.shape
        (['bidirectional', 'bidirectional'], (10, 20))

    Differs: PyTorch adds the two biases one after the other; their sum, rounded once, moves a pre-activation by about
    one unit in the last place. Its optimisers see two parameters where ours see one.
    """
    if isinstance(source, Mapping):
        weights = {name[len(prefix) :]: w for name, w in source.items() if name.startswith(prefix)}
    else:
        torch = LIBRARY.load()
        nn = torch.nn
        if type(source) not in (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell):
            raise TypeError(
                f"from_torch: expected nn.RNN, nn.LSTM, nn.GRU, one of their cells or a state dict, got "
                f"{type(source).__name__}; pass the recurrent module inside it, or its state dict with prefix=…."
            )
        given = {"prefix": prefix or None, "nonlinearity": nonlinearity, "dropout": dropout}
        if given := {name: value for name, value in given.items() if value is not None}:
            raise ValueError(
                f"from_torch: {', '.join(given)} say what a state dict does not; a module says it itself: leave "
                f"{'it' if len(given) == 1 else 'them'} out."
            )
        weights = source.state_dict()
        nonlinearity, dropout = getattr(source, "nonlinearity", None), getattr(source, "dropout", 0.0)
        dropout = dropout if getattr(source, "num_layers", 1) > 1 else None
    suffixes, stems = _names(weights, prefix)
    arrays = {name: _numpy(w) for name, w in weights.items()}
    runs = [
        _run({stem: arrays[stem + suffix] for stem in stems}, suffix.endswith("_reverse"), nonlinearity)
        for suffix in suffixes
    ]
    if dropout and len({suffix.removesuffix("_reverse") for suffix in suffixes}) == 1:
        raise ValueError(f"from_torch: dropout={dropout} stands between layers, but there is one; leave it out.")
    model: Cell | Layer
    if suffixes == [""]:
        model, params = jr.build(runs[0].cell), runs[0].params
    else:
        directions = 1 + runs[-1].reverse
        levels = [
            Level(tuple(runs[k : k + directions]), dropout=(dropout or 0.0) if k + directions < len(runs) else 0.0)
            for k in range(0, len(runs), directions)
        ]
        model, params = model_of(levels)
    return model, as_jax(params)


def to_torch(model: Cell | Layer, params: PyTree) -> dict[str, Any]:
    """The state dict under which the ``torch.nn`` module of the same configuration computes the same.

    ``b`` becomes ``bias_ih``; ``bias_hh`` is 0, but for the GRU's candidate, where it is ``b_hh``. What a state dict
    does not hold is for whoever builds the module: ``nonlinearity``, the ``dropout`` between layers, ``batch_first``.

    Args:
        model: a Layer: ``jr.scan`` of ``elman`` (tanh or relu), ``lstm`` or ``gru(reset="after")``, a
            ``jr.bidirectional`` of two such with ``merge="concat"``, or a ``jr.stack`` of like ones, with the same
            dropout between all of them; or one such Cell, for nn.RNNCell, nn.LSTMCell and nn.GRUCell.
        params: its parameters.

    Returns:
        Tensors by name, of the parameters' dtype, for ``module.load_state_dict(…)``: copies, on the CPU.

    Raises:
        ValueError: models that no single module computes, with the part and the reason.

    Example:
        >>> import jax, jaxrnn as jr, torch
        >>> from jaxrnn.interop.torch import to_torch
        >>> layer = jr.stack(jr.gru(3, 5, reset="after"), jr.gru(5, 5, reset="after"))
        >>> module = torch.nn.GRU(3, 5, num_layers=2)
        >>> module.load_state_dict(to_torch(layer, layer.init(jax.random.key(0))))
        <All keys matched successfully>
    """
    torch = LIBRARY.load()
    levels = levels_of("to_torch", model, params)
    is_cell = isinstance(model, Cell)
    _check_one_module(levels, is_cell)
    return {
        name + ("" if is_cell else f"_l{k}{'_reverse' * run.reverse}"): _tensor(torch, a)
        for k, level in enumerate(levels)
        for run in level.runs
        for name, a in _theirs(run).items()
    }


def _names(weights: Mapping[str, Any], prefix: str) -> tuple[list[str], list[str]]:
    """The suffixes ``_l0``, ``_l0_reverse`` … of a state dict's keys (a cell's: none), and what stands before them."""
    found = [match for name in weights if (match := KEY.fullmatch(name))]
    stems = ["weight_ih", "weight_hh"]
    stems += ["bias_ih", "bias_hh"] if any(match[1].startswith("bias") for match in found) else []
    stems += ["weight_hr"] if any(match[1] == "weight_hr" for match in found) else []
    layers = 1 + max((int(match[2]) for match in found if match[2]), default=-1)
    directions = ["", "_reverse"] if any(match[3] for match in found) else [""]
    suffixes = [f"_l{k}{direction}" for k in range(layers) for direction in directions] or [""]
    expected = [stem + suffix for suffix in suffixes for stem in stems]
    if unknown := [name for name in weights if name not in expected]:
        raise ValueError(
            f"from_torch: unknown keys {', '.join(map(repr, unknown))}; pass the state dict of one recurrent module, "
            f"or name the part of a larger one by prefix=… (parametrizations such as weight_norm: remove them first)."
        )
    if missing := [name for name in expected if name not in weights]:
        raise ValueError(
            f"from_torch: the state dict has no {', '.join(map(repr, missing))}"
            + (f" under prefix={prefix!r}" if prefix else "")
            + "; pass the whole state dict of one nn.RNN, nn.LSTM, nn.GRU or of one of their cells."
        )
    return suffixes, stems


def _run(w: dict[str, Any], reverse: bool, nonlinearity: str | None) -> Run:
    """One direction of one layer."""
    shape = w["weight_hh"].shape
    rows, columns = shape if len(shape) == 2 else (0, 1)
    gates = 4 if "weight_hr" in w else rows // columns
    if gates not in KINDS or rows % gates or ("weight_hr" not in w and rows != gates * columns):
        raise ValueError(
            f"from_torch: weight_hh has shape {shape}, but an nn.RNN has H rows for H columns, an nn.GRU 3H "
            f"and an nn.LSTM 4H (R columns where it projects); pass the weights of one of them."
        )
    kind, H = KINDS[gates], rows // gates
    I = w["weight_ih"].shape[-1]
    expected = {"weight_ih": (rows, I), "bias_ih": (rows,), "bias_hh": (rows,), "weight_hr": (columns, H)}
    for name, shape in expected.items():
        if name in w and w[name].shape != shape:
            raise ValueError(
                f"from_torch: {name} has shape {w[name].shape}, but weight_hh, {(rows, columns)}, goes with {shape}; "
                f"pass the weights of one nn.{'RNN' if kind == 'elman' else kind.upper()}."
            )
    if kind != "elman" and nonlinearity is not None:
        raise ValueError(
            f"from_torch: nonlinearity={nonlinearity!r} is for nn.RNN, but the shapes are those of an "
            f"nn.{kind.upper()}; leave it out."
        )
    if nonlinearity is not None:
        check_choice("from_torch", "nonlinearity", nonlinearity, ("tanh", "relu"))
    cell = spec_of(
        kind,
        I,
        H,
        activation="relu" if nonlinearity == "relu" else None,
        reset="after" if kind == "gru" else None,
        projection_size=columns if "weight_hr" in w else None,
        bias=None if "bias_ih" in w else False,
        param_dtype=param_dtype(w["weight_hh"]),
    )
    W_xh, W_hh = w["weight_ih"].T, w["weight_hh"].T
    b: Any = None
    b_hh: Any = None
    if kind == "gru":
        if "bias_ih" in w:
            n, u = block(GATES["gru"], "n", H), w["bias_hh"].copy()
            b_hh, u[n] = w["bias_hh"][n], 0  # the candidate's stays apart, inside the reset product
            b = _turned(w["bias_ih"] + u, GATES["gru"], gate_order("gru"))
        W_xh, W_hh = (_turned(a, GATES["gru"], gate_order("gru")) for a in (W_xh, W_hh))
        return Run(cell, jr.cells.GRUParams(W_xh, W_hh, b, b_hh), reverse)
    if "bias_ih" in w:
        b = w["bias_ih"] + w["bias_hh"]
    if kind == "lstm":
        W_xh, W_hh = (reordered(a, GATES["lstm"], gate_order("lstm")) for a in (W_xh, W_hh))
        b = None if b is None else reordered(b, GATES["lstm"], gate_order("lstm"))
        return Run(cell, jr.cells.LSTMParams(W_xh, W_hh, b, w["weight_hr"].T if "weight_hr" in w else None), reverse)
    return Run(cell, jr.cells.ElmanParams(W_xh, W_hh, b), reverse)


def _turned(a: Any, old: GateOrder, new: GateOrder) -> Any:
    """The blocks of a GRU in the other library's order, z the share of the other state."""
    return reordered(a, old, new, negate=("z",))


def _theirs(run: Run) -> dict[str, Any]:
    """The inverse of :func:`_run`."""
    W_xh, W_hh, b, *_ = run.params
    b_hh = None if b is None else np.zeros_like(b)
    if run.cell.kind == "gru":
        W_xh, W_hh = (_turned(a, gate_order("gru"), GATES["gru"]) for a in (W_xh, W_hh))
        if b is not None:
            b = _turned(b, gate_order("gru"), GATES["gru"])
            b_hh = np.zeros_like(b)
            b_hh[block(GATES["gru"], "n", len(b) // 3)] = run.params.b_hh
    if run.cell.kind == "lstm":
        W_xh, W_hh = (reordered(a, gate_order("lstm"), GATES["lstm"]) for a in (W_xh, W_hh))
        b = None if b is None else reordered(b, gate_order("lstm"), GATES["lstm"])
    w = {"weight_ih": W_xh.T, "weight_hh": W_hh.T}
    if b is not None:
        w |= {"bias_ih": b, "bias_hh": b_hh}
    if run.option("projection_size"):
        w |= {"weight_hr": run.params.W_hr.T}
    return w


def _check_one_module(levels: list[Level], is_cell: bool) -> None:
    """One ``torch.nn`` module computes these levels."""
    who = "to_torch"
    seen: dict[str, None] = {}  # an ordered set
    for level in levels:
        for run in level.runs:
            kind = run.cell.kind
            if kind not in KINDS.values():
                refuse(who, kind, "torch.nn has the elman, lstm and gru recurrences alone; convert other parts apart")
            no_learned_carry(who, run, "torch.nn")
            own_dtype(who, run, jax.tree.leaves(run.params)[0].dtype, "torch.nn")
            check_options(who, run, "activation", "bias", "reset", "projection_size")
            activation = named(run.option("activation", "tanh"))
            if activation not in (("tanh", "relu") if kind == "elman" else ("tanh",)):
                refuse(who, f"{kind}'s activation={activation!r}", "torch.nn has tanh, and in nn.RNN also relu")
            if kind == "gru" and run.option("reset", "before") == "before":
                refuse(
                    who,
                    'a gru with reset="before"',
                    'PyTorch resets after the recurrent product; build and train it with reset="after"',
                )
            if is_cell and run.option("projection_size"):
                refuse(who, "an lstm Cell with projection_size", "nn.LSTMCell does not project; pass jr.scan(cell)")
            options = ((name, run.option(name)) for name in ("hidden_size", "bias", "projection_size"))
            given = (f"{name}={value}" for name, value in (("activation", activation), *options) if value is not None)
            seen[f"{kind}({', '.join(given)})"] = None
        if len(level.runs) == 1 and level.runs[0].reverse:
            refuse(who, "a reversed run by itself", "torch.nn runs forward or in both directions; turn xs round first")
        if len(level.runs) == 2 and level.merge != "concat":
            refuse(who, f"merge={level.merge!r}", "torch.nn concatenates the two directions")
    if len(seen) > 1:
        refuse(who, f"a model of different cells, {' and '.join(seen)},", "all runs of a torch.nn module are alike")
    if len({len(level.runs) for level in levels}) > 1:
        refuse(who, "a stack of layers in one and in both directions", "all layers of a torch.nn module are alike")
    *between, after = (level.dropout for level in levels)
    if after:
        refuse(who, "dropout after the last layer", "torch.nn drops between layers; take it out of the stack")
    if len(set(between)) > 1:
        refuse(who, f"dropout of different rates ({', '.join(map(str, between))})", "a torch.nn module has one rate")


def _numpy(a: Any) -> np.ndarray:
    """A tensor, on any device, or an array as NumPy's."""
    if hasattr(a, "detach"):
        a = a.detach().cpu()
        if str(a.dtype) == "torch.bfloat16":  # which Tensor.numpy() does not know
            return a.view(LIBRARY.load().int16).numpy().view(jnp.bfloat16)
        a = a.numpy()
    return np.asarray(a)


def _tensor(torch: ModuleType, a: Any) -> Any:
    """A copy as a tensor."""
    a = np.array(a, order="C")
    if a.dtype == jnp.bfloat16:
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


# ---- files -------------------------------------------------------------------------------------


def _read(path: str, *, prefix: str | None, nonlinearity: str | None) -> Loaded:
    """The recurrent module of a state dict in a safetensors file."""
    who = "convert"
    header = read_header(who, path)
    found = [re.fullmatch(r"(|.*\.)weight_ih(_l0)?", name) for name in header.tensors]
    modules = sorted({match[1] for match in found if match})
    if not modules:
        kept_in(who, path, header)  # says what the file is
    if prefix is None and len(modules) > 1:
        raise ValueError(
            f"{who}: {path!r} holds {len(modules)} recurrent modules; choose one with --prefix: {', '.join(modules)}."
        )
    prefix = modules[0] if prefix is None else prefix
    if prefix not in modules:
        raise ValueError(f"{who}: {path!r} has no {prefix}weight_ih_l0; --prefix may be {', '.join(modules)}.")
    state = read_tensors(who, path)
    own = {name: a for name, a in state.items() if name.startswith(prefix)}
    model, params = from_torch(own, prefix=prefix, nonlinearity=nonlinearity)
    if nonlinearity is None and "elman" in _kinds(model.spec):
        raise ValueError(
            f"{who}: {path!r} is the state dict of an nn.RNN, which does not say its nonlinearity; give "
            f"--nonlinearity tanh or relu, as the module had it."
        )
    rest = [name for name in state if name not in own]
    left_out = f"left out, as no part of {prefix or 'the recurrent module'}: {', '.join(rest)}"
    return Loaded(model, params, [left_out] if rest else [])


def _kinds(spec: Spec | None) -> set[str]:
    return set() if spec is None else {spec.kind}.union(*map(_kinds, spec.children))


FORMATS = {
    ".safetensors": Format(
        "torch state dicts",
        _read,
        options={
            "prefix": Option("read the recurrent module whose keys start so, as encoder.rnn."),
            "nonlinearity": Option("of an nn.RNN, which does not say it", choices=("tanh", "relu")),
        },
    )
}
REFUSED = dict.fromkeys(
    (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"),
    "it is a pickle, which can run code when it is opened; in Python, read what you trust with torch.load(…, "
    "weights_only=True), then use jaxrnn.interop.torch.from_torch and jr.save",
)
