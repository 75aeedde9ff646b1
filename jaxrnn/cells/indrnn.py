"""Independently recurrent network."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, initializer
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus_bias, project, times
from jaxrnn.cells.activations import Activation, activation_of


class IndRNNParams(NamedTuple):
    W_xh: jax.Array  # (I, H)
    u: jax.Array  # (H,), one recurrent weight a unit
    b: jax.Array | None  # (H,); None without biases
    h0: jax.Array | None = None  # (H,), where the initial carry is learned


@built_in
def indrnn(
    input_size: int,
    hidden_size: int,
    *,
    activation: str | Activation = "relu",
    recurrent_max: float | None = None,
    initial_min: float = 0.0,
    bias: bool = True,
    input_init: str | Initializer = "glorot_uniform",
    bias_init: str | Initializer = "zeros",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Independently recurrent network: each unit sees the past of itself alone; others mix in the next layer.

        h_t = act(W_xh x_t + u * h_{t-1} + b)
        with ``recurrent_max`` u within ± recurrent_max: what is beyond counts as the bound

    Over T steps u multiplies a gradient by u^T at most. With ``recurrent_max=2 ** (1 / T)`` that is 2.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H), which is the output too.
        activation: act: "relu", as in the paper, "tanh", or another, as for ``elman``.
        recurrent_max: the bound of |u|, held inside the step whatever an optimiser does to u; None sets none. Beyond
            the bound the derivative by u is 0, so that u stays there; at the bound it is 1. The paper's way, which lets
            u come back, is to clip after each update:
            ``params._replace(u=jnp.clip(params.u, -recurrent_max, recurrent_max))``.
        initial_min: u is uniform from here to ``recurrent_max`` at first, to 1 without one. The paper's code has 0,
            and ``2 ** (-1 / T)`` in a last layer that has to remember T steps.
        bias: whether there are biases.
        input_init, bias_init, learned_carry, dtype, param_dtype: as for ``elman``.

    Returns:
        A Cell with IndRNNParams and the carry h.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, a bound that is not positive, an initial_min that is
            not below it, an unknown activation or initialiser; while tracing, inputs, parameters or carries that do
            not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> T = 1000
        >>> cell = jr.indrnn(3, 5, recurrent_max=2 ** (1 / T))
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> y.shape
        (2, 5)

    Differs from TensorFlow code that clips with ``clip_by_value``, whose derivative at the bound itself is 0. Batch
    normalisation, which the paper has between its layers, is not part of the cell.

    Reference:
        Li, Li, Cook, Zhu & Gao, "Independently recurrent neural network (IndRNN): building a longer and deeper RNN",
        CVPR 2018.
    """
    H = hidden_size
    act = activation_of("indrnn", "activation", activation)
    init_x = initializer("indrnn", "input_init", input_init, H)
    init_b = initializer("indrnn", "bias_init", bias_init, H)
    if recurrent_max is not None and not recurrent_max > 0:
        raise ValueError(f"indrnn: recurrent_max must be above 0, got {recurrent_max!r}; 2 ** (1 / T) is for T steps.")
    initial_max = 1.0 if recurrent_max is None else recurrent_max
    if not -initial_max <= initial_min < initial_max:
        raise ValueError(
            f"indrnn: initial_min must be within ± {initial_max:g} and below it, where u ends at first, got "
            f"{initial_min!r}; 0 is usual, 2 ** (-1 / T) is for units that remember T steps."
        )

    def init(key):
        k_xh, k_u, k_b = jax.random.split(key, 3)
        u = jax.random.uniform(k_u, (H,), accumulator(param_dtype), initial_min, initial_max)
        return IndRNNParams(
            W_xh=init_x(k_xh, (input_size, H), param_dtype),
            u=u.astype(param_dtype),
            b=init_b(k_b, (H,), param_dtype) if bias else None,
            h0=jnp.zeros((H,), param_dtype) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        return initial_state(params.h0, batch_shape, H, carry_dtype(params.W_xh, dtype))

    def bounded(u):
        # Compared in the dtype of the parameter: one that was clipped to the bound is not beyond it.
        return u if recurrent_max is None else jnp.where(jnp.abs(u) <= recurrent_max, u, recurrent_max * jnp.sign(u))

    def step(params, h, x):
        W_xh, u, b, _ = params
        h = act(plus_bias(project(x, W_xh, dtype) + times(h, bounded(u).astype(h.dtype)), b))
        return h, output(h, W_xh, dtype)

    return Cell(init, initial_carry, step, input_size=input_size, output_size=H)
