"""The Elman network: the simple recurrent network."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_sizes
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, cell_options
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus_bias, project
from jaxrnn.cells.activations import Activation


class ElmanParams(NamedTuple):
    W_xh: jax.Array  # (I, H)
    W_hh: jax.Array  # (H, H)
    b: jax.Array | None  # (H,); None without biases
    W_hy: jax.Array | None = None  # (H, O), where output_size is given
    b_y: jax.Array | None = None  # (O,)
    h0: jax.Array | None = None  # (H,), where the initial carry is learned


@built_in
def elman(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    activation: str | Activation = "tanh",
    bias: bool = True,
    input_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """An Elman network, the simple RNN.

        h_t = act(W_hh h_{t-1} + W_xh x_t + b)
        y_t = h_t,  or  y_t = W_hy h_t + b_y  with ``output_size``

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H).
        output_size: O; adds the readout of Elman's paper, ``y`` (*B, O).
        activation: act: "tanh", "relu", "sigmoid", "hard_sigmoid", "softplus", "softsign", "elu", "gelu" (the tanh
            form), "silu", "leaky_relu", "identity", any function, or a name with numbers: ("affine", α, β),
            ("elu", α), ("hard_sigmoid", α, β) for clip(α a + β, 0, 1), ("leaky_relu", α), ("scaled_tanh", α, β)
            for α tanh(β a), ("thresholded_relu", α) for a where a ≥ α and 0 elsewhere.
        bias: whether there are biases.
        input_init, recurrent_init, bias_init: initialisers by name ("glorot_uniform", "orthogonal", "identity",
            "uniform" as PyTorch's …) or functions ``init(key, shape, dtype)``. ``activation="relu"`` with
            ``recurrent_init="identity"`` is the IRNN.
        learned_carry: makes the initial carry a parameter, ``h0`` (H,), zero at first.
        dtype: the compute and output dtype; None computes in the parameters' own. The carry and every sum are
            kept in at least float32.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        A Cell with ElmanParams and the carry h.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown activation or initialiser; while
            tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(3, 5, activation="relu", recurrent_init="identity")
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> y.shape
        (2, 5)

    Differs from PyTorch, which has two biases; only their sum matters.

    References:
        Elman, "Finding structure in time", Cognitive Science 14, 1990.
        Le, Jaitly & Hinton, "A simple way to initialize recurrent networks of rectified linear units", 2015 (IRNN).
    """
    H, O = hidden_size, hidden_size if output_size is None else output_size
    act, init_x, init_h, init_b = cell_options(
        "elman", input_size, H, (activation,), (input_init, recurrent_init, bias_init), bias
    )
    check_sizes("elman", output_size=O)

    def init(key):
        k_xh, k_hh, k_b, k_hy, k_by = jax.random.split(key, 5)
        return ElmanParams(
            W_xh=init_x(k_xh, (input_size, H), param_dtype),
            W_hh=init_h(k_hh, (H, H), param_dtype),
            b=init_b(k_b, (H,), param_dtype) if bias else None,
            W_hy=None if output_size is None else init_x(k_hy, (H, O), param_dtype),
            b_y=None if output_size is None or not bias else init_b(k_by, (O,), param_dtype),
            h0=jnp.zeros((H,), param_dtype) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        return initial_state(params.h0, batch_shape, H, carry_dtype(params.W_hh, dtype))

    def step(params, h, x):
        W_xh, W_hh, b, W_hy, b_y, _ = params
        h = act(plus_bias(project(h, W_hh, dtype) + project(x, W_xh, dtype), b))
        y = h if W_hy is None else plus_bias(project(h, W_hy, dtype), b_y)
        return h, output(y, W_hh, dtype)

    return Cell(init, initial_carry, step, input_size=input_size, output_size=O)
