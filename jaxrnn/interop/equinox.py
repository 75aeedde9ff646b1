"""Equinox: weights of its recurrent cells both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import jaxrnn as jr
from jaxrnn._base import Cell, PyTree
from jaxrnn.cells.fused import GateOrder, gate_order
from jaxrnn.interop.conversion import (
    as_weights,
    check_options,
    check_shape,
    in_dicts,
    levels_of,
    no_learned_carry,
    own_dtype,
    param_dtype,
    refuse,
    refuse_class,
    reordered,
    requires,
    spec_of,
)
from jaxrnn.interop.registry import Library
from jaxrnn.saving.parameters import as_jax

__all__ = ["from_equinox", "to_equinox"]

LIBRARY = Library("Equinox", "equinox", extra="interop")

GATES: dict[str, GateOrder] = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}  # in Equinox's fused arrays
BIASES = ("bias", "bias_n")  # a GRU has both, or neither
NAMES = ("weight_ih", "weight_hh", *BIASES)


def from_equinox(module: Any) -> tuple[Cell, PyTree]:
    """An Equinox recurrent cell, with the weights that it holds, as a jaxrnn cell and its parameters.

    Equinox has a row for each output, and its GRU's z is the share of the *old* state: weights are transposed, z
    blocks negated, as 1 - σ(a) = σ(-a).

    Args:
        module: an ``eqx.nn.LSTMCell`` or ``eqx.nn.GRUCell``; or its arrays by name, as orbax or msgpack give them back:
            ``weight_ih``, ``weight_hh``, and where it has biases ``bias`` and a GRU's ``bias_n``.

    Returns:
        ``(cell, params)``: an ``lstm``, or a ``gru`` with ``reset="after"``; without biases where it has none.

    Raises:
        ValueError: another module, other names, weights that do not fit its sizes.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, jaxrnn as jr
        >>> from jaxrnn.interop.equinox import from_equinox
        >>> theirs = eqx.nn.GRUCell(3, 5, key=jax.random.key(0))
        >>> cell, params = from_equinox(theirs)
        >>> y = cell.step(params, jnp.zeros(5), jnp.ones(3))[1]
        >>> bool(jnp.allclose(y, theirs(jnp.ones(3), jnp.zeros(5)), atol=1e-6))
        True

    Differs: Equinox's cells take one sequence's vectors and return the new state alone.
    """
    given: Mapping[str, Any]
    if isinstance(module, Mapping):
        given, blocks = _named(module)
        H, I = given["weight_hh"].shape[-1], given["weight_ih"].shape[-1]
    else:
        eqx = LIBRARY.load()
        refuse_class("from_equinox", module)
        if type(module) not in (eqx.nn.LSTMCell, eqx.nn.GRUCell):
            refuse("from_equinox", f"a {type(module).__name__}", "known are eqx.nn.LSTMCell and eqx.nn.GRUCell")
        given = {name: getattr(module, name, None) for name in NAMES if module.use_bias or name not in BIASES}
        blocks = 4 if type(module) is eqx.nn.LSTMCell else 3
        I, H = module.input_size, module.hidden_size
    w: dict[str, Any] = {
        name: None if given.get(name) is None else as_weights("from_equinox", name, given[name]) for name in NAMES
    }
    shapes = {"weight_ih": (blocks * H, I), "weight_hh": (blocks * H, H), "bias": (blocks * H,), "bias_n": (H,)}
    for name, shape in shapes.items():
        if w[name] is not None:
            fix = "convert an ensemble's modules one by one, as jax.tree.map(lambda a: a[0], module) takes the first"
            check_shape("from_equinox", name, w[name], shape, fix)
    W_xh, W_hh, b, b_n = w["weight_ih"].T, w["weight_hh"].T, w["bias"], w["bias_n"]
    options: dict[str, Any] = {"bias": False if b is None else None, "param_dtype": param_dtype(W_xh)}
    params: PyTree
    kind = "lstm" if blocks == 4 else "gru"
    W_xh, W_hh, b = (_turned(kind, a, GATES[kind], gate_order(kind)) for a in (W_xh, W_hh, b))
    if kind == "lstm":
        params = jr.cells.LSTMParams(W_xh, W_hh, b)
    else:
        params = jr.cells.GRUParams(W_xh, W_hh, b, b_n)
        options["reset"] = "after"
    return jr.build(spec_of(kind, I, H, **options)), as_jax("from_equinox", params)


def _named(weights: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of a cell, which come by their names alone, and how many gates stand in them: 4 or 3."""
    given = in_dicts("from_equinox", weights)
    arrays = {name: as_weights("from_equinox", name, a) for name, a in given.items() if not isinstance(a, dict)}
    matrices = [arrays.get(name, np.zeros(0)) for name in ("weight_ih", "weight_hh")]
    if all(a.ndim == 2 for a in matrices):
        rows, H = matrices[1].shape
        for blocks, biases in ((4, {"bias"}), (3, set(BIASES))):
            if H and rows == blocks * H and given.keys() in (set(NAMES) - set(BIASES), {*NAMES[:2], *biases}):
                return arrays, blocks
    held = ", ".join(f"{name} {arrays[name].shape if name in arrays else '(a dict)'}" for name in given) or "nothing"
    raise ValueError(
        f"from_equinox: expected the arrays of one cell, weight_ih (4 H or 3 H, I) and weight_hh (…, H), and with "
        f"biases bias, of a GRU bias_n too; got {held}; give what the file holds under the cell's name, as "
        f"weights['cell']."
    )


