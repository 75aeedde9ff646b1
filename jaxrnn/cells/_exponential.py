"""Exponential gates within the range of floats: what the cells of xLSTM share."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn._checks import check_choice

# The logarithm of each forget gate, from its pre-activation.
LOG_FORGET: dict[str, Callable[[jax.Array], jax.Array]] = {"sigmoid": jax.nn.log_sigmoid, "exp": lambda a: a}


def log_forget_of(who: str, forget_gate: str) -> Callable[[jax.Array], jax.Array]:
    """log f as a function of the gate's pre-activation, for the option ``forget_gate``."""
    check_choice(who, "forget_gate", forget_gate, LOG_FORGET)
    return LOG_FORGET[forget_gate]


def stabilised(
    log_i: jax.Array, log_f: jax.Array, m: jax.Array, empty: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gates as they apply to a memory in units of exp(m): ``(i', f', m_t)``.

        m_t = max(log f + m_{t-1}, log i),  i' = exp(log i - m_t),  f' = exp(log f + m_{t-1} - m_t)

    Both gates are at most 1, and one of them is 1. An empty memory has no size: there m_{t-1} stands for -∞, so that
    what is stored first has i' = 1, however small its gate.

    Args:
        log_i, log_f, m: the logarithms of the gates, and m_{t-1}, of one shape.
        empty: where nothing is stored yet; None where that makes no difference.
    """
    m = m if empty is None else jnp.where(empty, -jnp.inf, m)
    new = jnp.maximum(log_f + m, log_i)
    return jnp.exp(log_i - new), jnp.exp(log_f + m - new), new
