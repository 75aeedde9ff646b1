"""A readout fitted to what a layer puts out, in one call: ridge regression, in float64 on the host."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree, check_model
from jaxrnn._checks import check_array, check_one_array
from jaxrnn.cells.readout import ReadoutParams, readout
from jaxrnn.running.scan import scan


class FittedReadout(NamedTuple):
    """What ``fit_readout`` found."""

    readout: Cell  # ``jr.readout(H, O)``
    params: ReadoutParams  # its parameters, in the dtype of the layer's outputs
    ridge: float  # λ; of several the one with the least held-out error
    error: float  # mean squared error over the steps and outputs that were fitted
    held_out: (
        np.ndarray | None
    )  # (values of ridge,): the mean squared errors of the folds left out; None for one number


@checks_arguments
def fit_readout(
    layer: Cell | Layer,
    params: PyTree,
    xs: PyTree,
    ys: ArrayLike,
    *,
    ridge: float | Sequence[float] = 1e-6,
    folds: int = 5,
    washout: int = 0,
    bias: bool = True,
    carry: PyTree = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> FittedReadout:
    """A linear readout of a layer's outputs, fitted to targets in one call: ridge regression.

        h = layer.apply(params, xs),    W_hy, b_y = argmin Σ_t ‖W_hy h_t + b_y - y_t‖² + λ ‖W_hy‖²

    The sum is over all steps and sequences that count; b_y is not held small. The layer runs as it always does, in its
    own dtype; what follows is float64 on the host, with or without x64, by QR of blocks of steps: no product hᵀh
    squares the condition. T * B * H numbers of states have to fit into memory.

    Where λ is to be chosen, the steps, sequence after sequence, are cut into ``folds`` blocks. Each is held out in turn
    and the others are fitted; the λ with the least squared error over all blocks then fits all steps. Blocks, since
    the neighbours of a single step would give it away.

    Args:
        layer: a Layer or a Cell whose output is one array of floats, (T, *B, H), such as ``jr.echo_state``.
        params: its parameters, which stay as they are.
        xs: (T, *B, I), inputs.
        ys: (T, *B, O), targets.
        ridge: λ, 0 or above, of the sum of squares (scikit-learn's ``alpha``); or a sequence of several to choose from.
            0 is least squares, the least W_hy of those where there are many.
        folds: how many blocks, where there are several λ.
        washout: how many valid steps of each sequence, and after each of its resets, are not fitted, while the state
            still shows where it began. They are the first in time; of a run in reverse ``mask`` out its last ones.
        bias: whether there is b_y.
        carry, lengths, mask, resets, key: as for ``layer.apply``. Steps that are not valid are not fitted, whatever
            their targets hold; a key draws noise.

    Returns:
        A record: the cell ``readout``, a ``jr.readout(H, O)``, and its ``params``, in the dtype of the layer's outputs;
        the ``ridge`` taken; ``error``, the mean squared one of the steps that were fitted; ``held_out``, that of the
        blocks left out, for each of several λ. ``jr.stack(layer, found.readout)`` with ``(params, found.params)`` is
        the whole model, ``jr.chain`` of a cell and the readout that of steps by hand.

    Raises:
        ValueError, TypeError: targets that do not fit, a ridge below 0, fewer than 2 folds, no steps to fit; inside
            ``jit``. FloatingPointError: states or targets that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.echo_state(1, 50)
        >>> params = cell.init(jax.random.key(0))
        >>> wave = jnp.sin(jnp.arange(500) / 5)[:, None]
        >>> found = jr.fit_readout(cell, params, wave[:-1], wave[1:], ridge=(1e-6, 1e-3, 1.0), washout=100)
        >>> found.ridge, found.held_out.shape, bool(found.error < 1e-6)
        (1e-06, (3,), True)
        >>> model = jr.chain(cell, found.readout)
        >>> carry, y = model.step((params, found.params), model.initial_carry((params, found.params)), wave[0])

    References:
        Hoerl & Kennard, "Ridge regression: biased estimation for nonorthogonal problems", Technometrics 12, 1970.
        Lukoševičius, "A practical guide to applying echo state networks", 2012.
        Bergmeir & Benítez, "On the use of cross-validation for time series predictor evaluation", Information Sciences
        191, 2012 (blocks).
    """
    who = "fit_readout"
    check_model(who, layer)
    check_one_array(who, "ys", ys)
    check_array(who, "ys", ys)
    several, ridges = _ridges(who, ridge)
    flags = {"lengths": lengths, "mask": mask, "resets": resets}
    if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves((params, xs, ys, carry, flags, key))):
        raise TypeError(f"{who}: it computes on the host, in float64, and cannot be jitted; call it outside of jit.")
    given = {name: flag for name, flag in flags.items() if flag is not None}
    states = _outputs(scan(layer) if isinstance(layer, Cell) else layer, params, xs, carry, key, given)
    if not hasattr(states, "dtype") or not jnp.issubdtype(states.dtype, jnp.floating) or states.ndim < 2:
        came = f"{states.dtype} {states.shape}" if hasattr(states, "dtype") else type(states).__name__
        raise TypeError(f"{who}: the layer must put out one array of floats (T, *B, H), got {came}.")
    targets = np.asarray(ys)
    if targets.dtype.kind == "c" or targets.ndim != states.ndim or targets.shape[:-1] != states.shape[:-1]:
        raise ValueError(
            f"{who}: ys must be real numbers (T, *B, O) that lead with {states.shape[:-1]}, as the layer's outputs, "
            f"got {targets.dtype} of shape {targets.shape}; one target a step is ys[..., None]."
        )
    chosen = _fitted_steps(states.shape[:-1], washout, **flags)
    H, O, count = states.shape[-1], targets.shape[-1], int(chosen.sum())
    if count == 0:
        raise ValueError(f"{who}: no step is left to fit; give longer sequences, or a washout below {washout}.")
    if several and not 2 <= folds <= count:
        raise ValueError(f"{who}: folds must be from 2 to the {count} steps that are fitted, got {folds}.")

    rows = _Rows(np.asarray(states), targets, chosen, bias)
    blocks = np.linspace(0, count, (folds if several else 1) + 1).astype(int)
    factors = [_triangle(rows, start, stop) for start, stop in itertools.pairwise(blocks)]
    everything = _joined(factors) if several else factors[0]
    held_out, best = None, 0
    if several:
        errors = np.zeros(len(ridges))
        for fold, factor in enumerate(factors):
            others = _joined([*factors[:fold], *factors[fold + 1 :]])
            errors += [_squared_error(factor, _solution(others, λ, H, O, bias, count), O) for λ in ridges]
        held_out, best = errors / (count * O), int(errors.argmin())
    w = _solution(everything, ridges[best], H, O, bias, count)
    w = np.asarray(jnp.asarray(w, states.dtype)).astype(np.float64)  # as the readout has them
    made = readout(H, O, bias=bias, param_dtype=states.dtype)
    W_hy, b_y = jnp.asarray(w[bias:], states.dtype), jnp.asarray(w[0], states.dtype) if bias else None
    error = _squared_error(everything, w, O) / (count * O)
    return FittedReadout(made, ReadoutParams(W_hy, b_y), ridges[best], error, held_out)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(layer: Layer, params: PyTree, xs: PyTree, carry: PyTree, key: Any, flags: dict[str, Any]) -> PyTree:
    return layer.apply(params, xs, carry, key=key, **flags)[1]


def _ridges(who: str, ridge: Any) -> tuple[bool, list[float]]:
    """Whether there are several to choose from, and the values."""
    values = np.asarray(ridge) if not isinstance(ridge, str) else np.asarray(None)
    if values.dtype.kind not in "iuf" or values.ndim > 1 or values.size == 0:
        raise TypeError(f"{who}: ridge must be a number, or a sequence of them to choose from, got {ridge!r:.80}.")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"{who}: ridge must be finite and 0 or above, got {ridge!r:.80}; 0 is least squares.")
    return values.ndim == 1, values.astype(float).reshape(-1).tolist()


def _fitted_steps(shape: tuple[int, ...], washout: int, lengths: Any, mask: Any, resets: Any) -> np.ndarray:
    """(T, *B) booleans: the steps that are valid, but for the first of each sequence and after each reset."""
    T = shape[0]
    on = np.ones(shape, bool) if mask is None else np.asarray(mask).copy()
    if lengths is not None:
        on &= np.arange(T).reshape(T, *(1,) * (len(shape) - 1)) < np.asarray(lengths)
    begins = np.zeros(shape, bool) if resets is None else np.asarray(resets)[:T]
    seen = np.zeros(shape[1:], int)
    for t in range(T):
        seen = np.where(begins[t], 0, seen) + on[t]
        on[t] &= seen > washout
    return on


class _Rows(NamedTuple):
    """Rows [1, h, y] of the fitted steps, sequence after sequence, made when they are asked for."""

    states: np.ndarray  # (T, *B, H)
    targets: np.ndarray  # (T, *B, O)
    chosen: np.ndarray  # (T, *B)
    bias: bool

    @property
    def columns(self) -> int:
        return self.bias + self.states.shape[-1] + self.targets.shape[-1]

    def between(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """Rows start to stop, ``size`` at a time, float64."""
        T = len(self.chosen)
        *_, step = places = np.nonzero(np.moveaxis(self.chosen.reshape(T, -1), 0, 1))
        for first in range(start, stop, size):
            at = step[first : min(first + size, stop)], places[0][first : min(first + size, stop)]
            h, y = (a.reshape(T, -1, a.shape[-1])[at].astype(np.float64) for a in (self.states, self.targets))
            for name, a in (("the layer's outputs", h), ("ys", y)):
                if not np.isfinite(a).all():
                    bad = int(at[0][~np.isfinite(a).all(1)][0])
                    raise FloatingPointError(
                        f"fit_readout: {name} at step {bad} are not finite; leave such steps out by mask or lengths."
                    )
            yield np.concatenate([np.ones((len(h), int(self.bias))), h, y], axis=1)


def _triangle(rows: _Rows, start: int, stop: int) -> np.ndarray:
    """R of the QR decomposition of some rows, block by block: ‖R v‖ = ‖rows v‖ for every v."""
    R = np.zeros((0, rows.columns))
    for block in rows.between(start, stop, 4 * rows.columns):
        R = _joined([R, block])
    return R


def _joined(factors: Sequence[np.ndarray]) -> np.ndarray:
    """R of the rows of several factors, or of a factor and further rows."""
    R: Any = np.linalg.qr(np.concatenate(factors), mode="r")  # an array alone, in this mode
    return R


def _solution(R: np.ndarray, ridge: float, H: int, O: int, bias: bool, count: int) -> np.ndarray:
    """[b_y; W_hy], (bias + H, O).

    The column of ones comes first, so below the first row of R stands the factor of the states and targets less their
    means: b_y is not held small, and follows from the means, which are that row's.
    """
    first = int(bias)
    A, Z = R[first : first + H, first : first + H], R[first : first + H, first + H :]
    rounding = np.finfo(float).eps * max(count, H)
    if ridge**0.5 <= rounding * np.linalg.norm(A):  # least squares, without the directions that rounding has made
        W = np.linalg.lstsq(A, Z, rcond=rounding)[0]
    else:  # those of [A; √λ] and [Z; 0], which no product AᵀA makes worse
        penalty = np.concatenate([ridge**0.5 * np.eye(H), np.zeros((H, O))], axis=1)
        both = _joined([np.concatenate([A, Z], axis=1), penalty])
        W = np.linalg.solve(both[:H, :H], both[:H, H:])
    b = (R[:1, first + H :] - R[:1, first : first + H] @ W) / R[0, 0] if bias else np.zeros((0, O))
    return np.concatenate([b, W])


def _squared_error(R: np.ndarray, w: np.ndarray, O: int) -> float:
    """Σ ‖[1, h] w - y‖² over the rows of a factor."""
    return float(np.square(R @ np.concatenate([w, -np.eye(O)])).sum())
