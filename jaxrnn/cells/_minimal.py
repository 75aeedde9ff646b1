"""What minGRU and minLSTM share: gates and candidates that read the input alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._checks import check_choice
from jaxrnn.cells._options import Initializer, initializer, per_gate
from jaxrnn.cells._products import plus_bias, project
from jaxrnn.cells.activations import Function
from jaxrnn.cells.fused import GateOrder, by_gate


def positive(a: jax.Array) -> jax.Array:
    """g(a) = a + 1/2 where a ≥ 0, σ(a) elsewhere: above 0, and continuous."""
    return jnp.where(a >= 0, a + 0.5, jax.nn.sigmoid(a))


CANDIDATES: dict[str, Function] = {"positive": positive, "linear": lambda a: a}


def candidate_of(who: str, candidate: str) -> Function:
    """What the candidate is of its affine map."""
    check_choice(who, "candidate", candidate, CANDIDATES)
    return CANDIDATES[candidate]


def affine_maps(
    who: str,
    order: GateOrder,
    sizes: tuple[int, int],
    bias: bool,
    inits: tuple[str | Initializer, str | Initializer],
    dtypes: tuple[Any, Any],
) -> tuple[Callable[[jax.Array], tuple[jax.Array, jax.Array | None]], Callable[[Any, jax.Array], Any]]:
    """``(draw, maps)``: the parameters W_xh (I, gates * H) and b of a key; W x + b of each gate, by name.

    Args:
        who: the kind of cell, for error messages.
        order: its gates.
        sizes: I and H.
        bias: whether there is b.
        inits: ``input_init`` and ``bias_init``.
        dtypes: ``dtype`` and ``param_dtype``.
    """
    (I, H), (dtype, param_dtype) = sizes, dtypes
    names = ("input_init", "bias_init")
    init_x, init_b = (initializer(who, name, init, H) for name, init in zip(names, inits, strict=True))

    def draw(key):
        k_xh, k_b = jax.random.split(key)
        W_xh = per_gate(init_x, k_xh, (I, H), order, param_dtype)
        return W_xh, per_gate(init_b, k_b, (H,), order, param_dtype) if bias else None

    def maps(params, x):
        return by_gate(order, plus_bias(project(x, params.W_xh, dtype), params.b))

    return draw, maps
