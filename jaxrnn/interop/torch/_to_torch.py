"""``to_torch``: our cells and layers as the state dicts of ``torch.nn`` modules."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn.cells.fused import block, gate_order
from jaxrnn.interop.conversion import (
    Level,
    Run,
    check_options,
    levels_of,
    named,
    no_learned_carry,
    own_dtype,
    refuse,
    reordered,
)
from jaxrnn.interop.torch._names import GATES, KINDS, LIBRARY, tensor_of, turned


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
        name + ("" if is_cell else f"_l{k}{'_reverse' * run.reverse}"): tensor_of(torch, a)
        for k, level in enumerate(levels)
        for run in level.runs
        for name, a in _theirs(run).items()
    }


def _theirs(run: Run) -> dict[str, Any]:
    """The inverse of :func:`_run`."""
    W_xh, W_hh, b, *_ = run.params
    b_hh = None if b is None else np.zeros_like(b)
    if run.cell.kind == "gru":
        W_xh, W_hh = (turned(a, gate_order("gru"), GATES["gru"]) for a in (W_xh, W_hh))
        if b is not None:
            b = turned(b, gate_order("gru"), GATES["gru"])
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
