"""Whether a run can be parallel over time, forecast from the leading Lyapunov exponent."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree
from jaxrnn.gradients.lyapunov import classify_exponent, leading_exponents

BLOCKS = 10  # of consecutive steps, whose means vary as little as the whole run is sure
MARGIN = 2.26  # standard errors: of a mean of ten, 95 % lie within (Student's t, 9 degrees of freedom)
FEWEST_CHUNKS = 4  # T steps as chunks of w, each after w steps of warm-up: 2 w turns in place of T, for twice the work


class ConvergenceForecast(NamedTuple):
    """What ``forecast_convergence`` found; ``print`` it."""

    regime: str  # "contracting", "marginal" or "chaotic"
    exponent: float  # the leading Lyapunov exponent λ, per step, of the sequence that forgets slowest
    standard_error: float  # of that, from how much it changes along the run
    steps: int  # T, the length that the forecast is for
    steps_to_forget: float  # log(1/ε) / |λ|, the warm-up that a chunk needs; inf where λ is not below 0
    chunks: int  # how many chunks at least as long as their warm-up T allows, λ taken at the upper end of its margin
    affine: bool  # whether the cell has ``affine``, so that an associative scan is exact whatever λ is

    def __str__(self) -> str:
        shrinks = f"shrinks to rounding in about {self.steps_to_forget:,.0f} steps, of T = {self.steps:,}"
        if self.regime == "contracting":
            words = f"{shrinks}: up to {self.chunks:,} chunks can run side by side, each after so long a warm-up"
        elif self.regime == "chaotic":
            words = (
                f"grows by a factor of e every {1 / self.exponent:,.3g} steps, so that guessed carries never agree: "
                f"parallel methods cannot pay"
            )
        elif self.steps_to_forget == math.inf:
            words = f"does not shrink over T = {self.steps:,} steps: chunks would have to run again and again"
        elif self.steps >= FEWEST_CHUNKS * self.steps_to_forget:
            words = f"{shrinks}, which is not sure"
        else:
            words = f"{shrinks}: chunks would have to run again and again"
        fix = "but the cell is linear in its state: an associative scan is exact in one pass"
        fix = "" if self.regime == "contracting" else f"; {fix if self.affine else 'use jr.scan'}"
        return (
            f"{self.regime}: leading Lyapunov exponent {self.exponent:+.4g} ± {self.standard_error:.2g} a step; a "
            f"disturbance {words}{fix}"
        )


@checks_arguments
def forecast_convergence(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    carry: PyTree = None,
    *,
    steps: int | None = None,
    burn_in: int | None = None,
) -> ConvergenceForecast:
    """Whether methods that are parallel over time can pay for a cell, before any of them is tried.

        ‖δ_{t+τ}‖ ≈ exp(λ τ) ‖δ_t‖              δ: a disturbance of the state, λ: the leading Lyapunov exponent
        steps_to_forget = log(1/ε) / |λ|         ε: of the carry's dtype; from then on the start is no longer seen

    A method that is parallel over time starts from guessed states and needs the cell to forget them:

        "contracting"   λ < 0, and T holds at least four times the steps to forget: chunks of time can run side by side
        "marginal"      a disturbance lasts about as long as the run, or longer
        "chaotic"       λ > 0, and a disturbance grows by more than e over T: no guess converges faster than a scan

    Each must hold at both ends of the margin of λ, 2.26 standard errors, for the sequence that forgets slowest; else
    the regime is "marginal".

    Args:
        cell: a Cell whose carry holds real and complex numbers alone. What is random in it is left out, as in
            evaluation.
        params, xs, carry: as for ``jr.scan(cell).apply``: xs (T, *B, I); None is the initial carry.
        steps: T, the length of the run that the forecast is for; None is that of xs. A part of a long sequence says
            enough, where the rest is like it.
        burn_in: steps at the start that are not counted; None is a fifth of those of xs.

    Returns:
        A record of ``regime``, ``exponent``, ``standard_error``, ``steps``, ``steps_to_forget``, ``chunks``
        and ``affine``, which prints as a sentence. Not for use inside ``jit``: it holds words. A step in which a
        disturbance shrinks by more than ε counts as ε: it cannot be forgotten more than once.

    Cost: about two runs of ``jr.scan``, one after the other.

    Raises:
        ValueError, TypeError: fewer than 10 steps after ``burn_in``, a batch of no sequences, a Layer, a carry that is
            empty or has integer parts, a call inside ``jit``; FloatingPointError where a state, or the derivative by
            it, is not finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.gru(3, 8)
        >>> xs = jax.random.normal(jax.random.key(1), (400, 2, 3))
        >>> jr.forecast_convergence(cell, cell.init(jax.random.key(0)), xs, steps=65_536).regime
        'contracting'

    Reference:
        Gonzalez, Kozachkov, Zoltowski, Clarkson & Linderman, "Predictability enables parallelization of nonlinear state
        space models", NeurIPS 2025.
    """
    who = "forecast_convergence"
    T, spectrum = leading_exponents(who, cell, params, xs, carry, burn_in)
    growth = np.asarray(spectrum.growth, np.float64)
    counted = len(growth)
    if counted < BLOCKS:
        raise ValueError(
            f"{who}: xs has T = {T} steps, of which burn_in={T - counted} leaves {counted}, and its margin needs at "
            f"least {BLOCKS}; give a longer xs, and the length of the run as steps=…."
        )
    leaves = jax.tree.leaves(jax.eval_shape(functools.partial(cell.initial_carry, params)))
    eps = min(float(jnp.finfo(a.dtype).eps) for a in leaves)
    return forecast_from_growth(
        growth.reshape(counted, -1), T if steps is None else steps, eps, cell.affine is not None
    )


def forecast_from_growth(growth: np.ndarray, T: int, eps: float, affine: bool = False) -> ConvergenceForecast:
    """What it means for T steps that disturbances grew so, (steps, sequences), each number a natural logarithm."""
    to_lose = -math.log(eps)
    growth = np.maximum(growth, -to_lose)
    slowest = growth[:, growth.mean(0).argmax()]
    means = slowest[len(slowest) % BLOCKS :].reshape(BLOCKS, -1).mean(1)
    exponent, error = float(slowest.mean()), float(means.std(ddof=1)) / math.sqrt(BLOCKS)
    low, high = exponent - MARGIN * error, exponent + MARGIN * error

    def steps_at(λ):
        return max(1, round(-to_lose / λ)) if λ < 0 else math.inf

    chunks = max(1, int(T // steps_at(high)))
    if classify_exponent(low, T) == "exploding":
        regime = "chaotic"
    else:
        regime = "contracting" if chunks >= FEWEST_CHUNKS else "marginal"
    return ConvergenceForecast(regime, exponent, error, T, steps_at(exponent), chunks, affine)
