"""Gated recurrent unit."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import (
    Initializer,
    cell_options,
    check_gate_bias,
    check_heads,
    chrono_bias,
    per_gate,
    per_head,
)
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus_bias, project, project_heads
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import block, by_gate
from jaxrnn.cells.layer_normed import gru_scales, layer_normed_gru, normalised

GATES = ("r", "z", "n")  # the blocks of W_xh, W_hh and b, in this order; n last, whose product may read r * h


class GRUParams(NamedTuple):
    W_xh: jax.Array  # (I, 3H)
    W_hh: jax.Array  # (H, 3H); of several heads (heads, H / heads, 3H / heads)
    b: jax.Array | None  # (3H,); None without biases
    b_hh: jax.Array | None = None  # (H,), inside the reset product, for reset="after"
    h0: jax.Array | None = None  # (H,), where the initial carry is learned


class GRUGates(NamedTuple):
    r: jax.Array  # (*B, H) each: reset gate
    z: jax.Array  # update gate, the share of the candidate
    n: jax.Array  # candidate
    h: jax.Array  # the new state


@built_in
def gru(
    input_size: int,
    hidden_size: int,
    *,
    reset: str = "before",
    layer_norm: str | None = None,
    heads: int = 1,
    activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    bias: bool = True,
    T_max: float | None = None,
    input_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Gated recurrent unit.

        r, z = σ(W [h_{t-1}, x_t] + b)
        n    = tanh(W_hh (r * h_{t-1}) + W_xh x_t + b)            reset="before"
        n    = tanh(W_xh x_t + b + r * (W_hh h_{t-1} + b_hh))     reset="after"
        h_t  = (1 - z) * h_{t-1} + z * n

    With ``layer_norm="ba2016"`` each product is LN of it, those of r and z together, that of n apart:
    LN(a) = scale * (a - mean(a)) / sqrt(var(a) + 1e-5).

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H), which is the output too.
        reset: "before" the recurrent product, as in the first version of the paper, or "after" it, as cuDNN,
            PyTorch and Keras compute it.
        layer_norm: "ba2016", or None.
        heads: W_hh is block-diagonal: the units of each of so many heads, which divide H, read those of the same head
            alone.
        activation, gate_activation: in place of tanh and σ, by name or any function, as for ``elman``.
        bias: whether there are biases.
        T_max: chrono initialisation: update biases -log U(1, T_max - 1), for dependencies of up to T_max steps.
        input_init, recurrent_init, bias_init: initialisers by name ("glorot_uniform", "orthogonal", "uniform" as
            PyTorch's …) or functions ``init(key, shape, dtype)``; drawn for each gate by itself.
        learned_carry: makes the initial carry a parameter, ``h0`` (H,), zero at first.
        dtype: the compute and output dtype; None computes in the parameters' own. The carry, the gates and every
            sum are kept in at least float32.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        A Cell with GRUParams, or with ``layer_norm`` LayerNormGRUParams, the carry h and GRUGates.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown reset, layer_norm or initialiser, heads that
            do not divide H; while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.gru(3, 5, reset="after")
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> jr.gates(cell, params, h, jnp.ones((2, 3)))._fields
        ('r', 'z', 'n', 'h')

    Differs from PyTorch, Keras, Flax and ONNX, whose z multiplies the old state: negate the z block of their weights.
    In LN: Ba et al. normalise with ``reset="after"``, with shifts of their own, of which b and b_hh are the sums.

    References:
        Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
        translation", EMNLP 2014.
        Ba, Kiros & Hinton, "Layer normalization", 2016 (layer_norm).
    """
    H, k = hidden_size, hidden_size // heads  # a head's units
    check_choice("gru", "reset", reset, ("before", "after"))
    if layer_norm is not None:
        check_choice("gru", "layer_norm", layer_norm, ("ba2016",))
    check_heads("gru", heads, hidden_size=H)
    act, σ, init_x, init_h, init_b = cell_options(
        "gru", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    check_gate_bias("gru", "update", bias, T_max=T_max)

    def init(key):
        k_xh, k_hh, k_b, k_z, k_bhh = jax.random.split(key, 5)
        b = per_gate(init_b, k_b, (H,), GATES, param_dtype) if bias else None
        if b is not None and T_max is not None:
            b = b.at[block(GATES, "z", H)].add(-chrono_bias(T_max, k_z, H, param_dtype))
        params = GRUParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), GATES, param_dtype),
            W_hh=per_head(init_h, k_hh, (H, H), GATES, heads, param_dtype),
            b=b,
            b_hh=init_b(k_bhh, (H,), param_dtype) if bias and reset == "after" else None,
            h0=jnp.zeros((H,), param_dtype) if learned_carry else None,
        )
        return params if layer_norm is None else layer_normed_gru(params, H, param_dtype)

    def initial_carry(params, batch_shape=()):
        return initial_state(params.h0, batch_shape, H, carry_dtype(params.W_hh, dtype))

    def gates(params, h, x):
        W_xh, W_hh, b, b_hh, *_ = params
        scale_xh, scale_hh, scale_rz, scale_n = gru_scales(params)
        a = by_gate(GATES, plus_bias(normalised(project(x, W_xh, dtype), scale_xh, 2 * H, H), b))
        if reset == "before":
            u = by_gate(GATES[:-1], normalised(project_heads(h, W_hh, 2, dtype, jnp.s_[:-k]), scale_rz, 2 * H))
            r, z = σ(u.r + a.r), σ(u.z + a.z)
            n = act(normalised(project_heads(r * h, W_hh, 1, dtype, jnp.s_[-k:]), scale_n, H) + a.n)
        else:
            u = by_gate(GATES, normalised(project_heads(h, W_hh, 3, dtype), scale_hh, 2 * H, H))
            r, z = σ(u.r + a.r), σ(u.z + a.z)
            n = act(a.n + r * plus_bias(u.n, b_hh))
        h = (1 - z) * h + z * n
        return GRUGates(r, z, n, h)

    def step(params, h, x):
        *_, h = gates(params, h, x)
        return h, output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=hidden_size)
