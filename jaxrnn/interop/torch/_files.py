"""PyTorch's files: ``load``, ``parts``, and what ``python -m jaxrnn convert`` reads by them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn.interop.registry import Format, Loaded, Option
from jaxrnn.interop.torch._archives import HOW, read_archive
from jaxrnn.interop.torch._from_torch import from_part, from_state, recurrent_modules, state_of
from jaxrnn.interop.torch._names import LIBRARY
from jaxrnn.interop.torch._states import chosen, parts_in, summary
from jaxrnn.saving.files import read_header, read_tensors
from jaxrnn.saving.records import kept_in

SAFETENSORS = ".safetensors"


@checks_arguments
def load(
    path: str | os.PathLike[str],
    *,
    prefix: str | Sequence[str] = "",
    nonlinearity: str | None = None,
    dropout: float | None = None,
) -> tuple[Cell | Layer, PyTree]:
    """The layer and the parameters of a file that ``torch.save`` or ``torch.jit.save`` wrote, or a safetensors file.

    torch is not needed. The pickle in the file is read as data and never run: tensors are taken from it, by their
    names, and whatever else it would build is passed over.

    Args:
        path: a state dict, a checkpoint with one in it, a module that was saved whole, or a TorchScript archive.
        prefix, nonlinearity, dropout: as for :func:`from_torch`. A module that was saved whole says its nonlinearity
            and dropout itself, but for a traced one.

    Returns:
        ``(layer, params)``, as :func:`from_torch` gives them.

    Raises:
        ValueError: as :func:`from_torch`; files in the form that ``torch.save`` wrote before its version 1.6, or
            damaged. TypeError: float64 weights while JAX's 64 bits are off. OSError: no such file.

    Example:
        >>> import os, tempfile, torch
        >>> from jaxrnn.interop.torch import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "model": torch.nn.GRU(3, 5).state_dict()}, os.path.join(folder, "gru.pt"))
        ...     layer, params = load(os.path.join(folder, "gru.pt"))
        >>> params.W_hh.shape
        (5, 15)
    """
    path = os.fspath(path)
    return from_state(
        f"load: {path!r}",
        _read_state("load", path),
        prefix,
        nonlinearity,
        dropout,
        ask="nonlinearity='tanh' or 'relu'",
    )


def parts(source: Any) -> dict[str, str]:
    """The recurrent modules in a larger one, by the ``prefix`` under which :func:`from_torch` takes them.

    Args:
        source: a module, a state dict, a checkpoint with one in it, or the path of a file of torch's.

    Returns:
        What each is, in words, by what stands before its names.

    Raises:
        ValueError, TypeError: something else; a file that cannot be read.

    Example:
        >>> import torch
        >>> from jaxrnn.interop.torch import parts
        >>> parts(torch.nn.ModuleDict({"encoder": torch.nn.LSTM(3, 5, 2), "decoder": torch.nn.GRUCell(5, 4)}))
        {'encoder.': 'LSTM, 3 -> 5, 2 layers', 'decoder.': 'GRUCell, 5 -> 4'}
    """
    if isinstance(source, str | os.PathLike):
        source = _read_state("parts", os.fspath(source))
    if isinstance(source, Mapping):
        return {name: summary(part.own) for name, part in parts_in("parts", source).items()}
    torch = LIBRARY.load()
    if not isinstance(source, torch.nn.Module):
        raise TypeError(f"parts: expected a module, a state dict or a path, got {type(source).__name__}.")
    return {name: summary(state_of(torch, inner)) for name, inner in recurrent_modules(torch, source).items()}


def _read_state(who: str, path: str) -> dict[str, Any]:
    """The tensors in a file, by name, in the dicts that they stand in."""
    if path.lower().endswith(SAFETENSORS):
        if not read_header(who, path).is_ours:
            return read_tensors(who, path)
        raise ValueError(f"{who}: {path!r} was saved by jaxrnn; read it with jr.load.")
    with open(path, "rb"):  # as open says it where there is none
        return read_archive(f"{who}: {path!r}", path)


def _read_safetensors(path: str, *, prefix: str | None, nonlinearity: str | None) -> Loaded:
    who = "convert"
    header = read_header(who, path)
    if not parts_in(who, header.tensors):
        kept_in(who, path, header)  # says what the file is
    return _converted(path, read_tensors(who, path), prefix, nonlinearity)


def _read_archive(path: str, *, prefix: str | None, nonlinearity: str | None) -> Loaded:
    return _converted(path, read_archive(repr(path), path), prefix, nonlinearity)


def _converted(path: str, state: Mapping[str, Any], prefix: str | None, nonlinearity: str | None) -> Loaded:
    """The one recurrent module of a state dict, or the one that is named; what else there is becomes a note."""
    found = parts_in(repr(path), state)
    name = chosen(repr(path), found, prefix or "", "--prefix")
    part = found[name]
    ask = "--nonlinearity tanh or relu"
    model, params = from_part(repr(path), part, name, nonlinearity, None, ask=ask)
    left_out = f"left out, as no part of {name or 'the recurrent module'}: {', '.join(part.others)}"
    return Loaded(model, params, [left_out] if part.others else [])


OPTIONS = {
    "prefix": Option("read the recurrent module whose keys start so, as encoder.rnn."),
    "nonlinearity": Option("of an nn.RNN, which does not say it", choices=("tanh", "relu")),
}
FORMATS = {
    SAFETENSORS: Format("torch state dicts", _read_safetensors, options=OPTIONS),
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), Format("torch state dicts", _read_archive, options=OPTIONS)),
}
REFUSED = dict.fromkeys((".pkl", ".pickle"), f"it is a pickle, which can run code when it is opened; {HOW}")
