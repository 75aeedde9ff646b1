"""Lyapunov exponents: at what rate a perturbation of the state, and so a gradient, grows or dies out."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree
from jaxrnn._checks import sequence_shape
from jaxrnn._deprecated import warn_renamed
from jaxrnn.devices.placement import vary_alike
from jaxrnn.gradients._state_space import run_of
from jaxrnn.gradients.jacobians import check_states


class LyapunovSpectrum(NamedTuple):
    """What ``lyapunov_spectrum`` found."""

    exponents: jax.Array  # (*B, k), natural logarithm a step, largest first
    growth: jax.Array  # (T - burn_in, *B, k): the growth of each direction at each step; its mean is the exponent


@checks_arguments
def lyapunov_spectrum(
    cell: Cell, params: PyTree, xs: PyTree, carry: PyTree = None, *, k: int | None = None, burn_in: int = 0
) -> LyapunovSpectrum:
    """The k largest Lyapunov exponents along a run.

        Q_t R_t = J_t Q_{t-1}                    J_t = ∂h_t/∂h_{t-1}, Q (N, k) with orthonormal columns
        λ_i     = mean over t of log |R_t[i, i]|

    The largest says what becomes of a gradient: ‖∂h_t/∂h_{t-τ}‖ goes as exp(λ_1 τ).

    Args:
        cell: a Cell whose carry holds real and complex numbers alone, N in all, a complex one counted as two. A map
            without inputs takes xs (T, 0). Of xLSTM's (``slstm``, ``mlstm``), whose memories are in units of exp(m),
            each m adds an exponent that says nothing: -inf, or as low as rounding leaves it. What an empty memory holds
            has a derivative of 0, so give it a ``burn_in`` of 1 at least.
        params, xs, carry: as for ``jr.scan(cell).apply``: xs (T, *B, I); None is the initial carry.
        k: how many exponents, None for all N. Each step costs one product by J_t for each, and no J_t is made.
        burn_in: steps at the start that turn the directions without being counted.

    Returns:
        A :class:`LyapunovSpectrum` for each sequence. It starts from fixed directions, so it is the same at every call.

    Raises:
        ValueError, TypeError: k above N, no steps left after ``burn_in``, a Layer, a carry that is empty or has integer
            parts; outside ``jit`` a FloatingPointError where a state is not finite, with the first step.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> logistic = jr.Cell(  # h_t = 4 h (1 - h), whose exponent is log 2 = 0.693
        ...     init=lambda key: {},
        ...     initial_carry=lambda params, batch_shape=(): jnp.full((*batch_shape, 1), 0.3),
        ...     step=lambda params, h, x: (4 * h * (1 - h), h),
        ... )
        >>> jr.gradients.lyapunov_spectrum(logistic, {}, jnp.zeros((20_000, 0))).exponents.round(2).tolist()
        [0.6899999976158142]

    References:
        Benettin, Galgani, Giorgilli & Strelcyn, "Lyapunov characteristic exponents for smooth dynamical systems",
        Meccanica 15, 1980.
        Engelken, Wolf & Abbott, "Lyapunov spectra of chaotic recurrent neural networks", Physical Review Research
        5, 2023.
    """
    return _spectrum("lyapunov_spectrum", cell, params, xs, carry, k, burn_in)


def _spectrum(
    who: str, cell: Cell, params: PyTree, xs: PyTree, carry: PyTree, k: int | None, burn_in: int | None
) -> LyapunovSpectrum:
    space, h, T = run_of(who, cell, params, xs, carry)
    burn_in = T // 5 if burn_in is None else burn_in
    k = space.size if k is None else k
    if k > space.size:
        raise ValueError(f"{who}: k={k} is more than the {space.size} numbers of the carry; give at most that.")
    check_burn_in(who, burn_in, T)

    def advance(state, x):
        h, Q = state
        h, push = space.linear(h, x)
        pushed = push(Q)
        lost = (pushed == 0).all(-2)  # it goes on in a direction that is, as at first, along no unit
        Q, R = jnp.linalg.qr(jnp.where(jnp.broadcast_to(lost[..., None, :], Q.shape), first, pushed))
        stretch = jnp.where(lost, 0.0, jnp.abs(jnp.diagonal(R, axis1=-2, axis2=-1)))
        return (h, Q), (jnp.log(stretch), jnp.isfinite(h).all())

    first, _ = vary_alike(jnp.broadcast_to(_directions(space.size, k).astype(h.dtype), (*h.shape, k)), h)
    _, (growth, finite) = jax.lax.scan(advance, (h, first), xs)
    check_states(who, finite)
    growth = growth[burn_in:]
    return LyapunovSpectrum(-jnp.sort(-growth.mean(0), axis=-1), growth)


def leading_exponents(
    who: str, cell: Cell, params: PyTree, xs: PyTree, carry: PyTree, burn_in: int | None
) -> tuple[int, LyapunovSpectrum]:
    """T, and the largest exponent of at least one sequence as values, from which words can be made.

    ``burn_in`` None is a fifth of the steps.
    """
    T, batch_shape = sequence_shape(who, xs, cell.x_ndim if isinstance(cell, Cell) else 1)
    if 0 in batch_shape:
        raise ValueError(f"{who}: xs holds no sequence, its batch is {batch_shape}; give at least one.")
    found = _spectrum(who, cell, params, xs, carry, 1, burn_in)
    if isinstance(found.exponents, jax.core.Tracer):
        raise TypeError(
            f"{who}: its words need values, so it cannot be jitted; jit jr.gradients.lyapunov_spectrum instead."
        )
    growth = np.asarray(found.growth).reshape(len(found.growth), -1)
    if lost := np.flatnonzero(~(growth < np.inf).all(1)).tolist():
        raise FloatingPointError(
            f"{who}: the derivative by the state is not finite at step {T - len(growth) + lost[0]}, or before; look at "
            f"what the step does to that state: a square root of 0, or a division by it."
        )
    return T, found


class Diagnosis(NamedTuple):
    """What ``diagnose`` found; ``print`` it."""

    exponent: float  # the leading Lyapunov exponent, per step: the mean over the batch, without dead sequences (-inf)
    sd: float  # its standard deviation over the batch
    steps: int  # T, the length that the regime is about
    regime: str  # "vanishing", "exploding" or "near the edge"

    @property
    def verdict(self) -> str:
        """The old name of ``regime``."""
        warn_renamed("Diagnosis.verdict", "Diagnosis.regime")
        return self.regime

    @property
    def time_constant(self) -> float:
        """1 / |λ|: after so many steps a gradient has changed by a factor of e."""
        return 1 / abs(self.exponent) if self.exponent else math.inf

    def __str__(self) -> str:
        if self.exponent == -math.inf:
            return f"{self.regime}: leading Lyapunov exponent -inf, a gradient becomes exactly 0"
        change = self.exponent * self.steps / math.log(10)
        return (
            f"{self.regime}: leading Lyapunov exponent {self.exponent:+.4g} ± {self.sd:.2g} a step, time constant "
            f"{self.time_constant:.4g} steps; over T = {self.steps} steps a gradient changes by a factor of about "
            f"10^{change:.2g}"
        )


@checks_arguments
def diagnose(cell: Cell, params: PyTree, xs: PyTree, carry: PyTree = None, *, burn_in: int | None = None) -> Diagnosis:
    """Whether the gradients of a cell vanish or explode over a sequence, in words.

    The leading Lyapunov exponent λ along the run decides, by the factor exp(λ T) over the whole sequence: below 1/e
    "vanishing", above e "exploding", "near the edge" between them.

    Args:
        cell, params, xs, carry: as for :func:`lyapunov_spectrum`.
        burn_in: steps that are not counted; None is a fifth of them.

    Returns:
        A :class:`Diagnosis`. Not for use inside ``jit``: it holds words.

    Raises:
        as :func:`lyapunov_spectrum`; ValueError: a batch of no sequences; FloatingPointError: a derivative by the state
            that is not finite. TypeError inside ``jit``.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(3, 8)
        >>> params = cell.init(jax.random.key(0))
        >>> shrunk = params._replace(W_hh=0.5 * params.W_hh)
        >>> jr.gradients.diagnose(cell, shrunk, jnp.ones((100, 3))).regime
        'vanishing'

    Reference:
        Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
    """
    T, spectrum = leading_exponents("diagnose", cell, params, xs, carry, burn_in)
    exponents = spectrum.exponents
    alive = exponents[exponents > -jnp.inf]
    if not alive.size:
        return Diagnosis(-math.inf, 0.0, T, "vanishing")
    exponent = float(alive.mean())
    return Diagnosis(exponent, float(alive.std()), T, classify_exponent(exponent, T))


@checks_arguments
def classify_exponent(exponent: float, steps: int) -> str:
    """What a leading Lyapunov exponent means for a gradient over so many steps.

        exp(λ T) < 1/e   "vanishing"        exp(λ T) > e   "exploding"        else   "near the edge"

    Args:
        exponent: λ, natural logarithm per step.
        steps: T.

    Returns:
        One of the three.

    Example:
        >>> import jaxrnn as jr
        >>> jr.gradients.classify_exponent(-0.001, 100), jr.gradients.classify_exponent(-0.001, 10_000)
        ('near the edge', 'vanishing')
    """
    change = exponent * steps
    return "vanishing" if change < -1 else "exploding" if change > 1 else "near the edge"


def check_burn_in(who: str, burn_in: int, T: int) -> None:
    if burn_in >= T:
        raise ValueError(f"{who}: burn_in={burn_in} leaves none of the T = {T} steps; give at most {T - 1}.")


def _directions(size: int, k: int) -> jax.Array:
    """(N, k) orthonormal columns, none of them special to any network: not along its units."""
    rows, columns = jnp.arange(1.0, size + 1)[:, None], jnp.arange(1.0, k + 1)[None]
    return jnp.linalg.qr(jnp.sin(rows * columns * 1.6180339887) + jnp.cos(rows**2 * 0.7548776662 + columns))[0]
