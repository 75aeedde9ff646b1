"""How a traced step is made fast: the plan of a run over time."""

from jaxrnn.planning.explanation import Explanation, ScanExplanation, explain
from jaxrnn.planning.plan import Plan

__all__ = ["Explanation", "Plan", "ScanExplanation", "explain"]
