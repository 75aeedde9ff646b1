"""States held within bounds."""

from __future__ import annotations

import functools

from jaxrnn._base import Cell, is_inexact, name_of
from jaxrnn._spec import specified
from jaxrnn.instruments import step_with_leaves_changed
from jaxrnn.wrappers._gates import carry_in_gates, with_carry_in_gates
from jaxrnn.wrappers._shared import check_blended, check_wrapped, held_within


@specified
def clip_state(cell: Cell, *, max_value: float) -> Cell:
    """Hold every number of the state within ± max_value, where the step computes it.

        c_t = clip(f * c_{t-1} + i * g, -max_value, max_value),  h_t = o * tanh(c_t)        of an LSTM, for example

    Args:
        cell: a Cell; what its step computes from a leaf of the new carry, it computes from the clipped one. Leaves that
            are no numbers to clip (integers, booleans, keys) are left as they are.
        max_value: the largest absolute value. The gradient of a clipped number is 0; of a complex one, whose modulus is
            clipped, that by its modulus.

    Returns:
        A Cell with the params and carry of the one given; its gates are computed from the clipped numbers, as its step.

    Raises:
        ValueError, TypeError: a bound that is not positive, something that is no Cell; while tracing, a carry that
            holds several steps (``dilated``: clip the cell inside).

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.clip_state(jr.elman(1, 1, activation="relu"), max_value=3)
        >>> params = cell.init(jax.random.key(0))._replace(W_xh=jnp.ones((1, 1)), W_hh=jnp.ones((1, 1)))
        >>> jr.scan(cell).apply(params, jnp.ones((5, 1)))[1][:, 0].tolist()
        [1.0, 2.0, 3.0, 3.0, 3.0]

    Differs from ONNX's ``clip``, which bounds what enters the activations, and from clipping gradients
    (:func:`cotangent_clip`).

    Reference:
        Sak, Senior & Beaufays, "Long short-term memory recurrent neural network architectures for large scale acoustic
        modeling", Interspeech 2014 (the memory within ± 50).
    """
    check_wrapped("clip_state", cell)
    if not max_value > 0:
        raise ValueError(f"clip_state: max_value must be positive, got {max_value!r}.")

    def clip(index, a):
        return held_within(a, max_value) if is_inexact(a) else a

    def step(params, carry, x, *noise):
        check_blended("clip_state", cell, carry)
        own_step = functools.partial(cell.step, params)
        return step_with_leaves_changed(f"clip_state({name_of(cell)})", own_step, clip, carry, x, *noise)

    def gates(params, carry, x):
        check_blended("clip_state", cell, carry)

        def own_gates(carry, x):
            own = cell.gates(params, carry, x)  # type: ignore[misc]
            return carry_in_gates("clip_state", cell, own, carry), own

        new, own = step_with_leaves_changed(f"clip_state({name_of(cell)})", own_gates, clip, carry, x)
        return with_carry_in_gates(own, new)

    return cell._replace(step=step, gates=gates if cell.gates else None)
