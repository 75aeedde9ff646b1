"""The gates of a cell, at one step and over a sequence."""

from __future__ import annotations

from typing import Any

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, expect_cell, name_of
from jaxrnn._spec import FACTORIES
from jaxrnn.cells.fused import gate_order
from jaxrnn.running.scan import layer_of


@checks_arguments
def gates(cell: Cell, params: PyTree, carry: PyTree, x: PyTree) -> Any:
    """The gates of a cell at one step, by the code that its ``step`` runs.

    Args:
        cell: a gated cell, as ``jr.lstm`` and ``jr.gru`` make it, a wrapper of one, or your own with
            ``Cell(…, gates=…)``.
        params, carry, x: as for ``cell.step``: x (*B, I).

    Returns:
        A NamedTuple of arrays (*B, H), such as ``LSTMGates(i, f, g, o, c, h)``. Of a cell with noise, those of
        evaluation.

    Raises:
        TypeError: for a cell without gates, and for a wrapper that changes a state which the gates do not hold.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.lstm(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> g = jr.gates(cell, params, cell.initial_carry(params), jnp.ones(3))
        >>> bool(jnp.allclose(g.c, g.i * g.g))  # the memory starts at 0
        True
    """
    return _with_gates("gates", cell).gates(params, carry, x)  # type: ignore[misc]


@checks_arguments
def trace_gates(
    cell: Cell, params: PyTree, xs: PyTree, carry: PyTree = None, *, reverse: bool = False, **options: Any
) -> Any:
    """The gates of a cell at every step of a run.

    Args:
        cell: a Cell with gates.
        params, xs, carry: as for ``jr.scan(cell).apply``: xs (T, *B, I).
        reverse: run from the last step to the first, as ``jr.scan(cell, reverse=True)`` does.
        options: ``lengths``, ``mask``, ``resets`` and ``start``, as ``jr.scan`` documents them.

    Returns:
        A NamedTuple of arrays (T, *B, H) in input order; 0 at steps that are not valid. Of a cell with noise, those of
        evaluation.

    Raises:
        TypeError: as ``gates``. ValueError: a ``key`` for a cell with noise. Otherwise as ``jr.scan``.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.gru(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> jr.trace_gates(cell, params, jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4])).z.shape
        (7, 2, 5)
    """
    _with_gates("trace_gates", cell)
    if cell.noise is not None and options.get("key") is not None:
        raise ValueError(
            f"trace_gates: got a key, but the gates of {name_of(cell)} are those of evaluation, without its noise; "
            f"leave key out."
        )

    def step(params, carry, x, *noise):
        return cell.step(params, carry, x, *noise)[0], cell.gates(params, carry, x)  # type: ignore[misc]

    layer = layer_of(f"trace_gates({name_of(cell)})", cell._replace(step=step), reverse)
    return layer.apply(params, xs, carry, **options)[1]


def _with_gates(who: str, cell: Cell) -> Cell:
    expect_cell(who, cell)
    if cell.gates is None:
        gated = sorted(kind for kind in FACTORIES if gate_order(kind))
        fix = f"gated cells are {', '.join(gated)}, wrappers of them, and a cell of your own with Cell(…, gates=…)"
        if cell.spec is not None and cell.spec.kind in gated:  # of a kind that has them on request
            fix = "build it with gated=True"
        raise TypeError(f"{who}: {_named(cell)} has no gates; {fix}.")
    return cell


def _named(cell: Cell) -> str:
    """``leaky(elman)``: whether a wrapper has gates depends on what it wraps."""
    if cell.spec is None or len(cell.spec.children) != 1:
        return name_of(cell)
    return f"{name_of(cell)}({cell.spec.children[0].kind})"
