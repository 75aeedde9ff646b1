"""``explain``: what the plan of each run over time in a layer does, and what it leaves, and why."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jaxrnn._base import Cell, Layer, PyTree, flatten
from jaxrnn.planning.plan import Plan


@dataclasses.dataclass
class ScanExplanation:
    """What was done to one run over time; the entries are filled in as it is traced."""

    who: str
    steps: int
    plan: str
    segments: tuple[int, ...]
    plain_because: str | None = None
    fused: list[str] = dataclasses.field(default_factory=list)
    hoisted: list[str] = dataclasses.field(default_factory=list)
    turned: list[str] = dataclasses.field(default_factory=list)
    contracted: list[str] = dataclasses.field(default_factory=list)
    added_in_loop: list[str] = dataclasses.field(default_factory=list)
    saved: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.who}, {self.steps} steps: plan {self.plan}"]
        if self.plain_because:
            lines.append(f"  runs as lax.scan of the step, because of {self.plain_because}")
        if self.segments:
            lines.append(
                "  checkpointed in segments of " + ", each of segments of ".join(map(str, self.segments)) + " steps"
            )
        for title, entries in (
            ("products done as one", self.fused),
            ("before the loop", self.hoisted),
            ("sums with the weights on the left", self.turned),
            ("contracted after the backward loop", self.contracted),
            ("added up in the backward loop", self.added_in_loop),
            ("saved at each step for the backward loop", self.saved),
        ):
            if entries:
                lines.append(f"  {title}: " + ", ".join(entries))
        return "\n".join(lines)


class Explanation(NamedTuple):
    """What ``explain`` found: one report for each run over time, in the order of the layers."""

    scans: tuple[ScanExplanation, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.scans))


_reports: contextvars.ContextVar[list[ScanExplanation] | None] = contextvars.ContextVar("reports", default=None)


def report(who: str, steps: int, plan: Plan | str, segments: tuple[int, ...]) -> ScanExplanation:
    """A report that ``explain``, if it is listening, will show."""
    made = ScanExplanation(who, steps, str(plan), segments)
    if (listening := _reports.get()) is not None:
        listening.append(made)
    return made


@contextlib.contextmanager
def _listening() -> Iterator[list[ScanExplanation]]:
    reports: list[ScanExplanation] = []
    token = _reports.set(reports)
    try:
        yield reports
    finally:
        _reports.reset(token)


def explain(layer: Layer, params: PyTree, xs: PyTree, carry: PyTree = None, **options: Any) -> Explanation:
    """What the plan of each run over time in a layer does for these shapes, and what it leaves, and why.

    Nothing is computed: the forward run and its derivative by parameters, inputs and carry are traced.

    Args:
        layer: a Layer.
        params, xs, carry, options: as for ``layer.apply``; arrays, or shapes (``jax.ShapeDtypeStruct``).

    Returns:
        An Explanation; ``print`` it, or look at ``scans``.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.lstm(3, 5))
        >>> params = layer.init(jax.random.key(0))
        >>> jr.explain(layer, params, jnp.ones((7, 2, 3))).scans[0].saved
        ['(2, 5)', '(2, 5)', '(2, 5)', '(2, 5)', '(2, 5)', '(2, 5)']
    """
    if not isinstance(layer, Layer):
        fix = "; lift it with jr.scan." if isinstance(layer, Cell) else "."
        raise TypeError(f"explain: expected a Layer, got {type(layer).__name__}{fix}")
    leaves, treedef = flatten((params, xs, carry))

    def run(leaves):
        params, xs, carry = treedef.unflatten(leaves)
        return layer.apply(params, xs, carry, **options)

    with _listening() as reports:
        jax.eval_shape(lambda leaves: jax.vjp(run, leaves)[0], leaves)
    return Explanation(tuple(reports))
