"""sLSTM: an LSTM with exponential gates and a normaliser."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._exponential import log_forget_of, stabilised
from jaxrnn.cells._options import Initializer, cell_options, check_gate_bias, check_heads, per_gate, per_head
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus_bias, project, project_heads
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import block, by_gate

GATES = ("i", "f", "z", "o")  # the blocks of W_xh, W_hh (of each head's matrix by itself) and b, in this order


class SLSTMParams(NamedTuple):
    W_xh: jax.Array  # (I, 4H)
    W_hh: jax.Array  # (H, 4H); with heads block-diagonal, (heads, H / heads, 4H / heads)
    b: jax.Array | None  # (4H,): of each gate all units, as the heads have them; None without biases


class SLSTMCarry(NamedTuple):
    h: jax.Array  # (*B, H) each: the output
    c: jax.Array  # the memory, in units of exp(m)
    n: jax.Array  # the normaliser, in units of exp(m)
    m: jax.Array  # the stabiliser

    @property
    def in_units_of(self) -> str:
        """For wrappers, which do not blend numbers of different units."""
        return "exp(m)"

    def in_units(self, m: float | jax.Array) -> SLSTMCarry:
        """The same state, c and n in units of another exp(m)."""
        c, n = (a * jnp.exp(self.m - m) for a in (self.c, self.n))
        return self._replace(c=c, n=n, m=jnp.full_like(self.m, m))


class SLSTMGates(NamedTuple):
    i: jax.Array  # (*B, H) each: input gate i', in units of exp(m_t)
    f: jax.Array  # forget gate f', in units of exp(m_t - m_{t-1})
    z: jax.Array  # candidate
    o: jax.Array  # output gate
    c: jax.Array  # the new memory
    n: jax.Array  # the new normaliser
    m: jax.Array  # the new stabiliser
    h: jax.Array  # the new output

    @property
    def candidate(self) -> str:
        """Its name, for ``recurrent_dropout``: n is another thing here."""
        return "z"


@built_in
def slstm(
    input_size: int,
    hidden_size: int,
    *,
    heads: int = 1,
    forget_gate: str = "sigmoid",
    activation: str | Activation = "tanh",
    bias: bool = True,
    forget_bias: float | None = None,
    input_init: str | Initializer = "small_normal",
    recurrent_init: str | Initializer = "zeros",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """sLSTM, the cell of xLSTM with scalar memories: exponential gates, and a normaliser that they share.

        z   = tanh(W [h_{t-1}, x_t] + b),  o = σ(W [h_{t-1}, x_t] + b)
        i   = exp(W [h_{t-1}, x_t] + b)
        f   = σ(W [h_{t-1}, x_t] + b),  or exp of it                         ``forget_gate``
        c_t = f * c_{t-1} + i * z
        n_t = f * n_{t-1} + i
        h_t = o * c_t / n_t

    An exponential soon leaves the range of floats, so c and n are carried in units of exp(m): what is computed is the
    same, with i' and f' in place of i and f.

        m_t = max(log f + m_{t-1}, log i),  i' = exp(log i - m_t),  f' = exp(log f + m_{t-1} - m_t)

    The carry starts at zeros. Where n is 0 nothing is stored, and m_{t-1} counts as -∞; from the first step on n is at
    least 1.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of ``SLSTMCarry(h, c, n, m)``, (*B, H) each, and of the output ``y = h_t``.
        heads: the number of blocks of H / heads units between which there is no recurrent weight; divides H.
        forget_gate: "sigmoid" or "exp".
        activation: in place of tanh, by name or any function, as for ``elman``.
        bias: whether there are biases.
        forget_bias: added to the forget gate's initial bias. None spreads it over each head, from 5 to -7, as
            5 - 12 (j / (H / heads - 1))^0.3 for unit j; an exponential gate starts as open as the other one, with the
            log σ of that.
        input_init, recurrent_init, bias_init: as for ``lstm``, drawn for each gate, and each head, by itself.
            "small_normal" is N(0, 2 / (5 I)).
        dtype, param_dtype: as for ``lstm``.

    Returns:
        A Cell with SLSTMParams, SLSTMCarry and SLSTMGates, whose ``i`` and ``f`` are i' and f'.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, heads that do not divide H, an unknown forget gate,
            initialiser or activation, a ``forget_bias`` with ``bias=False``; while tracing, inputs, parameters or
            carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.slstm(3, 4, heads=2)
        >>> params = cell.init(jax.random.key(0))
        >>> carry, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> carry.n.tolist() == jnp.ones((2, 4)).tolist(), params.W_hh.shape
        (True, (2, 2, 8))

    Differs from the authors' code, whose initial values these are, in W_xh, which is block-diagonal too there, and in
    what surrounds the cell: convolution, group normalisation, projections. There the forget gate is "sigmoid".

    Reference:
        Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024.
    """
    H, d = hidden_size, hidden_size // heads
    check_heads("slstm", heads, hidden_size=H)
    log_forget = log_forget_of("slstm", forget_gate)
    act, init_x, init_h, init_b = cell_options("slstm", H, (activation,), (input_init, recurrent_init, bias_init))
    check_gate_bias("slstm", "forget", bias, forget_bias=forget_bias)

    def initial_forget_bias():
        if forget_bias is not None:
            return jnp.full((H,), forget_bias, param_dtype)
        spread = 5 - 12 * (jnp.arange(d, dtype=accumulator(param_dtype)) / max(d - 1, 1)) ** 0.3
        spread = jax.nn.log_sigmoid(spread) if forget_gate == "exp" else spread
        return jnp.tile(spread, heads).astype(param_dtype)

    def init(key):
        k_xh, k_hh, k_b = jax.random.split(key, 3)
        b = per_gate(init_b, k_b, (H,), GATES, param_dtype) if bias else None
        return SLSTMParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), GATES, param_dtype),
            W_hh=per_head(init_h, k_hh, (H, H), GATES, heads, param_dtype),
            b=None if b is None else b.at[block(GATES, "f", H)].add(initial_forget_bias()),
        )

    def initial_carry(params, batch_shape=()):
        kept = carry_dtype(params.W_hh, dtype)
        return SLSTMCarry._make(initial_state(None, batch_shape, H, kept) for _ in SLSTMCarry._fields)

    def gates(params, carry, x):
        W_xh, W_hh, b = params
        h, c, n, m = carry
        u = project_heads(h, W_hh, len(GATES), dtype)
        a = by_gate(GATES, plus_bias(u + project(x, W_xh, dtype), b))
        z, o = act(a.z), jax.nn.sigmoid(a.o)
        i, f, m = stabilised(a.i, log_forget(a.f), m, empty=n == 0)
        c = f * c + i * z
        n = f * n + i
        return SLSTMGates(i, f, z, o, c, n, m, h=o * c / n)

    def step(params, carry, x):
        *_, c, n, m, h = gates(params, carry, x)
        return SLSTMCarry(h, c, n, m), output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=H)
