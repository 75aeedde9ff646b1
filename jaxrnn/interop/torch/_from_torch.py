"""``from_torch``: ``torch.nn`` recurrent modules and their state dicts as our cells and layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

import jaxrnn as jr
from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn._checks import check_choice, check_rate
from jaxrnn.cells.fused import block, gate_order
from jaxrnn.interop.conversion import Level, Run, model_of, param_dtype, refuse_class, reordered, spec_of
from jaxrnn.interop.torch._names import GATES, KEY, KINDS, LIBRARY, turned
from jaxrnn.interop.torch._states import Part, chosen, parts_in, weights_of
from jaxrnn.saving.files import few
from jaxrnn.saving.parameters import as_jax


@checks_arguments
def from_torch(
    source: Any,
    *,
    prefix: str | Sequence[str] = "",
    nonlinearity: str | None = None,
    dropout: float | None = None,
) -> tuple[Cell | Layer, PyTree]:
    """The layer and the parameters of a ``torch.nn`` recurrent module, or of its state dict.

    ``b`` is the sum of PyTorch's two biases, in the dtype of the weights. A state dict does not hold every option, so
    two of them can be named here; a module says them itself.

    Args:
        source: one of

            nn.RNN, nn.LSTM or nn.GRU, nn.RNNCell, nn.LSTMCell or nn.GRUCell, parametrized or not;
            the state dict of one, its values tensors or NumPy arrays (as ``safetensors.numpy.load_file`` reads them);
            a module or state dict that holds one among others, or a checkpoint, dicts in dicts, with one in it: a
                part of it is taken by ``prefix``, and :func:`parts` lists what there is;
            a list, nn.ModuleList or nn.Sequential of these modules: gives a ``jr.stack``.
        prefix: of a larger source: what stands before the part's names, "encoder.rnn.", or as much of its end as no
            other part has, "rnn", so that ``state_dict.`` or ``module.`` before it may be left out. Several give a
            ``jr.stack``. "" takes the only part, where no other tensors stand beside it.
        nonlinearity: of the state dict of an nn.RNN or nn.RNNCell: "tanh" (None) or "relu".
        dropout: of the state dict of several layers: the rate between them; None is 0.

    Returns:
        ``(layer, params)``. One layer gives ``jr.scan(cell)`` or ``jr.bidirectional``; several a ``jr.stack`` of them,
        with a ``jr.dropout`` after each but the last where there is dropout. A cell module gives a Cell. The layer is
        time-major, whatever ``batch_first`` says.

    Raises:
        ValueError: keys that are unknown or missing, parts that a prefix does not tell apart, shapes that fit no kind,
            parametrizations other than weight_norm and pruning, options that a module or kind says itself.
        TypeError: another module; float64 weights while JAX's 64 bits are off.

    Example:
        >>> import torch
        >>> from jaxrnn.interop.torch import from_torch
        >>> layer, params = from_torch(torch.nn.LSTM(3, 5, num_layers=2, bidirectional=True))
        >>> [part.kind for part in layer.spec.children], params[1].backward.W_xh.shape
        (['bidirectional', 'bidirectional'], (10, 20))
        >>> checkpoint = {"epoch": 3, "state_dict": {"module.rnn.weight_ih": torch.ones(4, 3),
        ...                                          "module.rnn.weight_hh": torch.ones(4, 4)}}
        >>> from_torch(checkpoint, prefix="rnn")[0].spec.kind
        'elman'

    Differs: PyTorch adds the two biases one after the other; their sum, rounded once, moves a pre-activation by about
    one unit in the last place. Its optimisers see two parameters where ours see one.
    """
    if isinstance(source, Mapping):
        return from_state(WHO, source, prefix, nonlinearity, dropout)
    if not isinstance(prefix, str):
        names = _several(WHO, prefix)
        return _stacked([from_torch(source, prefix=p, nonlinearity=nonlinearity, dropout=dropout) for p in names])
    torch = LIBRARY.load()
    refuse_class(WHO, source)
    given: dict[str, Any] = {"nonlinearity": nonlinearity, "dropout": dropout}
    several = isinstance(source, list | tuple | torch.nn.ModuleList | torch.nn.Sequential) and len(source) > 0
    if several and not prefix and all(is_recurrent(torch, module) for module in source):
        return _stacked([from_torch(module, **given) for module in source])
    if is_recurrent(torch, source):
        given = {name: value for name, value in ({"prefix": prefix or None} | given).items() if value is not None}
        if given:
            raise ValueError(
                f"from_torch: {', '.join(given)} say what a state dict does not; a module says it itself: leave "
                f"{'it' if len(given) == 1 else 'them'} out."
            )
        return _from_module(torch, source)
    modules = recurrent_modules(torch, source) if isinstance(source, torch.nn.Module) else {}
    if not modules or not prefix:
        cls = type(source)
        if "quantized" in cls.__module__:
            raise TypeError(
                f"from_torch: {cls.__module__}.{cls.__name__} is quantised; convert the module as it was before."
            )
        raise TypeError(
            f"from_torch: expected nn.RNN, nn.LSTM, nn.GRU, one of their cells or a state dict, got "
            f"{cls.__name__ if cls.__name__ not in RECURRENT else f'{cls.__module__}.{cls.__name__}'}; pass the "
            f"recurrent module inside it, or its state dict with prefix=…"
            + (f"; prefix= may be {few([repr(name) for name in modules])}." if modules else ".")
        )
    return from_torch(modules[chosen(WHO, modules, prefix)], **given)


WHO = "from_torch"
RECURRENT = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


def is_recurrent(torch: ModuleType, module: Any) -> bool:
    """A recurrent module of ``torch.nn`` itself: what a subclass computes is not known."""
    before = torch.nn.utils.parametrize.type_before_parametrizations
    return isinstance(module, torch.nn.Module) and before(module) in [getattr(torch.nn, name) for name in RECURRENT]


def recurrent_modules(torch: ModuleType, module: Any) -> dict[str, Any]:
    """The recurrent modules in a module, by what stands before their names in its state dict."""
    return {f"{name}.": inner for name, inner in module.named_modules() if name and is_recurrent(torch, inner)}


def state_of(torch: ModuleType, module: Any) -> dict[str, Any]:
    """The state dict of a recurrent module, each of its weights that is parametrized as its forward pass has it."""
    state = dict(module.state_dict())
    if torch.nn.utils.parametrize.is_parametrized(module):
        own = {name: getattr(module, name) for name in module.parametrizations}
        state = {name: a for name, a in state.items() if not name.startswith("parametrizations.")} | own
    return state


def _from_module(torch: ModuleType, module: Any) -> tuple[Cell | Layer, PyTree]:
    dropout = getattr(module, "dropout", 0.0) if getattr(module, "num_layers", 1) > 1 else None
    return from_part(WHO, Part(state_of(torch, module), []), "", getattr(module, "nonlinearity", None), dropout)


def _several(who: str, prefix: Any) -> list[str]:
    """Prefixes, where one would be a string."""
    names = list(prefix) if isinstance(prefix, Iterable) else [prefix]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{who}: prefix must be a string or strings, got {prefix!r}; jaxrnn.interop.torch.parts lists them."
        )
    if not names:
        raise ValueError(f"{who}: prefix is empty, {prefix!r}; name a recurrent module, or leave it out.")
    return names


def _stacked(parts: Sequence[tuple[Cell | Layer, PyTree]]) -> tuple[Layer, PyTree]:
    return jr.stack(*(model for model, _ in parts)), tuple(params for _, params in parts)


def from_state(
    who: str,
    source: Mapping[Any, Any],
    prefix: str | Sequence[str],
    nonlinearity: str | None,
    dropout: float | None,
    *,
    ask: str = "",
) -> tuple[Cell | Layer, PyTree]:
    """The part of a state dict that a prefix names, or a stack of several. See :func:`from_part`."""
    if not isinstance(prefix, str):
        names = _several(who, prefix)
        return _stacked([from_state(who, source, one, nonlinearity, dropout, ask=ask) for one in names])
    parts = parts_in(who, source)
    name = chosen(who, parts, prefix)
    if unknown := [other for other in parts[name].others if not prefix or other.startswith(name)]:
        fix = f", or name the part of a larger one: prefix={name!r}." if name and not prefix else ", without others."
        keys = few([repr(key) for key in unknown])
        raise ValueError(f"{who}: unknown keys {keys}; pass the state dict of one recurrent module{fix}")
    return from_part(who, parts[name], name, nonlinearity, dropout, ask=ask)


def from_part(
    who: str, part: Part, prefix: str, nonlinearity: str | None, dropout: float | None, *, ask: str = ""
) -> tuple[Cell | Layer, PyTree]:
    """One recurrent module from its tensors; ``ask`` is how a nonlinearity has to be given that nothing says."""
    arrays = weights_of(who, part.own)
    if nonlinearity is not None:
        check_choice(who, "nonlinearity", nonlinearity, ("tanh", "relu"))
    if (mode := part.own.get("mode", part.own.get("nonlinearity"))) is not None and "RELU" in str(mode).upper():
        nonlinearity = "relu"  # the module was saved whole, and says it
    suffixes, stems = _names(who, arrays, prefix)
    if dropout is None and len({suffix.removesuffix("_reverse") for suffix in suffixes}) > 1:
        dropout = part.own.get("dropout")
    if dropout is not None:
        check_rate(who, "dropout", dropout.item() if isinstance(dropout, np.generic | np.ndarray) else dropout)
    runs = [_run(who, {stem: arrays[stem + suffix] for stem in stems}, suffix, nonlinearity) for suffix in suffixes]
    directions = 1 + runs[-1].reverse
    for place in range(directions, len(runs)):
        name, below = f"weight_ih{suffixes[place]}", suffixes[place - place % directions - directions]
        came, size = arrays[name].shape[1], directions * arrays[f"weight_hh{below}"].shape[1]
        if came != size:
            raise ValueError(
                f"{who}: {name} is for {came} features, but the layer below it puts out {size}; pass the whole state "
                f"dict of one module."
            )
    if ask and runs[0].cell.kind == "elman" and nonlinearity is None and mode is None:
        raise ValueError(
            f"{who} is the state dict of an nn.RNN, which does not say its nonlinearity; give {ask}, as the module "
            f"had it."
        )
    if dropout and len({suffix.removesuffix("_reverse") for suffix in suffixes}) == 1:
        raise ValueError(f"{who}: dropout={dropout} stands between layers, but there is one; leave it out.")
    model: Cell | Layer
    if suffixes == [""]:
        model, params = jr.build(runs[0].cell), runs[0].params
    else:
        levels = [
            Level(tuple(runs[k : k + directions]), dropout=(dropout or 0.0) if k + directions < len(runs) else 0.0)
            for k in range(0, len(runs), directions)
        ]
        model, params = model_of(levels)
    return model, as_jax(who, params)


def _names(who: str, weights: Mapping[str, Any], prefix: str) -> tuple[list[str], list[str]]:
    """The suffixes ``_l0``, ``_l0_reverse`` … of a state dict's keys (a cell's: none), and what stands before them."""
    found = [match for name in weights if (match := KEY.fullmatch(name))]
    stems = ["weight_ih", "weight_hh"]
    stems += ["bias_ih", "bias_hh"] if any(match[1].startswith("bias") for match in found) else []
    stems += ["weight_hr"] if any(match[1] == "weight_hr" for match in found) else []
    layers = 1 + max((int(match[2]) for match in found if match[2]), default=-1)
    directions = ["", "_reverse"] if any(match[3] for match in found) else [""]
    suffixes = [f"_l{k}{direction}" for k in range(min(layers, len(found))) for direction in directions] or [""]
    expected = [stem + suffix for suffix in suffixes for stem in stems]
    if unknown := [name for name in weights if name not in expected]:
        raise ValueError(
            f"{who}: unknown keys {few([repr(prefix + name) for name in unknown])} beside those of layer 0; pass the "
            f"whole state dict of one nn.RNN, nn.LSTM, nn.GRU or of one of their cells."
        )
    if missing := [name for name in expected if name not in weights]:
        raise ValueError(
            f"{who}: the state dict has no {few(list(map(repr, missing)))}"
            + (f" under prefix={prefix!r}" if prefix else "")
            + "; pass the whole state dict of one nn.RNN, nn.LSTM, nn.GRU or of one of their cells."
        )
    return suffixes, stems


def _run(who: str, w: dict[str, Any], suffix: str, nonlinearity: str | None) -> Run:
    """One direction of one layer."""
    reverse = suffix.endswith("_reverse")
    shape = w["weight_hh"].shape
    rows, columns = shape if len(shape) == 2 else (0, 1)
    gates = 4 if "weight_hr" in w else rows // columns
    if gates not in KINDS or rows % gates or ("weight_hr" not in w and rows != gates * columns):
        raise ValueError(
            f"{who}: weight_hh{suffix} has shape {shape}, but an nn.RNN has H rows for H columns, an nn.GRU 3H "
            f"and an nn.LSTM 4H (R columns where it projects); pass the weights of one of them."
        )
    kind, H = KINDS[gates], rows // gates
    I = w["weight_ih"].shape[-1] if w["weight_ih"].ndim else 0
    expected = {"weight_ih": (rows, I), "bias_ih": (rows,), "bias_hh": (rows,), "weight_hr": (columns, H)}
    for name, shape in expected.items():
        if name in w and w[name].shape != shape:
            raise ValueError(
                f"{who}: {name}{suffix} has shape {w[name].shape}, but weight_hh{suffix}, {(rows, columns)}, goes with "
                f"{shape}; pass the weights of one nn.{'RNN' if kind == 'elman' else kind.upper()}."
            )
    if kind != "elman" and nonlinearity is not None:
        raise ValueError(
            f"{who}: nonlinearity={nonlinearity!r} is for nn.RNN, but the shapes are those of an "
            f"nn.{kind.upper()}; leave it out."
        )
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
            b = turned(w["bias_ih"] + u, GATES["gru"], gate_order("gru"))
        W_xh, W_hh = (turned(a, GATES["gru"], gate_order("gru")) for a in (W_xh, W_hh))
        return Run(cell, jr.cells.GRUParams(W_xh, W_hh, b, b_hh), reverse)
    if "bias_ih" in w:
        b = w["bias_ih"] + w["bias_hh"]
    if kind == "lstm":
        W_xh, W_hh = (reordered(a, GATES["lstm"], gate_order("lstm")) for a in (W_xh, W_hh))
        b = None if b is None else reordered(b, GATES["lstm"], gate_order("lstm"))
        return Run(cell, jr.cells.LSTMParams(W_xh, W_hh, b, w["weight_hr"].T if "weight_hr" in w else None), reverse)
    return Run(cell, jr.cells.ElmanParams(W_xh, W_hh, b), reverse)
