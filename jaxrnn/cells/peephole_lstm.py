"""LSTM with peephole connections: the gates see the memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice, check_sizes
from jaxrnn.cells._shared import Initializer, built_in, initializer, output, per_gate, plus_bias, project
from jaxrnn.cells.activations import Activation, activation_of
from jaxrnn.cells.lstm_family import LSTMCarry, LSTMGates, forget_bias_of, learned_lstm_carry, lstm_initial_carry


class PeepholeLSTMParams(NamedTuple):
    W_xh: jax.Array  # (I, 4H), gate order i, f, g, o
    W_hh: jax.Array  # (H, 4H), gate order i, f, g, o
    b: jax.Array | None  # (4H,), gate order i, f, g, o; None without biases
    U_i: jax.Array  # (H,) diagonal, or (H, H) full (c @ U); so are the next two
    U_f: jax.Array
    U_o: jax.Array
    initial: LSTMCarry | None = None  # (H,) each, where the initial carry is learned


@built_in
def peephole_lstm(
    input_size: int,
    hidden_size: int,
    *,
    peephole: str = "diagonal",
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
    """LSTM whose gates see the memory through peepholes.

        i, f = σ(W [h_{t-1}, x_t] + U c_{t-1} + b)
        g    = tanh(W [h_{t-1}, x_t] + b)
        c_t  = f * c_{t-1} + i * g
        o    = σ(W [h_{t-1}, x_t] + U_o c_t + b)
        h_t  = o * tanh(c_t)

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of ``LSTMCarry(h, c)``, (*B, H) each, and of the output ``y = h_t``.
        peephole: "diagonal": each U is a vector (H,), a gate sees its own unit's memory; "full": a matrix (H, H).
        activation, gate_activation, bias, forget_bias, T_max, input_init, recurrent_init, bias_init, learned_carry,
            dtype, param_dtype: as for ``lstm``; full peepholes are drawn by ``recurrent_init``, diagonal ones from
            N(0, 1/H).

    Returns:
        A Cell with PeepholeLSTMParams, LSTMCarry and LSTMGates.

    Raises:
        ValueError, TypeError: as for ``lstm``, and for an unknown peephole.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.peephole_lstm(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> params.U_i.shape
        (5,)

    Differs from PyTorch, Keras, Flax, Haiku and Equinox, which have no peepholes; ONNX has the diagonal ones.

    Reference:
        Gers & Schmidhuber, "Recurrent nets that time and count", IJCNN 2000.
    """
    check_sizes("peephole_lstm", input_size=input_size, hidden_size=hidden_size)
    check_choice("peephole_lstm", "peephole", peephole, ("diagonal", "full"))
    act = activation_of("peephole_lstm", "activation", activation)
    σ = activation_of("peephole_lstm", "gate_activation", gate_activation)
    init_x = initializer("peephole_lstm", "input_init", input_init, hidden_size)
    init_h = initializer("peephole_lstm", "recurrent_init", recurrent_init, hidden_size)
    init_b = initializer("peephole_lstm", "bias_init", bias_init, hidden_size)
    add_forget_bias = forget_bias_of("peephole_lstm", hidden_size, forget_bias, T_max, bias)

    def init_U(key):
        if peephole == "full":
            return init_h(key, (hidden_size, hidden_size), param_dtype)
        return jax.random.normal(key, (hidden_size,), param_dtype) * hidden_size**-0.5

    def init(key):
        k_xh, k_hh, k_b, k_f, k_U = jax.random.split(key, 5)
        U_i, U_f, U_o = map(init_U, jax.random.split(k_U, 3))
        return PeepholeLSTMParams(
            W_xh=per_gate(init_x, k_xh, (input_size, hidden_size), 4, param_dtype),
            W_hh=per_gate(init_h, k_hh, (hidden_size, hidden_size), 4, param_dtype),
            b=add_forget_bias(k_f, per_gate(init_b, k_b, (hidden_size,), 4, param_dtype)),
            U_i=U_i,
            U_f=U_f,
            U_o=U_o,
            initial=learned_lstm_carry(hidden_size, param_dtype) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        return lstm_initial_carry(params, batch_shape, hidden_size, dtype)

    def peep(c, U):
        return c * U if peephole == "diagonal" else project(c, U, dtype)

    def gates(params, carry, x):
        W_xh, W_hh, b, U_i, U_f, U_o, _ = params
        h, c = carry
        i, f, g, o = jnp.split(plus_bias(project(h, W_hh, dtype) + project(x, W_xh, dtype), b), 4, axis=-1)
        i, f, g = σ(i + peep(c, U_i)), σ(f + peep(c, U_f)), act(g)
        c = f * c + i * g
        o = σ(o + peep(c, U_o))
        h = o * act(c)
        return LSTMGates(i, f, g, o, c, h)

    def step(params, carry, x):
        *_, c, h = gates(params, carry, x)
        return LSTMCarry(h, c), output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=hidden_size)
