"""Convolutional GRU: the state is a field, the products are convolutions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._convolution import check_field, convolve, sizes_of_field
from jaxrnn.cells._options import Initializer, cell_options, per_gate
from jaxrnn.cells._products import carry_dtype, output, plus_bias
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import by_gate
from jaxrnn.cells.gru import GATES, GRUGates


class ConvGRUParams(NamedTuple):
    W_xh: jax.Array  # (*K, I, 3H), blocks r, z, n: GATES
    W_hh: jax.Array  # (*K, H, 3H), so too
    b: jax.Array | None  # (3H,), so too; None without biases
    b_hh: jax.Array | None = None  # (H,), inside the reset product, for reset="after"


@built_in
def conv_gru(
    input_size: int,
    hidden_size: int,
    *,
    spatial_shape: int | Sequence[int],
    kernel_size: int | Sequence[int] = 3,
    reset: str = "before",
    activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    bias: bool = True,
    input_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "glorot_uniform",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Convolutional GRU, over 1, 2 or 3 dimensions of space; ``*`` is elementwise, ``⊛`` a convolution.

        r, z = σ(W_hh ⊛ h_{t-1} + W_xh ⊛ x_t + b)
        n    = tanh(W_hh ⊛ (r * h_{t-1}) + W_xh ⊛ x_t + b)            reset="before"
        n    = tanh(W_xh ⊛ x_t + b + r * (W_hh ⊛ h_{t-1} + b_hh))     reset="after"
        h_t  = (1 - z) * h_{t-1} + z * n

    Args:
        input_size: I, the channels of ``x`` (*B, *S, I): channels last.
        hidden_size: H, the channels of the carry, an array ``h`` (*B, *S, H), which is the output too.
        spatial_shape: S, one to three sizes.
        kernel_size: K, one size for each dimension or one for all. Fields are padded with zeros, and keep their size.
        reset: "before" the recurrent convolution, as in the paper, or "after" it: one convolution of h a step, not two.
        activation, gate_activation, bias, input_init, recurrent_init, bias_init, dtype, param_dtype: as for ``gru``.

    Returns:
        A Cell with ConvGRUParams, the carry h and GRUGates, (*B, *S, H) each.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, a kernel of other dimensions than space, an unknown
            reset, activation or initialiser; while tracing, inputs, parameters or carries that do not fit, or that are
            divided over a mesh with Explicit axes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.conv_gru(3, 5, spatial_shape=(8, 6)))
        >>> h, ys = layer.apply(layer.init(jax.random.key(0)), jnp.ones((7, 2, 8, 6, 3)))
        >>> ys.shape
        (7, 2, 8, 6, 5)

    Differs from the paper's equations, which are written without biases (``bias=False``), and from code in which z
    multiplies the old state. Keras, Flax and PyTorch have no such cell.

    Reference:
        Ballas, Yao, Pal & Courville, "Delving deeper into convolutional networks for learning video representations",
        ICLR 2016.
    """
    H = hidden_size
    S, K = sizes_of_field("conv_gru", spatial_shape, kernel_size)
    check_choice("conv_gru", "reset", reset, ("before", "after"))
    act, σ, init_x, init_h, init_b = cell_options(
        "conv_gru", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    convolved = functools.partial(convolve, "conv_gru")

    def init(key):
        k_xh, k_hh, k_b, k_bhh = jax.random.split(key, 4)
        return ConvGRUParams(
            W_xh=per_gate(init_x, k_xh, (*K, input_size, H), GATES, param_dtype),
            W_hh=per_gate(init_h, k_hh, (*K, H, H), GATES, param_dtype),
            b=per_gate(init_b, k_b, (H,), GATES, param_dtype) if bias else None,
            b_hh=init_b(k_bhh, (H,), param_dtype) if bias and reset == "after" else None,
        )

    def initial_carry(params, batch_shape=()):
        return jnp.zeros((*batch_shape, *S, H), carry_dtype(params.W_hh, dtype))

    def gates(params, h, x):
        W_xh, W_hh, b, b_hh = params
        check_field("conv_gru", x, S, input_size, W_xh.dtype, dtype)
        a = by_gate(GATES, plus_bias(convolved(x, W_xh, dtype), b))
        if reset == "before":
            u = by_gate(GATES[:-1], convolved(h, W_hh[..., :-H], dtype))
            r, z = σ(u.r + a.r), σ(u.z + a.z)
            n = act(convolved(r * h, W_hh[..., -H:], dtype) + a.n)
        else:
            u = by_gate(GATES, convolved(h, W_hh, dtype))
            r, z = σ(u.r + a.r), σ(u.z + a.z)
            n = act(a.n + r * plus_bias(u.n, b_hh))
        return GRUGates(r, z, n, (1 - z) * h + z * n)

    def step(params, h, x):
        *_, h = gates(params, h, x)
        return h, output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, x_ndim=len(S) + 1, input_size=input_size, output_size=H)
