"""LSTM with coupled input and forget gates."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, cell_options, per_gate
from jaxrnn.cells._products import output, plus_bias, project
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import by_gate
from jaxrnn.cells.lstm_family import LSTMCarry, LSTMGates, forget_bias_of, learned_lstm_carry, lstm_initial_carry

GATES = ("f", "g", "o")  # the blocks of W_xh, W_hh and b, in this order


class CIFGParams(NamedTuple):
    W_xh: jax.Array  # (I, 3H)
    W_hh: jax.Array  # (H, 3H)
    b: jax.Array | None  # (3H,); None without biases
    initial: LSTMCarry | None = None  # (H,) each, where the initial carry is learned


@built_in
def cifg_lstm(
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
    """LSTM with coupled input and forget gates (CIFG): what it forgets it writes anew.

        f, o = σ(W [h_{t-1}, x_t] + b)
        g    = tanh(W [h_{t-1}, x_t] + b)
        c_t  = f * c_{t-1} + (1 - f) * g
        h_t  = o * tanh(c_t)

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of ``LSTMCarry(h, c)``, (*B, H) each, and of the output ``y = h_t``.
        T_max: chrono initialisation: forget biases log U(1, T_max - 1), which the input gate follows by itself.
        activation, gate_activation, bias, forget_bias, input_init, recurrent_init, bias_init, learned_carry, dtype,
            param_dtype: as for ``lstm``.

    Returns:
        A Cell with CIFGParams, LSTMCarry and LSTMGates, of which i is 1 - f.

    Raises:
        ValueError, TypeError: as for ``lstm``.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.cifg_lstm(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> gates = jr.gates(cell, params, cell.initial_carry(params), jnp.ones(3))
        >>> bool((gates.i + gates.f == 1).all())
        True

    Differs from ONNX's ``input_forget``, which computes i and takes f = 1 - i: negate the block of the gate.

    Reference:
        Greff, Srivastava, Koutník, Steunebrink & Schmidhuber, "LSTM: a search space odyssey", IEEE Transactions on
        Neural Networks and Learning Systems 28, 2017.
    """
    H = hidden_size
    act, σ, init_x, init_h, init_b = cell_options(
        "cifg_lstm", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    add_forget_bias = forget_bias_of("cifg_lstm", GATES, H, bias, forget_bias, T_max)

    def init(key):
        k_xh, k_hh, k_b, k_f = jax.random.split(key, 4)
        return CIFGParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), GATES, param_dtype),
            W_hh=per_gate(init_h, k_hh, (H, H), GATES, param_dtype),
            b=add_forget_bias(k_f, per_gate(init_b, k_b, (H,), GATES, param_dtype)),
            initial=learned_lstm_carry(H, param_dtype) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        return lstm_initial_carry(params, batch_shape, H, dtype)

    def gates(params, carry, x):
        W_xh, W_hh, b, _ = params
        h, c = carry
        a = by_gate(GATES, plus_bias(project(h, W_hh, dtype) + project(x, W_xh, dtype), b))
        f, g, o = σ(a.f), act(a.g), σ(a.o)
        i = 1 - f
        c = f * c + i * g
        h = o * act(c)
        return LSTMGates(i, f, g, o, c, h)

    def step(params, carry, x):
        *_, c, h = gates(params, carry, x)
        return LSTMCarry(h, c), output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=hidden_size)
