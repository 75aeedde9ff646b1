"""The simplified structured state space layer, S5."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._products import carry_dtype, complex_dtype, initial_state, output, project_complex, times
from jaxrnn.cells.spectra import hippo_n, normal, read_out


class S5Params(NamedTuple):
    Lambda_re: jax.Array  # (P/2,): Λ, of each pair of conjugates the one with positive imaginary part at first
    Lambda_im: jax.Array  # (P/2,)
    log_step: jax.Array  # (P/2,), log Δ
    B_re: jax.Array  # (I, P/2)
    B_im: jax.Array  # (I, P/2)
    C_re: jax.Array  # (P/2, H)
    C_im: jax.Array  # (P/2, H)
    D: jax.Array | None  # (H,); None where the inputs are not H


@built_in
def s5(
    input_size: int,
    hidden_size: int,
    *,
    state_size: int | None = None,
    blocks: int = 1,
    discretization: str = "zoh",
    step_min: float = 0.001,
    step_max: float = 0.1,
    intervals: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """S5: a linear system in continuous time with a diagonal matrix, taken in steps.

        dh/dt = Λ h + B x,  y = 2 Re(C h) + D * x              D where the inputs are H alone

        h_t = a * h_{t-1} + b * (B x_t)
        a   = exp(Λ Δ),                    b = (exp(Λ Δ) - 1) / Λ         discretization="zoh", x held over the step
        a   = (1 + Λ Δ/2) / (1 - Λ Δ/2),   b = Δ / (1 - Λ Δ/2)            "bilinear"
        Δ   = exp(log_step),  or  Δ = exp(log_step) * x_t[-1]             with ``intervals``

    Λ starts as the eigenvalues of HiPPO-N, the normal part of the matrix whose state holds the coefficients of the past
    in Legendre polynomials. They are pairs of conjugates; one of each is kept, and 2 Re(·) is the sum of both.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the features of the output.
        state_size: P, even: the real numbers of the state, carried as ``h`` (*B, P/2) complex ones; by default H, or
            H + 1 where H is odd.
        blocks: the number of smaller HiPPO-N matrices, of P / blocks each, that Λ starts from.
        discretization: "zoh" or "bilinear".
        step_min, step_max: between which Δ starts, log-uniform.
        intervals: whether the last feature of x is no input, but the time since the step before, in units of Δ.
        dtype, param_dtype: as for ``elman``. The carry is complex64, or complex128 beside float64.

    Returns:
        A Cell with S5Params, all of them real, the carry h and ``affine``.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an odd state_size, blocks that do not divide it,
            steps out of range; while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.s5(3, 5, state_size=8)
        >>> params = cell.init(jax.random.key(0))
        >>> h, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> h.shape, y.shape, set(params.Lambda_re.tolist())
        ((2, 4), (2, 5), {-0.5})

    Differs from the authors' code in that B and C are drawn real before they are turned into the eigenbasis (there C is
    complex), in inputs that need not be H, and in what surrounds the layer: activation, normalisation, dropout and skip
    connection are ``jr.pointwise``, ``jr.layer_norm``, ``jr.dropout`` and ``jr.residual``. As there, nothing holds Re Λ
    below 0 while it is trained.

    Reference:
        Smith, Warrington & Linderman, "Simplified state space layers for sequence modeling", ICLR 2023.
    """
    H, P = hidden_size, hidden_size + hidden_size % 2 if state_size is None else state_size
    inputs = input_size - intervals
    check_choice("s5", "discretization", discretization, ("zoh", "bilinear"))
    if P % (2 * blocks):
        raise ValueError(
            f"s5: state_size must be pairs of conjugates in each block, a multiple of 2 * blocks = {2 * blocks}, got "
            f"{P}; give {2 * blocks * max(1, round(P / 2 / blocks))}."
        )
    if not 0 < step_min < step_max:
        raise ValueError(f"s5: expected 0 < step_min < step_max, got {step_min!r} and {step_max!r}.")
    if not inputs:
        raise ValueError("s5: intervals=True takes the last feature for the time, so input_size must be at least 2.")

    def init(key):
        k_step, k_B, k_C, k_D = jax.random.split(key, 4)
        wide = accumulator(param_dtype)
        Λ, V = hippo_n(P // blocks)  # of one block
        Λ = np.tile(Λ, blocks)
        B = normal(k_B, (blocks, P // blocks, inputs), inputs**-0.5, wide)
        C = normal(k_C, (blocks, P // blocks, H), P**-0.5, wide)

        def turned(a, part):
            """By V of each block, (P/2, n)."""
            return jnp.einsum("pk,bpn->bkn", jnp.asarray(part, wide), a).reshape(P // 2, -1)

        log_step = jax.random.uniform(k_step, (P // 2,), wide, math.log(step_min), math.log(step_max))
        D = normal(k_D, (H,), 1.0, param_dtype) if inputs == H else None
        B_re, B_im, C_re, C_im = turned(B, V.real).T, -turned(B, V.imag).T, turned(C, V.real), turned(C, V.imag)
        parts = (Λ.real, Λ.imag, log_step, B_re, B_im, C_re, C_im)
        return S5Params._make([*(jnp.asarray(a, param_dtype) for a in parts), D])

    def initial_carry(params, batch_shape=()):
        return initial_state(None, batch_shape, P // 2, complex_dtype(params.B_re, dtype))

    def affine(params, x):
        kept = carry_dtype(params.B_re, dtype)
        Λ = jax.lax.complex(params.Lambda_re.astype(kept), params.Lambda_im.astype(kept))
        Δ = jnp.exp(params.log_step.astype(kept))
        if intervals:
            x, Δ = x[..., :-1], times(x[..., -1:].astype(kept), Δ)
        Δ = Δ.astype(Λ.dtype)
        ΛΔ = times(Δ, Λ)
        if discretization == "zoh":
            a, b = jnp.exp(ΛΔ), times(jnp.expm1(ΛΔ), 1 / Λ)
        else:
            a, b = (2 + ΛΔ) / (2 - ΛΔ), 2 * Δ / (2 - ΛΔ)
        return a, times(project_complex(x, params.B_re, params.B_im, dtype), b)

    def read(params, h, x):
        y = read_out(2 * h, x[..., :inputs], params.C_re, params.C_im, params.D, dtype)
        return output(y, params.B_re, dtype)

    return Cell(init, initial_carry, affine=affine, output=read, input_size=input_size, output_size=H)
