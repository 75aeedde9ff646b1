"""Antisymmetric RNN: an Euler step of a stable differential equation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, cell_options, per_gate
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus_bias, project
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import by_gate

GATES = ("z", "n")  # the blocks of W_xh and b with gated=True, in this order; without it they are that of n alone


class AntisymmetricRNNParams(NamedTuple):
    W_xh: jax.Array  # (I, H), or (I, 2H) where it is gated: V of the paper
    W_hh: jax.Array  # (H, H), for both blocks, less its transpose
    b: jax.Array | None  # (H,) or (2H,); None without biases
    h0: jax.Array | None = None  # (H,), where the initial carry is learned


class AntisymmetricRNNGates(NamedTuple):
    z: jax.Array  # (*B, H) each: how far the state moves
    n: jax.Array  # where to
    h: jax.Array  # the new state


@built_in
def antisymmetric_rnn(
    input_size: int,
    hidden_size: int,
    *,
    gated: bool = False,
    epsilon: float = 0.01,
    gamma: float = 0.01,
    activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    bias: bool = True,
    input_init: str | Initializer = "lecun_normal",
    recurrent_init: str | Initializer = "lecun_normal",
    bias_init: str | Initializer = "zeros",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Antisymmetric RNN, plain or gated: the eigenvalues of its recurrent matrix have no real part but -γ.

        A   = W_hh - W_hhᵀ - γ I
        h_t = h_{t-1} + ε tanh(A h_{t-1} + W_xh x_t + b)

    and with ``gated=True``, z and n with the same A and with W_xh and b of their own:

        z   = σ(A h_{t-1} + W_xh x_t + b)
        n   = tanh(A h_{t-1} + W_xh x_t + b)
        h_t = h_{t-1} + ε z * n

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H), which is the output too.
        gated: whether z says how far each unit moves.
        epsilon: ε, the step size, above 0.
        gamma: γ, the diffusion, at least 0. Small positive ones keep the Euler step stable.
        activation, gate_activation: in place of tanh and σ, by name or any function, as for ``elman``.
        bias: whether there are biases.
        input_init, recurrent_init: initialisers of variance 1/I and 1/H, by name or function, as for ``elman``.
        bias_init, learned_carry, dtype, param_dtype: as for ``elman``.

    Returns:
        A Cell with AntisymmetricRNNParams, the carry h and, where it is gated, AntisymmetricRNNGates.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, ε or γ out of range, an unknown activation or
            initialiser; while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.antisymmetric_rnn(3, 5, gated=True, epsilon=0.1)
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> jr.gates(cell, params, h, jnp.ones((2, 3)))._fields
        ('z', 'n', 'h')

    Differs from the paper's count of parameters: there only the entries of W_hh above the diagonal are parameters, here
    all are, as in most code, and W_hh - W_hhᵀ starts with twice the variance of W_hh.

    Reference:
        Chang, Chen, Haber & Chi, "AntisymmetricRNN: a dynamical system view on recurrent neural networks", ICLR 2019.
    """
    H, order = hidden_size, GATES if gated else GATES[-1:]
    act, σ, init_x, init_h, init_b = cell_options(
        "antisymmetric_rnn", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    if not epsilon > 0:
        raise ValueError(f"antisymmetric_rnn: epsilon must be above 0, got {epsilon!r}; 0.01 to 1 is usual.")
    if not gamma >= 0:
        raise ValueError(f"antisymmetric_rnn: gamma must be at least 0, got {gamma!r}; below 0 the state would grow.")

    def init(key):
        k_xh, k_hh, k_b = jax.random.split(key, 3)
        return AntisymmetricRNNParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), order, param_dtype),
            W_hh=init_h(k_hh, (H, H), param_dtype),
            b=per_gate(init_b, k_b, (H,), order, param_dtype) if bias else None,
            h0=jnp.zeros((H,), param_dtype) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        return initial_state(params.h0, batch_shape, H, carry_dtype(params.W_hh, dtype))

    def sums(params, h, x):
        """A h + W_xh x + b of each gate; γ h in the dtype of the carry, whatever the products are computed in."""
        W_xh, W_hh, b, _ = params
        a = by_gate(order, plus_bias(project(x, W_xh, dtype), b))
        return a, project(h, W_hh - W_hh.T, dtype) - gamma * h

    def gates(params, h, x):
        a, u = sums(params, h, x)
        z, n = σ(u + a.z), act(u + a.n)
        return AntisymmetricRNNGates(z, n, h + epsilon * z * n)

    def step(params, h, x):
        if gated:
            *_, h = gates(params, h, x)
        else:
            a, u = sums(params, h, x)
            h = h + epsilon * act(u + a.n)
        return h, output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates if gated else None, input_size=input_size, output_size=H)
