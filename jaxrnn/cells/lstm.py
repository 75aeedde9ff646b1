"""Long short-term memory, with forget gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from jaxrnn._base import Cell
from jaxrnn._checks import check_sizes
from jaxrnn.cells._shared import (
    Initializer,
    built_in,
    carry_dtype,
    check_T_max,
    chrono_bias,
    initial_state,
    initializer,
    output,
    per_gate,
    project,
)


class LSTMCarry(NamedTuple):
    h: jax.Array  # (*B, H), the output
    c: jax.Array  # (*B, H), the memory


class LSTMParams(NamedTuple):
    W_xh: jax.Array  # (I, 4H), gate order i, f, g, o
    W_hh: jax.Array  # (H, 4H), gate order i, f, g, o
    b: jax.Array  # (4H,), gate order i, f, g, o
    initial: LSTMCarry | None = None  # (H,) each, where the initial carry is learned


class LSTMGates(NamedTuple):
    i: jax.Array  # (*B, H) each: input gate
    f: jax.Array  # forget gate
    g: jax.Array  # candidate
    o: jax.Array  # output gate
    c: jax.Array  # the new memory
    h: jax.Array  # the new output


def lstm_initial_carry(params: Any, batch_shape: tuple[int, ...], hidden_size: int, dtype: Any) -> LSTMCarry:
    """Zeros, or what was learned, for every sequence of the batch."""
    h, c = params.initial or (None, None)
    dtype = carry_dtype(params.W_hh, dtype)
    return LSTMCarry(
        h=initial_state(h, batch_shape, hidden_size, dtype),
        c=initial_state(c, batch_shape, hidden_size, dtype),
    )


def learned_lstm_carry(hidden_size: int, dtype: Any) -> LSTMCarry:
    return LSTMCarry(jnp.zeros((hidden_size,), dtype), jnp.zeros((hidden_size,), dtype))


def forget_bias_of(
    who: str, hidden_size: int, forget_bias: float | None, T_max: float | None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """``(key, b) -> b`` (4H,), gate order i, f, g, o, with the forget gate's bias added."""
    if forget_bias is not None and T_max is not None:
        raise ValueError(
            f"{who}: forget_bias={forget_bias!r} and T_max={T_max!r} both set the forget gate's bias; give one of them."
        )
    check_T_max(who, T_max)
    f_block = slice(hidden_size, 2 * hidden_size)

    def add(key, b):
        if T_max is None:
            return b.at[f_block].add(1.0 if forget_bias is None else forget_bias)
        chrono = chrono_bias(T_max, key, hidden_size, b.dtype)
        return b.at[f_block].add(chrono).at[:hidden_size].add(-chrono)

    return add


@built_in
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    T_max: float | None = None,
    input_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Long short-term memory with forget gates.

        i, f, o = σ(W [h_{t-1}, x_t] + b)
        g       = tanh(W [h_{t-1}, x_t] + b)
        c_t     = f * c_{t-1} + i * g
        h_t     = o * tanh(c_t)

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of ``LSTMCarry(h, c)``, (*B, H) each, and of the output ``y = h_t``.
        forget_bias: added to the forget gate's initial bias; None means 1 (0 under ``T_max``).
        T_max: chrono initialisation: forget biases log U(1, T_max - 1), input biases their negative, for
            dependencies of up to T_max steps.
        input_init, recurrent_init, bias_init: initialisers by name ("glorot_uniform", "orthogonal", "uniform" as
            PyTorch's …) or functions ``init(key, shape, dtype)``; drawn for each gate by itself.
        learned_carry: makes the initial carry a parameter, ``initial``, zero at first.
        dtype: the compute and output dtype; None computes in the parameters' own. The carry, the gates and every
            sum are kept in at least float32.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        A Cell with LSTMParams, LSTMCarry and LSTMGates.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown initialiser, both ``forget_bias`` and
            ``T_max``; while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.lstm(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> carry, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> bool((carry.h == y).all())
        True

    Differs from: PyTorch (two biases, uniform at first), Flax (carry (c, h), forget bias 0), Haiku (gate order
    i g f o, forget bias added at every step), ONNX (gate order i o f c).

    References:
        Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.
        Gers, Schmidhuber & Cummins, "Learning to forget", Neural Computation 12, 2000 (the forget gate).
        Tallec & Ollivier, "Can recurrent neural networks warp time?", ICLR 2018 (T_max).
    """
    check_sizes("lstm", input_size=input_size, hidden_size=hidden_size)
    init_x = initializer("lstm", "input_init", input_init, hidden_size)
    init_h = initializer("lstm", "recurrent_init", recurrent_init, hidden_size)
    init_b = initializer("lstm", "bias_init", bias_init, hidden_size)
    add_forget_bias = forget_bias_of("lstm", hidden_size, forget_bias, T_max)

    def init(key):
        k_xh, k_hh, k_b, k_f = jax.random.split(key, 4)
        return LSTMParams(
            W_xh=per_gate(init_x, k_xh, (input_size, hidden_size), 4, param_dtype),
            W_hh=per_gate(init_h, k_hh, (hidden_size, hidden_size), 4, param_dtype),
            b=add_forget_bias(k_f, per_gate(init_b, k_b, (hidden_size,), 4, param_dtype)),
            initial=learned_lstm_carry(hidden_size, param_dtype) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        return lstm_initial_carry(params, batch_shape, hidden_size, dtype)

    def gates(params, carry, x):
        W_xh, W_hh, b, _ = params
        h, c = carry
        i, f, g, o = jnp.split(project(h, W_hh, dtype) + project(x, W_xh, dtype) + b, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return LSTMGates(i, f, g, o, c, h)

    def step(params, carry, x):
        *_, c, h = gates(params, carry, x)
        return LSTMCarry(h, c), output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=hidden_size)
