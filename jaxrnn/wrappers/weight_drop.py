"""Dropped weights: DropConnect on what multiplies the state."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_rate
from jaxrnn._spec import specified
from jaxrnn.devices.placement import placed_like
from jaxrnn.wrappers._shared import check_wrapped, draw_inner, own_and_inner
from jaxrnn.wrappers._weights import check_names, weights_named


@specified
def weight_drop(cell: Cell, *, rate: float, names: str | Sequence[str] = "W_hh") -> Cell:
    """DropConnect on recurrent weights: some are 0 for the whole of a run.

        h_t = F(h_{t-1}, x_t; M * W_hh)        M = Bernoulli(1 - rate) / (1 - rate), a number for each weight

    The mask is drawn once a run, from its key alone: all steps and all sequences of the batch share it, and chunks that
    are run with one key have one mask. It is applied outside the loop over time.

    Args:
        cell: a Cell.
        rate: of the weights, from 0 to below 1.
        names: of the parameters that are dropped: a name, or several. ``"W_hh"`` is every parameter called so;
            ``"0.W_hh"`` that of the first member of a chain.

    Returns:
        A Cell with the params and carry of the one given. ``key=None`` means evaluation: the cell as it is, so are its
        gates and initial carry.

    Raises:
        ValueError, TypeError: a rate out of range, something that is no Cell; in ``init`` and while tracing, a name
            that no parameter bears.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.weight_drop(jr.lstm(3, 5), rate=0.5))
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = layer.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))
        >>> bool((ys[:, 0] == ys[:, 1]).all())  # like sequences, one mask
        True

    Differs from ``recurrent_dropout``, which drops units of the state, of each sequence others.

    References:
        Wan, Zeiler, Zhang, LeCun & Fergus, "Regularization of neural networks using DropConnect", ICML 2013.
        Merity, Keskar & Socher, "Regularizing and optimizing LSTM language models", ICLR 2018.
    """
    check_wrapped("weight_drop", cell)
    check_rate("weight_drop", "rate", rate)
    check_names("weight_drop", names)

    def init(key):
        params = cell.init(key)
        weights_named("weight_drop", cell, params, names)
        return params

    def noise(params, key, times, x):
        weights = weights_named("weight_drop", cell, params, names).arrays
        keys = jax.random.split(jax.random.fold_in(key, 0), len(weights))
        kept = [jax.random.bernoulli(k, 1 - rate, (1, *W.shape)) for k, W in zip(keys, weights, strict=True)]
        return kept, draw_inner(cell, params, key, times, x)

    def step(params, carry, x, noise=None):
        kept, inner = own_and_inner(noise)
        if kept is not None:
            weights = weights_named("weight_drop", cell, params, names)
            dropped = (
                jnp.where(placed_like(keep, W), W / (1 - rate), 0) for keep, W in zip(kept, weights.arrays, strict=True)
            )
            params = weights.put(list(dropped))
        return cell.step(params, carry, x, *inner)

    return cell._replace(init=init, step=step, noise=noise)
