"""Noise on the weights of a run."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxrnn._base import Cell
from jaxrnn._spec import specified
from jaxrnn.devices.placement import placed_like
from jaxrnn.wrappers._shared import check_not_negative, check_wrapped, draw_inner, own_and_inner
from jaxrnn.wrappers._weights import check_names, weights_named


@specified
def weight_noise(cell: Cell, *, std: float, names: str | Sequence[str] | None = None) -> Cell:
    """Gaussian noise on the parameters, one draw for the whole of a run.

        h_t = F(h_{t-1}, x_t; W + std * ε)        ε ~ N(0, 1), a number for each weight

    The noise is drawn once a run, from its key alone: all steps and all sequences of the batch share it, and chunks
    that are run with one key have one draw. It is added outside the loop over time.

    Args:
        cell: a Cell.
        std: the standard deviation of the noise, 0 or above; of complex parameters that of the modulus.
        names: of the parameters that get noise: a name, or several (``"W_hh"``; ``"0.W_hh"`` in the first member of a
            chain); None means all that are real or complex numbers. Initial carries, learned ones too, are without.

    Returns:
        A Cell with the params and carry of the one given. ``key=None`` means evaluation: the cell as it is, so are its
        gates.

    Raises:
        ValueError, TypeError: a negative std, something that is no Cell; in ``init`` and while tracing, a name that no
            parameter bears.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.weight_noise(jr.lstm(3, 5), std=0.075))
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = layer.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))
        >>> ys.shape
        (7, 2, 5)

    References:
        Jim, Giles & Horne, "An analysis of noise in recurrent neural networks: convergence and generalization", IEEE
        Transactions on Neural Networks 7, 1996.
        Graves, "Practical variational inference for neural networks", NeurIPS 2011.
    """
    check_wrapped("weight_noise", cell)
    check_not_negative("weight_noise", "std", std)
    if names is not None:
        check_names("weight_noise", names)

    def init(key):
        params = cell.init(key)
        weights_named("weight_noise", cell, params, names)
        return params

    def noise(params, key, times, x):
        weights = weights_named("weight_noise", cell, params, names).arrays
        keys = jax.random.split(jax.random.fold_in(key, 0), len(weights))
        ε = [jax.random.normal(k, (1, *W.shape), W.dtype) for k, W in zip(keys, weights, strict=True)]
        return ε, draw_inner(cell, params, key, times, x)

    def step(params, carry, x, noise=None):
        ε, inner = own_and_inner(noise)
        if ε is not None:
            weights = weights_named("weight_noise", cell, params, names)
            params = weights.put([W + std * placed_like(e, W) for W, e in zip(weights.arrays, ε, strict=True)])
        return cell.step(params, carry, x, *inner)

    return cell._replace(init=init, step=step, noise=noise)
