"""Zoneout: units that keep their old state at random."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, draw_each_step, flatten, is_inexact, name_of
from jaxrnn._checks import check_rate
from jaxrnn._spec import specified
from jaxrnn.devices.placement import placed_like
from jaxrnn.instruments import step_with_carry_changed
from jaxrnn.wrappers._gates import gates_with_carry_changed
from jaxrnn.wrappers._shared import carry_shapes, check_blended, check_wrapped, draw_inner, own_and_inner


@specified
def zoneout(cell: Cell, *, rate: float, c_rate: float | None = None) -> Cell:
    """Zoneout: at each step each unit keeps its old state with probability ``rate``.

        h_t = d_t * h_{t-1} + (1 - d_t) * F(h_{t-1}, x_t)        d_t ~ Bernoulli(rate), for each unit and step
        h_t = rate * h_{t-1} + (1 - rate) * F(h_{t-1}, x_t)      in evaluation: the mean of that

    Args:
        cell: a Cell; the output is computed from the state as it is kept.
        rate: of every leaf of the carry that is real or complex numbers, from 0 to below 1. Others (integers, booleans,
            keys) are what the cell's step makes of them.
        c_rate: of an LSTM's memory ``c``; None means ``rate``.

    Returns:
        A Cell with the params and carry of the one given. ``key=None`` means evaluation: the mean, bitwise
        deterministic. Steps that are not valid hold the whole state. Its gates are those of evaluation.

    Raises:
        ValueError, TypeError: rates out of range, a ``c_rate`` without a ``c``, something that is no Cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.zoneout(jr.lstm(3, 5), rate=0.05, c_rate=0.5))
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = layer.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))
        >>> ys.shape
        (7, 2, 5)

    Reference:
        Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR 2017.
    """
    check_wrapped("zoneout", cell)
    check_rate("zoneout", "rate", rate)
    check_rate("zoneout", "c_rate", rate if c_rate is None else c_rate)

    def rates(carry):
        """One for each leaf."""
        if c_rate is not None and not (hasattr(carry, "c") and hasattr(carry, "_replace")):
            raise TypeError(
                f"zoneout: c_rate={c_rate!r} is for the memory c of a NamedTuple, which the carry of {name_of(cell)} "
                f"lacks; give rate alone."
            )
        of_each = jax.tree.map(lambda a: rate, carry)
        return of_each if c_rate is None else of_each._replace(c=c_rate)

    def noise(params, key, times, x):
        leaves, treedef = flatten(carry_shapes(cell, params, x))
        chances = jax.tree.leaves(rates(treedef.unflatten(leaves)))

        def draw(key):
            keys = jax.random.split(key, len(leaves))
            return [jax.random.bernoulli(k, p, a.shape) for k, p, a in zip(keys, chances, leaves, strict=True)]

        return draw_each_step(draw, jax.random.fold_in(key, 0), times), draw_inner(cell, params, key, times, x)

    def blend(old, new, rate, keeps):
        if not is_inexact(old):
            return new
        mixed = rate * old + (1 - rate) * new if keeps is None else jnp.where(placed_like(keeps, old), old, new)
        return mixed.astype(old.dtype)

    def change(carry, new, kept=None):
        check_blended("zoneout", cell, carry)
        leaves, treedef = flatten(carry)
        kept = [None] * len(leaves) if kept is None else kept
        return treedef.unflatten(map(blend, leaves, jax.tree.leaves(new), jax.tree.leaves(rates(carry)), kept))

    def step(params, carry, x, noise=None):
        kept, inner = own_and_inner(noise)
        who, own_step = f"zoneout({name_of(cell)})", functools.partial(cell.step, params)
        return step_with_carry_changed(who, own_step, functools.partial(change, carry, kept=kept), carry, x, *inner)

    return cell._replace(step=step, noise=noise, gates=gates_with_carry_changed("zoneout", cell, change))
