"""RTRL of a step along whose paths not all is differentiated: "layerwise", e-prop and RFLO."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxrnn._base import PyTree
from jaxrnn.online.influence import Influence, sparse_rule
from jaxrnn.online.parts import Member, TracedStep, members_of, traced_step
from jaxrnn.online.problem import Problem, held
from jaxrnn.online.rules import OnlineRule, Start, Step
from jaxrnn.programs.program import Op, needed_for, reached_from
from jaxrnn.programs.tracing import inner_programs

PRODUCTS = ("dot_general", "conv_general_dilated")
SUMS_AND_FACTORS = (  # linear in each of their operands
    *("add", "add_any", "sub", "neg", "mul", "convert_element_type", "reshape", "squeeze", "expand_dims"),
    *("broadcast_in_dim", "transpose", "slice", "split", "concatenate", "pad", "rev", "copy", "real", "imag"),
    *("complex", "conj", "reduce_sum", "stack", "unstack", "optimization_barrier", "reduce_precision", *PRODUCTS),
)
Holds = Callable[[Op, int], bool]

NOTHING_LEFT = {
    "eprop": "all that it carries goes through weights from step to step, and no unit has a memory of its own",
    "rflo": "no carried number keeps a share of itself from step to step by a leak or a gate",
}


def local_rule(rule: str, influence: Callable[[Problem], Influence]) -> OnlineRule:
    """J_t = D̂_t J_{t-1} + Î_t: the derivatives of a step some of whose paths are held.

        "layerwise"   held is what a member of a chain reads of the others
        "eprop"       of D̂_t also what products with weights read of h_{t-1}
        "rflo"        of D̂_t also what enters any function; sums and factors stay: a leak, a forget gate, 1 - z

    A branch or a loop in the step that holds such a product counts as one.
    What is computed within the step from the member's own new carry is never held: h_t = o * tanh(c_t) of an LSTM.
    """
    exact = sparse_rule(None, influence)

    def init(start: Start) -> PyTree:
        return exact.init(start._replace(problem=local_problem(start.problem, rule)))

    def update(step: Step, trace: PyTree) -> PyTree:
        return exact.update(step._replace(problem=local_problem(step.problem, rule)), trace)

    return OnlineRule(init, update, exact.gradient)


def local_problem(problem: Problem, rule: str) -> Problem:
    """The problem with a step of the same values, whose derivatives are those that the rule keeps."""
    traced = traced_step(problem)
    members = members_of(problem, traced)
    ways = []
    for place, member in enumerate(members):
        ops = needed_for(traced.ops, member.new)
        holds = _holds(rule, traced, member)
        if rule in NOTHING_LEFT and not _moved(ops, member.old, holds) & set(member.new):
            which = f"member {place} of the chain" if len(members) > 1 else "this cell"
            raise ValueError(
                f"{problem.who}: rule {rule!r} is not defined for {which}: {NOTHING_LEFT[rule]}; wrap the cell, "
                f"jr.leaky(cell, rate=0.1), or give rule='snap1', or rule='tbptt', window=1."
            )
        ways.append((member, ops, holds))

    def step(params, carry, x, *noise):
        theta, others = problem.params.split(params)
        given = traced.values(theta, carry, others, x, noise[0] if noise else None)
        still = {**given, **{k: held(given[k], carry) for k in (*traced.theta, *traced.old)}}
        new: dict[int, Any] = {}
        for member, ops, holds in ways:
            direct = _values(ops, {**still, **{k: given[k] for k in member.theta}})
            seeds = {k: given[k] for k in member.old}
            carried = _differentiated(ops, direct, seeds, holds)
            new.update((k, carried.get(k, direct[k])) for k in member.new)
        return problem.carry.treedef.unflatten([new[k] for k in traced.new]), ()

    return problem._replace(cell=problem.cell._replace(step=step))


def _values(ops: Iterable[Op], given: Mapping[int, Any]) -> dict[int, Any]:
    values = dict(given)
    for op in ops:
        values.update(zip(op.outputs, op.run(*(values[k] for k in op.inputs)), strict=True))
    return values


def _differentiated(ops: Iterable[Op], still: Mapping[int, Any], seeds: Mapping[int, Any], holds: Holds) -> Any:
    """What depends on the seeds along paths that are not held; all else is read from ``still``, the same values."""
    moved = dict(seeds)
    for op in ops:
        own = [k in moved and not holds(op, i) for i, k in enumerate(op.inputs)]
        if any(own):
            values = [moved[k] if is_own else still[k] for k, is_own in zip(op.inputs, own, strict=True)]
            moved.update(zip(op.outputs, op.run(*values), strict=True))
    return moved


def _moved(ops: Iterable[Op], seeds: Iterable[int], holds: Holds) -> set[int]:
    """The same without values: which numbers these are."""
    moved = set(seeds)
    for op in ops:
        if any(k in moved and not holds(op, i) for i, k in enumerate(op.inputs)):
            moved.update(op.outputs)
    return moved


def _holds(rule: str, step: TracedStep, member: Member) -> Holds:
    """Whether an operation's derivative by its operand of that number is left out of D̂_t."""
    weights = step.weights()
    ready = reached_from(step.ops, set(member.new) - set(step.old))  # computed from the new carry

    def holds(op: Op, place: int) -> bool:
        if rule == "layerwise" or op.inputs[place] in ready:
            return False
        if has_product(op) and any(k in weights for i, k in enumerate(op.inputs) if i != place):
            return True
        return rule == "rflo" and not _is_linear(op, place)

    return holds


def has_product(op: Op) -> bool:
    """A product, or a branch or loop with one in it."""
    todo = inner_programs(op.params)
    while todo:
        for eqn in todo.pop().eqns:
            if eqn.primitive.name in PRODUCTS:
                return True
            todo += inner_programs(eqn.params)
    return op.name in PRODUCTS


def _is_linear(op: Op, place: int) -> bool:
    if op.name == "select_n":
        return place > 0
    if op.name in ("div", "gather", "dynamic_slice"):
        return place == 0
    return op.name in SUMS_AND_FACTORS
