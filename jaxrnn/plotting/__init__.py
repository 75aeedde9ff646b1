"""Figures: one call each, matplotlib's ``Figure`` returned; ``figure.savefig("a.png")`` writes it, a notebook shows it.

Needs the extra ``jaxrnn[plot]``. No pyplot: no display, no global state.
"""

from jaxrnn.plotting._axes import COLOURS as COLOURS
from jaxrnn.plotting.curves import (
    draw_gradient_norms,
    draw_learning_curves,
    eigenvalues,
    gates,
    gradient_norms,
    learning_curves,
    lyapunov,
    singular_values,
)
from jaxrnn.plotting.rules import agreement
from jaxrnn.plotting.states import fixed_points

__all__ = [
    "learning_curves",
    "draw_learning_curves",
    "gradient_norms",
    "draw_gradient_norms",
    "singular_values",
    "lyapunov",
    "eigenvalues",
    "fixed_points",
    "gates",
    "agreement",
]
