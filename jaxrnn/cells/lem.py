"""Long expressive memory: two states, each unit with time steps of its own."""

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

GATES = ("dt", "dt_bar", "z", "h")  # the blocks of W_xh, W_hh and b, in this order; h last, whose product reads z


class LEMParams(NamedTuple):
    W_xh: jax.Array  # (I, 4H)
    W_hh: jax.Array  # (H, 4H), the block of h multiplies the new z
    b: jax.Array | None  # (4H,); None without biases
    initial: LEMCarry | None = None  # (H,) each, where the initial carry is learned


class LEMCarry(NamedTuple):
    h: jax.Array  # (*B, H), the output: y of the paper
    z: jax.Array  # (*B, H), the slower memory


class LEMGates(NamedTuple):
    dt: jax.Array  # (*B, H) each: the time step of z
    dt_bar: jax.Array  # the time step of h
    n_z: jax.Array  # candidate of z
    n_h: jax.Array  # candidate of h
    z: jax.Array  # the new memory
    h: jax.Array  # the new output


@built_in
def lem(
    input_size: int,
    hidden_size: int,
    *,
    dt: float = 1.0,
    activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    bias: bool = True,
    input_init: str | Initializer = "uniform",
    recurrent_init: str | Initializer = "uniform",
    bias_init: str | Initializer = "uniform",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Long expressive memory: a differential equation with many time scales, its steps of sizes that are learned.

        dt     = Δt σ(W [h_{t-1}, x_t] + b)
        dt_bar = Δt σ(W [h_{t-1}, x_t] + b)
        z_t    = (1 - dt) * z_{t-1} + dt * tanh(W [h_{t-1}, x_t] + b)
        h_t    = (1 - dt_bar) * h_{t-1} + dt_bar * tanh(W [z_t, x_t] + b)

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of ``LEMCarry(h, z)``, (*B, H) each, and of the output ``y = h_t``.
        dt: Δt, above 0: the largest step; up to 1 each state is a mean of its old and a new one.
        activation, gate_activation: in place of tanh and σ, by name or any function, as for ``elman``.
        bias: whether there are biases.
        input_init, recurrent_init, bias_init: as for ``gru``; "uniform", U(-1/√H, 1/√H), is what the paper's code has.
        learned_carry: makes the initial carry a parameter, ``initial``, zero at first.
        dtype, param_dtype: as for ``elman``.

    Returns:
        A Cell with LEMParams, LEMCarry and LEMGates.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, a dt that is not positive, an unknown activation or
            initialiser; while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.lem(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> carry, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> jr.gates(cell, params, carry, jnp.ones((2, 3)))._fields
        ('dt', 'dt_bar', 'n_z', 'n_h', 'z', 'h')

    Differs from the paper in a name: h is its y, as every output here. Differs from the paper's code, whose arrays have
    the blocks dt_bar, dt, h, z of the inputs and dt_bar, dt, z of the states, and two biases; only their sum matters.

    Reference:
        Rusch, Mishra, Erichson & Mahoney, "Long expressive memory for sequence modeling", ICLR 2022.
    """
    H = hidden_size
    act, σ, init_x, init_h, init_b = cell_options(
        "lem", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    if not dt > 0:
        raise ValueError(f"lem: dt must be above 0, got {dt!r}; 1 is usual.")

    def init(key):
        k_xh, k_hh, k_b = jax.random.split(key, 3)
        return LEMParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), GATES, param_dtype),
            W_hh=per_gate(init_h, k_hh, (H, H), GATES, param_dtype),
            b=per_gate(init_b, k_b, (H,), GATES, param_dtype) if bias else None,
            initial=LEMCarry(*(jnp.zeros((H,), param_dtype) for _ in range(2))) if learned_carry else None,
        )

    def initial_carry(params, batch_shape=()):
        h, z = params.initial or (None, None)
        kept = carry_dtype(params.W_hh, dtype)
        return LEMCarry(initial_state(h, batch_shape, H, kept), initial_state(z, batch_shape, H, kept))

    def gates(params, carry, x):
        W_xh, W_hh, b, _ = params
        h, z = carry
        a = by_gate(GATES, plus_bias(project(x, W_xh, dtype), b))
        u = by_gate(GATES[:-1], project(h, W_hh, dtype, jnp.s_[:-H]))
        dt_z, dt_h = dt * σ(u.dt + a.dt), dt * σ(u.dt_bar + a.dt_bar)
        n_z = act(u.z + a.z)
        z = (1 - dt_z) * z + dt_z * n_z
        n_h = act(project(z, W_hh, dtype, jnp.s_[-H:]) + a.h)
        h = (1 - dt_h) * h + dt_h * n_h
        return LEMGates(dt_z, dt_h, n_z, n_h, z, h)

    def step(params, carry, x):
        *_, z, h = gates(params, carry, x)
        return LEMCarry(h, z), output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=H)
