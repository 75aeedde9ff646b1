"""LSTM with peephole connections: the gates see the memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, cell_options, per_gate
from jaxrnn.cells._products import output, plus_bias, project, times
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import by_gate
from jaxrnn.cells.lstm_family import (
    GATES,
    LSTMCarry,
    LSTMGates,
    forget_bias_of,
    learned_lstm_carry,
    lstm_initial_carry,
)


class PeepholeLSTMParams(NamedTuple):
    W_xh: jax.Array  # (I, 4H), blocks i, f, g, o: GATES
    W_hh: jax.Array  # (H, 4H), so too
    b: jax.Array | None  # (4H,), so too; None without biases
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
    H = hidden_size
    check_choice("peephole_lstm", "peephole", peephole, ("diagonal", "full"))
    act, σ, init_x, init_h, init_b = cell_options(
        "peephole_lstm", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    add_forget_bias = forget_bias_of("peephole_lstm", GATES, H, bias, forget_bias, T_max)

    def init_U(key):
        if peephole == "full":
            return init_h(key, (H, H), param_dtype)
        return jax.random.normal(key, (H,), param_dtype) * H**-0.5

    def init(key):
        k_xh, k_hh, k_b, k_f, k_U = jax.random.split(key, 5)
        U_i, U_f, U_o = map(init_U, jax.random.split(k_U, 3))
        return PeepholeLSTMParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), GATES, param_dtype),
            W_hh=per_gate(init_h, k_hh, (H, H), GATES, param_dtype),
            b=add_forget_bias(k_f, per_gate(init_b, k_b, (H,), GATES, param_dtype)),
            U_i=U_i,
            U_f=U_f,
            U_o=U_o,
            initial=learned_lstm_carry(H, param_dtype) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        return lstm_initial_carry(params, batch_shape, H, dtype)

    def peep(c, U):
        return times(c, U) if peephole == "diagonal" else project(c, U, dtype)

    def gates(params, carry, x):
        W_xh, W_hh, b, U_i, U_f, U_o, _ = params
        h, c = carry
        a = by_gate(GATES, plus_bias(project(h, W_hh, dtype) + project(x, W_xh, dtype), b))
        i, f, g = σ(a.i + peep(c, U_i)), σ(a.f + peep(c, U_f)), act(a.g)
        c = f * c + i * g
        o = σ(a.o + peep(c, U_o))
        h = o * act(c)
        return LSTMGates(i, f, g, o, c, h)

    def step(params, carry, x):
        *_, c, h = gates(params, carry, x)
        return LSTMCarry(h, c), output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=hidden_size)
