"""minGRU: a GRU whose gate and candidate read the input alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._minimal import affine_maps, candidate_of
from jaxrnn.cells._options import Initializer
from jaxrnn.cells._products import carry_dtype, initial_state, output

GATES = ("z", "n")  # the blocks of W_xh and b, in this order


class MinGRUParams(NamedTuple):
    W_xh: jax.Array  # (I, 2H)
    b: jax.Array | None  # (2H,); None without biases


class MinGRUGates(NamedTuple):
    z: jax.Array  # (*B, H) each: the share of the candidate
    n: jax.Array  # candidate
    h: jax.Array  # the new state


@built_in
def min_gru(
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
    """minGRU: a GRU without a reset gate, whose gate and candidate do not read the state, so that it is linear in it.

        z   = σ(W x_t + b)
        n   = g(W x_t + b)                    g(a) = a + 1/2 where a ≥ 0, σ(a) elsewhere
        h_t = (1 - z) * h_{t-1} + z * n

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H), which is the output too.
        candidate: "positive", g as above, or "linear", g(a) = a.
        bias: whether there are biases.
        input_init, bias_init, dtype, param_dtype: as for ``elman``.

    Returns:
        A Cell with MinGRUParams, the carry h, MinGRUGates and ``affine``.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown candidate or initialiser; while tracing,
            inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.min_gru(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> jr.gates(cell, params, h, jnp.ones((2, 3)))._fields
        ('z', 'n', 'h')

    Differs from the code in the paper's appendix, which takes logarithms of candidates and of the state that it starts
    from, h_0 as g(h_0): here states of any sign start and go on as they are, so single steps and whole runs agree.

    Reference:
        Feng, Tung, Ahmed, Bengio & Hajimirsadeghi, "Were RNNs all we needed?", 2024.
    """
    H, g = hidden_size, candidate_of("min_gru", candidate)
    draw, maps = affine_maps("min_gru", GATES, (input_size, H), bias, (input_init, bias_init), (dtype, param_dtype))

    def init(key):
        return MinGRUParams(*draw(key))

    def initial_carry(params, batch_shape=()):
        return initial_state(None, batch_shape, H, carry_dtype(params.W_xh, dtype))

    def gates_of_input(params, x):
        a = maps(params, x)
        return jax.nn.sigmoid(a.z), g(a.n)

    def affine(params, x):
        z, n = gates_of_input(params, x)
        return 1 - z, z * n

    def gates(params, h, x):
        z, n = gates_of_input(params, x)
        return MinGRUGates(z, n, (1 - z) * h + z * n)

    def read(params, h, x):
        return output(h, params.W_xh, dtype)

    return Cell(init, initial_carry, gates=gates, affine=affine, output=read, input_size=input_size, output_size=H)