def _turned(kind: str, a: Any, old: GateOrder, new: GateOrder) -> Any:
    """A fused array in the other library's order, a GRU's z the share of the other state."""
    return None if a is None else reordered(a, old, new, negate=("z",) if kind == "gru" else ())


def to_equinox(cell: Cell, params: PyTree) -> Any:
    """A jaxrnn cell and its parameters as an Equinox module with these weights.

    Args:
        cell: an ``lstm`` without projection or a ``gru`` with ``reset="after"``, with tanh and σ.
        params: its parameters.

    Returns:
        An ``eqx.nn.LSTMCell`` or ``eqx.nn.GRUCell``, with ``use_bias=False`` for a cell without biases.

    Raises:
        ValueError, TypeError: what has no counterpart: layers, other cells and options, a learned initial carry, a
            compute dtype other than the weights'.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> from jaxrnn.interop.equinox import to_equinox
        >>> cell = jr.lstm(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> h, c = to_equinox(cell, params)(jnp.ones(3), (jnp.zeros(5), jnp.zeros(5)))
        >>> bool(jnp.allclose(h, cell.step(params, cell.initial_carry(params), jnp.ones(3))[1], atol=1e-6))
        True

    Differs: see :func:`from_equinox`.
    """
    eqx = LIBRARY.load()
    who = "to_equinox"
    if not isinstance(cell, Cell):
        refuse(who, f"a {type(cell).__name__}", "Equinox has cells alone; convert the cells that it is made of")
    ((run,),) = (level.runs for level in levels_of(who, cell, params))
    if run.cell.kind not in ("lstm", "gru"):
        refuse(who, run.cell.kind, "Equinox has an LSTM and a GRU")
    theirs = eqx.nn.LSTMCell if run.cell.kind == "lstm" else eqx.nn.GRUCell
    own = {"projection_size": None} if run.cell.kind == "lstm" else {"reset": "after"}
    requires(who, run, f"eqx.nn.{theirs.__name__}", activation="tanh", gate_activation="sigmoid", **own)
    no_learned_carry(who, run, "Equinox")
    check_options(who, run, "activation", "gate_activation", "bias", "learned_carry", *own)
    W_xh, W_hh = np.asarray(params.W_xh), np.asarray(params.W_hh)
    b = None if params.b is None else np.asarray(params.b)
    own_dtype(who, run, W_xh.dtype, "Equinox")
    I, H = W_xh.shape[0], W_hh.shape[0]
    kind = run.cell.kind
    W_xh, W_hh, b = (_turned(kind, a, gate_order(kind), GATES[kind]) for a in (W_xh, W_hh, b))
    weights = {"weight_ih": W_xh.T, "weight_hh": W_hh.T, "bias": b}
    if run.cell.kind == "gru":
        weights["bias_n"] = params.b_hh
    weights = as_jax(who, {name: a for name, a in weights.items() if a is not None})
    # As shapes alone: nothing is drawn, every array is set.
    module = eqx.filter_eval_shape(theirs, I, H, use_bias=b is not None, key=jax.random.key(0))
    return eqx.tree_at(lambda m: [getattr(m, name) for name in weights], module, list(weights.values()))
