"""Dropout of the features of every step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, draw_each_step
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._products import empty_carry


@built_in
def dropout(rate: float, *, x_ndim: int = 1) -> Cell:
    """Dropout: each feature of each step is zeroed with probability ``rate``, the others scaled by 1 / (1 - rate).

    With ``key=None`` (evaluation) it is the identity. The masks are a function of the key and of absolute time, so
    a sequence run in chunks drops what the whole run drops. Features, not whole sequences, are masked.

    Args:
        rate: the probability of a zero, from 0 to below 1.
        x_ndim: the number of feature axes of x: 1 for vectors, 2 to 4 after a ``conv_lstm``.

    Returns:
        A Cell with no parameters, ``()``, and the carry ().

    Raises:
        ValueError: a rate outside [0, 1). TypeError: an x_ndim that is no count.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.dropout(0.5))
        >>> carry, ys = layer.apply((), jnp.ones((4, 3)), key=jax.random.key(0))
        >>> sorted(set(ys.ravel().tolist()))
        [0.0, 2.0]

    Reference:
        Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate must be at least 0 and below 1, got {rate!r}.")

    def noise(params, key, times, x):
        return draw_each_step(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape), key, times)

    def step(params, carry, x, keep=None):
        return carry, x if keep is None else jnp.where(keep, x / (1 - rate), 0)

    return Cell(lambda key: (), empty_carry, step, noise=noise, x_ndim=x_ndim)
