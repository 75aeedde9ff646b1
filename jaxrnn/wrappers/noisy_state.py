"""Noise on the state at every step."""

from __future__ import annotations

import functools

import jax

from jaxrnn._base import Cell, draw_each_step, flatten, is_inexact, name_of
from jaxrnn._spec import specified
from jaxrnn.devices.placement import placed_like
from jaxrnn.instruments import step_with_carry_changed
from jaxrnn.wrappers._shared import (
    carry_shapes,
    check_blended,
    check_not_negative,
    check_wrapped,
    draw_inner,
    own_and_inner,
)


@specified
def noisy_state(cell: Cell, *, std: float) -> Cell:
    """Gaussian noise on the state, drawn anew at each step.

        h_t = F(h_{t-1}, x_t) + std * ε_t        ε_t ~ N(0, 1), for each sequence, unit and step

    Args:
        cell: a Cell; every leaf of its carry that is real or complex numbers gets noise, others (integers, booleans,
            keys) are what its step makes of them. The output is computed from the noisy state.
        std: the standard deviation of the noise, 0 or above; of complex numbers that of the modulus. A diffusion with
            steps of Δt has std = σ √Δt.

    Returns:
        A Cell with the params and carry of the one given. ``key=None`` means evaluation: the cell as it is, so are its
        gates. Noise is a function of the key and of absolute time; steps that are not valid hold the state.

    Raises:
        ValueError, TypeError: a negative std, something that is no Cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.noisy_state(jr.gru(3, 5), std=0.1))
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = layer.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))
        >>> ys.shape
        (7, 2, 5)

    References:
        Jim, Giles & Horne, "An analysis of noise in recurrent neural networks: convergence and generalization", IEEE
        Transactions on Neural Networks 7, 1996.
        Dieng, Ranganath, Altosaar & Blei, "Noisin: unbiased regularization for recurrent neural networks", ICML 2018.
    """
    check_wrapped("noisy_state", cell)
    check_not_negative("noisy_state", "std", std)

    def noise(params, key, times, x):
        leaves, _ = flatten(carry_shapes(cell, params, x))

        def draw(key):
            keys = jax.random.split(key, len(leaves))
            pairs = zip(keys, leaves, strict=True)
            return [jax.random.normal(k, a.shape, a.dtype) if is_inexact(a) else None for k, a in pairs]

        return draw_each_step(draw, jax.random.fold_in(key, 0), times), draw_inner(cell, params, key, times, x)

    def step(params, carry, x, noise=None):
        ε, inner = own_and_inner(noise)
        if ε is None:
            return cell.step(params, carry, x, *inner)
        check_blended("noisy_state", cell, carry)

        def change(new):
            leaves, treedef = flatten(new)
            pairs = zip(leaves, ε, strict=True)
            return treedef.unflatten([a if e is None else a + std * placed_like(e, a) for a, e in pairs])

        who, own_step = f"noisy_state({name_of(cell)})", functools.partial(cell.step, params)
        return step_with_carry_changed(who, own_step, change, carry, x, *inner)

    return cell._replace(step=step, noise=noise)
