"""``explain``: what the plan of each run over time in a layer does, and what it leaves, and why."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree, flatten
from jaxrnn.planning.constants import constants_from
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.planned_step import PlannedStep


@dataclasses.dataclass
class ScanExplanation:
    """What was done to one run over time; printed, all but the programs.

    Fields:
        who: the run, as ``scan(lstm)``.
        steps: T.
        plan: as it was asked for.
        segments: how many steps each checkpointed segment has, one number a level; () without checkpoints.
        plain_because: what keeps the step in one piece, so that it runs as ``lax.scan`` of it; None where nothing does.
        packed: how the sequences of a ragged batch share lanes; None where they do not.
        not_packed: why not, where the plan asked for it.
        in_parallel: how ``jr.parallel`` runs many steps at once, and why so; None where it does not, or is not there.
        not_in_parallel: why it does not.
        fused: products done as one: how many, and the shape of the operand that they share.
        gates: activations of several gates done as one: how many, and which.
        hoisted: products of the forward pass done for all steps at once, before the loop, by the shapes of their
            operands.
        weights_on_the_left: sums of products that the forward loop computes as ``(Σ Wᵀ xᵀ)ᵀ``, by shape.
        joined: sums of two products of the forward loop that are one product, by the shapes of their operands.
        cut: pieces of weights that are cut once, before the loop, by shape.
        summed: long sums over features that the forward loop computes as products with ones, by shape.
        contracted: products whose weights' gradients are one contraction each, after the backward loop.
        contracted_in_parts: products whose weights' gradients are one contraction for each so many steps, within the
            backward loop.
        contracted_as_one: of the products above, and of those added up in the loop, such whose gradients are one
            contraction, with that of the bias where it says so.
        added_in_loop: products whose weights' gradients the backward loop adds up.
        one_kernel: the loops, "forward" and "backward", that one CPU device runs as one kernel.
        persistent: the loops, "forward" and "backward", that one GPU runs as one kernel, or that are interpreted so.
        not_persistent: those asked for that it does not, with what keeps them out.
        saved: the shapes of what is saved at each step for the backward pass.
        constants: the file of constants by which the plan chose, as ``python -m jaxrnn tune`` writes it; None: it chose
            by the defaults.
        programs: the step after each pass, by the pass's name; the first, "trace", is the step as it was written. They
            are printed one by one: ``print(explanation.programs["hoist"])``. ``jaxrnn/planning/__init__.py`` reads one.
        on_several_devices: whether all of this is about a program for several devices, not for one of them.
    """

    who: str
    steps: int
    plan: str
    segments: tuple[int, ...]
    plain_because: str | None = None
    packed: str | None = None
    not_packed: str | None = None
    in_parallel: str | None = None
    not_in_parallel: str | None = None
    fused: list[str] = dataclasses.field(default_factory=list)
    gates: list[str] = dataclasses.field(default_factory=list)
    hoisted: list[str] = dataclasses.field(default_factory=list)
    weights_on_the_left: list[str] = dataclasses.field(default_factory=list)
    joined: list[str] = dataclasses.field(default_factory=list)
    cut: list[str] = dataclasses.field(default_factory=list)
    summed: list[str] = dataclasses.field(default_factory=list)
    contracted: list[str] = dataclasses.field(default_factory=list)
    contracted_in_parts: list[str] = dataclasses.field(default_factory=list)
    contracted_as_one: list[str] = dataclasses.field(default_factory=list)
    added_in_loop: list[str] = dataclasses.field(default_factory=list)
    one_kernel: list[str] = dataclasses.field(default_factory=list)
    persistent: list[str] = dataclasses.field(default_factory=list)
    not_persistent: list[str] = dataclasses.field(default_factory=list)
    saved: list[str] = dataclasses.field(default_factory=list)
    constants: str | None = None
    programs: dict[str, PlannedStep] = dataclasses.field(default_factory=dict, repr=False)
    on_several_devices: bool = False

    def note(self, entries: Mapping[str, Sequence[str]]) -> None:
        """Fill in fields, by their names."""
        for name, found in entries.items():
            setattr(self, name, list(found))

    def __str__(self) -> str:
        where = ", over several devices" if self.on_several_devices else ""
        lines = [f"{self.who}, {self.steps} steps: plan {self.plan}{where}"]
        if self.plain_because:
            lines.append(f"  runs as lax.scan of the step, because of {self.plain_because}")
        if self.packed:
            lines.append(f"  packed: {self.packed}")
        if self.not_packed:
            lines.append(f"  not packed, because of {self.not_packed}")
        if self.in_parallel:
            lines.append(f"  in parallel: {self.in_parallel}")
        if self.not_in_parallel:
            lines.append(f"  not in parallel: {self.not_in_parallel}")
        if self.segments:
            lines.append(
                "  checkpointed in segments of " + ", each of segments of ".join(map(str, self.segments)) + " steps"
            )
        for title, entries in (
            ("products done as one", self.fused),
            ("activations of gates done as one", self.gates),
            ("before the loop", self.hoisted),
            ("sums with the weights on the left", self.weights_on_the_left),
            ("sums of two products done as one", self.joined),
            ("cut from larger weights once", self.cut),
            ("sums as products with ones", self.summed),
            ("contracted after the backward loop", self.contracted),
            ("contracted within the backward loop", self.contracted_in_parts),
            ("contracted as one product", self.contracted_as_one),
            ("added up in the backward loop", self.added_in_loop),
            ("loops that are one kernel", self.one_kernel),
            ("loops that are one kernel of a GPU", self.persistent),
            ("loops that are no kernel of a GPU", self.not_persistent),
            ("saved at each step for the backward loop", self.saved),
        ):
            if entries:
                lines.append(f"  {title}: " + ", ".join(entries))
        if self.constants and not self.plain_because:
            lines.append(f"  constants: {self.constants}")
        return "\n".join(lines)


class Explanation(NamedTuple):
    """What ``explain`` found: one entry for each run over time, in the order of the layers."""

    scans: tuple[ScanExplanation, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.scans))


_collected: contextvars.ContextVar[list[ScanExplanation] | None] = contextvars.ContextVar("collected", default=None)
_over_several: contextvars.ContextVar[bool] = contextvars.ContextVar("over_several", default=False)


def start_explanation(who: str, steps: int, plan: Plan | str, segments: tuple[int, ...]) -> ScanExplanation:
    """The explanation of a run that is about to be traced; inside ``explain`` it is one of those that it returns."""
    chosen_by = None if plan == "plain" else constants_from()
    made = ScanExplanation(who, steps, str(plan), segments, constants=chosen_by)
    made.on_several_devices = _over_several.get()
    if (collected := _collected.get()) is not None:
        collected.append(made)
    return made


@contextlib.contextmanager
def _collecting(over_several: bool) -> Iterator[list[ScanExplanation]]:
    collected: list[ScanExplanation] = []
    tokens = _collected.set(collected), _over_several.set(over_several)
    try:
        yield collected
    finally:
        _collected.reset(tokens[0])
        _over_several.reset(tokens[1])


@checks_arguments
def explain(layer: Layer, params: PyTree, xs: PyTree, carry: PyTree = None, **options: Any) -> Explanation:
    """What the plan of each run over time in a layer does for these shapes, and what it leaves, and why.

    Nothing is computed: the forward run and its derivative by parameters, inputs and carry are traced.

    Args:
        layer: a Layer.
        params, xs, carry, options: as for ``layer.apply``; arrays, or shapes (``jax.ShapeDtypeStruct``). Where one of
            them lies on several devices, the program for these is explained, else that for one.

    Returns:
        An Explanation; ``print`` it, or look at ``scans``.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.lstm(3, 5))
        >>> params = layer.init(jax.random.key(0))
        >>> jr.explain(layer, params, jnp.ones((7, 2, 3))).scans[0].saved
        ['(2, 5)', '(2, 5)', '(2, 15)', '(2, 5)']
    """
    if not isinstance(layer, Layer):
        fix = "; lift it with jr.scan." if isinstance(layer, Cell) else "."
        raise TypeError(f"explain: expected a Layer, got {type(layer).__name__}{fix}")
    leaves, treedef = flatten((params, xs, carry))

    def run(leaves):
        params, xs, carry = treedef.unflatten(leaves)
        return layer.apply(params, xs, carry, **options)

    shardings = [getattr(a, "sharding", None) for a in leaves]
    over_several = any(sharding is not None and sharding.num_devices > 1 for sharding in shardings)
    with _collecting(over_several) as scans:
        jax.eval_shape(lambda leaves: jax.vjp(run, leaves)[0], leaves)
    return Explanation(tuple(scans))
