"""mLSTM: a matrix memory of keys and values, with exponential gates."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._exponential import log_forget_of, stabilised
from jaxrnn.cells._options import Initializer, check_gate_bias, check_heads, initializer, per_gate
from jaxrnn.cells._products import carry_dtype, output, plus_bias, project
from jaxrnn.cells.fused import by_gate

GATES = ("q", "k", "v", "o")  # the blocks of W_xh and b, in this order; each block head after head
HEAD_GATES = ("i", "f")  # the blocks of W_if and b_if, in this order: one number a head


class MLSTMParams(NamedTuple):
    W_xh: jax.Array  # (I, 4H)
    W_if: jax.Array  # (I, 2 heads)
    b: jax.Array | None  # (4H,); None without biases
    b_if: jax.Array | None  # (2 heads,), so too


class MLSTMCarry(NamedTuple):
    C: jax.Array  # (*B, heads, d, d), d = H / heads: the memory, in units of exp(m); values by keys
    n: jax.Array  # (*B, heads, d): the normaliser, in units of exp(m)
    m: jax.Array  # (*B, heads): the stabiliser

    @property
    def in_units_of(self) -> str:
        """For wrappers, which do not blend numbers of different units."""
        return "exp(m)"

    def in_units(self, m: float | jax.Array) -> MLSTMCarry:
        """The same state, C and n in units of another exp(m)."""
        unit = jnp.exp(self.m - m)
        return MLSTMCarry(self.C * unit[..., None, None], self.n * unit[..., None], jnp.full_like(self.m, m))


class MLSTMGates(NamedTuple):
    q: jax.Array  # (*B, heads, d): query
    k: jax.Array  # (*B, heads, d): key
    v: jax.Array  # (*B, heads, d): value
    i: jax.Array  # (*B, heads): input gate i', in units of exp(m_t)
    f: jax.Array  # (*B, heads): forget gate f', in units of exp(m_t - m_{t-1})
    o: jax.Array  # (*B, H): output gate
    C: jax.Array  # the new memory
    n: jax.Array  # the new normaliser
    m: jax.Array  # the new stabiliser
    h: jax.Array  # (*B, H): the output


@built_in
def mlstm(
    input_size: int,
    hidden_size: int,
    *,
    heads: int = 1,
    forget_gate: str = "sigmoid",
    bias: bool = True,
    forget_bias: float | None = None,
    input_init: str | Initializer = "small_normal",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """mLSTM, the cell of xLSTM with a matrix memory: values are stored by their keys, and read by a query.

        q   = W x_t + b,  k = (W x_t) / √d + b,  v = W x_t + b,  o = σ(W x_t + b)
        i   = exp(w x_t + b),  f = σ(w x_t + b), or exp of it         ``forget_gate``; one number a head
        C_t = f C_{t-1} + i v kᵀ
        n_t = f n_{t-1} + i k
        h_t = o * C_t q / max(|n_tᵀ q|, 1)

    Each head has d = H / heads units, a C and an n of its own. An exponential soon leaves the range of floats, so C and
    n are carried in units of exp(m): what is computed is the same, with i', f' and exp(-m_t) in place of i, f and 1.

        m_t = max(log f + m_{t-1}, log i),  i' = exp(log i - m_t),  f' = exp(log f + m_{t-1} - m_t)
        h_t = o * C_t q / max(|n_tᵀ q|, exp(-m_t))

    C and n would be a linear recurrence, but f' depends on m_{t-1} and m_t is a maximum: there is no ``affine``, and
    ``jr.parallel`` runs it in chunks, or by Newton's method. The carry starts at zeros; with exponential forget gates
    m_{t-1} counts as -∞ where C and n are 0.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the features of the output; the carry is ``MLSTMCarry(C, n, m)``, (*B, heads, d, d),
            (*B, heads, d) and (*B, heads).
        heads: the number of heads, which divides H.
        forget_gate: "sigmoid" or "exp".
        bias: whether there are biases.
        forget_bias: added to the forget gate's initial bias. None spreads it over the heads, evenly from 3 to 6; an
            exponential gate starts as open as the other one, with the log σ of that.
        input_init: of W_xh, as for ``lstm``, drawn for each block by itself. "small_normal" is N(0, 2 / (5 I)). W_if
            starts at zeros.
        bias_init: as for ``lstm``; to the input gate's bias N(0, 0.01) is added.
        dtype, param_dtype: as for ``lstm``.

    Returns:
        A Cell with MLSTMParams, MLSTMCarry and MLSTMGates, whose ``i`` and ``f`` are i' and f'.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, heads that do not divide H, an unknown forget gate or
            initialiser, a ``forget_bias`` with ``bias=False``; while tracing, inputs, parameters or carries that do not
            fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.mlstm(3, 8, heads=2)
        >>> params = cell.init(jax.random.key(0))
        >>> carry, y = cell.step(params, cell.initial_carry(params, (5,)), jnp.ones((5, 3)))
        >>> carry.C.shape, y.shape
        ((5, 2, 4, 4), (5, 8))

    Differs from the authors' code, whose initial values these are: there i and f read q, k and v, o is a SiLU branch of
    the block around the cell, queries, keys and values have no biases, C is stored transposed, and 1e-6 is added to the
    denominator. Convolution, normalisation and projections are of that block too.

    Reference:
        Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024.
    """
    H, d = hidden_size, hidden_size // heads
    check_heads("mlstm", heads, hidden_size=H)
    log_forget = log_forget_of("mlstm", forget_gate)
    init_x = initializer("mlstm", "input_init", input_init, H)
    init_b = initializer("mlstm", "bias_init", bias_init, H)
    check_gate_bias("mlstm", "forget", bias, forget_bias=forget_bias)

    def initial_gate_bias(key):
        """(2 heads,): what is added to b_if."""
        wide = accumulator(param_dtype)
        spread = jnp.linspace(3.0, 6.0, heads, dtype=wide)
        spread = jax.nn.log_sigmoid(spread) if forget_gate == "exp" else spread
        f = spread if forget_bias is None else jnp.full((heads,), forget_bias, wide)
        return jnp.concatenate([0.1 * jax.random.normal(key, (heads,), wide), f]).astype(param_dtype)

    def init(key):
        k_xh, k_b, k_bif, k_i = jax.random.split(key, 4)
        b_if = per_gate(init_b, k_bif, (heads,), HEAD_GATES, param_dtype) if bias else None
        return MLSTMParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), GATES, param_dtype),
            W_if=jnp.zeros((input_size, 2 * heads), param_dtype),
            b=per_gate(init_b, k_b, (H,), GATES, param_dtype) if bias else None,
            b_if=None if b_if is None else b_if + initial_gate_bias(k_i),
        )

    def initial_carry(params, batch_shape=()):
        kept = carry_dtype(params.W_xh, dtype)
        return MLSTMCarry._make(jnp.zeros((*batch_shape, heads, *shape), kept) for shape in ((d, d), (d,), ()))

    def of_input(params, x):
        """q, k and v (*B, heads, d), o (*B, H), log i and log f (*B, heads)."""
        W_xh, W_if, b, b_if = params
        heads_of = lambda a: a.reshape(*a.shape[:-1], heads, d)
        a, b = project(x, W_xh, dtype), None if b is None else by_gate(GATES, b)
        a = by_gate(GATES, a)
        q, k, v, o = (
            plus_bias(getattr(a, gate) / (math.sqrt(d) if gate == "k" else 1), None if b is None else getattr(b, gate))
            for gate in GATES
        )
        a = by_gate(HEAD_GATES, plus_bias(project(x, W_if, dtype), b_if))
        return heads_of(q), heads_of(k), heads_of(v), jax.nn.sigmoid(o), a.i, log_forget(a.f)

    def gates(params, carry, x):
        C, n, m = carry
        q, k, v, o, log_i, log_f = of_input(params, x)
        i, f, m = stabilised(log_i, log_f, m, None if forget_gate == "sigmoid" else _empty(C, n))
        C = f[..., None, None] * C + i[..., None, None] * (v[..., :, None] * k[..., None, :])
        n = f[..., None] * n + i[..., None] * k
        return MLSTMGates(q, k, v, i, f, o, C, n, m, h=o * _read(C, n, m, q).reshape(o.shape))

    def step(params, carry, x):
        *_, C, n, m, h = gates(params, carry, x)
        return MLSTMCarry(C, n, m), output(h, params.W_xh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=H)


def _empty(C: jax.Array, n: jax.Array) -> jax.Array:
    """(*B, heads): where nothing is stored.

    It makes no difference with forget gates below 1, under which m, from 0, stays at most 0 until something is stored:
    what underflows there is nothing beside the bound of 1. Gates above 1 may make something of it later.
    """
    return (n == 0).all(-1) & (C == 0).all((-1, -2))


def _read(C: jax.Array, n: jax.Array, m: jax.Array, q: jax.Array) -> jax.Array:
    """C q / max(|nᵀ q|, exp(-m)), (*B, heads, d)."""
    # exp(-m) overflows below m = -88 in float32: above and below the line stands exp(min(m, 0)). It underflows above
    # 88, where 0 / 0 has to be 0, with derivatives: the bound ends while its cube is still a float. What n and q make
    # is above that, but for queries of 0.
    unit = jnp.minimum(m, 0)
    bound = jnp.exp(jnp.maximum(unit - m, math.log(float(jnp.finfo(m.dtype).tiny)) / 3))
    read, norm = jnp.einsum("...vk,...k->...v", C, q), jnp.einsum("...k,...k->...", n, q)
    unit = jnp.exp(unit)
    return unit[..., None] * read / jnp.maximum(unit * jnp.abs(norm), bound)[..., None]
