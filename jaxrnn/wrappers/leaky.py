"""Leaky integration, and residual recurrence."""

from __future__ import annotations

import functools

import jax

from jaxrnn._base import Cell, is_inexact, name_of
from jaxrnn._spec import specified
from jaxrnn.instruments import step_with_carry_changed
from jaxrnn.wrappers._gates import gates_with_carry_changed
from jaxrnn.wrappers._shared import check_blended, check_wrapped


@specified
def leaky(cell: Cell, *, rate: float, keep: float | None = None) -> Cell:
    """A state that moves towards the cell's new one: leaky integration, and residual recurrence with ``keep=1``.

        h_t = keep * h_{t-1} + rate * F(h_{t-1}, x_t)        F: the step of the cell; keep = 1 - rate by default

    Gradients then have a way back through ``keep`` that no weight or activation touches: with keep = 1 - rate it decays
    with a time constant of 1/rate steps (a neuron's Δt/τ), with keep = 1 not at all.

    Args:
        cell: a Cell; every leaf of its carry that is real or complex numbers becomes leaky, others (integers, booleans,
            keys) are what its step makes of them. The output is computed from the leaky carry.
        rate: above 0, usually at most 1.
        keep: from 0 to 1; None means 1 - rate.

    Returns:
        A Cell with the params and carry of the one given; of its gates, those that are the new state are leaky.

    Raises:
        ValueError, TypeError: rates out of range, something that is no Cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.leaky(jr.elman(3, 5), rate=0.1)
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, jnp.ones(5), jnp.zeros(3))
        >>> bool((h == y).all() & (h >= 0.8).all())  # 0.9 of the old state, and up to ± 0.1
        True

    References:
        Jaeger, Lukoševičius, Popovici & Siewert, "Optimization and applications of echo state networks with
        leaky-integrator neurons", Neural Networks 20, 2007.
        He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016 (keep = 1, over depth).
    """
    check_wrapped("leaky", cell)
    for name, value in (("rate", rate), ("keep", 0.0 if keep is None else keep)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"leaky: {name} must be a Python number, got {type(value).__name__}; to sweep or learn it, write "
                f"a cell of your own that has it among its params."
            )
    if not rate > 0:
        raise ValueError(f"leaky: rate must be above 0, got {rate!r}; 1 is the cell itself.")
    keep = 1 - rate if keep is None else keep
    if not 0 <= keep <= 1:
        raise ValueError(f"leaky: keep must lie between 0 and 1, got {keep!r}; give rate <= 1, or keep=1 for residual.")

    def blend(old, new):
        return (keep * old + rate * new).astype(old.dtype) if is_inexact(old) else new

    def change(carry, new):
        check_blended("leaky", cell, carry)
        return jax.tree.map(blend, carry, new)

    def step(params, carry, x, *noise):
        who, own_step = f"leaky({name_of(cell)})", functools.partial(cell.step, params)
        return step_with_carry_changed(who, own_step, functools.partial(change, carry), carry, x, *noise)

    return cell._replace(step=step, gates=gates_with_carry_changed("leaky", cell, change))
