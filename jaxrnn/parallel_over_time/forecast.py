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
        λ = f"{self.regime}: leading Lyapunov exponent {self.exponent:+.4g} ± {self.standard_error:.2g} a step; "
        if self.regime == "chaotic":
            words = (
                f"a disturbance grows by a factor of e every {1 / self.exponent:,.3g} steps, so that guessed carries "
                f"never agree: parallel methods cannot pay"
            )
        else:
            words = f"a disturbance shrinks to rounding in about {self.steps_to_forget:,.0f} steps, of T = {self.steps:,}"
            if self.steps_to_forget == math.inf:
                words = f"a disturbance does not shrink over T = {self.steps:,} steps"
            if self.regime == "contracting":
                return f"{λ}{words}: up to {self.chunks:,} chunks can run side by side, each after so long a warm-up"
            unsure = self.steps >= FEWEST_CHUNKS * self.steps_to_forget
            words += ", which is not sure" if unsure else ": chunks would have to run again and again"
        return f"{λ}{words}; " + (
            "but this cell is linear in its state, and an associative scan is exact in one pass"
            if self.affine
            else "use jr.scan"
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
            empty or has integer parts, a call inside ``jit``; FloatingPointError where a state is not finite.

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
    from jaxrnn.gradients.lyapunov import classify_exponent, leading_exponents  # here: `import jaxrnn` stays light

    who = "forecast_convergence"
    T, spectrum = leading_exponents(who, cell, params, xs, carry, burn_in)
    growth = np.asarray(spectrum.growth, np.float64)
    counted = len(growth)
    if counted < BLOCKS:
        raise ValueError(
            f"{who}: xs has T = {T} steps, of which burn_in={T - counted} leaves {counted}, and its margin needs at "
            f"least {BLOCKS}; give a longer xs, and the length of the run as steps=…."
        )
    T = T if steps is None else steps
    leaves = jax.tree.leaves(jax.eval_shape(functools.partial(cell.initial_carry, params)))
    forgotten = -math.log(min(float(jnp.finfo(a.dtype).eps) for a in leaves))  # log(1/ε)
    growth = np.maximum(growth.reshape(counted, -1), -forgotten)  # (steps, sequences)
    means = growth[counted % BLOCKS :].reshape(BLOCKS, -1, growth.shape[1]).mean(1)
    slowest = int(growth.mean(0).argmax())
    exponent, error = float(growth[:, slowest].mean()), float(means[:, slowest].std(ddof=1)) / math.sqrt(BLOCKS)
    low, high = exponent - MARGIN * error, exponent + MARGIN * error
    chunks = max(1, int(T * -high / forgotten))
    regime = "contracting" if chunks >= FEWEST_CHUNKS else "marginal"
    if classify_exponent(low, T) == "exploding":
        regime = "chaotic"
    to_forget = math.ceil(forgotten / -exponent) if exponent < 0 else math.inf
    return ConvergenceForecast(regime, exponent, error, T, to_forget, chunks, cell.affine is not None)
