"""The real-gated linear recurrent unit."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, initializer, per_gate
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus, project, project_blocks, times
from jaxrnn.cells.fused import by_gate

GATES = ("r", "i")  # the last axis of each block of W, and b, in this order
C = 8.0  # what r multiplies, as in the paper


class RGLRUParams(NamedTuple):
    Lambda: jax.Array  # (H,), a = σ(Λ)
    W: jax.Array  # (blocks, H / blocks, 2H / blocks), the gates' weights, block-diagonal
    b: jax.Array  # (2H,): of each gate all units, as the blocks have them
    W_xh: jax.Array | None  # (I, H); None where I = H


class RGLRUGates(NamedTuple):
    r: jax.Array  # (*B, H) each: recurrence gate
    i: jax.Array  # input gate
    a: jax.Array  # a_t, the share of the old state
    h: jax.Array  # the new state


@built_in
def rg_lru(
    input_size: int,
    hidden_size: int,
    *,
    blocks: int = 1,
    input_init: str | Initializer = "lecun_normal",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Real-gated linear recurrent unit, the recurrence of Griffin: both its gates read the input alone.

        r   = σ(W_r x_t + b_r),  i = σ(W_i x_t + b_i)      W_r and W_i block-diagonal
        a_t = a^(c r),  a = σ(Λ),  c = 8
        h_t = a_t * h_{t-1} + √(1 - a_t²) * (i * x_t)      W_xh x_t in place of x_t where I is not H

    Λ starts so that a^c is uniform from 0.9 to 0.999.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H), which is the output too.
        blocks: the number of blocks of W_r and W_i, which divides H; 1 makes them full matrices.
        input_init: of W_xh and, block by block, of W_r and W_i, by name or function, as for ``elman``.
        dtype, param_dtype: as for ``elman``.

    Returns:
        A Cell with RGLRUParams, the carry h, RGLRUGates and ``affine``.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, blocks that do not divide H, an unknown initialiser;
            while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.rg_lru(3, 4, blocks=2)
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> jr.gates(cell, params, h, jnp.ones((2, 3)))._fields
        ('r', 'i', 'a', 'h')

    Differs from RecurrentGemma's code: there the first step of a document has 1 in place of √(1 - a_t²), here it is as
    the paper's equation has it, also after resets. There a itself starts between 0.9 and 0.999, by the area of a ring,
    and ``a_param`` is -Λ. There the derivative of the root is clipped; here 1 - a_t² is computed without cancellation,
    and the derivative is 0 where r is too small for a float.

    Reference:
        De et al., "Griffin: mixing gated linear recurrences with local attention for efficient language models", 2024.
    """
    H = hidden_size
    if H % blocks:
        raise ValueError(f"rg_lru: blocks must divide hidden_size={H}, got {blocks}; 1 makes the gates full matrices.")
    init_x = initializer("rg_lru", "input_init", input_init, H)

    def init(key):
        k_a, k_W, k_xh = jax.random.split(key, 3)
        log_a = jnp.log(jax.random.uniform(k_a, (H,), accumulator(param_dtype), 0.9, 0.999)) / C
        side = H // blocks
        W = [per_gate(init_x, k, (side, side), GATES, param_dtype) for k in jax.random.split(k_W, blocks)]
        return RGLRUParams(
            Lambda=(log_a - jnp.log(-jnp.expm1(log_a))).astype(param_dtype),  # σ⁻¹(a)
            W=jnp.stack(W),
            b=jnp.zeros((2 * H,), param_dtype),
            W_xh=None if input_size == H else init_x(k_xh, (input_size, H), param_dtype),
        )

    def initial_carry(params, batch_shape=()):
        return initial_state(None, batch_shape, H, carry_dtype(params.W, dtype))

    def gates_of_input(params, x):
        """r, i, a_t, and what is added to the state."""
        Λ, W, b, W_xh = params
        kept = carry_dtype(W, dtype)
        x = x.astype(kept) if W_xh is None else project(x, W_xh, dtype)
        blocks_of = by_gate(GATES, project_blocks(x, W, dtype))  # (*B, blocks, H / blocks) each
        b = by_gate(GATES, b)
        r, i = (
            jax.nn.sigmoid(plus(a.reshape(x.shape), b_gate)) for a, b_gate in ((blocks_of.r, b.r), (blocks_of.i, b.i))
        )
        log_a = C * times(r, jax.nn.log_sigmoid(Λ.astype(kept)))
        return r, i, jnp.exp(log_a), _root(-jnp.expm1(2 * log_a)) * (i * x)

    def affine(params, x):
        return gates_of_input(params, x)[2:]

    def gates(params, h, x):
        r, i, a, b = gates_of_input(params, x)
        return RGLRUGates(r, i, a, a * h + b)

    def read(params, h, x):
        return output(h, params.W, dtype)

    return Cell(init, initial_carry, gates=gates, affine=affine, output=read, input_size=input_size, output_size=H)


def _root(share: jax.Array) -> jax.Array:
    """√share; where nothing is left of the share, without the infinite derivative."""
    some = share > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, share, 1)), 0)
