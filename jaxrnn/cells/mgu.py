"""Minimal gated unit."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, cell_options, per_gate
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus_bias, project
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import block, by_gate

GATES = ("f", "n")  # the blocks of W_xh, W_hh and b, in this order


class MGUParams(NamedTuple):
    W_xh: jax.Array  # (I, 2H)
    W_hh: jax.Array  # (H, 2H)
    b: jax.Array | None  # (2H,); None without biases
    b_hh: jax.Array | None = None  # (H,), inside the product with f, for reset="after"
    h0: jax.Array | None = None  # (H,), where the initial carry is learned


class MGUGates(NamedTuple):
    f: jax.Array  # (*B, H) each: the one gate
    n: jax.Array  # candidate
    h: jax.Array  # the new state


@built_in
def mgu(
    input_size: int,
    hidden_size: int,
    *,
    reset: str = "before",
    keep: str = "candidate",
    activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    bias: bool = True,
    input_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Minimal gated unit: a GRU with one gate for both of its two.

        f   = σ(W [h_{t-1}, x_t] + b)
        n   = tanh(W_hh (f * h_{t-1}) + W_xh x_t + b)            reset="before"
        n   = tanh(W_xh x_t + b + f * (W_hh h_{t-1} + b_hh))     reset="after"
        n   = tanh(W_xh x_t + b + W_hh h_{t-1})                  reset="none"
        h_t = (1 - f) * h_{t-1} + f * n                          keep="candidate"
        h_t = f * h_{t-1} + (1 - f) * n                          keep="state"

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H), which is the output too.
        reset: "before" the recurrent product, as in the paper, "after" it, as Flax has it, or "none".
        keep: which share f is of the new state: the "candidate"'s, as in the paper, or the old "state"'s, as in Flax.
        activation, gate_activation: in place of tanh and σ, by name or any function, as for ``elman``.
        bias: whether there are biases.
        input_init, recurrent_init, bias_init, learned_carry, dtype, param_dtype: as for ``gru``.

    Returns:
        A Cell with MGUParams, the carry h and MGUGates.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown reset, keep, activation or initialiser;
            while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.mgu(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> jr.gates(cell, params, h, jnp.ones((2, 3)))._fields
        ('f', 'n', 'h')

    Reference:
        Zhou, Wu, Zhang & Zhou, "Minimal gated unit for recurrent neural networks", International Journal of
        Automation and Computing 13, 2016.
    """
    H = hidden_size
    check_choice("mgu", "reset", reset, ("before", "after", "none"))
    check_choice("mgu", "keep", keep, ("candidate", "state"))
    act, σ, init_x, init_h, init_b = cell_options(
        "mgu", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    at_f, at_n = block(GATES, "f", H), block(GATES, "n", H)

    def init(key):
        k_xh, k_hh, k_b, k_bhh = jax.random.split(key, 4)
        return MGUParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), GATES, param_dtype),
            W_hh=per_gate(init_h, k_hh, (H, H), GATES, param_dtype),
            b=per_gate(init_b, k_b, (H,), GATES, param_dtype) if bias else None,
            b_hh=init_b(k_bhh, (H,), param_dtype) if bias and reset == "after" else None,
            h0=jnp.zeros((H,), param_dtype) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        return initial_state(params.h0, batch_shape, H, carry_dtype(params.W_hh, dtype))

    def gates(params, h, x):
        W_xh, W_hh, b, b_hh, _ = params
        a = by_gate(GATES, plus_bias(project(x, W_xh, dtype), b))
        if reset == "before":
            f = σ(project(h, W_hh, dtype, at_f) + a.f)
            n = act(project(f * h, W_hh, dtype, at_n) + a.n)
        else:
            u = by_gate(GATES, project(h, W_hh, dtype))
            f = σ(u.f + a.f)
            n = act(a.n + (f * plus_bias(u.n, b_hh) if reset == "after" else u.n))
        h = (1 - f) * h + f * n if keep == "candidate" else f * h + (1 - f) * n
        return MGUGates(f, n, h)

    def step(params, h, x):
        *_, h = gates(params, h, x)
        return h, output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=hidden_size)
