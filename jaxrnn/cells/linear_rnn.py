"""A linear recurrence with a diagonal matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, initializer
from jaxrnn.cells._products import (
    carry_dtype,
    complex_dtype,
    initial_state,
    output,
    plus_bias,
    project,
    project_complex,
)
from jaxrnn.cells.spectra import check_ring, log_decay, uniform


class LinearRNNParams(NamedTuple):
    a: jax.Array  # (H,), the diagonal; its real part where there is an imaginary one
    W_xh: jax.Array  # (I, H)
    b: jax.Array | None  # (H,); None without biases
    a_im: jax.Array | None = None  # (H,), where the diagonal is complex
    W_im: jax.Array | None = None  # (I, H), the imaginary part of W_xh


@built_in
def linear_rnn(
    input_size: int,
    hidden_size: int,
    *,
    diagonal: str = "real",
    r_min: float = 0.0,
    r_max: float = 1.0,
    bias: bool = True,
    input_init: str | Initializer = "glorot_uniform",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """A linear recurrence with a diagonal matrix: a leaky sum, or a damped oscillation, for each unit.

        h_t = a * h_{t-1} + W_xh x_t + b
        y_t = h_t           diagonal="real"
        y_t = Re(h_t)       diagonal="complex": a, W_xh and h are complex

    Where no two eigenvalues of a matrix are equal, its recurrence is one with a complex diagonal in other coordinates.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry ``h`` (*B, H) and the features of the output.
        diagonal: "real", or "complex", whose parts are parameters of their own.
        r_min, r_max: where a starts: real and uniform between the two, r_min from -1 on; complex with that modulus,
            uniform over the area of the ring.
        bias: whether there is b.
        input_init, bias_init: initialisers by name or function, as for ``elman``; the first draws W_im too.
        dtype, param_dtype: as for ``elman``. A complex carry is complex64, or complex128 beside float64.

    Returns:
        A Cell with LinearRNNParams, the carry h and ``affine``.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown diagonal or initialiser, moduli beyond 1;
            while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.linear_rnn(1, 1)
        >>> params = jr.cells.LinearRNNParams(a=jnp.array([0.5]), W_xh=jnp.ones((1, 1)), b=jnp.zeros(1))
        >>> jr.scan(cell).apply(params, jnp.ones((3, 1)))[1].ravel().tolist()
        [1.0, 1.5, 1.75]

    Differs from ``jr.lru``, which normalises what a unit reads by how long it remembers, and keeps its modulus below 1:
    here nothing holds a there while it is trained.

    Reference:
        Martin & Cundy, "Parallelizing linear recurrent neural nets over sequence length", ICLR 2018.
    """
    H, is_complex = hidden_size, diagonal == "complex"
    check_choice("linear_rnn", "diagonal", diagonal, ("real", "complex"))
    check_ring("linear_rnn", r_min, r_max, lowest=0.0 if is_complex else -1.0)
    init_x, init_b = (
        initializer("linear_rnn", name, init, H)
        for name, init in (("input_init", input_init), ("bias_init", bias_init))
    )

    def init(key):
        k_a, k_phase, k_xh, k_im, k_b = jax.random.split(key, 5)
        wide = accumulator(param_dtype)
        if is_complex:
            size, phase = jnp.exp(-log_decay(k_a, H, r_min, r_max, wide)), 2 * jnp.pi * uniform(k_phase, H, wide)
            a, a_im = size * jnp.cos(phase), size * jnp.sin(phase)
        else:
            a, a_im = jax.random.uniform(k_a, (H,), wide, r_min, r_max), None
        return LinearRNNParams(
            a=a.astype(param_dtype),
            W_xh=init_x(k_xh, (input_size, H), param_dtype),
            b=init_b(k_b, (H,), param_dtype) if bias else None,
            a_im=None if a_im is None else a_im.astype(param_dtype),
            W_im=init_x(k_im, (input_size, H), param_dtype) if is_complex else None,
        )

    def initial_carry(params, batch_shape=()):
        state_dtype = complex_dtype if is_complex else carry_dtype
        return initial_state(None, batch_shape, H, state_dtype(params.W_xh, dtype))

    def affine(params, x):
        a, W_xh, b, a_im, W_im = params
        if not is_complex:
            return a, plus_bias(project(x, W_xh, dtype), b)
        wide = carry_dtype(W_xh, dtype)
        a = jax.lax.complex(a.astype(wide), a_im.astype(wide))
        return a, plus_bias(project_complex(x, W_xh, W_im, dtype), b)

    def read(params, h, x):
        return output(h.real if is_complex else h, params.W_xh, dtype)

    return Cell(init, initial_carry, affine=affine, output=read, input_size=input_size, output_size=H)
