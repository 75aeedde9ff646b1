"""Recurrent dropout, in the three ways of three papers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, is_float, name_of
from jaxrnn._checks import check_choice, check_rate
from jaxrnn._spec import specified
from jaxrnn.instruments import step_with_products_reading
from jaxrnn.wrappers._inner_dropout import candidate_dropped, memory_dropped
from jaxrnn.wrappers._shared import (
    carry_shapes,
    check_wrapped,
    draw_inner,
    own_and_inner,
    state_of,
    with_state,
)

KINDS = ("gal2016", "semeniuta2016", "moon2015")


@specified
def recurrent_dropout(cell: Cell, *, rate: float, input_rate: float = 0.0, kind: str = "gal2016") -> Cell:
    """Dropout inside the recurrence, of the state that is read, of what is added to it, or of the memory.

        h_t = F(h_{t-1}; W_hh (m_h * h_{t-1}), W_xh (m_x * x_t))      kind="gal2016"
        c_t = f * c_{t-1} + i * (m_t * g)                             kind="semeniuta2016"; h_t = … + z * (m_t * n)
        c_t = m * (f * c_{t-1} + i * g)                               kind="moon2015"; h of a carry without c
        m_h = Bernoulli(1 - rate) / (1 - rate),  m_x = Bernoulli(1 - input_rate) / (1 - input_rate),  m_t as m_h
        m   = Bernoulli(1 - rate), in evaluation 1 - rate

    "gal2016": products read the state and the input through masks that each sequence keeps over all of its steps. What
    adds or multiplies the state without a product, as a GRU's (1 - z) * h_{t-1} does, takes it whole; so does a
    residual connection the input. "semeniuta2016" drops candidates, at each step others, so that no memory is lost.
    "moon2015" drops units of the memory, for each sequence the same at all steps; kept units are not scaled up, which
    would add up over the steps.

    Args:
        cell: a Cell. "gal2016": its carry is one array of floats (*B, H), or a record with such an ``h``; an LSTM's c
            is never dropped. Its x is one array of floats where ``input_rate`` is given. "semeniuta2016": its gates
            have a candidate, ``n`` or ``g``, and the new state. "moon2015": its carry is one array or a record with
            ``c`` or ``h``.
        rate: of the units of what is dropped, from 0 to below 1.
        input_rate: of the features of x, with "gal2016".
        kind: "gal2016", "semeniuta2016" or "moon2015".

    Returns:
        A Cell with the params and carry of the one given. ``key=None`` means evaluation: the cell as it is, of
        "moon2015" with its memory times 1 - rate at each step, as its gates show it.

    Raises:
        ValueError, TypeError: rates out of range, an unknown kind, an input rate beside another kind, something that is
            no Cell, a carry without h, gates without a candidate, gates of a cell with noise; while tracing, a step
            without products that read what is dropped, or with such inside a ``cond``, a loop or a rule of its own.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.recurrent_dropout(jr.gru(3, 5), rate=0.25, input_rate=0.1))
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = layer.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))
        >>> ys.shape
        (7, 2, 5)

    Differs from Keras, whose ``dropout`` and ``recurrent_dropout`` may draw a mask for each gate, and from Semeniuta
    et al., who multiply by 1 - rate in evaluation in place of dividing by it in training.

    References:
        Gal & Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NeurIPS 2016.
        Semeniuta, Severyn & Barth, "Recurrent dropout without memory loss", COLING 2016.
        Moon, Choi, Lee & Song, "RNNDROP: a novel dropout for RNNs in ASR", ASRU 2015.
    """
    check_wrapped("recurrent_dropout", cell)
    check_rate("recurrent_dropout", "rate", rate)
    check_rate("recurrent_dropout", "input_rate", input_rate)
    check_choice("recurrent_dropout", "kind", kind, KINDS)
    if input_rate and kind != "gal2016":
        raise ValueError(
            f'recurrent_dropout: got input_rate={input_rate!r}, which is of kind="gal2016" alone, and kind={kind!r}; '
            f"put jr.dropout in front of the cell."
        )
    if kind == "semeniuta2016":
        return candidate_dropped(cell, rate)
    return memory_dropped(cell, rate) if kind == "moon2015" else _reads_dropped(cell, rate, input_rate)


def _reads_dropped(cell: Cell, rate: float, input_rate: float) -> Cell:
    """Gal & Ghahramani's: products read the state and the input through masks."""

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
