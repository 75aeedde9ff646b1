"""Recurrent dropout: one mask for a whole sequence."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, is_float, name_of
from jaxrnn._checks import check_rate
from jaxrnn._spec import specified
from jaxrnn.instruments import step_with_products_reading
from jaxrnn.wrappers._shared import (
    carry_shapes,
    check_wrapped,
    draw_inner,
    own_and_inner,
    state_of,
    with_state,
)


@specified
def recurrent_dropout(cell: Cell, *, rate: float, input_rate: float = 0.0) -> Cell:
    """Dropout inside the recurrence: products read the state and the input through masks drawn once for the sequence.

        h_t = F(h_{t-1}; W_hh (m_h * h_{t-1}), W_xh (m_x * x_t))
        m_h = Bernoulli(1 - rate) / (1 - rate),  m_x = Bernoulli(1 - input_rate) / (1 - input_rate)

    Each sequence keeps its masks over all of its steps. What adds or multiplies the state without a product, as a
    GRU's (1 - z) * h_{t-1} does, takes it whole; so does a residual connection the input.

    Args:
        cell: a Cell whose carry is one array of floats (*B, H), or a record with such an ``h``; an LSTM's c is never
            dropped. Its x is one array of floats where ``input_rate`` is given.
        rate: of the units of h, from 0 to below 1.
        input_rate: of the features of x.

    Returns:
        A Cell with the params and carry of the one given. ``key=None`` means evaluation: the cell as it is.

    Raises:
        ValueError, TypeError: rates out of range, something that is no Cell, a carry without h; while tracing, a step
            without products that read what is dropped, or with such inside a ``cond``, a loop or a rule of its own.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.recurrent_dropout(jr.gru(3, 5), rate=0.25, input_rate=0.1))
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = layer.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))
        >>> ys.shape
        (7, 2, 5)

    Differs from Keras, whose ``dropout`` and ``recurrent_dropout`` may draw a mask for each gate.

    Reference:
        Gal & Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NeurIPS 2016.
    """
    check_wrapped("recurrent_dropout", cell)
    check_rate("recurrent_dropout", "rate", rate)
    check_rate("recurrent_dropout", "input_rate", input_rate)

    def noise(params, key, times, x):
        h = state_of("recurrent_dropout", cell, carry_shapes(cell, params, x))
        if input_rate and not (hasattr(x, "shape") and is_float(x)):
            raise TypeError(
                f"recurrent_dropout: input_rate={input_rate!r} needs x to be one array of floats, got "
                f"{getattr(x, 'dtype', type(x).__name__)}; give rate alone, and drop inputs before the cell."
            )
        k_h, k_x = jax.random.split(jax.random.fold_in(key, 0))
        keep_h = jax.random.bernoulli(k_h, 1 - rate, (1, *h.shape)) if rate else None
        keep_x = jax.random.bernoulli(k_x, 1 - input_rate, (1, *x.shape)) if input_rate else None
        return (keep_h, keep_x), draw_inner(cell, params, key, times, x)

    def masked(a, keep, rate):
        return a if keep is None else jnp.where(keep, a / (1 - rate), 0)

    def step(params, carry, x, noise=None):
        kept, inner = own_and_inner(noise)
        if kept is None:
            return cell.step(params, carry, x, *inner)
        keep_h, keep_x = kept
        h = masked(state_of("recurrent_dropout", cell, carry), keep_h, rate)
        read = (with_state(carry, h) if rate else carry), masked(x, keep_x, input_rate)
        who, own_step = f"recurrent_dropout({name_of(cell)})", functools.partial(cell.step, params)
        return step_with_products_reading(who, own_step, read, (carry, x), *inner)

    return cell._replace(step=step, noise=noise)
