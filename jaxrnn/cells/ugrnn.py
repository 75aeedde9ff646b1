"""Update gate RNN."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, cell_options, check_gate_bias, chrono_bias, per_gate
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus_bias, project
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import block, by_gate

GATES = ("g", "n")  # the blocks of W_xh, W_hh and b, in this order


class UGRNNParams(NamedTuple):
    W_xh: jax.Array  # (I, 2H)
    W_hh: jax.Array  # (H, 2H)
    b: jax.Array | None  # (2H,); None without biases
    h0: jax.Array | None = None  # (H,), where the initial carry is learned


class UGRNNGates(NamedTuple):
    g: jax.Array  # (*B, H) each: update gate, the share of the old state
    n: jax.Array  # candidate
    h: jax.Array  # the new state


@built_in
def ugrnn(
    input_size: int,
    hidden_size: int,
    *,
    activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    bias: bool = True,
    forget_bias: float | None = None,
    T_max: float | None = None,
    input_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Update gate RNN: an Elman network with one gate that keeps the state.

        g   = σ(W [h_{t-1}, x_t] + b)
        n   = tanh(W [h_{t-1}, x_t] + b)
        h_t = g * h_{t-1} + (1 - g) * n

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H), which is the output too.
        activation, gate_activation: in place of tanh and σ, by name or any function, as for ``elman``.
        bias: whether there are biases.
        forget_bias: what is added to the update gate's initial bias, so that it keeps; None means 1.
        T_max: chrono initialisation in its place: biases log U(1, T_max - 1), for dependencies of up to T_max steps.
        input_init, recurrent_init, bias_init, learned_carry, dtype, param_dtype: as for ``gru``.

    Returns:
        A Cell with UGRNNParams, the carry h and UGRNNGates.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown activation or initialiser, two settings of
            the gate's bias; while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.ugrnn(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> jr.gates(cell, params, h, jnp.ones((2, 3)))._fields
        ('g', 'n', 'h')

    Differs from TensorFlow 1's UGRNNCell, which adds 1 to the gate at every step: here it is part of b.

    Reference:
        Collins, Sohl-Dickstein & Sussillo, "Capacity and trainability in recurrent neural networks", ICLR 2017.
    """
    H = hidden_size
    act, σ, init_x, init_h, init_b = cell_options(
        "ugrnn", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    check_gate_bias("ugrnn", "update", bias, forget_bias=forget_bias, T_max=T_max)

    def init(key):
        k_xh, k_hh, k_b, k_g = jax.random.split(key, 4)
        b = per_gate(init_b, k_b, (H,), GATES, param_dtype) if bias else None
        if b is not None:
            forget = 1.0 if forget_bias is None else forget_bias
            b = b.at[block(GATES, "g", H)].add(forget if T_max is None else chrono_bias(T_max, k_g, H, param_dtype))
        return UGRNNParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), GATES, param_dtype),
            W_hh=per_gate(init_h, k_hh, (H, H), GATES, param_dtype),
            b=b,
            h0=jnp.zeros((H,), param_dtype) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        return initial_state(params.h0, batch_shape, H, carry_dtype(params.W_hh, dtype))

    def gates(params, h, x):
        W_xh, W_hh, b, _ = params
        a = by_gate(GATES, plus_bias(project(h, W_hh, dtype) + project(x, W_xh, dtype), b))
        g, n = σ(a.g), act(a.n)
        return UGRNNGates(g, n, g * h + (1 - g) * n)

    def step(params, h, x):
        *_, h = gates(params, h, x)
        return h, output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=H)
