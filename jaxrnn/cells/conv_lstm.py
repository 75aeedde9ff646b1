"""Convolutional LSTM: the state is a field, the products are convolutions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._convolution import check_field, convolve, sizes_of_field
from jaxrnn.cells._options import Initializer, cell_options, per_gate
from jaxrnn.cells._products import carry_dtype, output, plus_bias, times
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import by_gate
from jaxrnn.cells.lstm_family import GATES, LSTMCarry, LSTMGates, forget_bias_of


class ConvLSTMParams(NamedTuple):
    W_xh: jax.Array  # (*K, I, 4H), blocks i, f, g, o: GATES
    W_hh: jax.Array  # (*K, H, 4H), so too
    b: jax.Array | None  # (4H,), so too; None without biases
    U_i: jax.Array | None = None  # (*S, H) each, with peepholes
    U_f: jax.Array | None = None
    U_o: jax.Array | None = None


@built_in
def conv_lstm(
    input_size: int,
    hidden_size: int,
    *,
    spatial_shape: int | Sequence[int],
    kernel_size: int | Sequence[int] = 3,
    peephole: bool = False,
    activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    bias: bool = True,
    forget_bias: float | None = None,
    input_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "glorot_uniform",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Convolutional LSTM, over 1, 2 or 3 dimensions of space; ``*`` is elementwise, ``⊛`` a convolution.

        i, f, o = σ(W_hh ⊛ h_{t-1} + W_xh ⊛ x_t + b)
        g       = tanh(W_hh ⊛ h_{t-1} + W_xh ⊛ x_t + b)
        c_t     = f * c_{t-1} + i * g
        h_t     = o * tanh(c_t)
        with ``peephole``: U_i * c_{t-1}, U_f * c_{t-1} and U_o * c_t enter i, f and o

    Args:
        input_size: I, the channels of ``x`` (*B, *S, I): channels last.
        hidden_size: H, the channels of ``LSTMCarry(h, c)``, (*B, *S, H) each, and of the output ``y = h_t``.
        spatial_shape: S, one to three sizes.
        kernel_size: K, one size for each dimension or one for all. Fields are padded with zeros, and keep their size.
        peephole: whether the gates see the memory, each place with weights of its own, as in the paper.
        activation, gate_activation, bias, forget_bias, input_init, recurrent_init, bias_init, dtype, param_dtype: as
            for ``lstm``; peepholes are drawn from N(0, 1/H).

    Returns:
        A Cell with ConvLSTMParams, LSTMCarry and LSTMGates.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, a kernel of other dimensions than space, an unknown
            activation or initialiser; while tracing, inputs, parameters or carries that do not fit, or that are
            divided over a mesh with Explicit axes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.conv_lstm(3, 5, spatial_shape=(8, 6)))
        >>> carry, ys = layer.apply(layer.init(jax.random.key(0)), jnp.ones((7, 2, 8, 6, 3)))
        >>> ys.shape
        (7, 2, 8, 6, 5)

    Differs from Haiku and Flax (gate order i g f o, 1 added to the forget gate at every step), none of which has
    peepholes, nor has Keras.

    Reference:
        Shi et al., "Convolutional LSTM network: a machine learning approach for precipitation nowcasting", NeurIPS
        2015.
    """
    H = hidden_size
    S, K = sizes_of_field("conv_lstm", spatial_shape, kernel_size)
    act, σ, init_x, init_h, init_b = cell_options(
        "conv_lstm", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    add_forget_bias = forget_bias_of("conv_lstm", GATES, H, bias, forget_bias)
    convolved = functools.partial(convolve, "conv_lstm")

    def init(key):
        k_xh, k_hh, k_b, k_f, *k_U = jax.random.split(key, 7)
        U = (jax.random.normal(k, (*S, H), param_dtype) * H**-0.5 for k in k_U)
        return ConvLSTMParams(
            per_gate(init_x, k_xh, (*K, input_size, H), GATES, param_dtype),
            per_gate(init_h, k_hh, (*K, H, H), GATES, param_dtype),
            add_forget_bias(k_f, per_gate(init_b, k_b, (H,), GATES, param_dtype)),
            *(U if peephole else ()),
        )

    def initial_carry(params, batch_shape=()):
        shape, kept = (*batch_shape, *S, H), carry_dtype(params.W_hh, dtype)
        return LSTMCarry(jnp.zeros(shape, kept), jnp.zeros(shape, kept))

    def peep(c, U):
        return times(c, U) if peephole else 0

    def gates(params, carry, x):
        W_xh, W_hh, b, U_i, U_f, U_o = params
        check_field("conv_lstm", x, S, input_size, W_xh.dtype, dtype)
        h, c = carry
        a = by_gate(GATES, plus_bias(convolved(h, W_hh, dtype) + convolved(x, W_xh, dtype), b))
        i, f, g = σ(a.i + peep(c, U_i)), σ(a.f + peep(c, U_f)), act(a.g)
        c = f * c + i * g
        o = σ(a.o + peep(c, U_o))
        h = o * act(c)
        return LSTMGates(i, f, g, o, c, h)

    def step(params, carry, x):
        *_, c, h = gates(params, carry, x)
        return LSTMCarry(h, c), output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, x_ndim=len(S) + 1, input_size=input_size, output_size=hidden_size)
