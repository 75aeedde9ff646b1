"""Gradients through time: where they vanish or explode, why, what keeps them; and the dynamics of the state.

gradient_flow, norm_by_lag, bptt_contributions      what arrives at every step, and what every step adds
diagnose, lyapunov_spectrum, classify_exponent      whether gradients vanish or explode
step_jacobian, spectral_radius, log_singular_values the Jacobians of the steps and of their products
find_fixed_points, linear_analysis                  where the state comes to rest, and what happens around there
jacobian_penalty                                    a regulariser that keeps the gradient's norm
agreement                                           how wrong the rules of ``jr.online`` are, beside BPTT
OnlineRule                                          a rule of your own for ``jr.online``
"""

from jaxrnn.gradients.agreements import Agreement, Comparison, agreement
from jaxrnn.gradients.bptt import bptt_contributions
from jaxrnn.gradients.fixed_points import FixedPoints, LinearAnalysis, find_fixed_points, linear_analysis
from jaxrnn.gradients.flow import Flow, StateFlow, gradient_flow, norm_by_lag
from jaxrnn.gradients.jacobians import log_singular_values, spectral_radius, step_jacobian
from jaxrnn.gradients.lyapunov import Diagnosis, LyapunovSpectrum, classify_exponent, diagnose, lyapunov_spectrum
from jaxrnn.gradients.penalty import jacobian_penalty
from jaxrnn.online.rules import OnlineRule

__all__ = [
    "gradient_flow",
    "Flow",
    "StateFlow",
    "norm_by_lag",
    "bptt_contributions",
    "diagnose",
    "Diagnosis",
    "classify_exponent",
    "lyapunov_spectrum",
    "LyapunovSpectrum",
    "step_jacobian",
    "spectral_radius",
    "log_singular_values",
    "find_fixed_points",
    "FixedPoints",
    "linear_analysis",
    "LinearAnalysis",
    "jacobian_penalty",
    "agreement",
    "Agreement",
    "Comparison",
    "OnlineRule",
]
