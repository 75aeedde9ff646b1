"""The linear recurrent unit."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._products import carry_dtype, complex_dtype, initial_state, output, project_complex, times
from jaxrnn.cells.spectra import check_ring, log_decay, normal, read_out, uniform


class LRUParams(NamedTuple):
    log_nu: jax.Array  # (N,): λ = exp(-exp(log_nu) + i exp(log_theta))
    log_theta: jax.Array  # (N,)
    log_gamma: jax.Array  # (N,)
    B_re: jax.Array  # (I, N)
    B_im: jax.Array  # (I, N)
    C_re: jax.Array  # (N, H)
    C_im: jax.Array  # (N, H)
    D: jax.Array | None  # (H,); None where I is not H


@built_in
def lru(
    input_size: int,
    hidden_size: int,
    *,
    state_size: int | None = None,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = 2 * math.pi,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Linear recurrent unit: a complex diagonal recurrence that is stable by its parameters.

        λ   = exp(-ν + i θ),  ν = exp(log_nu),  θ = exp(log_theta)
        h_t = λ * h_{t-1} + γ * (B x_t),  γ = exp(log_gamma)
        y_t = Re(C h_t) + D * x_t              D where I = H alone

    At first λ is uniform over the area of the ring r_min ≤ |λ| ≤ r_max, its phase from 0 to max_phase, and
    γ = √(1 - |λ|²): white noise then makes a state of the same size in every unit, however long it remembers.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the features of the output.
        state_size: N, the complex numbers of the carry ``h`` (*B, N); H by default.
        r_min, r_max: the smallest and the largest modulus of λ at first, within 0 and 1; near 1 for long sequences.
        max_phase: the largest phase of λ at first, above 0, at most 2π; small for long sequences.
        dtype, param_dtype: as for ``elman``. The carry is complex64, or complex128 beside float64.

    Returns:
        A Cell with LRUParams, all of them real, the carry h and ``affine``.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, a ring or a phase out of range; while tracing, inputs,
            parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.lru(3, 5, state_size=8, r_min=0.9, r_max=0.999, max_phase=0.3)
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> h.shape, h.dtype.name, y.shape
        ((2, 8), 'complex64', (2, 5))

    Differs from the paper's layer, in which I = H, and around which stand a normalisation, a gated linear unit and a
    skip connection: ``jr.layer_norm``, ``jr.dense``, ``jr.residual``.

    Reference:
        Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu & De, "Resurrecting recurrent neural networks for long
        sequences", ICML 2023.
    """
    H, N = hidden_size, hidden_size if state_size is None else state_size
    check_ring("lru", r_min, r_max)
    if not 0 < max_phase <= 2 * math.pi:
        raise ValueError(f"lru: max_phase must be above 0 and at most 2π, got {max_phase!r}; π/10 is a small one.")

    def init(key):
        k_nu, k_theta, *k_B, k_Cre, k_Cim, k_D = jax.random.split(key, 7)
        ν = log_decay(k_nu, N, r_min, r_max, param_dtype)
        θ = max_phase * uniform(k_theta, N, accumulator(param_dtype))
        B_re, B_im = (normal(k, (input_size, N), (2 * input_size) ** -0.5, param_dtype) for k in k_B)
        return LRUParams(
            log_nu=jnp.log(ν).astype(param_dtype),
            log_theta=jnp.log(θ).astype(param_dtype),
            log_gamma=(0.5 * jnp.log(-jnp.expm1(-2 * ν))).astype(param_dtype),
            B_re=B_re,
            B_im=B_im,
            C_re=normal(k_Cre, (N, H), N**-0.5, param_dtype),
            C_im=normal(k_Cim, (N, H), N**-0.5, param_dtype),
            D=normal(k_D, (H,), 1.0, param_dtype) if input_size == H else None,
        )

    def initial_carry(params, batch_shape=()):
        return initial_state(None, batch_shape, N, complex_dtype(params.B_re, dtype))

    def affine(params, x):
        kept = carry_dtype(params.B_re, dtype)
        ν, θ, γ = (jnp.exp(a.astype(kept)) for a in (params.log_nu, params.log_theta, params.log_gamma))
        λ = jnp.exp(jax.lax.complex(-ν, θ))
        return λ, times(project_complex(x, params.B_re, params.B_im, dtype), γ)

    def read(params, h, x):
        y = read_out(h, x, params.C_re, params.C_im, params.D, dtype)
        return output(y, params.B_re, dtype)

    return Cell(init, initial_carry, affine=affine, output=read, input_size=input_size, output_size=H)
