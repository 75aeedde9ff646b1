"""minLSTM: an LSTM whose gates and candidate read the input alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._minimal import affine_maps, candidate_of
from jaxrnn.cells._options import Initializer
from jaxrnn.cells._products import carry_dtype, initial_state, output

GATES = ("f", "i", "n")  # the blocks of W_xh and b, in this order


class MinLSTMParams(NamedTuple):
    W_xh: jax.Array  # (I, 3H)
    b: jax.Array | None  # (3H,); None without biases


class MinLSTMGates(NamedTuple):
    f: jax.Array  # (*B, H) each: the share of the old state
    i: jax.Array  # the share of the candidate, 1 - f
    n: jax.Array  # candidate
    h: jax.Array  # the new state


@built_in
def min_lstm(
    input_size: int,
    hidden_size: int,
    *,
    candidate: str = "positive",
    bias: bool = True,
    input_init: str | Initializer = "glorot_uniform",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """minLSTM: an LSTM with one state and no output gate, whose gates and candidate do not read it.

        f, i = σ(W x_t + b)
        n    = g(W x_t + b)                    g(a) = a + 1/2 where a ≥ 0, σ(a) elsewhere
        f, i = f / (f + i), i / (f + i)
        h_t  = f * h_{t-1} + i * n

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H), which is the output too.
        candidate: "positive", g as above, or "linear", g(a) = a.
        bias: whether there are biases.
        input_init, bias_init, dtype, param_dtype: as for ``elman``.

    Returns:
        A Cell with MinLSTMParams, the carry h, MinLSTMGates (f and i as they enter the state) and ``affine``.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown candidate or initialiser; while tracing,
            inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.min_lstm(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> gates = jr.gates(cell, params, cell.initial_carry(params), jnp.ones(3))
        >>> bool(jnp.allclose(gates.f + gates.i, 1))
        True

    Differs from the code in the paper's appendix as :func:`min_gru` does.

    Reference:
        Feng, Tung, Ahmed, Bengio & Hajimirsadeghi, "Were RNNs all we needed?", 2024.
    """
    H, g = hidden_size, candidate_of("min_lstm", candidate)
    draw, maps = affine_maps("min_lstm", GATES, (input_size, H), bias, (input_init, bias_init), (dtype, param_dtype))

    def init(key):
        return MinLSTMParams(*draw(key))

    def initial_carry(params, batch_shape=()):
        return initial_state(None, batch_shape, H, carry_dtype(params.W_xh, dtype))

    def gates_of_input(params, x):
        a = maps(params, x)
        # f / (f + i) = σ(log f - log i), which is no 0 / 0 where both gates are shut.
        odds = jax.nn.log_sigmoid(a.f) - jax.nn.log_sigmoid(a.i)
        return jax.nn.sigmoid(odds), jax.nn.sigmoid(-odds), g(a.n)

    def affine(params, x):
        f, i, n = gates_of_input(params, x)
        return f, i * n

    def gates(params, h, x):
        f, i, n = gates_of_input(params, x)
        return MinLSTMGates(f, i, n, f * h + i * n)

    def read(params, h, x):
        return output(h, params.W_xh, dtype)

    return Cell(init, initial_carry, gates=gates, affine=affine, output=read, input_size=input_size, output_size=H)
